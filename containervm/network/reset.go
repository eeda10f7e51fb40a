package network

import (
	"context"
	"math/rand/v2"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"

	"vic/containervm"
)

// Reset implements containervm.Endpoint. The gateway does not know the connections' sequence numbers, so it has each
// of them tell: a SYN that a connection did not expect is answered by an ACK with the number that it does expect (RFC
// 5961, section 4), and to an ACK of a connection that it does not have the gateway's stack answers with the RST that
// fits. Connections that it has live on: to them it is an ACK that comes twice.
func (e *Endpoint) Reset(ctx context.Context, sockets []containervm.Socket) error {
	for _, s := range sockets {
		local, remote := s.Local.Addr().Unmap(), s.Remote.Addr().Unmap()
		if local != e.ip && (local != e.ip6 || !e.ip6.IsValid()) || local.Is4() != remote.Is4() || remote.IsLoopback() || remote.IsMulticast() ||
			e.n.endpointOf(remote) != nil {
			continue
		}
		select {
		case e.queue <- e.probe(netip.AddrPortFrom(remote, s.Remote.Port()), netip.AddrPortFrom(local, s.Local.Port())):
		case <-e.closed:
			return errClosed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// probe is a frame of the gateway's with a SYN.
func (e *Endpoint) probe(from, to netip.AddrPort) []byte {
	src, dst := address(from.Addr()), address(to.Addr())
	ipSize := ipv4HeaderSize
	if src.Len() != 4 {
		ipSize = ipv6HeaderSize
	}
	frame := make([]byte, headerSize+ipSize+header.TCPMinimumSize)
	header.Ethernet(frame).Encode(&header.EthernetFields{
		SrcAddr: tcpip.LinkAddress(e.n.mac[:]), DstAddr: tcpip.LinkAddress(e.mac[:]), Type: protocol(to.Addr()),
	})
	packet := frame[headerSize:]
	if ipSize == ipv4HeaderSize {
		ip := header.IPv4(packet)
		ip.Encode(&header.IPv4Fields{
			TotalLength: uint16(len(packet)), TTL: 64, Protocol: uint8(header.TCPProtocolNumber), SrcAddr: src, DstAddr: dst,
		})
		ip.SetChecksum(^ip.CalculateChecksum())
	} else {
		header.IPv6(packet).Encode(&header.IPv6Fields{
			PayloadLength: header.TCPMinimumSize, TransportProtocol: header.TCPProtocolNumber, HopLimit: 64, SrcAddr: src, DstAddr: dst,
		})
	}
	tcp := header.TCP(packet[ipSize:])
	tcp.Encode(&header.TCPFields{
		SrcPort: from.Port(), DstPort: to.Port(), SeqNum: rand.Uint32(), DataOffset: header.TCPMinimumSize, Flags: header.TCPFlagSyn, WindowSize: 1 << 15,
	})
	pseudo := header.PseudoHeaderChecksum(header.TCPProtocolNumber, src, dst, uint16(len(tcp)))
	tcp.SetChecksum(^checksum.Checksum(tcp, pseudo))
	return frame
}
