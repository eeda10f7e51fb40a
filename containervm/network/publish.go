package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vic/containervm"
)

// publish listens on the host's ports, all or (with e.Close) none.
func (e *Endpoint) publish(ports []containervm.PortBinding) error {
	for _, p := range ports {
		var bound []containervm.PortBinding
		var err error
		switch p.Proto {
		case "", "tcp":
			bound, err = e.publishTCP(p)
		case "udp":
			bound, err = e.publishUDP(p)
		default:
			err = fmt.Errorf("network: publish a port of protocol %q", p.Proto)
		}
		if err != nil {
			return err
		}
		e.mu.Lock()
		e.ports = append(e.ports, bound...)
		e.mu.Unlock()
	}
	return nil
}

// bindError gives an error docker's words.
func bindError(p containervm.PortBinding, err error) error {
	host := p.HostIP
	if !host.IsValid() {
		host = netip.IPv4Unspecified()
	}
	at := netip.AddrPortFrom(host, p.HostPort)
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("Bind for %s failed: %w", at, containervm.ErrPortAllocated)
	}
	return fmt.Errorf("Bind for %s failed: %w", at, err)
}

// listenAddr is all addresses, of both versions of IP where the host has them, if p does not say which.
// [::] is none of version 4, so that it can be bound beside 0.0.0.0.
func listenAddr(proto string, p containervm.PortBinding) (network, addr string) {
	switch {
	case !p.HostIP.IsValid():
		return proto, fmt.Sprintf(":%d", p.HostPort)
	case p.HostIP.Is4():
		network = proto + "4"
	default:
		network = proto + "6"
	}
	return network, netip.AddrPortFrom(p.HostIP, p.HostPort).String()
}

// boundTo is p as it came to be bound at addr.
func boundTo(p containervm.PortBinding, proto string, addr netip.AddrPort) []containervm.PortBinding {
	p.Proto, p.HostPort = proto, addr.Port()
	if p.HostIP.IsValid() {
		return []containervm.PortBinding{p}
	}
	p.HostIP = netip.IPv4Unspecified()
	if !addr.Addr().Is6() {
		return []containervm.PortBinding{p}
	}
	p6 := p
	p6.HostIP = netip.IPv6Unspecified()
	return []containervm.PortBinding{p, p6}
}

func (e *Endpoint) publishTCP(p containervm.PortBinding) ([]containervm.PortBinding, error) {
	l, err := net.Listen(listenAddr("tcp", p))
	if err != nil {
		return nil, bindError(p, err)
	}
	if !e.keep(l, func() { e.acceptTCP(l, p.Port) }) {
		return nil, errors.Join(errClosed, l.Close())
	}
	return boundTo(p, "tcp", l.Addr().(*net.TCPAddr).AddrPort()), nil
}

// keep runs fn, which ends when c is closed, as Close will do.
func (e *Endpoint) keep(c interface{ Close() error }, fn func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.done {
		return false
	}
	e.closers = append(e.closers, c)
	e.wg.Go(fn)
	return true
}

func (e *Endpoint) acceptTCP(l net.Listener, port uint16) {
	for {
		c, err := l.Accept()
		if err != nil {
			select {
			case <-e.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, most likely
				continue
			}
		}
		if !e.start(func() { e.accepted(c.(*net.TCPConn), port) }) {
			_ = c.Close()
		}
	}
}

func (e *Endpoint) accepted(c *net.TCPConn, port uint16) {
	p, ok := e.conns.reserve()
	if !ok {
		_ = c.Close()
		return
	}
	defer e.conns.release(p)
	ctx, cancel := context.WithTimeout(p.ctx, dialTimeout)
	defer cancel()
	in, err := gonet.DialContextTCP(ctx, e.n.link.stack, full(e.ip, port), ipv4.ProtocolNumber)
	if err != nil {
		_ = c.SetLinger(0) // refuse, as far as that can still be done
		_ = c.Close()
		return
	}
	p.splice(in, c)
}

func (e *Endpoint) publishUDP(p containervm.PortBinding) ([]containervm.PortBinding, error) {
	pc, err := net.ListenPacket(listenAddr("udp", p))
	if err != nil {
		return nil, bindError(p, err)
	}
	l := pc.(*net.UDPConn)
	if !e.keep(l, func() { e.acceptUDP(l, p.Port) }) {
		return nil, errors.Join(errClosed, l.Close())
	}
	return boundTo(p, "udp", l.LocalAddr().(*net.UDPAddr).AddrPort()), nil
}

// acceptUDP makes a flow of each client.
func (e *Endpoint) acceptUDP(l *net.UDPConn, port uint16) {
	buf := datagrams.Get().(*[65535]byte)
	defer datagrams.Put(buf)
	var mu sync.Mutex
	clients := map[netip.AddrPort]*udpClient{}
	for {
		n, from, err := l.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			select {
			case <-e.closed:
				return
			default:
				continue // about a datagram sent before
			}
		}
		mu.Lock()
		c := clients[from]
		mu.Unlock()
		if c == nil {
			in, err := gonet.DialUDP(e.n.link.stack, nil, new(full(e.ip, port)), ipv4.ProtocolNumber)
			if err != nil {
				continue // the datagram is lost
			}
			c = newUDPClient(l, from)
			mu.Lock()
			clients[from] = c
			mu.Unlock()
			ok := e.start(func() {
				e.flows.relay(in, c)
				mu.Lock()
				delete(clients, from)
				mu.Unlock()
			})
			if !ok {
				_ = in.Close()
				return
			}
		}
		c.push(buf[:n])
	}
}
