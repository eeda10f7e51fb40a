package network

import (
	"encoding/binary"

	"gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

const (
	// offloadSize is that of struct virtio_net_hdr (include/uapi/linux/virtio_net.h), which stands before each frame
	// on a packet socket with PACKET_VNET_HDR.
	offloadSize = 10
	// maxOffloaded is the longest packet that is cut into frames by a network adapter, or put together by one.
	maxOffloaded = 65535

	needsChecksum = 1 // flags
	dataValid     = 2
	segmentTCPv4  = 1 // types
	segmentTCPv6  = 4

	tcpChecksumOff = 16 // in the TCP header
)

// An offload says what of a frame is left to the network adapter.
type offload struct {
	flags      uint8  // 0x00
	segment    uint8  // 0x01 type of packets that this one is to be cut into
	headers    uint16 // 0x02 size of all headers
	size       uint16 // 0x04 data of each packet
	checksumAt uint16 // 0x06 where summing begins
	checksum   uint16 // 0x08 where the sum goes, from there
}

func (o offload) marshal() []byte {
	b := make([]byte, 0, offloadSize)
	b = append(b, o.flags, o.segment)
	for _, v := range []uint16{o.headers, o.size, o.checksumAt, o.checksum} {
		b = binary.NativeEndian.AppendUint16(b, v)
	}
	return b
}

func parseOffload(b []byte) offload {
	u := binary.NativeEndian.Uint16
	return offload{flags: b[0], segment: b[1], headers: u(b[2:]), size: u(b[4:]), checksumAt: u(b[6:]), checksum: u(b[8:])}
}

// vouched says that a frame that came in needs no look at its checksums: it has not been on a wire, or the adapter has looked.
func (o offload) vouched() bool { return o.flags&(needsChecksum|dataValid) != 0 }

// offloadOf has the adapter make the checksums of TCP, and cut what is too long for the wire. For that it prepares the
// frame, one of the gateway's: its checksum becomes that of the pseudo-header (RFC 9293, section 3.1).
func offloadOf(frame []byte, mtu int) offload {
	p := frame[headerSize:]
	var ipSize int
	var sum uint16
	var segment uint8
	switch frameType(frame) {
	case etherIPv4:
		ip := header.IPv4(p)
		if !ip.IsValid(len(p)) || ip.Protocol() != uint8(header.TCPProtocolNumber) || ip.More() || ip.FragmentOffset() > 0 {
			return offload{}
		}
		ipSize, segment = int(ip.HeaderLength()), segmentTCPv4
		sum = header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(p)-ipSize))
	case etherIPv6:
		ip := header.IPv6(p)
		if !ip.IsValid(len(p)) || ip.TransportProtocol() != header.TCPProtocolNumber {
			return offload{}
		}
		ipSize, segment = ipv6HeaderSize, segmentTCPv6
		sum = header.PseudoHeaderChecksum(header.TCPProtocolNumber, ip.SourceAddress(), ip.DestinationAddress(), uint16(len(p)-ipSize))
	default:
		return offload{}
	}
	if len(p) < ipSize+header.TCPMinimumSize {
		return offload{}
	}
	tcp := header.TCP(p[ipSize:])
	tcp.SetChecksum(sum)
	o := offload{flags: needsChecksum, checksumAt: uint16(headerSize + ipSize), checksum: tcpChecksumOff}
	if headers := ipSize + int(tcp.DataOffset()); len(p) > mtu {
		o.segment, o.headers, o.size = segment, uint16(headerSize+headers), uint16(mtu-headers)
	}
	return o
}

// sound tells whether the checksums of a frame are right, as far as one can see: those of fragments are not.
func sound(frame []byte) bool {
	p := frame[headerSize:]
	switch frameType(frame) {
	case etherIPv4:
		ip := header.IPv4(p)
		if !ip.IsValid(len(p)) || !ip.IsChecksumValid() {
			return false
		}
		if ip.More() || ip.FragmentOffset() > 0 {
			return true
		}
		sum := header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength())
		switch ip.TransportProtocol() {
		case header.ICMPv4ProtocolNumber:
			sum = 0
		case header.UDPProtocolNumber:
			if udp := header.UDP(ip.Payload()); len(udp) >= header.UDPMinimumSize && udp.Checksum() == 0 { // there is none
				return true
			}
		case header.TCPProtocolNumber:
		default:
			return true
		}
		return checksum.Checksum(ip.Payload(), sum) == 0xffff
	case etherIPv6:
		ip := header.IPv6(p)
		if !ip.IsValid(len(p)) {
			return false
		}
		switch ip.TransportProtocol() {
		case header.TCPProtocolNumber, header.UDPProtocolNumber, header.ICMPv6ProtocolNumber:
			sum := header.PseudoHeaderChecksum(ip.TransportProtocol(), ip.SourceAddress(), ip.DestinationAddress(), ip.PayloadLength())
			return checksum.Checksum(ip.Payload(), sum) == 0xffff
		}
	}
	return true
}
