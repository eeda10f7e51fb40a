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

// macOf makes a locally administered address from an IPv4 address, docker's way.
func macOf(ip netip.Addr) hardwareAddr {
	b := ip.As4()
	return hardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
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

// pool gives out the addresses of a subnet, of which the first is the gateway's.
type pool struct {
	subnet  netip.Prefix
	gateway netip.Addr
	first   uint32 // the first and the last that are given out
	last    uint32

	mu    sync.Mutex
	next  uint32 // where to look for the next: an address given back rests as long as it can
	taken map[netip.Addr]bool
}

func newPool(subnet netip.Prefix) *pool {
	a := subnet.Masked().Addr().As4()
	base := binary.BigEndian.Uint32(a[:])
	size := uint32(1) << (32 - subnet.Bits())
	return &pool{
		subnet:  subnet.Masked(),
		gateway: addrOf(base + 1),
		first:   base + 2,
		last:    base + size - 2, // the one after is the broadcast address
		next:    base + 2,
		taken:   map[netip.Addr]bool{},
	}
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
		if !want.Is4() {
			return want, errNotInPool
		}
		b := want.As4()
		if n := binary.BigEndian.Uint32(b[:]); n < p.first || n > p.last {
			return want, errNotInPool
		}
		if p.taken[want] {
			return want, errAddrInUse
		}
		p.taken[want] = true
		return want, nil
	}
	if uint32(len(p.taken)) >= p.last-p.first+1 {
		return want, errPoolEmpty
	}
	for {
		a := addrOf(p.next)
		if p.next++; p.next > p.last {
			p.next = p.first
		}
		if !p.taken[a] {
			p.taken[a] = true
			return a, nil
		}
	}
}

func (p *pool) giveBack(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.taken, a)
}
