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
	etherIPv6 = 0x86dd

	ipv4HeaderSize = 20
	ipv6HeaderSize = 40
	arpSize        = 28

	protoHopByHop = 0
	protoICMP     = 1
	protoRouting  = 43
	protoFragment = 44
	protoESP      = 50
	protoAH       = 51
	protoICMPv6   = 58
	protoOptions  = 60
	protoMobility = 135

	// ICMPv6 (RFC 4861, 2710, 3810)
	icmpReport       = 131
	icmpDone         = 132
	icmpRouterAdvert = 134
	icmpSolicit      = 135
	icmpAdvert       = 136
	icmpRedirect     = 137
	icmpReport2      = 143
	solicitSize      = 24 // type, code, checksum, 4 more, target
)

func frameDst(f []byte) hardwareAddr { return hardwareAddr(f[0:6]) }
func frameSrc(f []byte) hardwareAddr { return hardwareAddr(f[6:12]) }
func frameType(f []byte) uint16      { return binary.BigEndian.Uint16(f[12:14]) }

// These take a frame that check has passed.
func ipv4Dst(f []byte) netip.Addr { return netip.AddrFrom4([4]byte(f[headerSize+16 : headerSize+20])) }
func ipv4Proto(f []byte) byte     { return f[headerSize+9] }

func ipv6Dst(f []byte) netip.Addr {
	return netip.AddrFrom16([16]byte(f[headerSize+24 : headerSize+40]))
}
func ipv6Proto(f []byte) byte { return f[headerSize+6] }

// solicited is the target of a neighbour solicitation.
func solicited(f []byte) (netip.Addr, bool) {
	p := f[headerSize:]
	if p[6] != protoICMPv6 || len(p) < ipv6HeaderSize+solicitSize || p[ipv6HeaderSize] != icmpSolicit {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16([16]byte(p[ipv6HeaderSize+8 : ipv6HeaderSize+24])), true
}

// check tells whether the endpoint's guest may send f: IP or ARP, in its own name.
func (e *Endpoint) check(f []byte) bool {
	if len(f) < headerSize || frameSrc(f) != e.mac {
		return false
	}
	p := f[headerSize:]
	switch frameType(f) {
	case etherIPv4:
		return len(p) >= ipv4HeaderSize && p[0]>>4 == 4 && netip.AddrFrom4([4]byte(p[12:16])) == e.ip
	case etherARP:
		// RFC 826: hardware Ethernet, protocol IPv4, operation, sender, target.
		if len(p) < arpSize || binary.BigEndian.Uint16(p[0:]) != 1 || binary.BigEndian.Uint16(p[2:]) != etherIPv4 || p[4] != 6 || p[5] != 4 {
			return false
		}
		sender := netip.AddrFrom4([4]byte(p[14:18]))
		return hardwareAddr(p[8:14]) == e.mac && (sender == e.ip || sender.IsUnspecified()) // a probe, RFC 5227
	case etherIPv6:
		return e.ip6.IsValid() && len(p) >= ipv6HeaderSize && p[0]>>4 == 6 && e.check6(p)
	}
	return false
}

// check6 is check for a packet of IPv6. Headers behind which neighbour discovery could hide are not let through.
func (e *Endpoint) check6(p []byte) bool {
	src := netip.AddrFrom16([16]byte(p[8:24]))
	own := e.owns6(src)
	p, proto := p[ipv6HeaderSize:], p[6]
	switch proto {
	case protoICMPv6:
		return len(p) >= 8 && (own || src.IsUnspecified() && p[0] == icmpSolicit) && e.checkICMPv6(p) // duplicate address detection
	case protoHopByHop: // what goes with reports of multicast groups: 8 bytes (RFC 3810, section 5)
		return len(p) >= 9 && p[0] == protoICMPv6 && p[1] == 0 && (p[8] == icmpReport || p[8] == icmpDone || p[8] == icmpReport2) &&
			(own || src.IsUnspecified())
	case protoFragment: // whole messages of neighbour discovery only are heeded (RFC 6980)
		return own
	case protoRouting, protoESP, protoAH, protoOptions, protoMobility:
		return false
	}
	return own
}

func (e *Endpoint) owns6(a netip.Addr) bool { return a == e.ip6 || a == e.local6 }

// checkICMPv6 tells whether a message says nothing of neighbours but the guest itself.
func (e *Endpoint) checkICMPv6(p []byte) bool {
	switch p[0] {
	case icmpRouterAdvert, icmpRedirect:
		return false
	case icmpAdvert:
		if len(p) < solicitSize || !e.owns6(netip.AddrFrom16([16]byte(p[8:24]))) {
			return false
		}
	case icmpSolicit:
		if len(p) < solicitSize {
			return false
		}
	default:
		return true
	}
	// Options: type, length in units of 8 bytes, value; a link-layer address is the guest's own.
	for o := p[solicitSize:]; len(o) > 0; {
		if len(o) < 8 || o[1] == 0 || len(o) < 8*int(o[1]) {
			return false
		}
		if (o[0] == 1 || o[0] == 2) && hardwareAddr(o[2:8]) != e.mac {
			return false
		}
		o = o[8*int(o[1]):]
	}
	return true
}
