package network

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// maxConns and maxFlows bound the TCP connections and the UDP flows of a guest, in and out. A connection
	// too many is refused, a flow too many ends the one that was idle longest.
	maxConns = 1024
	maxFlows = 256
	// maxHandshakes of all guests; each is also one of its guest's maxConns.
	maxHandshakes = 1 << 16

	dialTimeout = 30 * time.Second
	flowTimeout = 60 * time.Second // since its last datagram
)

// target is where on the host's side a guest's traffic to dst goes, if anywhere.
func (n *Network) target(dst netip.AddrPort) (netip.AddrPort, bool) {
	a := dst.Addr().Unmap()
	switch {
	case n.conf.Internal:
		return dst, false
	case n.ours(a):
		return netip.AddrPortFrom(n.f.o.HostGateway, dst.Port()), n.f.o.HostGateway.IsValid()
	case a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsInterfaceLocalMulticast() ||
		a.Is4() && a.As4() == [4]byte{255, 255, 255, 255} || n.f.owns(a):
		return dst, false
	}
	return netip.AddrPortFrom(a, dst.Port()), true
}

// connectTCP carries out a guest's wish to connect. The stack calls it in a goroutine of its own, in which
// a guest may leave a handshake unfinished for a minute.
func (n *Network) connectTCP(r *tcp.ForwarderRequest) {
	id := r.ID()
	from := addrPort(id.RemoteAddress, id.RemotePort)
	to, ok := n.target(addrPort(id.LocalAddress, id.LocalPort))
	e := n.endpointOf(from.Addr())
	if !ok || e == nil {
		r.Complete(true)
		return
	}
	p, ok := e.conns.reserve()
	if !ok {
		r.Complete(true)
		return
	}
	in, out, err := connect(p.ctx, r, to)
	if err != nil {
		e.conns.release(p)
		return
	}
	splice := func() {
		p.splice(in, out)
		e.conns.release(p)
	}
	if !e.start(splice) {
		p.stop()
		splice()
	}
}

// connect dials first, so that the guest is refused if the host is.
func connect(ctx context.Context, r *tcp.ForwarderRequest, to netip.AddrPort) (in, out duplex, err error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		r.Complete(true)
		return nil, nil, err
	}
	var wq waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&wq)
	if tcpErr != nil {
		r.Complete(true)
		return nil, nil, errors.Join(errors.New(tcpErr.String()), c.Close())
	}
	r.Complete(false)
	return gonet.NewTCPConn(&wq, ep), c.(*net.TCPConn), nil
}

// connectUDP carries a guest's new flow. The stack waits for it.
func (n *Network) connectUDP(r *udp.ForwarderRequest) {
	id := r.ID()
	from := addrPort(id.RemoteAddress, id.RemotePort)
	to, ok := n.target(addrPort(id.LocalAddress, id.LocalPort))
	e := n.endpointOf(from.Addr())
	if !ok || e == nil {
		return
	}
	var wq waiter.Queue
	ep, tcpErr := r.CreateEndpoint(&wq)
	if tcpErr != nil {
		return // the datagram is lost, as datagrams are
	}
	in := gonet.NewUDPConn(&wq, ep)
	if !e.start(func() { e.relay(in, to) }) {
		_ = in.Close()
	}
}

func (e *Endpoint) relay(in net.Conn, to netip.AddrPort) {
	out, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		_ = in.Close()
		return
	}
	e.flows.relay(in, out)
}
