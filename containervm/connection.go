package containervm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"

	"vic/tether/wire"
)

const (
	maxEndpoints = 24 // of a container: a VM has 31 slots
	maxNames     = 256
	maxLinks     = 256
)

// check refuses what makes no sense, in docker's words, and needs no look at the networks.
func (n *NetworkSpec) check() error {
	if n.Mode == "host" || strings.Contains(n.Mode, ":") {
		return refuse(ErrInvalid, "network mode %q: a container is a virtual machine with a network of its own", n.Mode)
	}
	if n.Mode == "none" && (len(n.Ports) > 0 || len(n.Endpoints) > 0) {
		return refuse(ErrInvalid, "conflicting options: a container without a network has no ports and no endpoints")
	}
	if len(n.Endpoints) > maxEndpoints {
		return refuse(ErrInvalid, "a container can be on %d networks, not on %d", maxEndpoints, len(n.Endpoints))
	}
	for i := range n.Endpoints {
		e := &n.Endpoints[i]
		if slices.ContainsFunc(n.Endpoints[:i], func(o EndpointSpec) bool { return o.Network == e.Network }) {
			return refuse(ErrInvalid, "network %s is named twice", e.Network)
		}
		if err := e.check(); err != nil {
			return err
		}
	}
	for _, p := range n.Ports {
		if p.Port == 0 || p.Proto != "" && p.Proto != "tcp" && p.Proto != "udp" || p.HostPortEnd != 0 && p.HostPortEnd < p.HostPort {
			return refuse(ErrInvalid, "invalid port %d/%s", p.Port, p.Proto)
		}
	}
	return nil
}

func (e *EndpointSpec) check() error {
	if e.MAC != "" {
		mac, err := net.ParseMAC(e.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return refuse(ErrInvalid, "%q is not the hardware address of an interface", e.MAC)
		}
	}
	if len(e.Aliases) > maxNames || len(e.Links) > maxLinks {
		return refuse(ErrInvalid, "more than %d aliases or %d links on network %s", maxNames, maxLinks, e.Network)
	}
	switch {
	case e.IP.IsValid() && !e.IP.Is4():
		return refuse(ErrInvalid, "invalid IPv4 address: %s", e.IP)
	case e.IP6.IsValid() && (!e.IP6.Is6() || e.IP6.Is4In6() || e.IP6.Zone() != ""):
		return refuse(ErrInvalid, "invalid IPv6 address: %s", e.IP6)
	case slices.Contains(e.Aliases, ""):
		return refuse(ErrInvalid, "an alias on network %s is empty", e.Network)
	}
	return nil
}

// checkOn refuses what a network does not offer its containers.
func (e *EndpointSpec) checkOn(n NetworkConfig) error {
	switch {
	case n.Name == Bridge && (e.IP.IsValid() || e.IP6.IsValid()):
		return refuse(ErrInvalid, "invalid config for network %s: invalid endpoint settings:\nuser specified IP address is supported on user defined networks only", n.Name)
	case n.Name == Bridge && len(e.Aliases) > 0:
		return refuse(ErrInvalid, "invalid config for network %s: invalid endpoint settings:\nnetwork-scoped alias is supported only for containers in user defined networks", n.Name)
	case e.IP.IsValid() && !n.Static || e.IP6.IsValid() && n.IPv6 && !n.Static6:
		return refuse(ErrInvalid, "invalid config for network %s: invalid endpoint settings:\nuser specified IP address is supported only when connecting to networks with user configured subnets", n.Name)
	case e.IP.IsValid() && !n.Subnet.Contains(e.IP):
		return refuse(ErrInvalid, "invalid config for network %s: invalid endpoint settings:\nno configured subnet contains IP address %s", n.Name, e.IP)
	case n.External != nil && e.IP.IsValid() && (e.IP.Less(n.External.First) || n.External.Last.Less(e.IP)):
		return refuse(ErrInvalid, "invalid config for network %s: invalid endpoint settings:\nIP address %s is not in the range of this host, %s-%s", n.Name, e.IP, n.External.First, n.External.Last)
	case e.IP6.IsValid() && !n.Subnet6.Contains(e.IP6):
		return refuse(ErrInvalid, "invalid config for network %s: invalid endpoint settings:\nno configured subnet contains IP address %s", n.Name, e.IP6)
	}
	return nil
}

// fill brings a specification into the form in which it is kept.
func (n *NetworkSpec) fill() {
	if n.Mode == "" || n.Mode == "default" {
		n.Mode = Bridge
	}
	if n.Endpoints == nil {
		n.Endpoints = []EndpointSpec{}
		if n.Mode != "none" {
			n.Endpoints = append(n.Endpoints, EndpointSpec{Network: n.Mode, Aliases: n.Aliases, IP: n.IP, MAC: n.MAC})
		}
	}
	n.Aliases, n.IP, n.MAC = nil, netip.Addr{}, ""
}

