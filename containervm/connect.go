package containervm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"vic/tether/wire"
)

// plugPatience is how long a guest may take to take in an interface, or to let go of one.
const plugPatience = 30 * time.Second

// connected are a run's connections.
func (c *Container) connected(r *run) []*connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(r.connections)
}

// serveConnection keeps a network interface of the VM's connected, until the run ends or k is stopped. On a network that the VCH
// does not carry there is nothing to do.
func (c *Container) serveConnection(r *run, k *connection) {
	ctx, stop := context.WithCancel(r.ctx)
	k.stop, k.served = stop, make(chan struct{})
	if k.segment.conf.External != nil {
		close(k.served)
		return
	}
	end := k.info.End // before others change what it stands beside
	r.wg.Go(func() {
		defer close(k.served)
		for ctx.Err() == nil {
			conn, err := r.machine.Dial(ctx, end)
			if err == nil {
				hangUp := context.AfterFunc(ctx, func() { conn.Close() })
				err = k.endpoint.Serve(conn)
				hangUp()
			}
			c.m.o.Log.Debug("network connection ended", "container", c.id, "network", k.segment.conf.Name, "error", err)
			select {
			case <-time.After(redial):
			case <-ctx.Done():
			}
		}
	})
}

// rejoin takes the places again that a VM had before the VCH went away.
func (c *Container) rejoin(r *run) {
	var ports []PortBinding
	for _, e := range c.endpoints {
		i := slices.IndexFunc(c.spec.Network.Endpoints, func(s EndpointSpec) bool { return s.Network == e.Network })
		if i < 0 {
			continue // it was being disconnected
		}
		k, err := c.join(c.spec.Network.Endpoints[i], e.End, &e)
		if err != nil {
			c.m.o.Log.Warn("container lost a network", "container", c.id, "network", e.Network, "error", err)
			continue
		}
		r.connections = append(r.connections, k)
		ports = append(ports, c.bound(k, e.Ports)...)
	}
	if err := c.publish(r.connections, ports); err != nil {
		c.m.o.Log.Warn("container lost its ports", "container", c.id, "error", err)
	}
	c.endpoints = infos(r.connections)
}

// renew brings a guest that another VCH has left up to date: interfaces that were being plugged in or pulled out are as
// they are to be, and connections that went through the other's gateways are reset. A guest that cannot do it runs on.
func (c *Container) renew(ctx context.Context, r *run) {
	err := c.tellGuest(ctx, r)
	var sockets []Socket
	if conn, e := c.control(ctx, r); e == nil {
		sockets, e = conn.Sockets(ctx)
		err = errors.Join(err, e)
	}
	for _, k := range c.connected(r) {
		err = errors.Join(err, k.endpoint.Reset(ctx, sockets))
	}
	if err != nil && ctx.Err() == nil {
		c.m.o.Log.Warn("renew the container's connections", "container", c.id, "error", err)
	}
}

func (c *Container) renameConnections(r *run) error {
	var errs []error
	for _, k := range c.connected(r) {
		errs = append(errs, k.endpoint.Rename(c.networkNames(k.spec)))
		c.mu.Lock()
		k.refresh()
		c.mu.Unlock()
	}
	c.mu.Lock()
	if c.run == r && !r.left {
		c.endpoints = infos(r.connections)
	}
	c.mu.Unlock()
	return errors.Join(append(errs, c.saveState())...)
}

// guestNetwork is what the guest is told of its networks. Call it with mu held.
func (c *Container) guestNetwork(all []*connection) wire.Network {
	n := wire.Network{Later: c.spec.Network.Mode != "none", Filters: len(c.m.o.ContainerNetworks) > 0, DNS: wire.DNS{Search: c.spec.Network.DNSSearch, Options: c.spec.Network.DNSOptions}}
	var first netip.Addr // gateway, for names that stand for it
	var external []netip.Addr
	for _, k := range byInterface(all) {
		n.NICs = append(n.NICs, k.wire())
		if e := k.segment.conf.External; e != nil {
			external = append(external, e.DNS...)
		} else if k.info.Default || !first.IsValid() {
			first = k.info.Gateway
		}
	}
	switch {
	case first.IsValid(): // it asks the container's own, if there are any
		n.DNS.Servers = []netip.Addr{first}
	case len(c.spec.Network.DNS) > 0:
		n.DNS.Servers = c.spec.Network.DNS
	default:
		n.DNS.Servers = external
	}
	for _, h := range c.spec.Network.Hosts {
		if addr := h.Addr; addr.IsValid() {
			n.Hosts = append(n.Hosts, wire.Host{Addr: addr, Names: h.Names})
		} else if first.IsValid() {
			n.Hosts = append(n.Hosts, wire.Host{Addr: first, Names: h.Names})
		}
	}
	return n
}

