package containervm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Bridge is the name of the network that is always there, and that containers are on unless they say otherwise.
const Bridge = "bridge"

// A NetworkConfig says what a network is. It does not change.
type NetworkConfig struct {
	ID      string    `json:"id"` // 64 hex digits
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Subnet of IPv4, a /8 to a /29. CreateNetwork chooses one if it is zero.
	Subnet netip.Prefix `json:"subnet"`
	// Gateway is the zero Addr for the first address of the subnet.
	Gateway netip.Addr `json:"gateway"`
	// Range is where addresses are given out; the zero Prefix is the whole subnet.
	Range netip.Prefix `json:"range,omitzero"`
	// Subnet6 and Gateway6 are of IPv6, of which there is none if they are zero. IPv6 alone has CreateNetwork
	// choose them.
	IPv6     bool         `json:"ipv6,omitempty"`
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`
	// Reserved are addresses that no container gets, by what they are for.
	Reserved map[string]netip.Addr `json:"reserved,omitempty"`
	// Static says that Subnet was asked for, and Static6 that Subnet6 was: only then may a container ask for an
	// address.
	Static  bool `json:"static,omitempty"`
	Static6 bool `json:"static6,omitempty"`
	// Internal networks reach neither the outside nor published ports.
	Internal bool `json:"internal,omitempty"`
	// MTU of the interfaces; 0 means 1500.
	MTU int `json:"mtu,omitempty"`
	// External is what the network is of the hypervisor's; nil for one that the VCH carries. Without a Subnet its
	// addresses are a DHCP server's. Such a network is not kept with the others: it is there as long as Options has it.
	External *ContainerNetwork `json:"-"`
	// What follows is the caller's own.
	Attachable bool              `json:"attachable,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Options    map[string]string `json:"options,omitempty"`
}

// Driver is what docker is told that makes the network.
func (n NetworkConfig) Driver() string {
	if n.External != nil {
		return "external"
	}
	return "bridge"
}

// dhcp says whether containers get their addresses from a DHCP server.
func (n NetworkConfig) dhcp() bool { return n.External != nil && !n.Subnet.IsValid() }

// NetworkInfo is a network and the containers that run on it.
type NetworkInfo struct {
	NetworkConfig
	Members []Member
}

// Member is a container's place in a network.
type Member struct {
	Container, Name string // ID, name
	Endpoint        EndpointInfo
}

// Networks makes networks.
type Networks interface {
	// Choose returns a subnet that overlaps with none of taken and no network of the host's, in docker's order.
	Choose(taken []netip.Prefix) (netip.Prefix, error)
	// Open makes a network with no endpoints. The error is an ErrInvalid for a config that makes no sense.
	Open(NetworkConfig) (Network, error)
}

// A Network connects containers with each other, the host and the world. Nothing passes from one Network to
// another.
type Network interface {
	// Join reserves addresses and names.
	Join(o JoinOptions) (Endpoint, error)
	Close() error
}

// JoinOptions say what an Endpoint is to be.
type JoinOptions struct {
	Container string // ID
	Names     []string
	IP, IP6   netip.Addr // wanted; zero for any
	MAC       string     // wanted; "" for one made from the IP
	// Links are names that only this container knows, by alias: those of other endpoints.
	Links map[string]string
	DNS   []netip.Addr // servers for names that are not containers'; none means the host's
}

// An Endpoint is one container's place in a Network.
type Endpoint interface {
	Info() EndpointInfo
	// Rename replaces the names.
	Rename(names []string) error
	// Publish listens on ports of the host, in place of those before, all or none. An
	// error that is an ErrPortAllocated is a port that is in use.
	Publish(ports []PortBinding) error
	// Serve carries frames between the network and conn, a NIC's, until conn fails
	// or the Endpoint is closed, and closes conn.
	Serve(conn io.ReadWriteCloser) error
	// Reset ends those of the guest's TCP connections through the network's gateway that the gateway does not know:
	// they were another's, which has ended. The guest sees them reset at once, and not when it sends next.
	Reset(ctx context.Context, sockets []Socket) error
	// Close gives back addresses, names and ports.
	Close() error
}

// ErrPortAllocated says that a host port is in use. The error's text is
// "Bind for ADDR:PORT failed: port is already allocated".
var ErrPortAllocated = errors.New("port is already allocated")

// A segment is a network that exists.
type segment struct {
	conf  NetworkConfig
	net   Network
	users int // attachments; guarded by Manager.mu
}

