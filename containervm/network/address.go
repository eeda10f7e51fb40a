package network

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
)

// hardwareAddr is an Ethernet address.
type hardwareAddr [6]byte

func (a hardwareAddr) String() string { return net.HardwareAddr(a[:]).String() }

// group tells whether frames to a go to more than one station.
func (a hardwareAddr) group() bool { return a[0]&1 != 0 }

// macOf makes a locally administered address from an IPv4 address, docker's way. vSphere takes it as a static one ("all unique
// manually generated addresses are supported", vSphere Networking, VMware OUI in Static MAC Addresses).
func macOf(ip netip.Addr) hardwareAddr {
	b := ip.As4()
	return hardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}

// linkLocal is the address that an interface gives itself (RFC 4291, appendix A).
func linkLocal(m hardwareAddr) netip.Addr {
	return netip.AddrFrom16([16]byte{0xfe, 0x80, 8: m[0] ^ 2, m[1], m[2], 0xff, 0xfe, m[3], m[4], m[5]})
}

func parseMAC(s string) (hardwareAddr, error) {
	b, err := net.ParseMAC(s)
	if err != nil {
		return hardwareAddr{}, fmt.Errorf("network: %w", err)
	}
	if len(b) != 6 {
		return hardwareAddr{}, fmt.Errorf("network: %s is not an Ethernet address", s)
	}
	a := hardwareAddr(b)
	if a.group() || a == (hardwareAddr{}) {
		return hardwareAddr{}, fmt.Errorf("network: %s is not the address of one station", s)
	}
	return a, nil
}

var (
	errPoolEmpty = errors.New("network: no free address left in the subnet")
	errNotInPool = errors.New("network: address is not one for a container of the subnet")
	errAddrInUse = errors.New("Address already in use") // docker's words
)

// pool gives out the addresses of a subnet.
type pool struct {
	subnet netip.Prefix
	begin  netip.Addr            // of those that are given out unasked
	within func(netip.Addr) bool // whether one is

	mu    sync.Mutex
	next  netip.Addr // where to look for the next: an address given back rests as long as it can
	taken map[netip.Addr]bool
	last  netip.Addr // of IPv4, where the last of a subnet is the broadcast address
}

// newPool makes a pool of which gateway and reserved are taken. The zero within is the whole subnet.
func newPool(subnet, within netip.Prefix, gateway netip.Addr, reserved map[string]netip.Addr) *pool {
	if !within.IsValid() {
		within = subnet
	}
	p := &pool{subnet: subnet, begin: within.Addr(), next: within.Addr(), within: within.Contains, taken: map[netip.Addr]bool{gateway: true, subnet.Addr(): true}}
	if subnet.Addr().Is4() {
		p.last = lastOf(subnet)
		p.taken[p.last] = true
	}
	for _, a := range reserved {
		p.taken[a] = true
	}
	return p
}

// newRangePool makes a pool of addresses of IPv4 from first to last.
func newRangePool(subnet netip.Prefix, first, last, gateway netip.Addr) *pool {
	p := newPool(subnet, netip.Prefix{}, gateway, nil)
	p.begin, p.next = first, first
	p.within = func(a netip.Addr) bool { return !a.Less(first) && !last.Less(a) }
	return p
}

// lastOf is the last address of an IPv4 subnet.
func lastOf(subnet netip.Prefix) netip.Addr {
	a := subnet.Masked().Addr().As4()
	return addrOf(binary.BigEndian.Uint32(a[:]) + uint32(1)<<(32-subnet.Bits()) - 1)
}

func addrOf(n uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], n)
	return netip.AddrFrom4(b)
}

// take reserves want, or any address if want is zero.
func (p *pool) take(want netip.Addr) (netip.Addr, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if want.IsValid() {
		switch {
		case !p.subnet.Contains(want) || want == p.subnet.Addr() || want == p.last:
			return want, errNotInPool
		case p.taken[want]:
			return want, errAddrInUse
		}
		p.taken[want] = true
		return want, nil
	}
	for range len(p.taken) + 1 { // one of so many is free, unless there are not so many
		a := p.next
		if p.next = a.Next(); !p.within(p.next) {
			p.next = p.begin
		}
		if !p.taken[a] {
			p.taken[a] = true
			return a, nil
		}
	}
	return want, errPoolEmpty
}

func (p *pool) giveBack(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, a)
}
