// Package network connects container VMs with each other, the host and the world. If QEMU carries the guests' frames it does
// so without any privilege: each network is an Ethernet switch, a gateway, a name server and a port
// forwarder inside the VCH's process. Networks share nothing that a frame could pass through.
//
//	guest ─virtio-net─ QEMU ─UNIX socket─► Endpoint ─► switch ─► Endpoint ─► another guest
//	                                                     │
//	                                      gVisor's TCP/IP stack, as the gateway
//	                                        │           │            │
//	                                  sockets of    name server   published ports:
//	                                  the host                    sockets of the host
//
// # Frames
//
// QEMU's "stream" back end sends each Ethernet frame after its length, 4 bytes big-endian. A
// guest is hostile: a length beyond the MTU ends the connection before anything is allocated,
// and a frame must come from the hardware and IP addresses that the guest was given, also inside ARP and neighbour
// discovery. There is nothing to learn then: the switch knows who is where from the addresses it gave out, so it works at
// once after the VCH has started anew, and nobody can take another's place. Guests do not advertise routes. IPv6 is
// carried on networks that have it.
//
// A guest that does not read, being paused perhaps, must not hold up others: frames for it wait in a
// queue, and those it has no room for are dropped, as Ethernet may.
//
// # Segment
//
// Guests elsewhere are on a wire with this machine, which on vSphere is the port group for bridge networks (OpenSegment). Then
// they reach each other without us, and only the gateways are here:
//
//	guest ─vmxnet3─ port group ─► interface of this machine ─► Segment ─► Endpoint ─► gateway
//
// A vSwitch lets a port send in no other name than its own, so all gateways have the interface's hardware address and are told apart
// by IP. Guests have addresses made from their IP, which are locally administered: vSphere takes any static address but
// reserved ones of VMware's own prefixes. Networks have no IP in common, and VCHs on one port group must not either
// (Options.Range), so a hardware address is used once. Frames are checked as those from QEMU are, on their way to the gateway. What
// guests send each other is not seen: who is root in one, with CAP_NET_RAW or CAP_NET_ADMIN, can send to guests of other networks on the port group, in
// any IP address's name; what keeps guests of two networks apart is that none has a route to the other.
//
// Interfaces put TCP packets together and cut them up, which is worth a factor of three, and may leave checksums to each
// other: offload.go.
//
// # Gateway
//
// The gateway ends guests' TCP connections and UDP flows and opens the host's own to where
// they want, except on internal networks. It does not go to loopback, link-local or multicast addresses nor to those of
// other networks, so a service that is bound to
// the host's loopback, such as the VCH's API, cannot be reached; Options.HostGateway opens one
// address for those who want that. Each guest has its own allowance of connections and flows. ICMP
// is answered by the gateway for itself only.
//
// gvisor-tap-vsock has the same parts on the same stack. Its switch panics on a frame of less than 14 bytes,
// allocates whatever length a guest names, learns addresses from guests, and waits for a guest that does
// not read; ten slow dials stop everybody's; its names cannot be taken back. So only the stack is used here.
//
// # Names
//
// The gateway's port 53 answers for the names of the endpoints (A, AAAA and PTR), on all networks that the asking
// container is on and by the links that it has, and asks the host's, or the
// container's own, servers for everything else. Containers on internal networks only get no other answers.
//
// # Locks
//
// Fabric.mu guards who is where over all networks, Network.mu a network's tables of endpoints, an Endpoint's mu its
// connections. Network.mu comes before Endpoint.mu; Fabric.mu is held with no other. None is held while a frame goes into the stack or a connection is used.
package network

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"sync"

	"vic/containervm"
)

// defaultMTU of the guests' interfaces, as long as IPv4 packets may be but for a little. No packet leaves this process
// for a wire, so none needs be short, and what a packet costs, most of all in a guest that is emulated, is shared by
// more bytes.
const defaultMTU = 65520