// predefined are names that no network is made by.
var predefined = []string{Bridge, "none", "host", "default"}

// openNetworks finds the networks of the store, and makes the first one.
func (m *Manager) openNetworks() error {
	if err := os.MkdirAll(m.networkDir(), 0o711); err != nil {
		return err
	}
	entries, err := os.ReadDir(m.networkDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !ValidID(id) {
			if strings.HasPrefix(e.Name(), tmpPrefix) { // a change that did not come to its end
				err = errors.Join(err, os.Remove(filepath.Join(m.networkDir(), e.Name())))
			}
			continue
		}
		var conf NetworkConfig
		readErr := readRecord(filepath.Join(m.networkDir(), e.Name()), &conf)
		if readErr == nil && (conf.ID != id || m.segmentNamed(conf.Name) != nil) {
			readErr = fmt.Errorf("it says that it is %s %q", conf.ID, conf.Name)
		}
		var n Network
		if readErr == nil {
			n, readErr = m.o.Networks.Open(conf)
		}
		if readErr != nil { // the others do not suffer
			m.o.Log.Warn("network is damaged", "network", id, "error", readErr)
			continue
		}
		m.networks[id] = &segment{conf: conf, net: n}
	}
	if err == nil {
		err = m.openContainerNetworks()
	}
	if err != nil || m.segmentNamed(Bridge) != nil {
		return err
	}
	return m.makeBridge()
}

