package vch

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"

	"vic/containervm/appliance"
	"vic/tether/wire"
)

// The roles of an appliance's networks. The interface of several roles is called by the first.
const (
	public     = "public"
	client     = "client"
	management = "management"
	bridge     = "bridge"
)

// A nic is an interface of the appliance.
type nic struct {
	appliance.NIC
	roles   []string
	network object.NetworkReference
}

// resolvedNetworks are those of a Spec.
type resolvedNetworks struct {
	nics []nic
	dns  []netip.Addr
}

// role returns the interface of a role.
func (r *resolvedNetworks) role(role string) *nic {
	i := slices.IndexFunc(r.nics, func(n nic) bool { return slices.Contains(n.roles, role) })
	if i < 0 {
		return nil
	}
	return &r.nics[i]
}

// networks looks at all that concerns networks.
func (s *Site) networks(ctx context.Context, p *Problems, spec *Spec, hosts []mo.HostSystem) (*resolvedNetworks, error) {
	r := new(resolvedNetworks)
	publicNet, clientNet, managementNet := spec.Public, spec.Client, spec.Management
	clientNet.PortGroup = cmp.Or(clientNet.PortGroup, publicNet.PortGroup)
	managementNet.PortGroup = cmp.Or(managementNet.PortGroup, clientNet.PortGroup)
	byPortGroup := map[string]object.NetworkReference{}
	find := func(option, name string) error {
		if _, done := byPortGroup[name]; done {
			return nil
		}
		n, err := s.portGroup(ctx, p, option, name, hosts)
		byPortGroup[name] = n
		return err
	}
	for _, role := range []struct {
		name string
		Network
	}{{public, publicNet}, {client, clientNet}, {management, managementNet}} {
		if err := find(role.name+"-network", role.PortGroup); err != nil {
			return nil, err
		}
		i := slices.IndexFunc(r.nics, func(n nic) bool { return same(n.network, byPortGroup[role.PortGroup]) })
		if i < 0 {
			i = len(r.nics)
			n := nic{network: byPortGroup[role.PortGroup]}
			n.Name = role.name
			r.nics = append(r.nics, n)
		}
		n := &r.nics[i]
		n.roles = append(n.roles, role.name)
		addressNIC(p, n, role.name, role.Network)
	}
	for i := range r.nics {
		r.nics[i].DHCP = len(r.nics[i].Addresses) == 0
	}
	if spec.Bridge == "" {
		p.add("bridge-network", "name a port group that only this VCH uses")
	} else if err := find("bridge-network", spec.Bridge); err != nil {
		return nil, err
	}
	for _, n := range r.nics {
		if same(n.network, byPortGroup[spec.Bridge]) {
			p.add("bridge-network", "port group %s is the %s network: containers' bridges need one that nothing else uses", spec.Bridge, n.Name)
		}
	}
	b := nic{network: byPortGroup[spec.Bridge], roles: []string{bridge}}
	b.Name = bridge
	r.nics = append(r.nics, b)
	for _, text := range spec.DNS {
		a, err := netip.ParseAddr(text)
		if err != nil {
			p.add("dns-server", "%q is no IP address", text)
		}
		r.dns = append(r.dns, a)
	}
	return r, s.containerNetworks(ctx, p, spec, r, find)
}

// same says whether two networks are one, by whatever names.
func same(a, b object.NetworkReference) bool {
	return a != nil && b != nil && a.Reference() == b.Reference()
}

