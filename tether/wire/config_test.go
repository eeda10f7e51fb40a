package wire

import (
	"encoding/base64"
	"errors"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func sampleConfig() *Config {
	return &Config{
		ID: "0123456789abcdef", Token: "t0k3n", Hostname: "web", Domain: "example.org",
		Args: []string{"sh", "-c", "echo 'a,b' \"c\"\n\x00\xf0\x9f\x90\xb3 <&>"}, Env: []string{"PATH=/bin", "X=ü"},
		Dir: "/srv", User: "www-data:adm", Groups: []string{"audio", "44"},
		TTY: true, Size: Size{30, 100}, OpenStdin: true, StopSignal: 3,
		Root: Root{Serial: "root", ReadOnly: true},
		Network: Network{
			NICs: []NIC{{Name: "eth3", MAC: "52:54:00:00:00:0a", Addresses: []netip.Prefix{netip.MustParsePrefix("172.18.0.2/16")},
				Gateways: []netip.Addr{netip.MustParseAddr("172.18.0.1")}, MTU: 1400}, {DHCP: true}},
			DNS:   DNS{Servers: []netip.Addr{netip.MustParseAddr("172.18.0.1")}, Search: []string{"vch.internal"}, Options: []string{"ndots:0"}},
			Hosts: []Host{{Addr: netip.MustParseAddr("10.0.0.1"), Names: []string{"db", "db.local"}}},
		},
		Mounts:  []Mount{{Type: "tmpfs", Target: "/run", Options: []string{"size=1m", "mode=755"}}},
		ShmSize: 1 << 20, Sysctls: map[string]string{"net.ipv4.ip_forward": "1", "a": "b"},
		Rlimits: []Rlimit{{Resource: 7, Soft: 1024, Hard: 4096}},
		Seed:    []byte{1, 2, 3}, Time: 1795470499e9,
	}
}

func TestConfig(t *testing.T) {
	big := sampleConfig()
	for i := range 400 {
		big.Env = append(big.Env, base64.StdEncoding.EncodeToString([]byte{byte(i), byte(i * 7)})+strings.Repeat(string(rune('a'+i%26)), 300)+"=x")
	}
	noise := make([]byte, 30_000)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	multi := &Config{ID: "x", Args: []string{"x"}, Seed: noise}
	for _, tt := range []struct {
		name  string
		c     *Config
		parts int
	}{
		{"empty", &Config{}, 1},
		{"all fields", sampleConfig(), 1},
		{"130 KB of environment", big, 1},
		{"several strings", multi, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ss, err := tt.c.Strings()
			if err != nil {
				t.Fatal(err)
			}
			if len(ss) != tt.parts {
				t.Errorf("%d strings, want %d", len(ss), tt.parts)
			}
			again, _ := tt.c.Strings()
			if !slices.Equal(ss, again) {
				t.Error("the same configuration gives other strings")
			}
			for _, s := range ss {
				if strings.ContainsAny(s, "\x00\n") || len(s) > maxString+32 {
					t.Errorf("string of %d bytes is not fit for SMBIOS", len(s))
				}
			}
			slices.Reverse(ss)
			got, err := ParseConfig(append([]string{"somebody else's", ""}, ss...))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, tt.c) {
				t.Errorf("got %+v, want %+v", got, tt.c)
			}
		})
	}
}

func TestConfigTooLarge(t *testing.T) {
	noise := make([]byte, 50_000)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	if _, err := (&Config{Seed: noise}).Strings(); !errors.Is(err, ErrConfigTooLarge) {
		t.Errorf("random: %v", err)
	}
	if _, err := (&Config{Args: []string{strings.Repeat("x", maxConfig)}}).Strings(); !errors.Is(err, ErrConfigTooLarge) {
		t.Errorf("long: %v", err)
	}
}

func TestParseConfigErrors(t *testing.T) {
	for _, tt := range []struct {
		name, want string
		ss         []string
	}{
		{"none", "no configuration", []string{"x"}},
		{"place", "place", []string{"vic1:1/1:x"}},
		{"no place", "place", []string{"vic1:x"}},
		{"negative", "place", []string{"vic1:-1/1:x"}},
		{"huge", "place", []string{"vic1:0/100000000:x"}},
		{"missing", "1 of 2", []string{"vic1:0/2:x"}},
		{"twice", "twice", []string{"vic1:0/2:x", "vic1:0/2:x"}},
		{"two counts", "parts", []string{"vic1:0/2:x", "vic1:1/3:x"}},
		{"empty", "empty", []string{"vic1:0/1:"}},
		{"base64", "decode", []string{"vic1:0/1:?"}},
		{"deflate", "inflate", []string{"vic1:0/1:AAAA"}},
		{"JSON", "parse", []string{"vic1:0/1:AQAA//8="}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := ParseConfig(tt.ss); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestParseOEMStrings(t *testing.T) {
	for _, tt := range []struct {
		name, raw string
		want      []string
		ok        bool
	}{
		{"two", "\x0b\x05\x01\x00\x02one\x00two\x00\x00", []string{"one", "two"}, true},
		{"none", "\x0b\x05\x01\x00\x00\x00\x00", nil, true},
		{"other type", "\x01\x05\x01\x00\x02one\x00two\x00\x00", nil, false},
		{"cut short", "\x0b\x05\x01\x00\x02one\x00tw", nil, false},
		{"long header", "\x0b\x85\x01\x00\x02one\x00two\x00\x00", nil, false},
		{"empty", "", nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ParseOEMStrings([]byte(tt.raw))
			if !slices.Equal(got, tt.want) && tt.ok || (err == nil) != tt.ok {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
}

func FuzzConfig(f *testing.F) {
	ss, err := sampleConfig().Strings()
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x0b\x05\x01\x00\x01" + ss[0] + "\x00\x00"))
	f.Add([]byte("\x0b\x05\x01\x00\x02one\x00vic1:0/1:AQAA//8=\x00\x00"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		oem, err := ParseOEMStrings(raw)
		if err != nil {
			return
		}
		c, err := ParseConfig(oem)
		if err != nil {
			return
		}
		again, err := c.Strings()
		if err != nil {
			t.Skip() // Go's JSON may read more compactly written text than it writes
		}
		back, err := ParseConfig(again)
		if err != nil {
			t.Fatal(err)
		}
		if third, err := back.Strings(); err != nil || !slices.Equal(third, again) {
			t.Errorf("read %+v, wrote and read %+v, %v", c, back, err)
		}
	})
}
