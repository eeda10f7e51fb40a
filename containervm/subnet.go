package containervm

import (
	"crypto/rand"
	"net/netip"
	"slices"
)

const (
	minMTU = 576
	maxMTU = 65520
	mtu6   = 1280 // IPv6 has no interface below it (RFC 8200, section 5)
)

// complete checks a network's configuration and fills in what was left open. Its subnets must overlap with
// none of taken.
func (n *NetworkConfig) complete(taken []netip.Prefix, choose func([]netip.Prefix) (netip.Prefix, error)) error {
	var err error
	if !n.Subnet.IsValid() {
		if n.Gateway.IsValid() || n.Range.IsValid() {
			return refuse(ErrInvalid, "a gateway or an address range needs a subnet")
		}
		if n.Subnet, err = choose(taken); err != nil {
			return refuse(ErrNotFound, "all predefined address pools have been fully subnetted: %v", err)
		}
	}
	if n.IPv6 && !n.Subnet6.IsValid() {
		n.Subnet6 = localSubnet6()
	}
	n.IPv6 = n.Subnet6.IsValid()
	if !n.Gateway.IsValid() {
		n.Gateway = n.Subnet.Masked().Addr().Next()
	}
	if n.IPv6 && !n.Gateway6.IsValid() {
		n.Gateway6 = n.Subnet6.Masked().Addr().Next()
	}
	if err := n.check(); err != nil {
		return err
	}
	for _, p := range []netip.Prefix{n.Subnet, n.Subnet6} {
		if p.IsValid() && slices.ContainsFunc(taken, p.Overlaps) {
			return refuse(ErrForbidden, "invalid pool request: Pool overlaps with other one on this address space")
		}
	}
	return nil
}

func (n *NetworkConfig) check() error {
	s := n.Subnet
	switch {
	case !s.Addr().Is4() || s.Bits() < 8 || s.Bits() > 29:
		return refuse(ErrInvalid, "invalid subnet %s: a network needs an IPv4 subnet between /8 and /29", s)
	case s != s.Masked():
		return refuse(ErrInvalid, "invalid subnet %s: it should be %s", s, s.Masked())
	case s.Addr().IsLoopback() || s.Addr().IsMulticast() || s.Addr().IsLinkLocalUnicast() || s.Addr().IsUnspecified():
		return refuse(ErrInvalid, "invalid subnet %s: its addresses are not for networks", s)
	case !usable(s, n.Gateway):
		return refuse(ErrInvalid, "invalid gateway %s: parent subnet %s doesn't contain this address", n.Gateway, s)
	case n.Range.IsValid() && n.Range != n.Range.Masked():
		return refuse(ErrInvalid, "invalid ip-range %s: it should be %s", n.Range, n.Range.Masked())
	case n.Range.IsValid() && (!s.Contains(n.Range.Addr()) || n.Range.Bits() < s.Bits()):
		return refuse(ErrInvalid, "invalid ip-range %s: parent subnet %s doesn't contain ip-range", n.Range, s)
	case n.MTU != 0 && (n.MTU < minMTU || n.MTU > maxMTU || n.IPv6 && n.MTU < mtu6):
		return refuse(ErrInvalid, "invalid MTU %d: it must be between %d (%d with IPv6) and %d", n.MTU, minMTU, mtu6, maxMTU)
	}
	for name, a := range n.Reserved {
		if !s.Contains(a) {
			return refuse(ErrInvalid, "invalid auxiliary address %s: parent subnet %s doesn't contain this address", name, s)
		}
	}
	if !n.IPv6 {
		return nil
	}
	s = n.Subnet6
	switch {
	case !s.Addr().Is6() || s.Addr().Is4In6() || s.Bits() < 8 || s.Bits() > 124:
		return refuse(ErrInvalid, "invalid subnet %s: IPv6 needs a subnet between /8 and /124", s)
	case s != s.Masked():
		return refuse(ErrInvalid, "invalid subnet %s: it should be %s", s, s.Masked())
	case s.Addr().IsLoopback() || s.Addr().IsMulticast() || s.Addr().IsLinkLocalUnicast() || s.Addr().IsUnspecified():
		return refuse(ErrInvalid, "invalid subnet %s: its addresses are not for networks", s)
	case !s.Contains(n.Gateway6) || n.Gateway6 == s.Addr():
		return refuse(ErrInvalid, "invalid gateway %s: parent subnet %s doesn't contain this address", n.Gateway6, s)
	}
	return nil
}

// usable says whether a is an address for a host of an IPv4 subnet: neither the first nor the last.
func usable(s netip.Prefix, a netip.Addr) bool {
	return a.Is4() && s.Contains(a) && s.Contains(a.Next()) && s.Contains(a.Prev())
}

// localSubnet6 makes up a /64 of unique local addresses (RFC 4193, section 3.2.2).
func localSubnet6() netip.Prefix {
	a := [16]byte{0xfd}
	rand.Read(a[1:6])
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}
