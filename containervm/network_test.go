package containervm

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func (s *site) network(conf NetworkConfig) NetworkConfig {
	s.t.Helper()
	conf, err := s.CreateNetwork(s.t.Context(), conf)
	if err != nil {
		s.t.Fatal(err)
	}
	return conf
}

func prefix(text string) netip.Prefix { return netip.MustParsePrefix(text) }

func TestNetworkCreate(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.network(NetworkConfig{Name: "a"})
	b := s.network(NetworkConfig{Name: "b", Subnet: prefix("10.1.0.0/16"), Static: true, IPv6: true, Labels: map[string]string{"k": "v"}})
	if len(a.ID) != 64 || a.Subnet != prefix("172.18.0.0/16") || a.Gateway != netip.MustParseAddr("172.18.0.1") || a.IPv6 {
		t.Errorf("a is %+v", a)
	}
	if b.Gateway != netip.MustParseAddr("10.1.0.1") || b.Subnet6.Bits() != 64 || !b.Subnet6.Addr().IsPrivate() || !b.Subnet6.Contains(b.Gateway6) {
		t.Errorf("b is %+v", b)
	}
	for _, tt := range []struct {
		conf NetworkConfig
		kind error
		text string
	}{
		{NetworkConfig{}, ErrInvalid, "name is empty"},
		{NetworkConfig{Name: "a"}, ErrConflict, "network with name a already exists"},
		{NetworkConfig{Name: "bridge"}, ErrForbidden, "operation is not permitted on predefined bridge network"},
		{NetworkConfig{Name: "host"}, ErrForbidden, "predefined host network"},
		{NetworkConfig{Name: "c", Subnet: prefix("10.1.2.0/24")}, ErrForbidden, "Pool overlaps with other one on this address space"},
		{NetworkConfig{Name: "c", Subnet: prefix("10.2.0.1/16")}, ErrInvalid, "invalid subnet 10.2.0.1/16: it should be 10.2.0.0/16"},
		{NetworkConfig{Name: "c", Subnet: prefix("10.2.0.0/30")}, ErrInvalid, "between /8 and /29"},
		{NetworkConfig{Name: "c", Subnet: prefix("127.0.0.0/8")}, ErrInvalid, "not for networks"},
		{NetworkConfig{Name: "c", Subnet: prefix("fd00::/64")}, ErrInvalid, "IPv4"},
		{NetworkConfig{Name: "c", Subnet: prefix("10.2.0.0/16"), Gateway: netip.MustParseAddr("10.3.0.1")}, ErrInvalid, "invalid gateway 10.3.0.1"},
		{NetworkConfig{Name: "c", Subnet: prefix("10.2.0.0/16"), Gateway: netip.MustParseAddr("10.2.255.255")}, ErrInvalid, "invalid gateway"},
		{NetworkConfig{Name: "c", Gateway: netip.MustParseAddr("10.3.0.1")}, ErrInvalid, "needs a subnet"},
		{NetworkConfig{Name: "c", Subnet: prefix("10.2.0.0/16"), Range: prefix("10.3.0.0/24")}, ErrInvalid, "invalid ip-range"},
		{NetworkConfig{Name: "c", MTU: 100}, ErrInvalid, "invalid MTU 100"},
		{NetworkConfig{Name: "c", IPv6: true, Subnet6: prefix("10.0.0.0/8")}, ErrInvalid, "IPv6"},
		{NetworkConfig{Name: "c", IPv6: true, Subnet6: prefix("fe80::/64")}, ErrInvalid, "not for networks"},
		{NetworkConfig{Name: "c", IPv6: true, Subnet6: b.Subnet6}, ErrForbidden, "overlaps"},
	} {
		_, err := s.CreateNetwork(t.Context(), tt.conf)
		wantError(t, err, tt.kind, tt.text)
	}
	s.happened()
	s.reopen()
	for _, ref := range []string{b.ID, "b", b.ID[:10]} {
		if n, err := s.Network(ref); err != nil || n.Subnet != b.Subnet || n.Subnet6 != b.Subnet6 || n.Labels["k"] != "v" {
			t.Errorf("%s after a restart: %+v, %v", ref, n, err)
		}
	}
	// A name that is the ID of another: the ID is meant.
	named := s.network(NetworkConfig{Name: a.ID})
	if n, err := s.Network(a.ID); err != nil || n.Name != "a" {
		t.Errorf("found %+v, %v", n, err)
	}
	for _, ref := range []string{named.ID, "b", a.ID} {
		if _, err := s.RemoveNetwork(ref); err != nil {
			t.Error(err)
		}
	}
	_, err := s.RemoveNetwork("nowhere") // a name that no ID can begin with
	wantError(t, err, ErrNotFound, "network nowhere not found")
	_, err = s.RemoveNetwork("bridge")
	wantError(t, err, ErrForbidden, "bridge is a pre-defined network and cannot be removed")
	if got := s.happened(); got != "network create, network destroy, network destroy, network destroy" {
		t.Errorf("events: %s", got)
	}
	s.reopen()
	if all := s.ListNetworks(); len(all) != 1 || all[0].Name != Bridge {
		t.Errorf("left: %+v", all)
	}
	if again := s.network(NetworkConfig{Name: "a"}); again.Subnet != a.Subnet {
		t.Errorf("made again with %s, before %s", again.Subnet, a.Subnet)
	}
}

