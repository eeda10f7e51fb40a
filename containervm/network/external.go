package network

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"

	"vic/containervm"
	"vic/tether/wire"
)

// An external network is one of the hypervisor's, whose frames do not come here: it gives out addresses, if it has any, and
// says which ports a guest's own filter is to let in.
type external struct {
	conf containervm.NetworkConfig
	pool *pool // nil if a DHCP server gives them out

	mu     sync.Mutex
	closed bool
	macs   map[hardwareAddr]bool
}

func newExternal(conf containervm.NetworkConfig) *external {
	n := &external{conf: conf, macs: map[hardwareAddr]bool{}}
	if conf.Subnet.IsValid() {
		n.pool = newRangePool(conf.Subnet, conf.External.First, conf.External.Last, conf.Gateway)
	}
	return n
}

// Close implements containervm.Network.
func (n *external) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.closed = true
	return nil
}

// Join implements containervm.Network. Nobody answers for names on such a network.
func (n *external) Join(o containervm.JoinOptions) (containervm.Endpoint, error) {
	e := &externalEndpoint{n: n}
	var err error
	if n.pool != nil {
		if e.ip, err = n.pool.take(o.IP); err != nil {
			return nil, err
		}
		e.mac = macOf(e.ip)
	} else {
		e.mac = macFor(o.Container, n.conf.ID)
	}
	if o.MAC != "" {
		e.mac, err = parseMAC(o.MAC)
	}
	if err == nil {
		err = n.enter(e.mac)
	}
	if err != nil {
		e.giveBack()
		return nil, err
	}
	return e, nil
}

func (n *external) enter(a hardwareAddr) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return errClosed
	case n.macs[a]:
		return errMACInUse(a)
	}
	n.macs[a] = true
	return nil
}

// macFor makes a locally administered address, always the same, so that a DHCP server knows the container again. It is
// none of macOf's.
func macFor(container, network string) hardwareAddr {
	sum := sha256.Sum256([]byte(container + network))
	return hardwareAddr{0x06, sum[0], sum[1], sum[2], sum[3], sum[4]}
}

// externalEndpoint is one guest's place in an external network.
type externalEndpoint struct {
	n    *external
	ip   netip.Addr // invalid with DHCP
	mac  hardwareAddr
	once sync.Once

	mu    sync.Mutex
	ports []containervm.PortBinding
}

func (e *externalEndpoint) giveBack() {
	if e.ip.IsValid() {
		e.n.pool.giveBack(e.ip)
	}
}

// Info implements containervm.Endpoint.
func (e *externalEndpoint) Info() containervm.EndpointInfo {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := containervm.EndpointInfo{Network: e.n.conf.Name, NetworkID: e.n.conf.ID, MAC: e.mac.String(), Gateway: e.n.conf.Gateway, Ports: slices.Clone(e.ports)}
	if e.ip.IsValid() {
		i.IP = netip.PrefixFrom(e.ip, e.n.conf.Subnet.Bits())
	}
	return i
}

// Rename implements containervm.Endpoint.
func (e *externalEndpoint) Rename([]string) error { return nil }

// Publish implements containervm.Endpoint: the ports are those of the guest's own address, which its filter lets in or leads to others.
func (e *externalEndpoint) Publish(ports []containervm.PortBinding) error {
	var bound []containervm.PortBinding
	for _, p := range ports {
		b, err := e.bind(p, bound)
		if err != nil {
			return err
		}
		if !slices.Contains(bound, b) {
			bound = append(bound, b)
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ports = bound
	return nil
}

func (e *externalEndpoint) bind(p containervm.PortBinding, bound []containervm.PortBinding) (containervm.PortBinding, error) {
	name := e.n.conf.Name
	switch t := e.n.conf.External.Trust; {
	case t == wire.Closed || t == wire.Outbound:
		return p, fmt.Errorf("%w: port %d cannot be published on network %s, which is %s: nothing may connect to containers there", containervm.ErrInvalid, p.Port, name, t)
	case p.HostIP.IsValid() && !p.HostIP.IsUnspecified():
		return p, fmt.Errorf("%w: port %d cannot be published at %s: on network %s a container has an address of its own", containervm.ErrInvalid, p.Port, p.HostIP, name)
	}
	b := containervm.PortBinding{Proto: p.Proto, Port: p.Port, HostIP: e.ip, HostPort: p.HostPort}
	if b.Proto == "" {
		b.Proto = "tcp"
	}
	if !b.HostIP.IsValid() { // until the guest says what it was given
		b.HostIP = netip.IPv4Unspecified()
	}
	if b.HostPort == 0 {
		b.HostPort = p.Port
	}
	for last := max(b.HostPort, p.HostPortEnd); ; b.HostPort++ {
		taken := slices.ContainsFunc(bound, func(o containervm.PortBinding) bool {
			return o.Proto == b.Proto && o.HostPort == b.HostPort && o.Port != b.Port
		})
		if !taken {
			return b, nil
		}
		if b.HostPort == last {
			return b, fmt.Errorf("Bind for %s:%d failed: %w", b.HostIP, b.HostPort, containervm.ErrPortAllocated)
		}
	}
}

// Serve implements containervm.Endpoint.
func (e *externalEndpoint) Serve(conn io.ReadWriteCloser) error {
	return errors.Join(fmt.Errorf("network: the frames of network %s do not come here", e.n.conf.Name), conn.Close())
}

// Reset implements containervm.Endpoint: no connection goes through a gateway of ours.
func (e *externalEndpoint) Reset(context.Context, []containervm.Socket) error { return nil }

// Close implements containervm.Endpoint.
func (e *externalEndpoint) Close() error {
	e.once.Do(func() {
		e.giveBack()
		e.n.mu.Lock()
		defer e.n.mu.Unlock()
		delete(e.n.macs, e.mac)
	})
	return nil
}
