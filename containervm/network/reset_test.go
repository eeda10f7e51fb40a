package network

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"vic/containervm"
)

// TestReset makes a gateway forget connections, as it does when the VCH ends, and has it reset them; one that it knows and one
// between guests live on.
func TestReset(t *testing.T) {
	f := fabric(t, Options{})
	conf := containervm.NetworkConfig{Subnet: netip.MustParsePrefix("172.30.0.0/24"), Gateway: netip.MustParseAddr("172.30.0.1")}
	first, err := f.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	e, err := first.(*Network).join(containervm.JoinOptions{Container: "a"})
	if err != nil {
		t.Fatal(err)
	}
	g := boot(t, e)
	host := hostAddr(t)
	server := hostEcho(t, host.String()+":0")
	lost, err := g.dial(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Close()
	if _, err := lost.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := lost.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// The VCH is killed: nothing says goodbye.
	e.mu.Lock()
	e.serving.Close()
	e.mu.Unlock()
	awaitServing(e, false)
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	n := openOn(t, f, conf)
	again := join(t, n, containervm.JoinOptions{Container: "a", IP: e.ip})
	other := boot(t, join(t, n, containervm.JoinOptions{Container: "b"}))
	g.rewire(plugIn(t, again))
	echo(t, other.listen(7))
	var kept []net.Conn
	sockets := []containervm.Socket{socketOf(lost)}
	for _, to := range []netip.AddrPort{server, netip.AddrPortFrom(other.ip, 7)} {
		c, err := g.dial(t.Context(), to)
		if err != nil {
			t.Fatal(err)
		}
		kept = append(kept, c)
		sockets = append(sockets, socketOf(c))
	}
	sockets = append(sockets, containervm.Socket{}, containervm.Socket{Local: netip.AddrPortFrom(other.ip, 7), Remote: server},
		containervm.Socket{Local: netip.AddrPortFrom(e.ip, 7), Remote: netip.MustParseAddrPort("[fd00::1]:7")})
	if err := again.Reset(t.Context(), sockets); err != nil {
		t.Fatal(err)
	}
	lost.SetDeadline(time.Now().Add(patience))
	if _, err := lost.Read(make([]byte, 1)); err == nil || err.(net.Error).Timeout() {
		t.Errorf("read from a lost connection: %v, want that it was reset", err)
	}
	for _, c := range kept {
		roundTrip(t, c, 1000)
	}
}

func socketOf(c net.Conn) containervm.Socket {
	return containervm.Socket{Local: netip.MustParseAddrPort(c.LocalAddr().String()), Remote: netip.MustParseAddrPort(c.RemoteAddr().String())}
}