// A Network is a containervm.Network.
type Network struct {
	f        *Fabric
	conf     containervm.NetworkConfig
	mtu      int
	log      *slog.Logger
	gateway  netip.Addr
	gateway6 netip.Addr // invalid without IPv6
	mac      hardwareAddr
	local6   netip.Addr // the gateway's link-local address
	pool     *pool
	pool6    *pool // nil without IPv6
	link     *link
	wired    bool           // guests are on a Segment, where they reach each other
	wg       sync.WaitGroup // the name server's

	mu     sync.RWMutex
	closed bool
	byMAC  map[hardwareAddr]*Endpoint
	byIP   map[netip.Addr]*Endpoint // both versions
	byName map[string][]*Endpoint   // in lower case
}

func newNetwork(f *Fabric, conf containervm.NetworkConfig) (*Network, error) {
	n := &Network{
		f: f, conf: conf, mtu: conf.MTU, log: f.log, gateway: conf.Gateway, gateway6: conf.Gateway6,
		mac: macOf(conf.Gateway), pool: newPool(conf.Subnet, conf.Range, conf.Gateway, conf.Reserved),
		byMAC: map[hardwareAddr]*Endpoint{}, byIP: map[netip.Addr]*Endpoint{}, byName: map[string][]*Endpoint{},
	}
	if s := f.o.Segment; s != nil {
		if conf.MTU > s.mtu {
			return nil, fmt.Errorf("%w: MTU %d is more than the %d of interface %s", containervm.ErrInvalid, conf.MTU, s.mtu, s.name)
		}
		n.mac, n.mtu, n.wired = s.mac, cmp.Or(conf.MTU, s.mtu), true
	}
	n.local6 = linkLocal(n.mac)
	if n.mtu == 0 {
		n.mtu = defaultMTU
	}
	if conf.IPv6 {
		n.pool6 = newPool(conf.Subnet6, netip.Prefix{}, conf.Gateway6, nil)
	}
	var err error
	if n.link, err = newLink(n); err != nil {
		return nil, fmt.Errorf("make gateway: %w", err)
	}
	if err := n.serveNames(); err != nil {
		n.link.close()
		return nil, fmt.Errorf("make name server: %w", err)
	}
	return n, nil
}

// Close closes all endpoints and ends the gateway.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	var all []*Endpoint
	for _, e := range n.byMAC {
		all = append(all, e)
	}
	n.mu.Unlock()
	var errs []error
	for _, e := range all {
		errs = append(errs, e.Close())
	}
	n.link.close()
	n.wg.Wait()
	n.f.remove(n)
	return errors.Join(errs...)
}

var errClosed = errors.New("network: closed")

func errMACInUse(a hardwareAddr) error {
	return fmt.Errorf("network: hardware address %s is in use", a)
}

// Join implements containervm.Network.
func (n *Network) Join(o containervm.JoinOptions) (containervm.Endpoint, error) {
	e, err := n.join(o)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (n *Network) join(o containervm.JoinOptions) (*Endpoint, error) {
	e := newEndpoint(n, o)
	var err error
	if e.ip, err = n.pool.take(o.IP); err != nil {
		return nil, err
	}
	if n.pool6 != nil {
		if e.ip6, err = n.pool6.take(o.IP6); err != nil {
			n.pool.giveBack(e.ip)
			return nil, err
		}
	}
	e.mac = macOf(e.ip)
	if o.MAC != "" {
		e.mac, err = parseMAC(o.MAC)
	}
	e.local6 = linkLocal(e.mac)
	if err == nil {
		err = n.add(e, o.Names)
	}
	if err != nil {
		n.giveBack(e)
		return nil, err
	}
	if err := n.f.enter(e); err != nil {
		n.remove(e)
		return nil, err
	}
	return e, nil
}

func (n *Network) giveBack(e *Endpoint) {
	n.pool.giveBack(e.ip)
	if n.pool6 != nil {
		n.pool6.giveBack(e.ip6)
	}
}

func (n *Network) add(e *Endpoint, names []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errClosed
	}
	if n.byMAC[e.mac] != nil || e.mac == n.mac {
		return errMACInUse(e.mac)
	}
	if err := n.link.know(e); err != nil {
		return err
	}
	n.byMAC[e.mac], n.byIP[e.ip] = e, e
	if e.ip6.IsValid() {
		n.byIP[e.ip6] = e
	}
	n.name(e, names)
	return nil
}