// resolve finds the networks of a container that is to be, and refuses what they do not offer. One that is not
// there is missed when the container is started, as in docker.
func (m *Manager) resolve(n *NetworkSpec) error {
	n.Endpoints = slices.Clone(n.Endpoints)
	for _, e := range n.Endpoints {
		for _, l := range e.Links {
			if _, err := m.Container(l.Container); err != nil && e.Network == Bridge { // of others, docker has it so, they may come later
				return refuse(ErrInvalid, "could not get container for %s: %v", l.Container, err)
			}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range n.Endpoints {
		e := &n.Endpoints[i]
		s, err := m.findSegment(cmp.Or(e.ID, e.Network))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if n.Mode == e.Network {
			n.Mode = s.conf.Name
		}
		e.Network, e.ID = s.conf.Name, s.conf.ID
		if err := e.checkOn(s.conf); err != nil {
			return err
		}
	}
	return n.check()
}

// A connection is a container's place in a network while its VM runs.
type connection struct {
	spec     EndpointSpec
	segment  *segment
	endpoint Endpoint
	info     EndpointInfo // the endpoint's, and what containervm knows
	leased   netip.Prefix // what the guest was given by a DHCP server; guarded by the container's mu
	stop     context.CancelFunc
	served   chan struct{} // closed when nobody serves it any longer
	left     sync.Once
}

func endName(i int) string { return "net" + strconv.Itoa(i) }

// interfaceName is what the guest calls the NIC at an end.
func interfaceName(end string) string { return "eth" + strings.TrimPrefix(end, "net") }

// acquireSegment finds a container's network, which is not removed until releaseSegment.
func (m *Manager) acquireSegment(e EndpointSpec) (*segment, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.networks[e.ID]
	if s == nil && e.ID == "" {
		s = m.segmentNamed(e.Network)
	}
	if s == nil {
		return nil, refuse(ErrNotFound, "network %s not found", cmp.Or(e.ID, e.Network))
	}
	s.users++
	return s, nil
}

func (m *Manager) releaseSegment(s *segment) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.users--
}

// join takes a place in a network, or the same place again if before says which it was.
func (c *Container) join(e EndpointSpec, end string, before *EndpointInfo) (*connection, error) {
	s, err := c.m.acquireSegment(e)
	if err != nil {
		return nil, err
	}
	o := JoinOptions{Container: c.id, Names: c.networkNames(e), IP: e.IP, IP6: e.IP6, MAC: e.MAC, Links: c.m.linked(e.Links), DNS: c.spec.Network.DNS}
	if before != nil {
		o.MAC = before.MAC
		if !s.conf.dhcp() {
			o.IP, o.IP6 = before.IP.Addr(), before.IP6.Addr()
		}
	}
	ep, err := s.net.Join(o)
	if err != nil {
		c.m.releaseSegment(s)
		return nil, fmt.Errorf("connect container %s to network %s: %w", c.Info().Name, s.conf.Name, err)
	}
	k := &connection{spec: e, segment: s, endpoint: ep}
	k.info.ID = newID()
	if before != nil && before.ID != "" {
		k.info.ID = before.ID
	}
	if before != nil && s.conf.dhcp() {
		k.leased = before.IP
	}
	k.info.End = end
	k.refresh()
	return k, nil
}

// refresh takes over what the endpoint says of itself. Call it with the container's mu held once others know k.
func (k *connection) refresh() {
	i := k.endpoint.Info()
	i.ID, i.End, i.Default = k.info.ID, k.info.End, k.info.Default
	i.Network, i.NetworkID = k.segment.conf.Name, k.segment.conf.ID
	if k.segment.conf.dhcp() && k.leased.IsValid() {
		i.IP, i.Ports = k.leased, slices.Clone(i.Ports)
		for at := range i.Ports {
			i.Ports[at].HostIP = k.leased.Addr()
		}
	}
	k.info = i
}

// nic is the connection's interface for the hypervisor.
func (k *connection) nic() NIC {
	n := NIC{End: k.info.End, MAC: k.info.MAC}
	if e := k.segment.conf.External; e != nil {
		n.Network = e.PortGroup
	}
	return n
}

// wire is the connection's interface as the guest is told of it. Call it with the container's mu held.
func (k *connection) wire() wire.NIC {
	i, conf := k.info, k.segment.conf
	nic := wire.NIC{Name: interfaceName(i.End), MAC: i.MAC, MTU: i.MTU}
	if conf.External != nil {
		nic.Filter = conf.External.filter(i.Ports)
	}
	if conf.dhcp() {
		nic.DHCP, nic.Unrouted = true, !i.Default
		return nic
	}
	if i.GatewayMAC != "" {
		for _, a := range []netip.Addr{i.Gateway, i.Gateway6} {
			if a.IsValid() {
				nic.Neighbours = append(nic.Neighbours, wire.Neighbour{Addr: a, MAC: i.GatewayMAC})
			}
		}
	}
	nic.Addresses = []netip.Prefix{i.IP}
	if i.IP6.IsValid() {
		nic.Addresses = append(nic.Addresses, i.IP6)
	}
	if i.Default {
		nic.Gateways = append(nic.Gateways, i.Gateway)
		if i.Gateway6.IsValid() {
			nic.Gateways = append(nic.Gateways, i.Gateway6)
		}
	}
	return nic
}

// leave gives the place back.
func (c *Container) leave(k *connection) (err error) {
	k.left.Do(func() {
		if err = k.endpoint.Close(); err != nil {
			err = fmt.Errorf("leave network %s: %w", k.segment.conf.Name, err)
		}
		c.m.releaseSegment(k.segment)
	})
	return err
}

// linked are the names of the containers that links lead to, by alias.
func (m *Manager) linked(links []Link) map[string]string {
	if len(links) == 0 {
		return nil
	}
	names := map[string]string{}
	for _, l := range links {
		name := l.Container
		if c, err := m.Container(l.Container); err == nil {
			name = c.id[:12] // a name that stays
		}
		names[l.Alias] = name
	}
	return names
}

// networkNames are what other containers on a network find this one by. The first is its name for who asks
// by address.
func (c *Container) networkNames(e EndpointSpec) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	names := append([]string{c.spec.Name}, e.Aliases...)
	names = append(names, c.id[:12])
	if h := c.spec.Hostname; h != "" {
		names = append(names, h)
	}
	var unique []string
	for _, name := range names {
		if !slices.Contains(unique, name) {
			unique = append(unique, name)
		}
	}
	return unique
}

