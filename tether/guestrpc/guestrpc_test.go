//go:build linux && amd64

package guestrpc

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"
	"vic/tether/wire"
)

// asGuest names the environment variable that makes of this program one that runs in a VM.
const asGuest = "GUESTRPC_GUEST"

var guests = map[string]func() error{"info": infoGuest, "tools": toolsGuest, "ports": portsGuest}

func TestMain(m *testing.M) {
	if guest := guests[os.Getenv(asGuest)]; guest != nil {
		if err := guest(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// beGuest runs this program as a guest.
func (v *vmx) beGuest(t *testing.T, guest string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// MOVL leaf+0(FP), AX; XORL CX, CX
	cmd := exec.Command(patched(t, self, 0x8b, 0x44, 0x24, 0x08, 0x31, 0xc9))
	cmd.Env = append(os.Environ(), asGuest+"="+guest)
	return v.run(t, cmd)
}

var long = strings.Repeat("0123456789 ", 5500) // longer than what is sent at once

func infoGuest() error {
	if !Present() {
		return errors.New("this is no VMware VM")
	}
	for _, key := range []string{"long", "empty", "three", "none"} {
		v, err := Info("guestinfo." + key)
		fmt.Printf("%s: %d %.10q %v\n", key, len(v), v, err)
	}
	for _, value := range []string{"a b ", long, strings.Repeat("x", maxSend)} {
		fmt.Printf("set %d: %v\n", len(value), SetInfo("guestinfo.set", value))
	}
	values, err := wire.ReadGuestInfo(Info)
	if err != nil {
		return err
	}
	conf, err := wire.ParseConfig(values)
	if err != nil {
		return err
	}
	fmt.Printf("configuration of %s in %d values\n", conf.ID, len(values))
	_, err = Call("nonsense x")
	fmt.Println(err)
	_, err = Call("garbage")
	fmt.Println(err)
	return nil
}

// TestInfo reads and writes guestinfo in all the ways in which a VMX passes messages.
func TestInfo(t *testing.T) {
	const want = `long: 60500 "0123456789" <nil>
empty: 0 "" <nil>
three: 3 "abc" <nil>
none: 0 "" read guestinfo.none: info-get: guestrpc: no value
set 4: <nil>
set 60500: <nil>
set 65536: set guestinfo.set: info-set: guestrpc: message of 65559 bytes, at most 65536 may be sent
configuration of c1 in 2 values
nonsense: guestrpc: refused: "Unknown command"
garbage: guestrpc: reply "what?" is no reply
`
	for name, v := range map[string]*vmx{
		"by words":                  {},
		"at once":                   {bulk: true},
		"by words with checkpoints": {checkpoint: 16001},
		"at once with checkpoints":  {bulk: true, checkpoint: 5},
	} {
		t.Run(name, func(t *testing.T) {
			noise := make([]byte, 12_000)
			rand.NewChaCha8([32]byte{}).Read(noise)
			var err error
			if v.info, err = (&wire.Config{ID: "c1", Args: []string{hex.EncodeToString(noise)}}).GuestInfo(); err != nil {
				t.Fatal(err)
			}
			maps.Copy(v.info, map[string]string{"guestinfo.long": long, "guestinfo.empty": "", "guestinfo.three": "abc"})
			if out := v.beGuest(t, "info"); out != want {
				t.Errorf("got\n%s", out)
			}
			if v.info["guestinfo.set"] != long {
				t.Errorf("set to %.50q", v.info["guestinfo.set"])
			}
			t.Logf("%d exchanges", v.exchanges)
		})
	}
}

func toolsGuest() error {
	if !Present() {
		return errors.New("this is no VMware VM")
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	clocks := 0
	tools := &Tools{
		Diagnose: func(err error) { fmt.Println(err) },
		SetClock: func(now time.Time) error {
			clocks++
			if now.UnixMicro() != vmxSeconds*1e6+vmxMicroseconds {
				return fmt.Errorf("the host's time is %v", now)
			}
			return nil
		},
		Shutdown: func(reboot bool) error {
			if reboot {
				return errors.New("not now")
			}
			cancel()
			return nil
		},
	}
	if err := tools.Report(sampleGuest()); err != nil {
		return err
	}
	tools.Run(ctx)
	fmt.Println("clock set", clocks)
	return nil
}

func sampleGuest() Guest {
	return Guest{Hostname: "web", NICs: []NIC{
		{MAC: net.HardwareAddr{0, 0x50, 0x56, 1, 2, 3}, Addresses: []netip.Prefix{netip.MustParsePrefix("fe80::1/64"), netip.MustParsePrefix("172.18.0.2/16")}},
		{MAC: net.HardwareAddr{0, 0x50, 0x56, 1, 2, 4}},
	}}
}

// TestTools has a VMX ask a guest for all that there is, and lose it once.
func TestTools(t *testing.T) {
	for _, bulk := range []bool{false, true} {
		t.Run(fmt.Sprint("at once: ", bulk), func(t *testing.T) {
			v := &vmx{bulk: bulk, info: map[string]string{}, orders: []string{
				"reset", "ping", "Capabilities_Register", "Set_Option broadcastIP 1", "Set_Option synctime 0", "\x00", "f\x00",
				"OS_Resume", "", "reset", "OS_Reboot", "OS_Halt\x00"}}
			if out := v.beGuest(t, "tools"); out != "clock set 3\n" { // two channels, a resumption
				t.Errorf("the guest says: %s", out)
			}
			if want := []string{"OK ATR toolbox", "OK ", "OK ", "OK ", "ERROR Unknown or invalid option", "ERROR Unknown Command", "ERROR Unknown Command",
				"OK ", "OK ATR toolbox", "ERROR not now", "OK "}; !slices.Equal(v.answers, want) {
				t.Errorf("answers %q, want %q", v.answers, want)
			}
			nics := "SetGuestInfo  9 " + string(appendNICs(nil, sampleGuest().NICs))
			const loop, name, ip = "vmx.capability.unified_loop toolbox", "SetGuestInfo  1 web", "info-set guestinfo.ip 172.18.0.2"
			if want := []string{nics, name, loop, nics, name, "tools.set.versiontype 2147483647 4", "tools.set.version 2147483647", "tools.capability.statechange ",
				nics, name, ip, "tools.os.statechange.status 1 4", loop, nics, name, ip, "tools.os.statechange.status 0 2", "tools.os.statechange.status 1 1",
			}; !slices.Equal(v.heard, want) {
				t.Errorf("the VMX heard %q, want %q", v.heard, want)
			}
			if len(v.orders) > 0 {
				t.Errorf("orders left: %q", v.orders)
			}
		})
	}
}

// TestRPCTool has VMware's own client speak with the vmx of these tests, so that it is one.
func TestRPCTool(t *testing.T) {
	tool := oracle.Find(t, "vmware-rpctool")
	for _, bulk := range []bool{false, true} {
		v := &vmx{bulk: bulk, info: map[string]string{"guestinfo.long": long}}
		if out := v.run(t, exec.Command(patched(t, tool), "info-get guestinfo.long")); out != long+"\n" {
			t.Errorf("at once: %v: got %d bytes, %.100q", bulk, len(out), out)
		}
		v.run(t, exec.Command(patched(t, tool), "info-set guestinfo.set "+long))
		if got := v.info["guestinfo.set"]; got != long {
			t.Errorf("at once: %v: set to %d bytes", bulk, len(got))
		}
	}
}

// portsGuest asks QEMU's vmport device, which is no VMware but takes the same INs, and has no messages.
func portsGuest() error {
	const getVersion, other = 10, 0x12345678
	fmt.Println("VMware:", Present())
	return withPorts(func() error {
		r := registers{ax: magic, bx: other, cx: getVersion, dx: port}
		in(&r)
		fmt.Printf("answers: %v\n", r.bx == magic && r.ax != 1<<32-1)
		_, err := open(rpci)
		fmt.Println(err)
		p := make([]byte, 100)
		bulk := registers{ax: magic, bx: uint32(statusDone) << 16, cx: uint32(len(p)), dx: bulkPort}
		outBytes(&bulk, &p[0])
		bulk = registers{ax: magic, bx: uint32(statusDone) << 16, cx: uint32(len(p)), dx: bulkPort}
		inBytes(&bulk, &p[0])
		fmt.Println("took bytes:", p[99] != 0)
		return nil
	})
}

// TestNotVMware looks at this machine as it is.
func TestNotVMware(t *testing.T) {
	vendor, err := os.ReadFile("/sys/class/dmi/id/sys_vendor")
	if err != nil {
		t.Skip(err)
	}
	if got, want := Present(), strings.HasPrefix(string(vendor), "VMware"); got != want {
		t.Errorf("a machine of %q is VMware's: %v", vendor, got)
	}
}

// TestNICs compares with what vmtoolsd 12.2 sends of such interfaces, but for routes and DNS.
func TestNICs(t *testing.T) {
	const want = "00000003" + "00000001" + "00000002" +
		"00000011" + "30303a35303a35363a30313a30323a3033000000" + // 00:50:56:01:02:03
		"00000002" +
		"00000002" + "00000010" + "fe800000000000000000000000000001" + "00000040" + "00000000" + "00000001" + "00000001" +
		"00000001" + "00000004" + "ac120002" + "00000010" + "00000000" + "00000001" + "00000001" +
		"00000000" + "00000000" + "00000000" + "00000000" +
		"00000011" + "30303a35303a35363a30313a30323a3034000000" + "00000000" + "00000000" + "00000000" + "00000000" + "00000000" +
		"00000000" + "00000000" + "00000000" + "00000000" + "00000000"
	if got := hex.EncodeToString(appendNICs(nil, sampleGuest().NICs)); got != want {
		t.Errorf("got\n%s, want\n%s", got, want)
	}
	many := make([]NIC, 20)
	for i := range many {
		many[i].Addresses = slices.Repeat([]netip.Prefix{netip.MustParsePrefix("fd00::1/64")}, 100)
	}
	if got := len(setGuestInfo(infoNICs, string(appendNICs(nil, many)))); got > maxSend {
		t.Errorf("all that can be told takes %d bytes", got)
	}
}

func TestFirst(t *testing.T) {
	p := netip.MustParsePrefix
	for _, x := range []struct {
		name  string
		addrs [][]netip.Prefix
		want  string
	}{
		{"none", nil, "invalid IP"},
		{"IPv4 before IPv6", [][]netip.Prefix{{p("fd00::1/64")}, {p("10.0.0.1/8")}}, "10.0.0.1"},
		{"IPv6 alone", [][]netip.Prefix{{p("fe80::1/64"), p("fd00::1/64")}}, "fd00::1"},
		{"none for others", [][]netip.Prefix{{p("fe80::1/64")}}, "invalid IP"},
	} {
		t.Run(x.name, func(t *testing.T) {
			var g Guest
			for _, a := range x.addrs {
				g.NICs = append(g.NICs, NIC{Addresses: a})
			}
			if got := g.first().String(); got != x.want {
				t.Errorf("got %s, want %s", got, x.want)
			}
		})
	}
}

func FuzzReply(f *testing.F) {
	for _, s := range []string{"1 value", "0 No value found", "0 Unknown command\x00", "", "1", "2 x"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		result, err := parseReply(b)
		if (err == nil) != strings.HasPrefix(string(b), "1 ") || err == nil && "1 "+result != string(b) {
			t.Errorf("%q: %q, %v", b, result, err)
		}
	})
}

func FuzzOrder(f *testing.F) {
	for _, s := range []string{"reset", "OS_Halt\x00", "Set_Option broadcastIP 1", "", " ", "a  b"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		name, args := parseOrder(b)
		if strings.Contains(name, " ") || len(name)+len(args) > len(b) {
			t.Errorf("%q: %q, %q", b, name, args)
		}
	})
}