// name gives e these names instead of those it had. Call it with mu held.
func (n *Network) name(e *Endpoint, names []string) {
	for _, old := range e.names {
		key := strings.ToLower(old)
		var rest []*Endpoint
		for _, other := range n.byName[key] {
			if other != e {
				rest = append(rest, other)
			}
		}
		if n.byName[key] = rest; rest == nil {
			delete(n.byName, key)
		}
	}
	e.names = nil
	for _, name := range names {
		key := strings.ToLower(strings.TrimSuffix(name, "."))
		if key == "" || contains(n.byName[key], e) {
			continue
		}
		e.names = append(e.names, name)
		n.byName[key] = append(n.byName[key], e)
	}
}

func contains(all []*Endpoint, e *Endpoint) bool {
	for _, other := range all {
		if other == e {
			return true
		}
	}
	return false
}

func (n *Network) remove(e *Endpoint) {
	n.mu.Lock()
	n.name(e, nil)
	delete(n.byMAC, e.mac)
	delete(n.byIP, e.ip)
	delete(n.byIP, e.ip6)
	n.link.forget(e)
	n.mu.Unlock()
	n.f.leave(e)
	n.giveBack(e)
}

func (n *Network) endpointOf(ip netip.Addr) *Endpoint {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.byIP[ip]
}

// forward brings a checked frame of e's to where it goes. It keeps the frame.
func (n *Network) forward(e *Endpoint, frame []byte) {
	dst := frameDst(frame)
	if dst == n.mac {
		n.toGateway(frame)
		return
	}
	if n.wired { // the other guests have it already
		if dst.group() && n.callsGateway(frame) {
			n.link.deliver(frame)
		}
		return
	}
	if !dst.group() {
		n.mu.RLock()
		to := n.byMAC[dst]
		n.mu.RUnlock()
		if to != nil {
			to.enqueue(frame)
		}
		return
	}
	n.mu.RLock()
	for _, to := range n.byMAC {
		if to != e {
			to.enqueue(frame)
		}
	}
	n.mu.RUnlock()
	if n.callsGateway(frame) {
		n.link.deliver(frame)
	}
}

// callsGateway tells whether a frame to a group may ask for the gateway's hardware address.
func (n *Network) callsGateway(frame []byte) bool {
	switch frameType(frame) {
	case etherARP:
		return true
	case etherIPv6:
		target, ok := solicited(frame)
		return ok && n.ours(target)
	}
	return false
}

// ours tells whether an address is the gateway's own.
func (n *Network) ours(a netip.Addr) bool {
	return a == n.gateway || n.gateway6.IsValid() && (a == n.gateway6 || a == n.local6)
}

// toGateway lets through what the gateway is to act upon. It must not relay between guests, nor answer
// in the name of others, which the stack would, since all addresses are its own.
func (n *Network) toGateway(frame []byte) {
	switch frameType(frame) {
	case etherIPv4:
		dst := ipv4Dst(frame)
		if dst != n.gateway && (n.pool.subnet.Contains(dst) || ipv4Proto(frame) == protoICMP) {
			return
		}
	case etherIPv6:
		dst := ipv6Dst(frame)
		if target, ok := solicited(frame); ok && !n.ours(target) {
			return
		}
		if !n.ours(dst) && (n.pool6 == nil || n.pool6.subnet.Contains(dst) || ipv6Proto(frame) == protoICMPv6) {
			return
		}
	}
	n.link.deliver(frame)
}

// fromGateway brings a frame of the gateway's to its guest. It keeps the frame.
func (n *Network) fromGateway(frame []byte) {
	dst := frameDst(frame)
	n.mu.RLock()
	defer n.mu.RUnlock()
	if to := n.byMAC[dst]; to != nil {
		to.enqueue(frame)
	} else if dst.group() && !n.wired {
		for _, to := range n.byMAC {
			to.enqueue(frame)
		}
	}
}
