package network

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// udpClient is a net.Conn to one of the clients of a UDP socket that all of them share.
type udpClient struct {
	l     *net.UDPConn
	peer  netip.AddrPort
	queue chan []byte

	once   sync.Once
	closed chan struct{}

	mu       sync.Mutex
	deadline time.Time
}

// clientQueue is how many datagrams wait for a guest.
const clientQueue = 64

func newUDPClient(l *net.UDPConn, peer netip.AddrPort) *udpClient {
	return &udpClient{l: l, peer: peer, queue: make(chan []byte, clientQueue), closed: make(chan struct{})}
}

// push takes a copy of a datagram that came, or drops it.
func (c *udpClient) push(p []byte) {
	select {
	case c.queue <- append([]byte(nil), p...):
	default:
	}
}

func (c *udpClient) Read(p []byte) (int, error) {
	c.mu.Lock()
	wait := time.Until(c.deadline)
	c.mu.Unlock()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case b := <-c.queue:
		return copy(p, b), nil
	case <-c.closed:
		return 0, net.ErrClosed
	case <-timer.C:
		return 0, os.ErrDeadlineExceeded
	}
}

func (c *udpClient) Write(p []byte) (int, error) { return c.l.WriteToUDPAddrPort(p, c.peer) }

func (c *udpClient) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

func (c *udpClient) LocalAddr() net.Addr  { return c.l.LocalAddr() }
func (c *udpClient) RemoteAddr() net.Addr { return net.UDPAddrFromAddrPort(c.peer) }

// SetReadDeadline holds for the next Read. It must be called before each.
func (c *udpClient) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	return nil
}

func (c *udpClient) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *udpClient) SetWriteDeadline(time.Time) error { return nil } // the socket takes datagrams at once