// TestNetworksDamaged opens a store with half a record, one that is not what its name says, and the bridge of before.
func TestNetworksDamaged(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	good := s.network(NetworkConfig{Name: "good"})
	dir := filepath.Join(s.o.Store, "networks")
	record, err := os.ReadFile(filepath.Join(dir, good.ID+".json"))
	if err != nil {
		t.Fatal(err)
	}
	bridge, err := s.Network(Bridge)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		strings.Repeat("a", 64) + ".json": "{",
		strings.Repeat("b", 64) + ".json": string(record),
		".tmp-1":                          "{",
		"README":                          "",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, bridge.ID+".json")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(s.o.Store, "boot"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(s.o.Store, "boot", "network.json"), []byte(`{"subnet":"172.25.0.0/16"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s.open()
	if all := s.ListNetworks(); len(all) != 2 || all[0].ID != good.ID || all[1].Subnet != prefix("172.25.0.0/16") {
		t.Errorf("networks are %+v", all)
	}
	if _, err := os.Stat(filepath.Join(dir, ".tmp-1")); err == nil {
		t.Error("a record that was never finished is still there")
	}
}

// on is a spec of a container on networks, the first of which is its mode.
func on(networks ...string) NetworkSpec {
	n := NetworkSpec{Mode: networks[0]}
	for _, name := range networks {
		n.Endpoints = append(n.Endpoints, EndpointSpec{Network: name})
	}
	return n
}

func TestEndpointRefused(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.network(NetworkConfig{Name: "auto"})
	s.network(NetworkConfig{Name: "own", Subnet: prefix("10.1.0.0/16"), Static: true})
	for _, tt := range []struct {
		e    EndpointSpec
		text string
	}{
		{EndpointSpec{Network: "auto", IP: netip.MustParseAddr("172.18.0.9")}, "user specified IP address is supported only when connecting to networks with user configured subnets"},
		{EndpointSpec{Network: "own", IP: netip.MustParseAddr("10.2.0.9")}, "no configured subnet contains IP address 10.2.0.9"},
		{EndpointSpec{Network: "bridge", IP: netip.MustParseAddr("172.17.0.9")}, "user specified IP address is supported on user defined networks only"},
		{EndpointSpec{Network: "bridge", Aliases: []string{"x"}}, "network-scoped alias is supported only for containers in user defined networks"},
		{EndpointSpec{Network: "own", IP: netip.MustParseAddr("fd00::1")}, "invalid IPv4 address"},
		{EndpointSpec{Network: "own", IP6: netip.MustParseAddr("10.1.0.1")}, "invalid IPv6 address"},
		{EndpointSpec{Network: "own", MAC: "01:00:00:00:00:00"}, "hardware address"},
		{EndpointSpec{Network: "own", Aliases: []string{""}}, "alias"},
		{EndpointSpec{Network: "bridge", Links: []Link{{"nope", "x"}}}, "could not get container for nope: No such container: nope"},
	} {
		_, err := s.Create(t.Context(), Spec{Args: []string{"sleep"}, Network: NetworkSpec{Mode: tt.e.Network, Endpoints: []EndpointSpec{tt.e}}})
		wantError(t, err, ErrInvalid, tt.text)
	}
	c := s.create(Spec{Args: []string{"sleep"}, Network: on("nope")})
	wantError(t, c.Start(t.Context()), ErrNotFound, "network nope not found")
	if info := c.Info(); info.State.Status != Created || info.Spec.Network.Endpoints[0].Network != "nope" {
		t.Errorf("container is %+v", info)
	}
	s.network(NetworkConfig{Name: "nope"})
	if err := c.Start(t.Context()); err != nil {
		t.Errorf("start when the network is there: %v", err)
	}
}

// TestSeveralNetworks follows a container on two networks through a restart of the VCH, and to its end.
func TestSeveralNetworks(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a, b := s.network(NetworkConfig{Name: "a", Internal: true}), s.network(NetworkConfig{Name: "b"})
	spec := Spec{Name: "two", Hostname: "h", Args: []string{"sleep"}, Network: on("b", "a")}
	spec.Network.Ports = []PortBinding{{Port: 80, HostPort: 8080}}
	spec.Network.Endpoints[1].Aliases = []string{"al"}
	c := s.run(spec)
	check := func() {
		t.Helper()
		e := c.Info().Endpoints
		if len(e) != 2 || e[0].Network != "b" || e[0].End != "net0" || !e[0].Default || len(e[0].Ports) != 1 || e[1].NetworkID != a.ID || e[1].Default || len(e[1].Ports) != 0 {
			t.Fatalf("endpoints are %+v", e)
		}
		if got := strings.Join(e[1].Names, " "); got != "two al "+c.ID()[:12]+" h" {
			t.Errorf("names are %s", got)
		}
		if n, err := s.Network("b"); err != nil || len(n.Members) != 1 || n.Members[0].Name != "two" || n.Members[0].Endpoint.ID != e[0].ID {
			t.Errorf("network is %+v, %v", n, err)
		}
	}
	check()
	conf := s.rack.vm(c.ID()).conf
	if len(conf.NICs) != 2 || len(conf.NICs[0].Gateways) != 1 || len(conf.NICs[1].Gateways) != 0 || conf.NICs[1].Name != "eth1" || conf.DNS.Servers[0] != b.Gateway {
		t.Errorf("guest was told %+v", conf.Network)
	}
	before := c.Info().Endpoints
	s.reopen()
	c, err := s.Container("two")
	if err != nil {
		t.Fatal(err)
	}
	check()
	if after := c.Info().Endpoints; after[0].ID != before[0].ID || after[0].IP != before[0].IP || after[1].IP != before[1].IP {
		t.Errorf("endpoints were %+v, are %+v", before, after)
	}
	_, err = s.RemoveNetwork("a")
	wantError(t, err, ErrForbidden, `network a has active endpoints (name:"two" id:"`+before[1].ID[:12]+`")`)
	s.happened()
	if err := c.Stop(t.Context(), StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := s.happened(); got != "container kill, container die, network disconnect, network disconnect, container stop" {
		t.Errorf("events: %s", got)
	}
	if _, err := s.RemoveNetwork("a"); err != nil {
		t.Errorf("remove the network of a container that has ended: %v", err)
	}
	s.network(NetworkConfig{Name: "a"}) // another one
	wantError(t, c.Start(t.Context()), ErrNotFound, "network "+a.ID+" not found")
}

// TestConnect connects and disconnects containers that run and that do not.
func TestConnect(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	front := s.network(NetworkConfig{Name: "front"})
	s.network(NetworkConfig{Name: "back"})
	s.network(NetworkConfig{Name: "zone", Internal: true})
	spec := Spec{Name: "c1", Args: []string{"sleep"}, Network: on("front")}
	spec.Network.Ports = []PortBinding{{Port: 80, HostPort: 8080}}
	c := s.create(spec)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// What compose does before a start.
	must(c.Disconnect(ctx, "front", false))
	if e := c.Info().Spec.Network.Endpoints; len(e) != 0 {
		t.Errorf("endpoints are %+v", e)
	}
	must(c.Connect(ctx, front.ID[:12], EndpointSpec{Aliases: []string{"svc"}}))
	must(c.Start(ctx))
	s.happened()
	must(c.Connect(ctx, "back", EndpointSpec{}))
	must(c.Connect(ctx, "zone", EndpointSpec{Priority: 9}))
	vm := s.rack.vm(c.ID())
	state := func() string {
		var out []string
		for _, e := range c.Info().Endpoints {
			text := e.Network + "=" + e.End
			if e.Default {
				text += " default"
			}
			if len(e.Ports) > 0 {
				text += " published"
			}
			out = append(out, text)
		}
		vm.mu.Lock()
		defer vm.mu.Unlock()
		slices.Sort(vm.nics)
		last := vm.told[len(vm.told)-1]
		for _, n := range last.NICs {
			out = append(out, n.Name)
		}
		return strings.Join(append(out, vm.nics...), ", ")
	}
	if got, want := state(), "front=net0, back=net1 default published, zone=net2, eth0, eth1, eth2, net0, net1, net2"; got != want {
		t.Errorf("state is %s, want %s", got, want)
	}
	wantError(t, c.Connect(ctx, "back", EndpointSpec{}), ErrForbidden, "endpoint with name c1 already exists in network back")
	wantError(t, c.Connect(ctx, "nope", EndpointSpec{}), ErrNotFound, "network nope not found")
	wantError(t, c.Disconnect(ctx, "nope", false), ErrNotFound, "network nope not found")
	wantError(t, c.Disconnect(ctx, "bridge", false), ErrForbidden, "container "+c.ID()+" is not connected to network bridge")
	must(c.Disconnect(ctx, "back", false))
	if got, want := state(), "front=net0 default published, zone=net2, eth0, eth2, net0, net2"; got != want {
		t.Errorf("state is %s, want %s", got, want)
	}
	s.reopen()
	c, _ = s.Container("c1")
	must(c.Connect(ctx, "back", EndpointSpec{}))
	must(c.Disconnect(ctx, "front", false))
	if got, want := state(), "back=net1 default published, zone=net2, eth1, eth2, net1, net2"; got != want {
		t.Errorf("state is %s, want %s", got, want)
	}
	if got := s.happened(); got != "network connect, network connect, network disconnect, network connect, network disconnect" {
		t.Errorf("events: %s", got)
	}
	// A port that cannot be had leaves all as it was.
	must(c.Stop(ctx, StopOptions{}))
	must(c.Start(ctx))
	vm = s.rack.vm(c.ID())
	s.net.mu.Lock()
	s.net.fails = ErrConflict
	s.net.mu.Unlock()
	wantError(t, c.Connect(ctx, "front", EndpointSpec{}), ErrConflict, "connect container c1 to network front")
	if e := c.Info(); len(e.Endpoints) != 2 || len(e.Spec.Network.Endpoints) != 2 {
		t.Errorf("container is %+v", e)
	}
	none := s.create(Spec{Args: []string{"sleep"}})
	wantError(t, none.Connect(ctx, "front", EndpointSpec{}), ErrInvalid, "one of the networks in private (none) mode")
	must(c.Remove(ctx, RemoveOptions{Force: true}))
	wantError(t, c.Connect(ctx, "front", EndpointSpec{}), ErrNotFound, "No such container")
	for _, n := range s.ListNetworks() {
		if n.Name != Bridge {
			_, err := s.RemoveNetwork(n.ID)
			must(err)
		}
	}
	if s.net.open != 1 {
		t.Errorf("%d networks and endpoints are left, beside the bridge", s.net.open-1)
	}
}

// TestRecordsOfBefore loads a container as it was kept when there was one network.
func TestRecordsOfBefore(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.run(Spec{Name: "old", Args: []string{"sleep"}, Network: NetworkSpec{Mode: "bridge"}})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	edit := func(file string, change func(map[string]any)) {
		path := filepath.Join(s.o.Store, "containers", c.ID(), file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		change(v)
		if text, err = json.Marshal(v); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	edit("config.json", func(v map[string]any) {
		v["spec"].(map[string]any)["network"] = map[string]any{"mode": "bridge", "aliases": []string{"x"}, "mac": "02:42:ac:11:00:02"}
	})
	edit("state.json", func(v map[string]any) {
		delete(v, "endpoints")
		v["endpoint"] = map[string]any{"network": "bridge", "mac": "02:42:ac:11:00:02", "ip": "172.17.0.9/16", "gateway": "172.17.0.1"}
	})
	s.open()
	c, err := s.Container("old")
	if err != nil {
		t.Fatal(err)
	}
	e := c.Info().Endpoints
	if len(e) != 1 || e[0].IP != prefix("172.17.0.9/16") || e[0].End != "net0" || !e[0].Default || !slices.Contains(e[0].Names, "x") {
		t.Errorf("endpoints are %+v", e)
	}
	if err := c.Restart(t.Context(), StopOptions{}); err != nil {
		t.Error(err)
	}
}
