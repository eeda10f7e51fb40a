//go:build linux

package tether

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"vic/tether/wire"
)

// TestSockets looks for a connection of its own in the kernel's tables.
func TestSockets(t *testing.T) {
	t.Chdir("/proc") // where the tether is
	for _, host := range []string{"127.0.0.1", "[::1]"} {
		l, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Log(err) // no IPv6
			continue
		}
		defer l.Close()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		all, err := sockets()
		if err != nil {
			t.Fatal(err)
		}
		want := wire.Socket{Local: netip.MustParseAddrPort(c.LocalAddr().String()), Remote: netip.MustParseAddrPort(c.RemoteAddr().String())}
		if !slices.Contains(all, want) {
			t.Errorf("%v is not among %v", want, all)
		}
	}
}

func FuzzSockets(f *testing.F) {
	f.Add("  sl  local_address rem_address   st\n   0: 0100007F:1F90 0200007F:0050 01 00000000:00000000\n   1: 00000000:1F90 00000000:0000 0A\n")
	f.Add("h\n 0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000001000000:0050 01\n")
	f.Add("h\n 0: 1:2 3:4 01\n")
	f.Fuzz(func(t *testing.T, text string) {
		all, err := parseSockets(strings.NewReader(text), nil)
		if err == nil && (len(all) > wire.MaxSockets || len(all) > strings.Count(text, "\n")+1) {
			t.Errorf("%d connections", len(all))
		}
		for _, s := range all {
			if !s.Local.IsValid() || !s.Remote.IsValid() {
				t.Errorf("connection %v", s)
			}
		}
	})
}
