package network

import (
	"encoding/binary"
	"net/netip"
)

const (
	headerSize = 14 // destination, source, type
	lengthSize = 4  // before a frame on the socket

	etherIPv4 = 0x0800
	etherARP  = 0x0806

	ipv4HeaderSize = 20
	arpSize        = 28

	protoICMP = 1
)

func frameDst(f []byte) hardwareAddr { return hardwareAddr(f[0:6]) }
func frameSrc(f []byte) hardwareAddr { return hardwareAddr(f[6:12]) }
func frameType(f []byte) uint16      { return binary.BigEndian.Uint16(f[12:14]) }

// These take a frame that check has passed.
func ipv4Dst(f []byte) netip.Addr { return netip.AddrFrom4([4]byte(f[headerSize+16 : headerSize+20])) }
func ipv4Proto(f []byte) byte     { return f[headerSize+9] }

// check tells whether a guest with these addresses may send f: IPv4 or ARP, in its own name.
func check(f []byte, mac hardwareAddr, ip netip.Addr) bool {
	if len(f) < headerSize || frameSrc(f) != mac {
		return false
	}
	p := f[headerSize:]
	switch frameType(f) {
	case etherIPv4:
		return len(p) >= ipv4HeaderSize && p[0]>>4 == 4 && netip.AddrFrom4([4]byte(p[12:16])) == ip
	case etherARP:
		// RFC 826: hardware Ethernet, protocol IPv4, operation, sender, target.
		if len(p) < arpSize || binary.BigEndian.Uint16(p[0:]) != 1 || binary.BigEndian.Uint16(p[2:]) != etherIPv4 || p[4] != 6 || p[5] != 4 {
			return false
		}
		sender := netip.AddrFrom4([4]byte(p[14:18]))
		return hardwareAddr(p[8:14]) == mac && (sender == ip || sender.IsUnspecified()) // a probe, RFC 5227
	}
	return false
}