// addressNIC gives an interface what is said of one of its roles.
func addressNIC(p *Problems, n *nic, role string, net Network) {
	option := role + "-network"
	var subnet netip.Prefix
	if net.IP != "" {
		var err error
		if subnet, err = netip.ParsePrefix(net.IP); err != nil || !hostAddress(subnet) {
			p.add(option+"-ip", "%q is no address of a host with the length of its network: want ADDRESS/BITS", net.IP)
			return
		}
		if len(n.Addresses) > 0 && !slices.Contains(n.Addresses, subnet) {
			p.add(option+"-ip", "the %s network is the same port group, where the VCH has %v", n.Name, n.Addresses[0])
			return
		}
		if len(n.Addresses) == 0 {
			n.Addresses = append(n.Addresses, subnet)
		}
	}
	if net.Gateway == "" {
		if role == public && net.IP != "" {
			p.add(option+"-gateway", "a static address needs the gateway of the network")
		}
		return
	}
	gateway, err := netip.ParseAddr(net.Gateway)
	switch {
	case err != nil:
		p.add(option+"-gateway", "%q is no IP address", net.Gateway)
	case !subnet.IsValid():
		p.add(option+"-gateway", "it is of no use without --%s-ip: DHCP tells the gateway", option)
	case !subnet.Contains(gateway) || gateway == subnet.Addr():
		p.add(option+"-gateway", "%s is not another address in %s", gateway, subnet.Masked())
	case !slices.Contains(n.Gateways, gateway):
		n.Gateways = append(n.Gateways, gateway)
	}
}

// hostAddress says whether a prefix is a host's address in its network, neither the network's own nor IPv4's broadcast.
func hostAddress(p netip.Prefix) bool {
	if !p.IsValid() || p.Addr().IsUnspecified() || p.Addr().IsMulticast() {
		return false
	}
	if p.IsSingleIP() || p.Addr().BitLen()-p.Bits() == 1 {
		return true
	}
	return p.Addr() != p.Masked().Addr() && p.Addr() != lastAddress(p)
}

// lastAddress is the highest of a network.
func lastAddress(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // has the length of an address
	return a
}

// portGroup finds a network that all hosts have.
func (s *Site) portGroup(ctx context.Context, p *Problems, option, name string, hosts []mo.HostSystem) (object.NetworkReference, error) {
	list := func(ctx context.Context) ([]string, error) {
		all, err := s.find.NetworkList(ctx, "*")
		var names []string
		for _, n := range all {
			name := strings.TrimPrefix(n.GetInventoryPath(), s.folders.NetworkFolder.InventoryPath+"/")
			if !strings.HasSuffix(n.Reference().Type, "VirtualSwitch") && !strings.Contains(name, "-DVUplinks-") {
				names = append(names, name)
			}
		}
		return names, err
	}
	n, err := lookup(ctx, p, option, func(ctx context.Context) (object.NetworkReference, error) { return s.find.Network(ctx, name) }, list)
	if err != nil || n == nil {
		return nil, err
	}
	if _, err := n.EthernetCardBackingInfo(ctx); err != nil {
		names, listErr := list(ctx)
		p.suggest(option, fmt.Sprintf("%q is no port group", name), names)
		return nil, listErr
	}
	var without []string
	for _, h := range hosts {
		if !slices.Contains(h.Network, n.Reference()) {
			without = append(without, h.Name)
		}
	}
	if len(without) > 0 {
		p.add(option, "these hosts do not have the port group %q: %s", name, strings.Join(without, ", "))
	}
	return n, nil
}

// A taken is a range of addresses, and what for.
type taken struct {
	what   string
	prefix netip.Prefix
}

