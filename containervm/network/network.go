// Package network connects container VMs with each other, the host and the world,
// without any privilege: it is an Ethernet switch, a gateway, a name server and a port
// forwarder inside the VCH's process.
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
// and a frame must come from the hardware and IPv4 address that the guest was given, also inside ARP. There
// is nothing to learn then: the switch knows who is where from the addresses it gave out, so it works at once after
// the VCH has started anew, and nobody can take another's place. IPv6 is not carried.
//
// A guest that does not read, being paused perhaps, must not hold up others: frames for it wait in a
// queue, and those it has no room for are dropped, as Ethernet may.
//
// # Gateway
//
// The gateway ends guests' TCP connections and UDP flows and opens the host's own to where
// they want. It does not go to loopback, link-local or multicast addresses, so a service that is bound to
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
// The gateway's port 53 answers for the names of the endpoints (A and PTR) and asks the host's, or the
// container's own, servers for everything else.
//
// # Locks
//
// Network.mu guards the tables of endpoints; an Endpoint's mu its connections. Network.mu comes
// first. Neither is held while a frame goes into the stack or a connection is used.
package network

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"

	"vic/containervm"
)

// Name is what docker calls the network.
const Name = "bridge"

// DefaultMTU of the guests' interfaces.
const DefaultMTU = 1500

// Options of a Network. The zero value works.
type Options struct {
	// Subnet of the guests, IPv4, a /8 to a /29. The zero Prefix takes the first of 172.17.0.0/16, 172.18.0.0/16, …,
	// 192.168.0.0/20, … that is no network of the host's.
	Subnet netip.Prefix
	// State is a file that keeps the subnet that was taken, since VMs that run keep their addresses.
	// "" for none.
	State string
	// HostGateway is an address of the host where connections to the gateway's address
	// go. The zero Addr refuses them.
	HostGateway netip.Addr
	// MTU of the guests' interfaces; 0 means DefaultMTU, at most 65520.
	MTU int
	// Resolv is the file with the host's name servers; "" means /etc/resolv.conf.
	Resolv string
	// Log is told what no caller is; nil is silent.
	Log *slog.Logger
}

// A Network is a containervm.Network.
type Network struct {
	o       Options
	log     *slog.Logger
	gateway netip.Addr
	mac     hardwareAddr
	pool    *pool
	link    *link
	wg      sync.WaitGroup // the name server's

	mu     sync.RWMutex
	closed bool
	byMAC  map[hardwareAddr]*Endpoint
	byIP   map[netip.Addr]*Endpoint
	byName map[string][]*Endpoint // in lower case
}

// New makes a Network with no endpoints.
func New(o Options) (*Network, error) {
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.MTU < 576 || o.MTU > 65520 {
		return nil, fmt.Errorf("network: MTU of %d", o.MTU)
	}
	if o.Resolv == "" {
		o.Resolv = "/etc/resolv.conf"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	subnet, err := chooseSubnet(o)
	if err != nil {
		return nil, fmt.Errorf("choose subnet: %w", err)
	}
	n := &Network{
		o: o, log: o.Log,
		pool:  newPool(subnet),
		byMAC: map[hardwareAddr]*Endpoint{}, byIP: map[netip.Addr]*Endpoint{}, byName: map[string][]*Endpoint{},
	}
	n.gateway = n.pool.gateway
	n.mac = macOf(n.gateway)
	if n.link, err = newLink(n); err != nil {
		return nil, fmt.Errorf("make gateway: %w", err)
	}
	if err := n.serveNames(); err != nil {
		n.link.close()
		return nil, fmt.Errorf("make name server: %w", err)
	}
	return n, nil
}

// Info implements containervm.Network.
func (n *Network) Info() containervm.NetworkInfo {
	return containervm.NetworkInfo{Name: Name, Subnet: n.pool.subnet, Gateway: n.gateway}
}

// Close closes all endpoints and ends the gateway.
func (n *Network) Close() error {
	n.mu.Lock()
	n.closed = true
	var all []*Endpoint
	for _, e := range n.byIP {
		all = append(all, e)
	}
	n.mu.Unlock()
	var errs []error
	for _, e := range all {
		errs = append(errs, e.Close())
	}
	n.link.close()
	n.wg.Wait()
	return errors.Join(errs...)
}

var errClosed = errors.New("network: closed")

// Join implements containervm.Network.
func (n *Network) Join(o containervm.JoinOptions) (containervm.Endpoint, error) {
	e, err := n.join(o)
	if err != nil {
		return nil, err
	}
	return e, nil
}

func (n *Network) join(o containervm.JoinOptions) (*Endpoint, error) {
	ip, err := n.pool.take(o.IP)
	if err != nil {
		return nil, err
	}
	e := newEndpoint(n, o, ip)
	if o.MAC != "" {
		if e.mac, err = parseMAC(o.MAC); err != nil {
			n.pool.giveBack(ip)
			return nil, err
		}
	}
	if err := n.add(e, o.Names); err != nil {
		n.pool.giveBack(ip)
		return nil, err
	}
	if err := e.publish(o.Ports); err != nil {
		return nil, errors.Join(err, e.Close())
	}
	return e, nil
}

func (n *Network) add(e *Endpoint, names []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return errClosed
	}
	if n.byMAC[e.mac] != nil || e.mac == n.mac {
		return fmt.Errorf("network: hardware address %s is in use", e.mac)
	}
	if err := n.link.know(e.ip, e.mac); err != nil {
		return err
	}
	n.byMAC[e.mac], n.byIP[e.ip] = e, e
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
	n.link.forget(e.ip)
	n.mu.Unlock()
	n.pool.giveBack(e.ip)
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
	if frameType(frame) == etherARP {
		n.link.deliver(frame)
	}
}

