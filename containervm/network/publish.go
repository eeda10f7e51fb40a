package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"

	"vic/containervm"
)

// listening is what one call of Publish listens on.
type listening struct {
	e       *Endpoint
	ports   []containervm.PortBinding
	closers []io.Closer
	closed  chan struct{}
	wg      sync.WaitGroup
}

// Publish implements containervm.Endpoint. Connections that came through ports of before go on.
func (e *Endpoint) Publish(ports []containervm.PortBinding) error {
	e.publishing.Lock()
	defer e.publishing.Unlock()
	e.mu.Lock()
	before := e.listening
	e.listening = nil
	e.mu.Unlock()
	if before != nil {
		if err := before.close(); err != nil {
			return err
		}
	}
	if len(ports) == 0 {
		return nil
	}
	l := &listening{e: e, closed: make(chan struct{})}
	for _, p := range ports {
		if err := l.listen(p); err != nil {
			return errors.Join(err, l.close())
		}
	}
	e.mu.Lock()
	done := e.done
	if !done {
		e.listening = l
	}
	e.mu.Unlock()
	if done {
		return errors.Join(errClosed, l.close())
	}
	return nil
}

func (l *listening) close() error {
	close(l.closed)
	var errs []error
	for _, c := range l.closers {
		errs = append(errs, c.Close())
	}
	l.wg.Wait()
	return errors.Join(errs...)
}

// listen listens on the first of a binding's ports that is free.
func (l *listening) listen(p containervm.PortBinding) error {
	bind := l.listenTCP
	switch p.Proto {
	case "", "tcp":
	case "udp":
		bind = l.listenUDP
	default:
		return fmt.Errorf("network: publish a port of protocol %q", p.Proto)
	}
	last := max(p.HostPort, p.HostPortEnd)
	p.HostPortEnd = 0
	for {
		bound, err := bind(p)
		if err == nil {
			l.ports = append(l.ports, bound...)
			return nil
		}
		if p.HostPort >= last || !errors.Is(err, containervm.ErrPortAllocated) {
			return err
		}
		p.HostPort++
	}
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

func (l *listening) listenTCP(p containervm.PortBinding) ([]containervm.PortBinding, error) {
	s, err := net.Listen(listenAddr("tcp", p))
	if err != nil {
		return nil, bindError(p, err)
	}
	l.closers = append(l.closers, s)
	l.wg.Go(func() { l.acceptTCP(s, p.Port) })
	return boundTo(p, "tcp", s.Addr().(*net.TCPAddr).AddrPort()), nil
}

func (l *listening) acceptTCP(s net.Listener, port uint16) {
	for {
		c, err := s.Accept()
		if err != nil {
			select {
			case <-l.closed:
				return
			case <-time.After(50 * time.Millisecond): // out of descriptors, most likely
				continue
			}
		}
		if !l.e.start(func() { l.e.accepted(c.(*net.TCPConn), port) }) {
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

func (l *listening) listenUDP(p containervm.PortBinding) ([]containervm.PortBinding, error) {
	pc, err := net.ListenPacket(listenAddr("udp", p))
	if err != nil {
		return nil, bindError(p, err)
	}
	s := pc.(*net.UDPConn)
	l.closers = append(l.closers, s)
	l.wg.Go(func() { l.acceptUDP(s, p.Port) })
	return boundTo(p, "udp", s.LocalAddr().(*net.UDPAddr).AddrPort()), nil
}

// acceptUDP makes a flow of each client.
func (l *listening) acceptUDP(s *net.UDPConn, port uint16) {
	e := l.e
	buf := datagrams.Get().(*[65535]byte)
	defer datagrams.Put(buf)
	var mu sync.Mutex
	clients := map[netip.AddrPort]*udpClient{}
	for {
		n, from, err := s.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			select {
			case <-l.closed:
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
			c = newUDPClient(s, from)
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
