package network

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"

	"vic/containervm"
)

// A Fabric makes networks, and knows which containers are on several of them. It is a containervm.Networks. Networks of
// the hypervisor's are no part of it; it only gives out their addresses.
type Fabric struct {
	o   Options
	log *slog.Logger

	mu       sync.RWMutex
	networks []*Network
	places   map[string][]*Endpoint // by container
	// strangers are hardware addresses on the Segment that were told of, at most maxStrangers.
	strangers map[hardwareAddr]bool
}

// Options of a Fabric. The zero value works.
type Options struct {
	// HostGateway is an address of the host where connections to the gateways' addresses
	// go. The zero Addr refuses them.
	HostGateway netip.Addr
	// Resolv is the file with the host's name servers; "" means /etc/resolv.conf.
	Resolv string
	// Segment is the wire that the guests of all networks are on. nil has each network be a switch of its own, to which
	// guests' connections are all there is.
	Segment *Segment
	// Range is where Choose finds subnets, an IPv4 prefix of 29 bits at most. It is divided into sixteen, or into such of 16 bits if
	// those are more, or of 29 if those are fewer, unless Width is set. The zero Prefix is docker's.
	Range netip.Prefix
	// Width is how many bits the prefixes have that Range is divided into, MaxWidth at most and no fewer than Range has. 0 is what Range says.
	Width int
	// Log is told what no caller is; nil is silent.
	Log *slog.Logger
}

// New makes a Fabric without networks.
func New(o Options) *Fabric {
	if o.Resolv == "" {
		o.Resolv = "/etc/resolv.conf"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	f := &Fabric{o: o, log: o.Log, places: map[string][]*Endpoint{}, strangers: map[hardwareAddr]bool{}}
	if o.Segment != nil {
		o.Segment.listen(f.overhear)
	}
	return f
}

// Open implements containervm.Networks.
func (f *Fabric) Open(conf containervm.NetworkConfig) (containervm.Network, error) {
	if conf.External != nil {
		return newExternal(conf), nil
	}
	n, err := newNetwork(f, conf)
	if err != nil {
		return nil, fmt.Errorf("network: %w", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.networks = append(f.networks, n)
	return n, nil
}

func (f *Fabric) remove(n *Network) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.networks = slices.DeleteFunc(f.networks, func(o *Network) bool { return o == n })
}

// Choose implements containervm.Networks.
func (f *Fabric) Choose(taken []netip.Prefix) (netip.Prefix, error) {
	host, err := hostNetworks()
	if err != nil {
		return netip.Prefix{}, err
	}
	for p := range f.candidates() {
		if !slices.ContainsFunc(host, p.Overlaps) && !slices.ContainsFunc(taken, p.Overlaps) {
			return p, nil
		}
	}
	if f.o.Range.IsValid() {
		return netip.Prefix{}, fmt.Errorf("no part of %s is free", f.o.Range)
	}
	return netip.Prefix{}, errors.New("none of them is free")
}

// MaxWidth is the longest prefix of a subnet.
const MaxWidth = 29

// candidates are docker's own, or parts of the Range.
func (f *Fabric) candidates() iter.Seq[netip.Prefix] {
	var all []netip.Prefix
	if r := f.o.Range.Masked(); r.IsValid() {
		if !r.Addr().Is4() || r.Bits() > MaxWidth {
			return slices.Values(all)
		}
		bits := cmp.Or(f.o.Width, min(max(r.Bits()+4, 16), MaxWidth))
		size := uint64(1) << (32 - bits)
		first := r.Addr().As4()
		begin := uint64(binary.BigEndian.Uint32(first[:]))
		return func(yield func(netip.Prefix) bool) {
			for a := begin; a < begin+1<<(32-r.Bits()) && yield(netip.PrefixFrom(addrOf(uint32(a)), bits)); a += size {
			}
		}
	}
	for i := byte(17); i <= 31; i++ {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, i, 0, 0}), 16))
	}
	for i := 0; i < 256; i += 16 {
		all = append(all, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(i), 0}), 20))
	}
	return slices.Values(all)
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

// owns tells whether an address is of one of the networks.
func (f *Fabric) owns(a netip.Addr) bool {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return slices.ContainsFunc(f.networks, func(n *Network) bool {
		return n.pool.subnet.Contains(a) || n.pool6 != nil && n.pool6.subnet.Contains(a)
	})
}

// enter has the Fabric know an endpoint. On a Segment no two of all networks may have the same hardware address.
func (f *Fabric) enter(e *Endpoint) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.o.Segment != nil {
		for _, all := range f.places {
			if slices.ContainsFunc(all, func(o *Endpoint) bool { return o.mac == e.mac }) {
				return errMACInUse(e.mac)
			}
		}
	}
	f.places[e.container] = append(f.places[e.container], e)
	return nil
}

func (f *Fabric) leave(e *Endpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	rest := slices.DeleteFunc(slices.Clone(f.places[e.container]), func(o *Endpoint) bool { return o == e })
	if f.places[e.container] = rest; len(rest) == 0 {
		delete(f.places, e.container)
	}
}

// placesOf are the endpoints of e's container, e first.
func (f *Fabric) placesOf(e *Endpoint) []*Endpoint {
	f.mu.RLock()
	defer f.mu.RUnlock()
	all := []*Endpoint{e}
	for _, o := range f.places[e.container] {
		if o != e {
			all = append(all, o)
		}
	}
	return all
}

// maxStrangers is how many strange stations are told of.
const maxStrangers = 64

// overhear tells of a station on the Segment that uses an address of a network of ours.
func (f *Fabric) overhear(mac hardwareAddr, ip netip.Addr) {
	f.mu.RLock()
	networks := slices.Clone(f.networks)
	f.mu.RUnlock()
	for _, n := range networks {
		if e := n.endpointOf(ip); n.ours(ip) || e != nil && e.mac != mac {
			f.mu.Lock()
			told := f.strangers[mac] || len(f.strangers) >= maxStrangers
			if !told {
				f.strangers[mac] = true
			}
			f.mu.Unlock()
			if told {
				return
			}
			f.log.Warn("another station on the wire has an address of this one's networks: does another VCH use it with the same range?",
				"interface", f.o.Segment.name, "station", mac, "address", ip, "network", n.conf.Name)
			return
		}
	}
}