// toGateway lets through what the gateway is to act upon. It must not relay between guests, nor answer
// in the name of others, which the stack would, since all addresses are its own.
func (n *Network) toGateway(frame []byte) {
	if frameType(frame) == etherIPv4 {
		dst := ipv4Dst(frame)
		if dst != n.gateway && (n.pool.subnet.Contains(dst) || ipv4Proto(frame) == protoICMP) {
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
	} else if dst.group() {
		for _, to := range n.byMAC {
			to.enqueue(frame)
		}
	}
}

// state is the content of Options.State.
type state struct {
	Subnet netip.Prefix `json:"subnet"`
}

// chooseSubnet takes the one asked for, else the one remembered, else one that is free.
func chooseSubnet(o Options) (netip.Prefix, error) {
	if o.Subnet.IsValid() {
		return o.Subnet.Masked(), checkSubnet(o.Subnet)
	}
	if o.State != "" {
		b, err := os.ReadFile(o.State)
		var s state
		switch {
		case errors.Is(err, os.ErrNotExist):
		case err != nil:
			return netip.Prefix{}, err
		default:
			if err := json.Unmarshal(b, &s); err != nil {
				return netip.Prefix{}, fmt.Errorf("parse %s: %w", o.State, err)
			}
			return s.Subnet.Masked(), checkSubnet(s.Subnet)
		}
	}
	taken, err := hostNetworks()
	if err != nil {
		return netip.Prefix{}, err
	}
	for _, p := range candidates() {
		if overlapsAny(p, taken) {
			continue
		}
		if o.State == "" {
			return p, nil
		}
		return p, writeState(o.State, state{p})
	}
	return netip.Prefix{}, errors.New("all private networks are the host's own")
}

func checkSubnet(p netip.Prefix) error {
	if !p.Addr().Is4() || p.Bits() < 8 || p.Bits() > 29 {
		return fmt.Errorf("network: %s is not an IPv4 subnet between /8 and /29", p)
	}
	return nil
}

// candidates are docker's own.
func candidates() []netip.Prefix {
	var all []netip.Prefix
	for i := byte(17); i <= 31; i++ {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, i, 0, 0}), 16))
	}
	for i := 0; i < 256; i += 16 {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 20))
	}
	return all
}

func hostNetworks() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	var all []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
			all = append(all, p)
		}
	}
	return all, nil
}

func overlapsAny(p netip.Prefix, all []netip.Prefix) bool {
	for _, q := range all {
		if p.Overlaps(q) {
			return true
		}
	}
	return false
}

func writeState(path string, s state) error {
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(s); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b.Bytes())
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(path+".tmp", path)
	}
	return err
}
