package containervm

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"regexp"
	"slices"

	"vic/tether/wire"
)

// Trust is what a guest lets in and out by an interface on a container network.
type Trust = wire.Trust

// A ContainerNetwork is a network of the hypervisor's, on vSphere a port group, that containers may join beside or instead of the
// VCH's own. The VCH does not see their frames: whom a container talks to there is for its guest's own packet filter to decide.
type ContainerNetwork struct {
	// PortGroup is the hypervisor's name of the network.
	PortGroup string `json:"portGroup"`
	// Name by which containers join it; "" means PortGroup, which must then be a name as docker has them.
	Name string `json:"name,omitempty"`
	// Gateway is the router's address in its subnet. Without it guests ask a DHCP server for addresses, routes and name servers.
	Gateway netip.Prefix `json:"gateway,omitzero"`
	// First and Last bound the addresses that are given out; zero is the whole subnet. No other VCH, nor anybody
	// else, may give these out.
	First netip.Addr `json:"first,omitzero"`
	Last  netip.Addr `json:"last,omitzero"`
	// DNS are servers for guests that are on no network of the VCH's own.
	DNS []netip.Addr `json:"dns,omitempty"`
	// Trust; "" means wire.Published.
	Trust Trust `json:"trust,omitempty"`
}

// networkName is what docker takes for the name of a network without complaint in any place.
var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Check says what is wrong with n. The error is an ErrInvalid.
func (n ContainerNetwork) Check() error {
	name := n.name()
	switch {
	case n.PortGroup == "":
		return refuse(ErrInvalid, "a container network has no port group")
	case n.Name == "" && !networkName.MatchString(name):
		return refuse(ErrInvalid, "container network %q needs another name for docker, of letters, digits and any of _.-", n.PortGroup)
	case !networkName.MatchString(name):
		return refuse(ErrInvalid, "container network %q: %q is not a name for docker: letters, digits and any of _.-", n.PortGroup, name)
	case slices.Contains(predefined, name):
		return refuse(ErrInvalid, "container network %q: %s is the name of another network", n.PortGroup, name)
	}
	if !n.Gateway.IsValid() && (n.First.IsValid() || n.Last.IsValid()) {
		return refuse(ErrInvalid, "container network %q: a range of addresses needs a gateway, which says what subnet they are in", n.PortGroup)
	}
	if g := n.Gateway; g.IsValid() {
		if !g.Addr().Is4() || g.Bits() < 8 || g.Bits() > 30 {
			return refuse(ErrInvalid, "container network %q: gateway %s is not an IPv4 address in a subnet between /8 and /30", n.PortGroup, g)
		}
		subnet := g.Masked()
		first, last := n.bounds()
		switch {
		case !usable(subnet, g.Addr()):
			return refuse(ErrInvalid, "container network %q: %s is not the address of a host of subnet %s", n.PortGroup, g.Addr(), subnet)
		case !usable(subnet, first) || !usable(subnet, last):
			return refuse(ErrInvalid, "container network %q: range %s-%s is not within subnet %s", n.PortGroup, first, last, subnet)
		case last.Less(first):
			return refuse(ErrInvalid, "container network %q: range %s-%s ends before it begins", n.PortGroup, first, last)
		}
	}
	for _, a := range n.DNS {
		if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() {
			return refuse(ErrInvalid, "container network %q: %s is not the address of a DNS server", n.PortGroup, a)
		}
	}
	switch n.trust() {
	case wire.Closed, wire.Outbound, wire.Published, wire.Open:
	case wire.Peers:
		if !n.Gateway.IsValid() {
			return refuse(ErrInvalid, "container network %q: trust level %s needs a range of addresses: those are the peers", n.PortGroup, wire.Peers)
		}
	default:
		return refuse(ErrInvalid, "container network %q: trust level %q is none of %s, %s, %s, %s and %s", n.PortGroup, n.Trust,
			wire.Closed, wire.Outbound, wire.Peers, wire.Published, wire.Open)
	}
	return nil
}

func (n ContainerNetwork) name() string {
	if n.Name == "" {
		return n.PortGroup
	}
	return n.Name
}

func (n ContainerNetwork) trust() Trust {
	if n.Trust == "" {
		return wire.Published
	}
	return n.Trust
}

// bounds are the first and the last address that may be given out.
func (n ContainerNetwork) bounds() (first, last netip.Addr) {
	if n.First.IsValid() || n.Last.IsValid() {
		return n.First, n.Last
	}
	subnet := n.Gateway.Masked()
	b := subnet.Addr().As4()
	for i := subnet.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return subnet.Addr().Next(), netip.AddrFrom4(b).Prev()
}

// config is the network as one among all. Its ID is always the same, for nothing is kept of it.
func (n ContainerNetwork) config() NetworkConfig {
	sum := sha256.Sum256([]byte("container network " + n.PortGroup + "\x00" + n.name()))
	n.Name, n.Trust = n.name(), n.trust()
	conf := NetworkConfig{ID: hex.EncodeToString(sum[:]), Name: n.Name}
	if n.Gateway.IsValid() {
		n.First, n.Last = n.bounds()
		conf.Subnet, conf.Gateway, conf.Static = n.Gateway.Masked(), n.Gateway.Addr(), true
	}
	conf.Internal = n.Trust == wire.Closed
	conf.External = &n
	return conf
}

// filter is what a guest is to let through by an interface on the network, with these ports open.
func (n *ContainerNetwork) filter(ports []PortBinding) *wire.Filter {
	f := &wire.Filter{Trust: n.Trust}
	if n.Trust == wire.Peers {
		f.First, f.Last = n.First, n.Last
	}
	for _, p := range ports {
		f.Ports = append(f.Ports, wire.FilterPort{Proto: p.Proto, Port: p.HostPort, To: p.Port})
	}
	return f
}

// openContainerNetworks has the networks of the hypervisor's stand beside those of the store.
func (m *Manager) openContainerNetworks() error {
	for _, n := range m.o.ContainerNetworks {
		if err := n.Check(); err != nil {
			return err
		}
		conf := n.config()
		if other := m.segmentNamed(conf.Name); other != nil {
			return refuse(ErrConflict, "container network %q: there is a network %s already: name it otherwise", n.PortGroup, conf.Name)
		}
		network, err := m.o.Networks.Open(conf)
		if err != nil {
			return fmt.Errorf("container network %q: %w", n.PortGroup, err)
		}
		m.networks[conf.ID] = &segment{conf: conf, net: network}
	}
	return nil
}
