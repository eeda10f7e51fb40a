package network

import (
	"context"
	"encoding/binary"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/link/ethernet"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"vic/containervm"
)

var _ containervm.Network = (*Network)(nil)

var _ containervm.Networks = (*Fabric)(nil)

// fabric makes one whose host has no name servers, unless o says so.
func fabric(t testing.TB, o Options) *Fabric {
	t.Helper()
	if o.Resolv == "" {
		o.Resolv = filepath.Join(t.TempDir(), "none")
	}
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	return New(o)
}

// openOn makes a network that does not outlive the test.
func openOn(t testing.TB, f *Fabric, conf containervm.NetworkConfig) *Network {
	t.Helper()
	if conf.Name == "" {
		conf.Name = "net"
	}
	if !conf.Subnet.IsValid() {
		conf.Subnet = netip.MustParsePrefix("172.30.0.0/16")
	}
	if !conf.Gateway.IsValid() {
		conf.Gateway = conf.Subnet.Addr().Next()
	}
	if conf.IPv6 {
		conf.Gateway6 = conf.Subnet6.Addr().Next()
	}
	n, err := f.Open(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n.(*Network)
}

func open(t *testing.T, o Options) *Network {
	t.Helper()
	return openOn(t, fabric(t, o), containervm.NetworkConfig{})
}

func join(t testing.TB, n *Network, o containervm.JoinOptions) *Endpoint {
	t.Helper()
	e, err := n.join(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

// plugIn connects an endpoint as QEMU does, and returns QEMU's end.
func plugIn(t *testing.T, e *Endpoint) net.Conn {
	t.Helper()
	path := filepath.Join(shortDir(t), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = e.Serve(ours) // its error is what the tests provoke
	}()
	t.Cleanup(func() {
		theirs.Close()
		<-served
	})
	return theirs
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "n")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// guest is a TCP/IP stack at the other end of an endpoint.
type guest struct {
	t     *testing.T
	stack *stack.Stack
	ip    netip.Addr
	conn  net.Conn
	link  *channel.Endpoint
	hang  func() // ends what carries frames over conn
}

func boot(t *testing.T, e *Endpoint) *guest {
	t.Helper()
	g := &guest{t: t, ip: e.ip, conn: plugIn(t, e)}
	g.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4},
	})
	ch := channel.New(256, uint32(e.n.mtu)+headerSize, tcpip.LinkAddress(e.mac[:]))
	if err := g.stack.CreateNIC(nicID, ethernet.New(ch)); err != nil {
		t.Fatal(err)
	}
	addr := tcpip.ProtocolAddress{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddressWithPrefix{Address: address(e.ip), PrefixLen: e.n.pool.subnet.Bits()}}
	if err := g.stack.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
		t.Fatal(err)
	}
	all, err := tcpip.NewSubnet(tcpip.AddrFrom4([4]byte{}), tcpip.MaskFromBytes(make([]byte, 4)))
	if err != nil {
		t.Fatal(err)
	}
	g.stack.SetRouteTable([]tcpip.Route{
		{Destination: addr.AddressWithPrefix.Subnet(), NIC: nicID},
		{Destination: all, Gateway: address(e.n.gateway), NIC: nicID},
	})
	g.link = ch
	g.carry()
	t.Cleanup(func() {
		g.hang()
		g.stack.Destroy()
	})
	return g
}

// rewire has the guest's frames go over another connection.
func (g *guest) rewire(conn net.Conn) {
	g.hang()
	g.conn = conn
	g.carry()
}

// carry passes frames between the stack and conn.
func (g *guest) carry() {
	ch := g.link
	ctx, stop := context.WithCancel(context.Background())
	sent, received := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(sent)
		for {
			p := ch.ReadContext(ctx)
			if p == nil {
				return
			}
			v := p.ToView()
			if _, err := g.conn.Write(appendFrame(nil, v.AsSlice())); err != nil {
				return
			}
			p.DecRef()
		}
	}()
	go func() {
		defer close(received)
		for {
			frame, err := readFrame(g.conn)
			if err != nil {
				return
			}
			p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame)})
			ch.InjectInbound(0, p)
			p.DecRef()
		}
	}()
	conn := g.conn
	g.hang = sync.OnceFunc(func() {
		conn.Close()
		stop()
		<-sent
		<-received
	})
}

func readFrame(r io.Reader) ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	frame := make([]byte, binary.BigEndian.Uint32(length[:]))
	_, err := io.ReadFull(r, frame)
	return frame, err
}

func (g *guest) dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return gonet.DialContextTCP(ctx, g.stack, full(to.Addr(), to.Port()), ipv4.ProtocolNumber)
}

func (g *guest) dialUDP(to netip.AddrPort) net.Conn {
	g.t.Helper()
	c, err := gonet.DialUDP(g.stack, nil, new(full(to.Addr(), to.Port())), ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { c.Close() })
	return c
}

func (g *guest) listen(port uint16) net.Listener {
	g.t.Helper()
	l, err := gonet.ListenTCP(g.stack, full(g.ip, port), ipv4.ProtocolNumber)
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { l.Close() })
	return l
}

// echo sends back on every connection what came, and ends it when the client has.
func echo(t *testing.T, l net.Listener) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		if s, ok := l.(interface{ Shutdown() }); ok {
			s.Shutdown()
		}
		<-done
	})
}