// containerNetworks checks what is said of port groups that containers are on, and that no ranges overlap.
func (s *Site) containerNetworks(ctx context.Context, p *Problems, spec *Spec, r *resolvedNetworks, find func(option, name string) error) error {
	var ranges []taken
	if prefix, err := netip.ParsePrefix(spec.BridgeRange); err != nil || prefix != prefix.Masked() || !prefix.Addr().Is4() || prefix.Bits() > 24 {
		p.add("bridge-network-range", "%q is no IPv4 network of at least 256 addresses: want ADDRESS/BITS", spec.BridgeRange)
	} else {
		ranges = append(ranges, taken{"the bridge networks", prefix})
	}
	for _, n := range r.nics {
		for _, a := range n.Addresses {
			ranges = append(ranges, taken{"the " + n.Name + " network", a.Masked()})
		}
	}
	groups := map[string]bool{}
	aliases := map[string]bool{}
	for _, text := range spec.ContainerNetworks {
		group, alias, _ := strings.Cut(text, ":")
		if group == spec.Bridge {
			p.add("container-network", "port group %s is the bridge network", group)
			continue
		}
		if alias = cmp.Or(alias, group); aliases[alias] {
			p.add("container-network", "%q is there twice", alias)
		}
		groups[group], aliases[alias] = true, true
		if err := find("container-network", group); err != nil {
			return err
		}
	}
	known := func(option, text string) (group, rest string, ok bool) {
		i := strings.Index(text, ":")
		if i < 0 || !groups[text[:i]] {
			p.add(option, "%q does not begin with a port group of --container-network and a colon", text)
			return "", "", false
		}
		return text[:i], text[i+1:], true
	}
	subnets := map[string]netip.Prefix{}
	for _, text := range spec.ContainerGateways {
		group, rest, ok := known("container-network-gateway", text)
		if !ok {
			continue
		}
		prefix, err := netip.ParsePrefix(rest)
		if err != nil || !hostAddress(prefix) {
			p.add("container-network-gateway", "%q is no gateway's address with the length of its network: want PORTGROUP:ADDRESS/BITS", text)
			continue
		}
		subnets[group] = prefix
		ranges = append(ranges, taken{"container network " + group, prefix.Masked()})
	}
	for _, text := range spec.ContainerRanges {
		if group, rest, ok := known("container-network-ip-range", text); ok {
			checkRange(p, text, rest, group, subnets[group])
		}
	}
	for _, text := range spec.ContainerDNS {
		if _, rest, ok := known("container-network-dns", text); ok {
			if _, err := netip.ParseAddr(rest); err != nil {
				p.add("container-network-dns", "%q is no IP address", rest)
			}
		}
	}
	levels := []string{"closed", "outbound", "peers", "published", "open"}
	for _, text := range spec.ContainerFirewall {
		if _, rest, ok := known("container-network-firewall", text); ok && !slices.Contains(levels, rest) {
			p.suggest("container-network-firewall", fmt.Sprintf("%q is no level of trust", rest), levels)
		}
	}
	overlapping(p, ranges)
	return nil
}

// checkRange checks FIRST-LAST, or a network, of a container network.
func checkRange(p *Problems, text, rest, group string, subnet netip.Prefix) {
	if !subnet.IsValid() {
		p.add("container-network-ip-range", "%q needs --container-network-gateway %s:ADDRESS/BITS", text, group)
		return
	}
	var first, last netip.Addr
	if prefix, err := netip.ParsePrefix(rest); err == nil {
		first, last = prefix.Masked().Addr(), lastAddress(prefix)
	} else {
		from, to, _ := strings.Cut(rest, "-")
		var err1, err2 error
		first, err1 = netip.ParseAddr(from)
		last, err2 = netip.ParseAddr(to)
		if err1 != nil || err2 != nil || last.Less(first) {
			p.add("container-network-ip-range", "%q is no range: want PORTGROUP:FIRST-LAST", text)
			return
		}
	}
	if !subnet.Contains(first) || !subnet.Contains(last) {
		p.add("container-network-ip-range", "%q is not within %s", text, subnet.Masked())
	}
}

// overlapping finds ranges that have addresses in common, which no packet could be routed by. Two roles in one network may.
func overlapping(p *Problems, ranges []taken) {
	for i, a := range ranges {
		for _, b := range ranges[:i] {
			if a.prefix.Overlaps(b.prefix) && a.prefix != b.prefix || a.prefix == b.prefix && strings.Contains(a.what+b.what, "bridge") {
				option := "bridge-network-range"
				if !strings.Contains(a.what+b.what, "bridge") {
					option = ""
				}
				p.add(option, "%s (%s) and %s (%s) overlap", b.what, b.prefix, a.what, a.prefix)
			}
		}
	}
}

// wireDNS is what the appliance is told.
func (r *resolvedNetworks) wireDNS() wire.DNS { return wire.DNS{Servers: r.dns} }
