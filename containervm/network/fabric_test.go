package network

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vic/containervm"
)

// refused dials and wants that it comes to nothing.
func refused(t *testing.T, g *guest, to netip.AddrPort) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond) // what is dropped is not answered
	defer cancel()
	if c, err := g.dial(ctx, to); err == nil {
		c.Close()
		t.Errorf("%s is reached from %s", to, g.ip)
	}
}

// TestIsolation has guests of two networks, one of them internal, and the host's own services as targets.
func TestIsolation(t *testing.T) {
	f := fabric(t, Options{HostGateway: netip.MustParseAddr("127.0.0.1")})
	a := openOn(t, f, containervm.NetworkConfig{Name: "a", Subnet: netip.MustParsePrefix("172.30.0.0/24")})
	b := openOn(t, f, containervm.NetworkConfig{Name: "b", Subnet: netip.MustParsePrefix("172.30.1.0/24"), Internal: true})
	ea, eb := join(t, a, containervm.JoinOptions{Container: "a", Names: []string{"one"}}), join(t, b, containervm.JoinOptions{Container: "b", Names: []string{"two"}})
	other := join(t, b, containervm.JoinOptions{Container: "c", Names: []string{"three"}})
	ga, gb, gc := boot(t, ea), boot(t, eb), boot(t, other)
	for _, g := range []*guest{ga, gb, gc} {
		echo(t, g.listen(7))
	}
	c, err := gb.dial(t.Context(), netip.AddrPortFrom(other.ip, 7))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 1000)
	refused(t, ga, netip.AddrPortFrom(eb.ip, 7))
	refused(t, gb, netip.AddrPortFrom(ea.ip, 7))
	// The same with the other's hardware address known: there is no wire to it.
	ga.stack.AddStaticNeighbor(nicID, ipv4.ProtocolNumber, address(eb.ip), tcpip.LinkAddress(eb.mac[:]))
	refused(t, ga, netip.AddrPortFrom(eb.ip, 7))
	// The host's services, by its gateway and by its address.
	local := hostEcho(t, "127.0.0.1:0")
	outside := hostEcho(t, hostAddr(t).String()+":0")
	refused(t, gb, netip.AddrPortFrom(b.gateway, local.Port()))
	refused(t, gb, outside)
	if c, err = ga.dial(t.Context(), outside); err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 1000)
	// Names stay inside, and those of the outside too.
	for name, rcode := range map[string]int{"three.": dns.RcodeSuccess, "three.b.": dns.RcodeSuccess, "one.": dns.RcodeServerFailure, "outside.example.": dns.RcodeServerFailure} {
		if got := exchange(t, gb, b, "udp", name, dns.TypeA); got.Rcode != rcode {
			t.Errorf("%s gives %s", name, dns.RcodeToString[got.Rcode])
		}
	}
}

// TestSeveralNetworks asks one network's server for names of another that the container is on, and for its links.
func TestSeveralNetworks(t *testing.T) {
	f := fabric(t, Options{})
	a := openOn(t, f, containervm.NetworkConfig{Name: "a", Subnet: netip.MustParsePrefix("172.30.0.0/24")})
	b := openOn(t, f, containervm.NetworkConfig{Name: "b", Subnet: netip.MustParsePrefix("172.30.1.0/24")})
	both := boot(t, join(t, a, containervm.JoinOptions{Container: "both", Links: map[string]string{"DB": "Store"}}))
	second := join(t, b, containervm.JoinOptions{Container: "both"})
	store := join(t, a, containervm.JoinOptions{Container: "s", Names: []string{"store"}})
	far := join(t, b, containervm.JoinOptions{Container: "f", Names: []string{"far"}})
	alone := boot(t, store)
	ask := func(g *guest, name string) string {
		m := exchange(t, g, a, "udp", name, dns.TypeA)
		if len(m.Answer) != 1 {
			return dns.RcodeToString[m.Rcode]
		}
		return m.Answer[0].(*dns.A).A.String()
	}
	for _, c := range []struct {
		g          *guest
		name, want string
	}{
		{both, "store.", store.ip.String()}, {both, "db.", store.ip.String()}, {both, "far.", far.ip.String()}, {both, "far.b.", far.ip.String()},
		{alone, "db.", "SERVFAIL"}, {alone, "far.", "SERVFAIL"},
	} {
		if got := ask(c.g, c.name); got != c.want {
			t.Errorf("%s from %s is %s, want %s", c.name, c.g.ip, got, c.want)
		}
	}
	if err := second.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ask(both, "far."); got != "SERVFAIL" {
		t.Errorf("name of a network that was left is %s", got)
	}
}

// TestNothingIsLeft has networks and endpoints come and go, some with listeners and a connection of QEMU's.
func TestNothingIsLeft(t *testing.T) {
	f := fabric(t, Options{})
	round := func(i int) {
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, byte(i), 0}), 24)
		n, err := f.Open(containervm.NetworkConfig{Name: fmt.Sprint(i), Subnet: subnet, Gateway: subnet.Addr().Next()})
		if err != nil {
			t.Fatal(err)
		}
		for k := range 3 {
			e, err := n.Join(containervm.JoinOptions{Container: fmt.Sprint(k)})
			if err != nil {
				t.Fatal(err)
			}
			if err := e.Publish([]containervm.PortBinding{{Port: 7}, {Port: 8, Proto: "udp"}}); err != nil {
				t.Fatal(err)
			}
			if k == 0 {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
	}
	round(0)
	before := settled()
	for i := range 200 {
		round(i)
	}
	if after := settled(); after > before+2 {
		buf := make([]byte, 1<<16)
		t.Errorf("%d goroutines, %d before\n%s", after, before, buf[:runtime.Stack(buf, true)])
	}
	if len(f.networks)+len(f.places) != 0 {
		t.Errorf("%d networks and %d containers are left", len(f.networks), len(f.places))
	}
}

// settled is the number of goroutines when it no longer falls.
func settled() int {
	var seen []int
	for {
		seen = append(seen, runtime.NumGoroutine())
		if k := len(seen); k >= 5 && seen[k-1] == slices.Min(seen[k-5:]) && seen[k-5] == seen[k-1] {
			return seen[k-1]
		}
		time.Sleep(20 * time.Millisecond)
	}
}
