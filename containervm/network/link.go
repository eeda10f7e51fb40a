package network

import (
	"errors"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

// nicID is the stack's only interface.
const nicID = 1

// link is the gateway: a TCP/IP stack, and its interface to the switch (stack.LinkEndpoint).
type link struct {
	n     *Network
	stack *stack.Stack

	mu         sync.RWMutex
	dispatcher stack.NetworkDispatcher // nil once the stack has ended
}

func newLink(n *Network) (*link, error) {
	l := &link{n: n}
	l.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, arp.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := l.configure(); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}

func (l *link) configure() error {
	s := l.stack
	if err := s.CreateNIC(nicID, l); err != nil {
		return errors.New(err.String())
	}
	addrs, subnets := []netip.Addr{l.n.gateway}, []netip.Prefix{l.n.pool.subnet}
	if l.n.pool6 != nil {
		addrs = append(addrs, l.n.gateway6, l.n.local6)
		subnets = append(subnets, l.n.pool6.subnet, netip.PrefixFrom(l.n.local6, 64).Masked())
	}
	for _, a := range addrs {
		addr := tcpip.ProtocolAddress{Protocol: protocol(a), AddressWithPrefix: address(a).WithPrefix()}
		if err := s.AddProtocolAddress(nicID, addr, stack.AddressProperties{}); err != nil {
			return errors.New(err.String())
		}
	}
	sack := tcpip.TCPSACKEnabled(true)
	if err := s.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return errors.New(err.String())
	}
	// Take what is for any address in the world, and answer in its name.
	if err := s.SetPromiscuousMode(nicID, true); err != nil {
		return errors.New(err.String())
	}
	if err := s.SetSpoofing(nicID, true); err != nil {
		return errors.New(err.String())
	}
	var routes []tcpip.Route
	for _, p := range subnets {
		routes = append(routes, tcpip.Route{Destination: tcpip.AddressWithPrefix{Address: address(p.Addr()), PrefixLen: p.Bits()}.Subnet(), NIC: nicID})
	}
	s.SetRouteTable(routes)
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, tcp.NewForwarder(s, 0, maxHandshakes, l.n.connectTCP).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, udp.NewForwarder(s, l.n.connectUDP).HandlePacket)
	return nil
}

func (l *link) close() { l.stack.Destroy() }

// know saves the stack from asking for a guest's hardware address.
func (l *link) know(e *Endpoint) error {
	for _, a := range e.addrs() {
		if err := l.stack.AddStaticNeighbor(nicID, protocol(a), address(a), tcpip.LinkAddress(e.mac[:])); err != nil {
			return errors.New(err.String())
		}
	}
	return nil
}

func (l *link) forget(e *Endpoint) {
	for _, a := range e.addrs() {
		_ = l.stack.RemoveNeighbor(nicID, protocol(a), address(a)) // it can but be unknown
	}
}

// deliver gives the stack a frame.
func (l *link) deliver(frame []byte) {
	l.mu.RLock()
	d := l.dispatcher
	l.mu.RUnlock()
	if d == nil {
		return
	}
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(frame[headerSize:])})
	defer pkt.DecRef()
	d.DeliverNetworkPacket(tcpip.NetworkProtocolNumber(frameType(frame)), pkt)
}

// WritePackets implements stack.LinkWriter.
func (l *link) WritePackets(pkts stack.PacketBufferList) (int, tcpip.Error) {
	all := pkts.AsSlice()
	for _, p := range all {
		frame := make([]byte, headerSize, headerSize+p.Size())
		header.Ethernet(frame).Encode(&header.EthernetFields{
			SrcAddr: l.LinkAddress(), DstAddr: p.EgressRoute.RemoteLinkAddress, Type: p.NetworkProtocolNumber,
		})
		for _, b := range p.AsSlices() {
			frame = append(frame, b...)
		}
		if !l.lies(frame) {
			l.n.fromGateway(frame)
		}
	}
	return len(all), nil
}

// lies tells whether the frame answers for an address that is not the gateway's: since the stack
// takes every address for its own, it would answer for all of them.
func (l *link) lies(frame []byte) bool {
	p := frame[headerSize:]
	switch frameType(frame) {
	case etherARP:
		return len(p) >= arpSize && p[7] == 2 && !l.n.ours(netip.AddrFrom4([4]byte(p[14:18])))
	case etherIPv6:
		return len(p) >= ipv6HeaderSize+solicitSize && p[6] == protoICMPv6 && p[ipv6HeaderSize] == icmpAdvert &&
			!l.n.ours(netip.AddrFrom16([16]byte(p[ipv6HeaderSize+8:ipv6HeaderSize+24])))
	}
	return false
}

// Attach implements stack.NetworkLinkEndpoint, as do the rest.
func (l *link) Attach(d stack.NetworkDispatcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dispatcher = d
}

func (l *link) IsAttached() bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.dispatcher != nil
}

func (l *link) MTU() uint32                             { return uint32(l.n.mtu) }
func (l *link) SetMTU(uint32)                           {}
func (l *link) MaxHeaderLength() uint16                 { return 0 } // WritePackets has its own room
func (l *link) LinkAddress() tcpip.LinkAddress          { return tcpip.LinkAddress(l.n.mac[:]) }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareEther }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

// Capabilities: checksums of what comes are not looked at, for a socket between two processes damages nothing, and a
// Segment has looked.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityResolutionRequired | stack.CapabilityRXChecksumOffload
}

// SupportedGSO implements stack.GSOEndpoint: a Segment cuts long packets, and makes the checksums of TCP.
func (l *link) SupportedGSO() stack.SupportedGSO {
	if l.n.wired {
		return stack.HostGSOSupported
	}
	return stack.GSONotSupported
}

func (l *link) GSOMaxSize() uint32 { return maxOffloaded }

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is6() {
		return ipv6.ProtocolNumber
	}
	return ipv4.ProtocolNumber
}

func address(a netip.Addr) tcpip.Address { return tcpip.AddrFromSlice(a.AsSlice()) }

func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice()) // it has the length of one
	return netip.AddrPortFrom(addr, port)
}

func full(a netip.Addr, port uint16) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nicID, Addr: address(a), Port: port}
}
