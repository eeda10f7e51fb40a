package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vic/containervm"
)

const patience = 30 * time.Second

// roundTrip sends size random bytes over c to an echo server and wants them back.
func roundTrip(t *testing.T, c net.Conn, size int) {
	t.Helper()
	defer c.Close()
	want := make([]byte, size)
	rand.Read(want)
	c.SetDeadline(time.Now().Add(patience))
	go func() {
		c.Write(want)
		c.(duplex).CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Error(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes came back changed, as %d", len(want), len(got))
	}
}

func hostEcho(t *testing.T, addr string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	echo(t, l)
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// hostAddr is an IPv4 address of the host's that is not a loopback's.
func hostAddr(t testing.TB) netip.Addr {
	t.Helper()
	all, err := hostNetworks()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range all {
		if !p.Addr().IsLoopback() {
			return p.Addr()
		}
	}
	t.Skip("the host has no address but loopback's")
	return netip.Addr{}
}

func TestGuestToGuest(t *testing.T) {
	n := open(t, Options{})
	a, b := join(t, n, containervm.JoinOptions{Container: "a"}), join(t, n, containervm.JoinOptions{Container: "b"})
	ga, gb := boot(t, a), boot(t, b)
	echo(t, gb.listen(7))
	c, err := ga.dial(t.Context(), netip.AddrPortFrom(b.ip, 7))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 1<<20)
}

func TestOutboundTCP(t *testing.T) {
	n := open(t, Options{})
	g := boot(t, join(t, n, containervm.JoinOptions{Container: "a"}))
	host := hostAddr(t)
	server := hostEcho(t, host.String()+":0")
	c, err := g.dial(t.Context(), server)
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 4<<20)

	l, err := net.Listen("tcp", host.String()+":0")
	if err != nil {
		t.Fatal(err)
	}
	shut := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	loopback := hostEcho(t, "127.0.0.1:0")
	for name, to := range map[string]netip.AddrPort{
		"nobody listens":    shut,
		"gateway":           netip.AddrPortFrom(n.gateway, loopback.Port()),
		"no such neighbour": netip.MustParseAddrPort("169.254.169.254:80"),
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if c, err := g.dial(ctx, to); err == nil || ctx.Err() != nil {
			t.Errorf("%s: dial gives %v, %v; want it refused", name, c, err)
		}
		cancel()
	}
}

func TestHostGateway(t *testing.T) {
	n := open(t, Options{HostGateway: netip.MustParseAddr("127.0.0.1")})
	g := boot(t, join(t, n, containervm.JoinOptions{Container: "a"}))
	server := hostEcho(t, "127.0.0.1:0")
	c, err := g.dial(t.Context(), netip.AddrPortFrom(n.gateway, server.Port()))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 1000)
}