// tellGuest has the guest set up its interfaces as they are to be now.
func (c *Container) tellGuest(ctx context.Context, r *run) error {
	conn, err := c.control(ctx, r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	n := c.guestNetwork(r.connections)
	c.mu.Unlock()
	addresses, err := conn.Network(ctx, n)
	if err != nil {
		return fmt.Errorf("set up the container's interfaces: %w", err)
	}
	c.takeLeases(r, n, addresses)
	return nil
}

// takeLeases takes in what addresses the guest says that its interfaces have, where they are a DHCP server's.
func (c *Container) takeLeases(r *run, n wire.Network, addresses [][]string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, k := range r.connections {
		at := slices.IndexFunc(n.NICs, func(nic wire.NIC) bool { return nic.DHCP && nic.MAC == k.info.MAC })
		if at < 0 || at >= len(addresses) || !k.segment.conf.dhcp() {
			continue
		}
		for _, a := range addresses[at] {
			if p, err := netip.ParsePrefix(a); err == nil && p.Addr().Is4() {
				k.leased = p
				k.refresh()
				break
			}
		}
	}
	if !r.left {
		c.endpoints = infos(r.connections)
	}
}

// changing is the words for a change that is refused, and the error that it is.
type changing struct {
	doing, done string
	sort        error
}

var connecting = changing{"connecting or disconnecting it", "connected or disconnected", ErrForbidden}

// change does fn, which changes what the container is, while no other change and no start is under way. A change that
// has begun is finished even if ctx ends. r is nil if no VM runs.
func (c *Container) change(ctx context.Context, what changing, fn func(ctx context.Context, r *run) error) error {
	c.mu.Lock()
	running := c.run != nil && c.run.started
	c.mu.Unlock()
	if !running { // a start would begin with what is being changed
		if err := c.acquire(ctx); err != nil {
			return err
		}
		defer c.releaseOp()
	}
	select {
	case c.netOp <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	case <-c.m.closed:
		return ErrClosed
	}
	done := make(chan error, 1)
	work := func() {
		defer func() { <-c.netOp }()
		c.mu.Lock()
		r := c.run
		var err error
		switch {
		case c.removed:
			err = c.notFound()
		case r != nil && c.state.Status == Paused:
			err = refuse(ErrConflict, "container %s is paused, unpause the container before %s", c.id, what.doing)
		case c.removing || c.state.Status == Dead:
			err = refuse(what.sort, "container %s is marked for removal and cannot be %s", c.id, what.done)
		}
		c.mu.Unlock()
		if err == nil {
			ctx, cancel := context.WithTimeout(context.Background(), plugPatience)
			err = fn(ctx, r)
			cancel()
		}
		done <- err
	}
	if !running {
		work()
	} else {
		c.m.wg.Go(work)
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Connect puts the container on a further network; if it runs a network interface is plugged in. Errors: ErrNotFound for
// no such network, ErrForbidden if the container is on it, ErrInvalid.
func (c *Container) Connect(ctx context.Context, network string, e EndpointSpec) error {
	info, err := c.m.Network(network)
	if err != nil {
		return err
	}
	e.Network, e.ID = info.Name, info.ID
	if err := errors.Join(e.check(), e.checkOn(info.NetworkConfig)); err != nil {
		return err
	}
	return c.change(ctx, connecting, func(ctx context.Context, r *run) error { return c.connectTo(ctx, r, e) })
}

func (c *Container) connectTo(ctx context.Context, r *run, e EndpointSpec) error {
	c.mu.Lock()
	before := c.spec.Network.Endpoints
	var err error
	switch {
	case c.spec.Network.Mode == "none":
		err = refuse(ErrInvalid, "container cannot be connected to multiple networks with one of the networks in private (none) mode")
	case slices.ContainsFunc(before, func(o EndpointSpec) bool { return o.Network == e.Network && (o.ID == "" || o.ID == e.ID) }):
		err = refuse(ErrForbidden, "endpoint with name %s already exists in network %s", c.spec.Name, e.Network)
	case len(before) >= maxEndpoints:
		err = refuse(ErrInvalid, "a container can be on %d networks", maxEndpoints)
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	after := slices.DeleteFunc(slices.Clone(before), func(o EndpointSpec) bool { return o.Network == e.Network })
	after = append(after, e)
	if r != nil {
		if err := c.plug(ctx, r, e, after); err != nil {
			return err
		}
	} else {
		c.mu.Lock()
		c.spec.Network.Endpoints = after
		c.mu.Unlock()
	}
	if err := c.save(); err != nil {
		return fmt.Errorf("connect container: %w", err)
	}
	if r != nil {
		info, err := c.m.Network(e.ID)
		if err == nil {
			c.m.emitNetwork("connect", info.NetworkConfig, c)
		}
	}
	return nil
}

// plug gives a running VM an interface on a network.
func (c *Container) plug(ctx context.Context, r *run, e EndpointSpec, after []EndpointSpec) error {
	k, err := c.join(e, c.freeEnd(r), nil)
	if err != nil {
		return err
	}
	undo := func(err error) error {
		c.mu.Lock()
		r.connections = slices.DeleteFunc(slices.Clone(r.connections), func(o *connection) bool { return o == k })
		c.mu.Unlock()
		if k.stop != nil {
			k.stop()
			<-k.served
		}
		return errors.Join(err, r.machine.RemoveNIC(ctx, k.info.End), c.leave(k), c.publish(c.connected(r), c.ports(r)))
	}
	if err := r.machine.AddNIC(ctx, k.nic()); err != nil {
		return undo(err)
	}
	ports := c.ports(r)
	c.mu.Lock()
	if r.left {
		c.mu.Unlock()
		return errors.Join(refuse(ErrNotRunning, "container %s is not running", c.id), c.leave(k))
	}
	r.connections = append(slices.Clone(r.connections), k)
	c.serveConnection(r, k)
	c.mu.Unlock()
	if err := c.publish(c.connected(r), ports); err != nil {
		return undo(err)
	}
	if err := c.tellGuest(ctx, r); err != nil {
		return undo(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.spec.Network.Endpoints = after
	c.endpoints = infos(r.connections)
	return nil
}

// ports are those that a run publishes: as they were bound, or else as they are to be.
func (c *Container) ports(r *run) []PortBinding {
	for _, k := range c.connected(r) {
		if ports := k.endpoint.Info().Ports; len(ports) > 0 {
			return c.bound(k, ports)
		}
	}
	return c.spec.Network.Ports
}

// bound are ports that a connection has, as another would have them: those of an external network are bound to the container's
// own address, which no other has.
func (c *Container) bound(k *connection, ports []PortBinding) []PortBinding {
	if k.segment.conf.External != nil && len(ports) > 0 {
		return c.spec.Network.Ports
	}
	return ports
}

// freeEnd is the first end that none of the run's interfaces has.
func (c *Container) freeEnd(r *run) string {
	all := c.connected(r)
	for i := 0; ; i++ {
		if !slices.ContainsFunc(all, func(k *connection) bool { return k.info.End == endName(i) }) {
			return endName(i)
		}
	}
}

// Disconnect takes the container off a network; if it runs the network interface is pulled out. With force it is so
// also if the guest does not let go. Errors: ErrNotFound, ErrForbidden if the container is not on it.
func (c *Container) Disconnect(ctx context.Context, network string, force bool) error {
	c.m.mu.Lock()
	s, err := c.m.findSegment(network)
	c.m.mu.Unlock()
	name := network
	if err == nil {
		name = s.conf.Name
	}
	return c.change(ctx, connecting, func(ctx context.Context, r *run) error {
		c.mu.Lock()
		i := slices.IndexFunc(c.spec.Network.Endpoints, func(e EndpointSpec) bool { return e.Network == name || e.ID == network })
		c.mu.Unlock()
		switch {
		case i >= 0:
			return c.disconnectFrom(ctx, r, i, force)
		case err != nil:
			return err
		}
		return refuse(ErrForbidden, "container %s is not connected to network %s", c.id, name)
	})
}

func (c *Container) disconnectFrom(ctx context.Context, r *run, i int, force bool) error {
	c.mu.Lock()
	e := c.spec.Network.Endpoints[i]
	after := slices.Delete(slices.Clone(c.spec.Network.Endpoints), i, i+1)
	var k *connection
	if r != nil {
		for _, o := range r.connections {
			if o.spec.Network == e.Network {
				k = o
			}
		}
	}
	c.spec.Network.Endpoints = after
	c.mu.Unlock()
	// From here on a crash leaves at most an interface that nobody serves.
	if err := c.save(); err != nil {
		return fmt.Errorf("disconnect container: %w", err)
	}
	if k == nil {
		return nil
	}
	err := c.unplug(ctx, r, k)
	if force {
		if err != nil {
			c.m.o.Log.Warn("disconnect by force", "container", c.id, "network", e.Network, "error", err)
		}
		err = nil
	}
	err = errors.Join(err, c.saveState())
	c.m.emitNetwork("disconnect", k.segment.conf, c)
	return err
}

// unplug takes an interface away from a running VM.
func (c *Container) unplug(ctx context.Context, r *run, k *connection) error {
	ports := c.ports(r)
	c.mu.Lock()
	if r.left {
		c.mu.Unlock()
		return nil
	}
	r.connections = slices.DeleteFunc(slices.Clone(r.connections), func(o *connection) bool { return o == k })
	c.endpoints = infos(r.connections)
	c.mu.Unlock()
	k.stop()
	<-k.served
	errs := []error{c.leave(k)} // frees the ports for another endpoint of the container's
	errs = append(errs, c.publish(c.connected(r), ports), c.tellGuest(ctx, r), r.machine.RemoveNIC(ctx, k.info.End))
	c.mu.Lock()
	if !r.left {
		c.endpoints = infos(r.connections)
	}
	c.mu.Unlock()
	return errors.Join(errs...)
}