// joinAll takes the container's places in all its networks, all or none, and publishes its ports.
func (c *Container) joinAll() (all []*connection, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, c.leaveAll(all))
			all = nil
		}
	}()
	for i, e := range c.ordered() {
		k, err := c.join(e, endName(i), nil)
		if err != nil {
			return all, err
		}
		all = append(all, k)
	}
	ports := c.spec.Network.Ports
	if at := slices.IndexFunc(all, func(k *connection) bool { return k.segment.conf.External != nil }); at >= 0 && gateway(all) == nil {
		if err := c.publishOn(all[at], ports); err != nil { // it is closed, and says so
			return all, err
		}
	}
	return all, c.publish(all, ports)
}

// ordered are the container's endpoints in the order of their interfaces: that of its network mode first.
func (c *Container) ordered() []EndpointSpec {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Clone(c.spec.Network.Endpoints)
	slices.SortFunc(all, func(a, b EndpointSpec) int {
		if a.Network == c.spec.Network.Mode || b.Network == c.spec.Network.Mode {
			return cmp.Compare(boolInt(b.Network == c.spec.Network.Mode), boolInt(a.Network == c.spec.Network.Mode))
		}
		return cmp.Compare(a.Network, b.Network)
	})
	return all
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func (c *Container) leaveAll(all []*connection) error {
	var errs []error
	for _, k := range all {
		errs = append(errs, c.leave(k))
	}
	return errors.Join(errs...)
}

// gateway is the connection through which the container reaches the outside: none if all networks are internal.
func gateway(all []*connection) *connection {
	var best *connection
	for _, k := range all {
		if k.segment.conf.Internal {
			continue
		}
		if best == nil || k.spec.Priority > best.spec.Priority ||
			k.spec.Priority == best.spec.Priority && k.segment.conf.Name < best.segment.conf.Name {
			best = k
		}
	}
	return best
}

// publish moves the container's ports to the endpoint that has its default route.
func (c *Container) publish(all []*connection, ports []PortBinding) error {
	best := gateway(all)
	for _, k := range all {
		if k != best && len(k.endpoint.Info().Ports) > 0 {
			if err := k.endpoint.Publish(nil); err != nil {
				return fmt.Errorf("take back ports of %s: %w", k.segment.conf.Name, err)
			}
		}
	}
	if best != nil {
		if err := c.publishOn(best, ports); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range all {
		k.info.Default = k == best
		k.refresh()
	}
	return nil
}

func (c *Container) publishOn(k *connection, ports []PortBinding) error {
	if err := k.endpoint.Publish(ports); err != nil {
		return fmt.Errorf("driver failed programming external connectivity on endpoint %s (%s): %w", c.Info().Name, k.info.ID, err)
	}
	return nil
}

// byInterface are the connections in the order of the guest's interfaces.
func byInterface(all []*connection) []*connection {
	return slices.SortedFunc(slices.Values(all), func(a, b *connection) int {
		return cmp.Or(cmp.Compare(len(a.info.End), len(b.info.End)), cmp.Compare(a.info.End, b.info.End))
	})
}

// infos are what is kept, and told, of connections. Call it with the container's mu held.
func infos(all []*connection) []EndpointInfo {
	out := make([]EndpointInfo, 0, len(all))
	for _, k := range byInterface(all) {
		out = append(out, k.info)
	}
	return out
}
