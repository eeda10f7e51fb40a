package appliance

import (
	"encoding/json"
	"errors"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"vic/tether/wire"
)

var errNone = errors.New("none")

func from(vm map[string]string) func(string) (string, error) {
	return func(key string) (string, error) {
		v, ok := vm[key]
		if !ok {
			return "", errNone
		}
		return v, nil
	}
}

func sample() *Config {
	return &Config{
		Version: "v1", Name: "VCH 1", Hostname: "vch1", Args: []string{"--driver", "vsphere", "--name", "VCH 1"}, Env: []string{"HTTPS_PROXY=http://proxy:3128"},
		NICs: []NIC{
			{NIC: wire.NIC{Name: "client", MAC: "00:50:56:00:00:01", DHCP: true}},
			{NIC: wire.NIC{Name: "management", MAC: "00:50:56:00:00:02", Addresses: []netip.Prefix{netip.MustParsePrefix("10.1.0.5/24")}},
				Routes: []Route{{To: netip.MustParsePrefix("10.0.0.0/8"), Via: netip.MustParseAddr("10.1.0.1")}}},
			{NIC: wire.NIC{Name: "bridge", MAC: "00:50:56:00:00:03"}},
		},
		DNS:     wire.DNS{Servers: []netip.Addr{netip.MustParseAddr("10.1.0.2")}, Search: []string{"example.org"}},
		Files:   []File{{"/etc/vic/ca.pem", []byte("a CA")}, {"/etc/ssl/certs/registry.pem", []byte("another")}},
		Syslog:  "tcp://logs.example.org",
		Secrets: []File{{"/etc/vic/password", []byte("correct horse battery staple")}, {"/etc/vic/tls/key.pem", []byte("a key")}},
	}
}

func TestConfig(t *testing.T) {
	k, c := NewKey(), sample()
	vm, err := c.GuestInfo(k)
	if err != nil {
		t.Fatal(err)
	}
	got, err := ReadSealed(from(vm), k)
	if err != nil || !reflect.DeepEqual(got, c) {
		t.Errorf("got %+v, %v, want %+v", got, err, c)
	}
	open := *c
	open.Secrets = nil
	if got, err := Read(from(vm)); err != nil || !reflect.DeepEqual(got, &open) {
		t.Errorf("without the key: %+v, %v", got, err)
	}
	if _, err := ReadSealed(from(vm), NewKey()); !errors.Is(err, ErrKey) {
		t.Errorf("by another key: %v", err)
	}
	if _, err := ReadSealed(from(vm), Key{}); !errors.Is(err, errNoKey) {
		t.Errorf("by no key: %v", err)
	}
	if _, err := c.GuestInfo(Key{}); !errors.Is(err, errNoKey) {
		t.Errorf("sealed by no key: %v", err)
	}
	if _, err := Read(from(nil)); !errors.Is(err, errNone) {
		t.Errorf("a VM without a configuration: %v", err)
	}
}