// makeBridge makes the network that is always there, with the subnet that a store of before has for it.
func (m *Manager) makeBridge() error {
	conf := NetworkConfig{Name: Bridge}
	var old struct {
		Subnet netip.Prefix `json:"subnet"`
	}
	err := readRecord(filepath.Join(m.o.Store, "boot", "network.json"), &old)
	if err == nil {
		conf.Subnet = old.Subnet
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = m.makeNetwork(conf)
	return err
}

func (m *Manager) networkDir() string { return filepath.Join(m.o.Store, "networks") }

func (m *Manager) networkPath(id string) string { return filepath.Join(m.networkDir(), id+".json") }

// segmentNamed finds a network by its name. Call it with mu held, or before others know the Manager.
func (m *Manager) segmentNamed(name string) *segment {
	for _, s := range m.networks {
		if s.conf.Name == name {
			return s
		}
	}
	return nil
}

// CreateNetwork makes a network and returns it as it came to be. Errors: ErrInvalid, ErrConflict for a name in use,
// ErrForbidden for a subnet that overlaps with another network's or a name that is docker's own.
func (m *Manager) CreateNetwork(ctx context.Context, conf NetworkConfig) (NetworkConfig, error) {
	switch {
	case strings.TrimSpace(conf.Name) == "":
		return conf, refuse(ErrInvalid, "invalid name: name is empty")
	case slices.Contains(predefined, conf.Name):
		return conf, refuse(ErrForbidden, "operation is not permitted on predefined %s network", conf.Name)
	}
	select {
	case <-m.closed:
		return conf, ErrClosed
	default:
	}
	if err := ctx.Err(); err != nil {
		return conf, err
	}
	m.making.Lock() // one subnet after another
	defer m.making.Unlock()
	conf, err := m.makeNetwork(conf)
	if err == nil {
		m.emitNetwork("create", conf, nil)
	}
	return conf, err
}

// makeNetwork is CreateNetwork for any name. One call may be under way at a time.
func (m *Manager) makeNetwork(conf NetworkConfig) (NetworkConfig, error) {
	conf.ID, conf.Created = newID(), time.Now().UTC()
	m.mu.Lock()
	other := m.segmentNamed(conf.Name)
	var taken []netip.Prefix
	for _, s := range m.networks {
		if s.conf.Subnet.IsValid() {
			taken = append(taken, s.conf.Subnet)
		}
		if s.conf.Subnet6.IsValid() {
			taken = append(taken, s.conf.Subnet6)
		}
	}
	m.mu.Unlock()
	if other != nil {
		return conf, refuse(ErrConflict, "network with name %s already exists", conf.Name)
	}
	if err := conf.complete(taken, m.o.Networks.Choose); err != nil {
		return conf, err
	}
	n, err := m.o.Networks.Open(conf)
	if err != nil {
		return conf, fmt.Errorf("create network %s: %w", conf.Name, err)
	}
	if err := writeRecord(m.networkPath(conf.ID), conf); err != nil {
		return conf, errors.Join(fmt.Errorf("create network %s: %w", conf.Name, err), n.Close())
	}
	m.mu.Lock()
	m.networks[conf.ID] = &segment{conf: conf, net: n}
	m.mu.Unlock()
	return conf, nil
}

// findSegment finds a network as docker does: by its ID, its name, or the beginning of its ID. Call it with mu held.
func (m *Manager) findSegment(ref string) (*segment, error) {
	if s := m.networks[ref]; s != nil {
		return s, nil
	}
	if s := m.segmentNamed(ref); s != nil {
		return s, nil
	}
	s, err := byPrefix(m.networks, ref, fmt.Sprintf("network %s not found", ref))
	if errors.Is(err, ErrInvalid) {
		return nil, refuse(ErrInvalid, "network %s is ambiguous: several IDs begin so", ref)
	}
	return s, err
}

// Network finds a network by its ID, its name, or the beginning of its ID. The error is ErrNotFound, or ErrInvalid if
// several IDs begin so.
func (m *Manager) Network(ref string) (NetworkInfo, error) {
	m.mu.Lock()
	s, err := m.findSegment(ref)
	m.mu.Unlock()
	if err != nil {
		return NetworkInfo{}, err
	}
	return NetworkInfo{s.conf, m.members()[s.conf.ID]}, nil
}

// ListNetworks returns all networks, the oldest first.
func (m *Manager) ListNetworks() []NetworkInfo {
	members := m.members()
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []NetworkInfo
	for _, s := range m.networks {
		all = append(all, NetworkInfo{s.conf, members[s.conf.ID]})
	}
	slices.SortFunc(all, func(a, b NetworkInfo) int {
		if n := a.Created.Compare(b.Created); n != 0 {
			return n
		}
		return strings.Compare(a.ID, b.ID)
	})
	return all
}

// members are the containers that run on each network, by the network's ID.
func (m *Manager) members() map[string][]Member {
	all := map[string][]Member{}
	for _, c := range m.List() {
		info := c.Info()
		for _, e := range info.Endpoints {
			all[e.NetworkID] = append(all[e.NetworkID], Member{info.ID, info.Name, e})
		}
	}
	return all
}

// RemoveNetwork removes a network that no running container is on. Errors: ErrNotFound, ErrForbidden.
func (m *Manager) RemoveNetwork(ref string) (NetworkConfig, error) {
	m.mu.Lock()
	s, err := m.findSegment(ref)
	busy := false
	if err == nil {
		busy = s.users > 0
		switch {
		case s.conf.Name == Bridge || s.conf.External != nil:
			err = refuse(ErrForbidden, "%s is a pre-defined network and cannot be removed", s.conf.Name)
		case !busy:
			delete(m.networks, s.conf.ID)
		}
	}
	m.mu.Unlock()
	if err != nil {
		return NetworkConfig{}, err
	}
	if busy {
		return s.conf, m.inUse(s)
	}
	if err := removeRecord(m.networkPath(s.conf.ID)); err != nil {
		m.mu.Lock()
		m.networks[s.conf.ID] = s
		m.mu.Unlock()
		return s.conf, fmt.Errorf("remove network %s: %w", s.conf.Name, err)
	}
	err = s.net.Close()
	m.emitNetwork("destroy", s.conf, nil)
	return s.conf, err
}

// inUse says who is on a network that was to be removed.
func (m *Manager) inUse(s *segment) error {
	var who []string
	for _, e := range m.members()[s.conf.ID] {
		who = append(who, fmt.Sprintf("name:%q id:%q", e.Name, e.Endpoint.ID[:min(12, len(e.Endpoint.ID))]))
	}
	return refuse(ErrForbidden, "error while removing network: network %s has active endpoints (%s)", s.conf.Name, strings.Join(who, ", "))
}

// removeRecord removes a file for certain.
func removeRecord(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// closeNetworks ends all networks.
func (m *Manager) closeNetworks() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	var errs []error
	for _, s := range m.networks {
		errs = append(errs, s.net.Close())
	}
	clear(m.networks)
	return errors.Join(errs...)
}

// emitNetwork tells of something that happened to a network.
func (m *Manager) emitNetwork(action string, conf NetworkConfig, c *Container) {
	attributes := map[string]string{"name": conf.Name, "type": conf.Driver()}
	if c != nil {
		attributes["container"] = c.id
	}
	m.events.send(Event{Type: "network", Action: action, ID: conf.ID, Attributes: attributes})
}
