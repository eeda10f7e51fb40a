package network

import (
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

// announcements tell the guest the gateway's hardware address, which on a Segment is the interface's: when another VCH,
// or one with another interface, takes over, the guest would go on sending to the old one's until it doubts.
func (e *Endpoint) announcements() [][]byte {
	all := [][]byte{e.announceARP()}
	if e.ip6.IsValid() {
		all = append(all, e.announceNeighbour())
	}
	return all
}

func (e *Endpoint) fromGateway(size int, p tcpip.NetworkProtocolNumber) []byte {
	frame := make([]byte, headerSize+size)
	header.Ethernet(frame).Encode(&header.EthernetFields{SrcAddr: tcpip.LinkAddress(e.n.mac[:]), DstAddr: tcpip.LinkAddress(e.mac[:]), Type: p})
	return frame
}

// announceARP is a reply that was not asked for (RFC 826).
func (e *Endpoint) announceARP() []byte {
	frame := e.fromGateway(header.ARPSize, header.ARPProtocolNumber)
	arp := header.ARP(frame[headerSize:])
	arp.SetIPv4OverEthernet()
	arp.SetOp(header.ARPReply)
	copy(arp.HardwareAddressSender(), e.n.mac[:])
	copy(arp.ProtocolAddressSender(), e.n.gateway.AsSlice())
	copy(arp.HardwareAddressTarget(), e.mac[:])
	copy(arp.ProtocolAddressTarget(), e.ip.AsSlice())
	return frame
}

// announceNeighbour is the same for IPv6 (RFC 4861, section 7.2.6).
func (e *Endpoint) announceNeighbour() []byte {
	const size = header.ICMPv6NeighborAdvertMinimumSize + header.NDPLinkLayerAddressSize
	frame := e.fromGateway(ipv6HeaderSize+size, header.IPv6ProtocolNumber)
	src, dst := address(e.n.gateway6), address(e.ip6)
	header.IPv6(frame[headerSize:]).Encode(&header.IPv6Fields{
		PayloadLength: size, TransportProtocol: header.ICMPv6ProtocolNumber, HopLimit: header.NDPHopLimit, SrcAddr: src, DstAddr: dst,
	})
	icmp := header.ICMPv6(frame[headerSize+ipv6HeaderSize:])
	icmp.SetType(header.ICMPv6NeighborAdvert)
	advert := header.NDPNeighborAdvert(icmp.MessageBody())
	advert.SetRouterFlag(true)
	advert.SetOverrideFlag(true)
	advert.SetTargetAddress(src)
	advert.Options().Serialize(header.NDPOptionsSerializer{header.NDPTargetLinkLayerAddressOption(e.n.mac[:])})
	icmp.SetChecksum(header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: src, Dst: dst}))
	return frame
}