// TestChanged takes no secret along with a configuration that is not the one that it was sealed with.
func TestChanged(t *testing.T) {
	k := NewKey()
	vm, err := sample().GuestInfo(k)
	if err != nil {
		t.Fatal(err)
	}
	s, err := read(from(vm))
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"correct horse", "a key"} {
		if strings.Contains(string(s.Open), secret) || strings.Contains(string(s.Sealed), secret) {
			t.Errorf("%q can be read", secret)
		}
	}
	for _, c := range []struct {
		name   string
		change func(*sealedConfig)
		want   error
	}{
		{"as it was", func(*sealedConfig) {}, nil},
		{"other arguments", func(s *sealedConfig) {
			s.Open = json.RawMessage(strings.Replace(string(s.Open), "vsphere", "vsphera", 1))
		}, ErrKey},
		{"nothing sealed", func(s *sealedConfig) { s.Sealed = nil }, ErrKey},
		{"a flipped bit", func(s *sealedConfig) { s.Sealed[20] ^= 1 }, ErrKey},
		{"cut off", func(s *sealedConfig) { s.Sealed = s.Sealed[:20] }, ErrKey},
	} {
		t.Run(c.name, func(t *testing.T) {
			changed := sealedConfig{append(json.RawMessage(nil), s.Open...), append([]byte(nil), s.Sealed...)}
			c.change(&changed)
			text, err := json.Marshal(changed)
			if err != nil {
				t.Fatal(err)
			}
			values, err := wire.Pack(prefix, text)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := ReadSealed(from(wire.Keyed(InfoKey, values)), k); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Config)
		want   string // "" is none
	}{
		{"whole", func(*Config) {}, ""},
		{"least", func(c *Config) { *c = Config{Name: "vch"} }, ""},
		{"no name", func(c *Config) { c.Name = "" }, "no name of a VCH"},
		{"long host name", func(c *Config) { c.Hostname = strings.Repeat("x", 65) }, "is no host name"},
		{"host name with a space", func(c *Config) { c.Hostname = "a b" }, "is no host name"},
		{"variable", func(c *Config) { c.Env = []string{"X"} }, "not KEY=VALUE"},
		{"interface twice", func(c *Config) { c.NICs[1].Name = "client" }, "no name of an interface"},
		{"interface of a long name", func(c *Config) { c.NICs[1].Name = strings.Repeat("x", 16) }, "no name of an interface"},
		{"loopback", func(c *Config) { c.NICs[1].Name = "lo" }, "no name of an interface"},
		{"MAC", func(c *Config) { c.NICs[1].MAC = "" }, "interface management"},
		{"route of two families", func(c *Config) { c.NICs[1].Routes[0].Via = netip.MustParseAddr("::1") }, "no route"},
		{"file elsewhere", func(c *Config) { c.Files[0].Path = "/bin/vic" }, "is not below"},
		{"file by a detour", func(c *Config) { c.Secrets[0].Path = "/etc/vic/../../bin/vic" }, "is not below"},
		{"file below the roots", func(c *Config) { c.Files[0].Path = "/etc/ssl/certs/a/b" }, "is not below"},
		{"file twice", func(c *Config) { c.Secrets[0].Path = c.Files[0].Path }, "is there twice"},
		{"syslog", func(c *Config) { c.Syslog = "logs.example.org:514" }, "syslog address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			conf := sample()
			c.change(conf)
			_, err := conf.GuestInfo(NewKey())
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestSyslogAddress(t *testing.T) {
	for _, c := range []struct{ syslog, network, address string }{
		{"", "", ""}, {"udp://h", "udp", "h:514"}, {"tcp://h:1514", "tcp", "h:1514"}, {"udp://[fd00::1]", "udp", "[fd00::1]:514"},
	} {
		network, address, err := (&Config{Syslog: c.syslog}).SyslogAddress()
		if err != nil || network != c.network || address != c.address {
			t.Errorf("%q: got %q %q %v", c.syslog, network, address, err)
		}
	}
}

func TestHostName(t *testing.T) {
	for name, want := range map[string]string{"vch": "vch", "VCH 1": "VCH-1", "büro_2": "b-ro-2", strings.Repeat("x", 80): strings.Repeat("x", 64)} {
		if got := (&Config{Name: name}).HostName(); got != want {
			t.Errorf("%q: got %q, want %q", name, got, want)
		}
	}
}

// FuzzRead reads what the VM's extraConfig says. What is taken can be written and read again.
func FuzzRead(f *testing.F) {
	k := Key{1}
	vm, err := sample().GuestInfo(k)
	if err != nil {
		f.Fatal(err)
	}
	s, err := read(from(vm))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte(s.Open))
	f.Add([]byte(`{"name":"x","nics":[]}`))
	f.Fuzz(func(t *testing.T, open []byte) {
		c, err := (&sealedConfig{Open: open}).config()
		if err != nil {
			return
		}
		vm, err := c.GuestInfo(k)
		if err != nil {
			t.Fatal(err)
		}
		first, err := ReadSealed(from(vm), k)
		if err != nil {
			t.Fatal(err)
		}
		again, err := first.GuestInfo(k)
		if err != nil {
			t.Fatal(err)
		}
		second, err := ReadSealed(from(maps.Clone(again)), k)
		if err != nil || !reflect.DeepEqual(first, second) {
			t.Errorf("read %+v, then %+v, %v", first, second, err)
		}
	})
}