func TestOutboundUDP(t *testing.T) {
	n := open(t, Options{HostGateway: netip.MustParseAddr("127.0.0.1")})
	g := boot(t, join(t, n, containervm.JoinOptions{Container: "a"}))
	server, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	c := g.dialUDP(netip.AddrPortFrom(n.gateway, server.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
	for _, size := range []int{1, 1400, 9000} {
		want := make([]byte, size)
		rand.Read(want)
		if _, err := c.Write(want); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1<<16)
		server.SetDeadline(time.Now().Add(patience))
		k, from, err := server.ReadFromUDP(buf)
		if err != nil || !bytes.Equal(buf[:k], want) {
			t.Fatalf("host got %d bytes, %v; want %d", k, err, size)
		}
		if _, err := server.WriteToUDP(want, from); err != nil {
			t.Fatal(err)
		}
		c.SetReadDeadline(time.Now().Add(patience))
		if k, err = c.Read(buf); err != nil || !bytes.Equal(buf[:k], want) {
			t.Fatalf("guest got %d bytes, %v; want %d", k, err, size)
		}
	}
}

func TestPublish(t *testing.T) {
	n := open(t, Options{})
	local := netip.MustParseAddr("127.0.0.1")
	e := published(t, n, []containervm.PortBinding{
		{Port: 7, HostIP: local}, {Proto: "udp", Port: 7, HostIP: local}, {Port: 7},
	})
	g := boot(t, e)
	echo(t, g.listen(7))
	ports := e.Info().Ports
	if len(ports) < 3 {
		t.Fatalf("bound to %v", ports)
	}
	for _, p := range ports {
		if p.Proto != "tcp" {
			continue
		}
		c, err := net.Dial("tcp", netip.AddrPortFrom(p.HostIP, p.HostPort).String())
		if err != nil {
			t.Errorf("%v: %v", p, err)
			continue
		}
		roundTrip(t, c, 1<<20)
	}

	server, err := gonet.DialUDP(g.stack, new(full(g.ip, 7)), nil, ipv4.ProtocolNumber)
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	for i := range 3 { // clients, each with a flow of its own
		c, err := net.Dial("udp", netip.AddrPortFrom(local, ports[1].HostPort).String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		want := fmt.Sprintf("datagram %d", i)
		io.WriteString(c, want)
		buf := make([]byte, 100)
		server.SetReadDeadline(time.Now().Add(patience))
		k, from, err := server.ReadFrom(buf)
		if err != nil || string(buf[:k]) != want {
			t.Fatalf("guest got %q, %v", buf[:k], err)
		}
		server.WriteTo(buf[:k], from)
		c.SetReadDeadline(time.Now().Add(patience))
		if k, err = c.Read(buf); err != nil || string(buf[:k]) != want {
			t.Fatalf("client got %q, %v", buf[:k], err)
		}
	}
}

func TestPortAllocated(t *testing.T) {
	n := open(t, Options{})
	local := netip.MustParseAddr("127.0.0.1")
	e := published(t, n, []containervm.PortBinding{{Port: 7, HostIP: local}})
	taken := e.Info().Ports[0].HostPort
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	other := uint16(free.Addr().(*net.TCPAddr).Port)
	free.Close()
	b := join(t, n, containervm.JoinOptions{Container: "b", Names: []string{"b"}})
	err = b.Publish([]containervm.PortBinding{{Port: 7, HostIP: local, HostPort: other}, {Port: 7, HostPort: taken}})
	want := fmt.Sprintf("Bind for 0.0.0.0:%d failed: port is already allocated", taken)
	if !errors.Is(err, containervm.ErrPortAllocated) || !strings.Contains(err.Error(), want) {
		t.Errorf("error is %v, want %s", err, want)
	}
	// What had been taken before the failure is free again.
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Publish([]containervm.PortBinding{{Port: 7, HostIP: local, HostPort: other}, {Port: 7, HostPort: taken}}); err != nil {
		t.Fatal(err)
	}
	if got := b.Info().Ports[0].HostPort; got != other {
		t.Errorf("bound to %d, want %d", got, other)
	}
	// Of a range the first is taken that is free.
	c := published(t, n, []containervm.PortBinding{{Port: 7, HostIP: local, HostPort: other, HostPortEnd: other + 20}})
	if p := c.Info().Ports[0]; p.HostPort <= other || p.HostPort > other+20 || p.HostPortEnd != 0 {
		t.Errorf("bound to %+v, want one of the 20 after %d", p, other)
	}
}

// published joins with ports.
func published(t *testing.T, n *Network, ports []containervm.PortBinding) *Endpoint {
	t.Helper()
	e := join(t, n, containervm.JoinOptions{})
	if err := e.Publish(ports); err != nil {
		t.Fatal(err)
	}
	return e
}

// TestPublishAgain: ports are published again by what Info says of them, as it is done after a restart.
func TestPublishAgain(t *testing.T) {
	n := open(t, Options{})
	e := published(t, n, []containervm.PortBinding{{Port: 7}, {Port: 8, Proto: "udp"}})
	ports := e.Info().Ports
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	again := published(t, n, ports)
	if got := again.Info().Ports; !slices.Equal(got, ports) {
		t.Errorf("published %v, want %v", got, ports)
	}
}

// TestPausedGuest floods a guest that does not read; its neighbour must not notice.
func TestPausedGuest(t *testing.T) {
	n := open(t, Options{})
	a, b, c := join(t, n, containervm.JoinOptions{Container: "a"}), join(t, n, containervm.JoinOptions{Container: "b"}), join(t, n, containervm.JoinOptions{Container: "c"})
	ga, gb := boot(t, a), boot(t, b)
	plugIn(t, c) // nobody reads
	flood := ga.dialUDP(netip.AddrPortFrom(c.ip, 9))
	ga.stack.AddStaticNeighbor(nicID, ipv4.ProtocolNumber, address(c.ip), tcpip.LinkAddress(c.mac[:]))
	for range 4000 {
		flood.Write(make([]byte, 1400))
	}
	echo(t, gb.listen(7))
	conn, err := ga.dial(t.Context(), netip.AddrPortFrom(b.ip, 7))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, conn, 1<<20)
}

// TestReconnect replaces the connection to QEMU, as a VCH does that comes back.
func TestReconnect(t *testing.T) {
	n := open(t, Options{})
	a, b := join(t, n, containervm.JoinOptions{Container: "a"}), join(t, n, containervm.JoinOptions{Container: "b"})
	ga := boot(t, a)
	gb := boot(t, b)
	awaitServing(b, true)
	gb.conn.Close()
	awaitServing(b, false)
	gb = boot(t, b)
	echo(t, gb.listen(7))
	c, err := ga.dial(t.Context(), netip.AddrPortFrom(b.ip, 7))
	if err != nil {
		t.Fatal(err)
	}
	roundTrip(t, c, 1000)
}

// awaitServing waits until Serve has begun, or has seen the end of its connection.
func awaitServing(e *Endpoint, want bool) {
	for {
		e.mu.Lock()
		serving := e.serving != nil
		e.mu.Unlock()
		if serving == want {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

func TestAddresses(t *testing.T) {
	n := openOn(t, fabric(t, Options{}), containervm.NetworkConfig{Subnet: netip.MustParsePrefix("10.9.8.0/29")})
	if n.gateway != netip.MustParseAddr("10.9.8.1") {
		t.Errorf("gateway is %s", n.gateway)
	}
	var all []*Endpoint
	for i := 2; i <= 6; i++ {
		e := join(t, n, containervm.JoinOptions{})
		if want := fmt.Sprintf("10.9.8.%d", i); e.ip.String() != want {
			t.Errorf("endpoint has %s, want %s", e.ip, want)
		}
		all = append(all, e)
	}
	if _, err := n.Join(containervm.JoinOptions{}); !errors.Is(err, errPoolEmpty) {
		t.Errorf("sixth endpoint: %v", err)
	}
	all[2].Close()
	for _, c := range []struct {
		ip, mac string
		want    error
	}{
		{"10.9.8.1", "", errAddrInUse}, // the gateway's
		{"10.9.8.0", "", errNotInPool},
		{"10.9.8.7", "", errNotInPool},
		{"10.9.9.2", "", errNotInPool},
		{"::1", "", errNotInPool},
		{"10.9.8.2", "", errAddrInUse},
	} {
		if _, err := n.Join(containervm.JoinOptions{IP: netip.MustParseAddr(c.ip), MAC: c.mac}); !errors.Is(err, c.want) {
			t.Errorf("join as %s: %v, want %v", c.ip, err, c.want)
		}
	}
	for _, mac := range []string{"x", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:42:0a:09:08:01", "02:42:0a:09:08:02", "02:00:00:00:00:00:00:01"} {
		if _, err := n.Join(containervm.JoinOptions{MAC: mac}); err == nil {
			t.Errorf("joined as %s", mac)
		}
	}
	e := join(t, n, containervm.JoinOptions{IP: netip.MustParseAddr("10.9.8.4"), MAC: "02:00:00:00:00:07"})
	i := e.Info()
	if i.IP.String() != "10.9.8.4/29" || i.MAC != "02:00:00:00:00:07" || i.Gateway != n.gateway || i.MTU != defaultMTU || i.Network != "net" {
		t.Errorf("info is %+v", i)
	}
}

func TestAddressRange(t *testing.T) {
	n := openOn(t, fabric(t, Options{}), containervm.NetworkConfig{
		Subnet: netip.MustParsePrefix("10.9.0.0/16"), Range: netip.MustParsePrefix("10.9.8.0/30"), Gateway: netip.MustParseAddr("10.9.8.1"),
		Reserved: map[string]netip.Addr{"router": netip.MustParseAddr("10.9.8.2")},
	})
	for _, want := range []string{"10.9.8.0", "10.9.8.3"} {
		if e := join(t, n, containervm.JoinOptions{}); e.ip.String() != want {
			t.Errorf("endpoint has %s, want %s", e.ip, want)
		}
	}
	if _, err := n.Join(containervm.JoinOptions{}); !errors.Is(err, errPoolEmpty) {
		t.Errorf("third endpoint: %v", err)
	}
	if e := join(t, n, containervm.JoinOptions{IP: netip.MustParseAddr("10.9.200.1")}); e.ip.String() != "10.9.200.1" {
		t.Errorf("endpoint has %s", e.ip)
	}
}

func TestChoose(t *testing.T) {
	f := fabric(t, Options{})
	host, err := hostNetworks()
	if err != nil {
		t.Fatal(err)
	}
	var taken []netip.Prefix
	for {
		p, err := f.Choose(taken)
		if err != nil {
			break
		}
		if slices.ContainsFunc(append(taken, host...), p.Overlaps) {
			t.Errorf("chose %s beside %v", p, taken)
		}
		taken = append(taken, p)
	}
	if len(taken) < 20 {
		t.Errorf("chose %d subnets", len(taken))
	}
}

func TestChooseInRange(t *testing.T) {
	for within, want := range map[string]struct {
		width, n    int
		first, last string
	}{
		"10.64.0.0/12":     {0, 16, "10.64.0.0/16", "10.79.0.0/16"},
		"10.64.0.0/11":     {0, 32, "10.64.0.0/16", "10.95.0.0/16"},
		"198.18.7.0/24":    {0, 16, "198.18.7.0/28", "198.18.7.240/28"},
		"198.18.7.64/26":   {0, 8, "198.18.7.64/29", "198.18.7.120/29"},
		"198.18.7.8/29":    {0, 1, "198.18.7.8/29", "198.18.7.8/29"},
		"255.255.255.0/24": {0, 16, "255.255.255.0/28", "255.255.255.240/28"},
		"172.16.0.0/12":    {24, 4096, "172.16.0.0/24", "172.31.255.0/24"},
		"192.0.2.0/24":     {24, 1, "192.0.2.0/24", "192.0.2.0/24"},
	} {
		all := slices.Collect(New(Options{Range: netip.MustParsePrefix(within), Width: want.width}).candidates())
		if len(all) != want.n || all[0].String() != want.first || all[len(all)-1].String() != want.last {
			t.Errorf("%s is divided into %v", within, all)
		}
	}
	for _, within := range []string{"fd00::/8", "10.0.0.0/30"} {
		if p, err := New(Options{Range: netip.MustParsePrefix(within)}).Choose(nil); err == nil || !strings.Contains(err.Error(), within) {
			t.Errorf("of %s chose %s, %v", within, p, err)
		}
	}
}

// exchange asks the gateway's name server from within a guest.
func exchange(t *testing.T, g *guest, n *Network, network, name string, qtype uint16) *dns.Msg {
	t.Helper()
	var c net.Conn
	if network == "udp" {
		c = g.dialUDP(netip.AddrPortFrom(n.gateway, dnsPort))
	} else {
		var err error
		if c, err = g.dial(t.Context(), netip.AddrPortFrom(n.gateway, dnsPort)); err != nil {
			t.Fatal(err)
		}
	}
	defer c.Close()
	q := new(dns.Msg).SetQuestion(name, qtype)
	client := dns.Client{Net: network, Timeout: patience}
	a, _, err := client.ExchangeWithConn(q, &dns.Conn{Conn: c})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestNames(t *testing.T) {
	upstream := upstreamDNS(t)
	resolv := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n := open(t, Options{Resolv: resolv})
	g := boot(t, join(t, n, containervm.JoinOptions{Container: "g", DNS: []netip.Addr{upstream}}))
	web := join(t, n, containervm.JoinOptions{Container: "w", Names: []string{"Web", "0123456789ab", "alias"}})
	second := join(t, n, containervm.JoinOptions{Container: "x", Names: []string{"alias"}})
	reverse := func(a netip.Addr) string {
		s, err := dns.ReverseAddr(a.String())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for _, c := range []struct {
		name  string
		qtype uint16
		rcode int
		want  string // all answers
	}{
		{"web.", dns.TypeA, dns.RcodeSuccess, web.ip.String()},
		{"WEB.", dns.TypeA, dns.RcodeSuccess, web.ip.String()},
		{"0123456789ab.", dns.TypeA, dns.RcodeSuccess, web.ip.String()},
		{"web.", dns.TypeAAAA, dns.RcodeSuccess, ""},
		{"alias.", dns.TypeA, dns.RcodeSuccess, web.ip.String() + " " + second.ip.String()},
		{reverse(web.ip), dns.TypePTR, dns.RcodeSuccess, "Web."},
		{reverse(netip.MustParseAddr("172.30.9.9")), dns.TypePTR, dns.RcodeNameError, ""},
		{"outside.example.", dns.TypeA, dns.RcodeSuccess, "192.0.2.7"},
		{"outside.example.", dns.TypeTXT, dns.RcodeSuccess, strings.Repeat("x", 200)},
		{"nowhere.example.", dns.TypeA, dns.RcodeNameError, ""},
	} {
		for _, network := range []string{"udp", "tcp"} {
			a := exchange(t, g, n, network, c.name, c.qtype)
			var got []string
			for _, rr := range a.Answer {
				got = append(got, strings.Trim(strings.TrimPrefix(rr.String(), rr.Header().String()), `"`))
			}
			if a.Rcode != c.rcode || strings.Join(got, " ") != c.want {
				t.Errorf("%s: %s %s gives %s %q, want %s %q", network, c.name, dns.TypeToString[c.qtype],
					dns.RcodeToString[a.Rcode], got, dns.RcodeToString[c.rcode], c.want)
			}
		}
	}
	if err := web.Rename([]string{"www"}); err != nil {
		t.Fatal(err)
	}
	if a := exchange(t, g, n, "udp", "www.", dns.TypeA); len(a.Answer) != 1 {
		t.Errorf("new name has %d addresses", len(a.Answer))
	}
	web.Close()
	if a := exchange(t, g, n, "udp", "alias.", dns.TypeA); len(a.Answer) != 1 {
		t.Errorf("name has %d addresses after one of two is gone", len(a.Answer))
	}
	if err := web.Rename([]string{"ghost"}); err == nil {
		t.Error("an endpoint that is closed has a new name")
	}
}

// upstreamDNS is a name server at port 53 of an address of the loopback's.
func upstreamDNS(t *testing.T) netip.Addr {
	t.Helper()
	addr := netip.MustParseAddr("127.9.8.7")
	at := netip.AddrPortFrom(addr, dnsPort).String()
	mux := dns.NewServeMux()
	mux.HandleFunc(".", func(w dns.ResponseWriter, q *dns.Msg) {
		a := new(dns.Msg).SetReply(q)
		h := dns.RR_Header{Name: q.Question[0].Name, Rrtype: q.Question[0].Qtype, Class: dns.ClassINET}
		switch {
		case !strings.HasPrefix(h.Name, "outside."):
			a.Rcode = dns.RcodeNameError
		case h.Rrtype == dns.TypeA:
			a.Answer = append(a.Answer, &dns.A{Hdr: h, A: net.IPv4(192, 0, 2, 7)})
		case h.Rrtype == dns.TypeTXT:
			a.Answer = append(a.Answer, &dns.TXT{Hdr: h, Txt: []string{strings.Repeat("x", 200)}})
		}
		w.WriteMsg(a)
	})
	for _, network := range []string{"udp", "tcp"} {
		ready := make(chan error, 1)
		s := &dns.Server{Addr: at, Net: network, Handler: mux, NotifyStartedFunc: func() { ready <- nil }}
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := s.ListenAndServe(); err != nil {
				ready <- err
			}
		}()
		if err := <-ready; err != nil {
			t.Skipf("listen on %s: %v", at, err)
		}
		t.Cleanup(func() {
			s.Shutdown()
			<-done
		})
	}
	return addr
}
