package guestrpc

import (
	"encoding/binary"
	"net"
	"net/netip"
)

// A NIC is an interface as the guest has set it up.
type NIC struct {
	MAC       net.HardwareAddr
	Addresses []netip.Prefix
}

// What the VMX takes of a guest's interfaces.
const (
	maxNICs      = 16
	maxAddresses = 64 // of each
)

const nicInfoVersion = 3

// appendNICs appends the interfaces as a GuestNicProto, version 3, of open-vm-tools' nicinfo.x, in XDR (RFC 4506):
// all integers are of 4 bytes, big-endian, strings are padded to such, and what is optional is a list of none or one.
//
//	version 3, 1 NicInfo:
//	count of NICs, each:
//	    MAC address as a string "52:54:00:…"
//	    count of addresses, each: type (1 IPv4, 2 IPv6), bytes, prefix length, no origin, 1 status (1 preferred)
//	    none of: DNS, WINS, DHCP for IPv4, DHCP for IPv6
//	count of routes 0, none of: DNS, WINS, DHCP, DHCP
func appendNICs(b []byte, nics []NIC) []byte {
	const none, one, preferred = 0, 1, 1
	nics = nics[:min(len(nics), maxNICs)]
	b = appendInts(b, nicInfoVersion, one, len(nics))
	for _, n := range nics {
		b = appendOpaque(b, []byte(n.MAC.String()))
		addrs := n.Addresses[:min(len(n.Addresses), maxAddresses)]
		b = appendInts(b, len(addrs))
		for _, a := range addrs {
			family := 1
			if a.Addr().Is6() {
				family = 2
			}
			b = appendInts(b, family)
			b = appendOpaque(b, a.Addr().AsSlice())
			b = appendInts(b, a.Bits(), none, one, preferred)
		}
		b = appendInts(b, none, none, none, none)
	}
	return appendInts(b, 0, none, none, none, none)
}

func appendInts(b []byte, ints ...int) []byte {
	for _, i := range ints {
		b = binary.BigEndian.AppendUint32(b, uint32(i))
	}
	return b
}

func appendOpaque(b, p []byte) []byte {
	b = append(appendInts(b, len(p)), p...)
	return append(b, make([]byte, -len(p)&3)...)
}
