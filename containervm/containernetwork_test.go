package containervm

import (
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"vic/tether/wire"
)

// newNetworkedSite is a site with container networks: one with a range, one with DHCP, one that is closed.
func newNetworkedSite(t *testing.T) *site {
	t.Helper()
	s := newSite(t)
	s.o.ContainerNetworks = []ContainerNetwork{
		{PortGroup: "VM Network", Name: "lan", Gateway: prefix("10.9.0.1/24"), First: netip.MustParseAddr("10.9.0.10"), Last: netip.MustParseAddr("10.9.0.20"),
			DNS: []netip.Addr{netip.MustParseAddr("10.9.0.53")}, Trust: wire.Peers},
		{PortGroup: "leased"},
		{PortGroup: "shut", Gateway: prefix("10.8.0.1/24"), Trust: wire.Closed},
	}
	s.reopen()
	return s
}

func TestContainerNetworks(t *testing.T) {
	t.Parallel()
	s := newNetworkedSite(t)
	lan, err := s.Network("lan")
	if err != nil {
		t.Fatal(err)
	}
	if lan.Driver() != "external" || lan.Subnet != prefix("10.9.0.0/24") || lan.Gateway != netip.MustParseAddr("10.9.0.1") || lan.External.PortGroup != "VM Network" || lan.Internal {
		t.Errorf("lan is %+v of %+v", lan.NetworkConfig, lan.External)
	}
	if shut, err := s.Network("shut"); err != nil || !shut.Internal || shut.External.First != netip.MustParseAddr("10.8.0.1") || shut.External.Last != netip.MustParseAddr("10.8.0.254") {
		t.Errorf("shut is %+v, %v", shut.External, err)
	}
	if leased, err := s.Network("leased"); err != nil || leased.Subnet.IsValid() || leased.External.Trust != wire.Published {
		t.Errorf("leased is %+v, %v", leased.External, err)
	}
	_, err = s.RemoveNetwork("lan")
	wantError(t, err, ErrForbidden, "lan is a pre-defined network and cannot be removed")
	_, err = s.CreateNetwork(t.Context(), NetworkConfig{Name: "lan"})
	wantError(t, err, ErrConflict, "network with name lan already exists")
	_, err = s.CreateNetwork(t.Context(), NetworkConfig{Name: "n", Subnet: prefix("10.9.0.0/16")})
	wantError(t, err, ErrForbidden, "overlaps")
	s.reopen()
	if again, err := s.Network(lan.ID); err != nil || again.Name != "lan" {
		t.Errorf("lan after a restart is %+v, %v", again, err)
	}
	s.network(NetworkConfig{Name: "mine"})
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s.o.ContainerNetworks = []ContainerNetwork{{PortGroup: "mine"}}
	_, err = Open(t.Context(), s.o)
	wantError(t, err, ErrConflict, `container network "mine": there is a network mine already`)
	s.o.ContainerNetworks = nil
	s.open()
	_, err = s.Network("lan")
	wantError(t, err, ErrNotFound, "network lan not found")
}

// TestOnContainerNetworks has a container on a network of the VCH's and two of the hypervisor's, through a restart of the VCH.
func TestOnContainerNetworks(t *testing.T) {
	t.Parallel()
	s := newNetworkedSite(t)
	ctx := t.Context()
	spec := Spec{Name: "c1", Args: []string{"sleep"}, Network: on("lan", "bridge")}
	spec.Network.Endpoints[0].Priority = 1
	spec.Network.Ports = []PortBinding{{Proto: "tcp", Port: 80, HostPort: 8080}}
	c := s.run(spec)
	vm := s.rack.vm(c.ID())
	var networks []string
	for _, nic := range vm.vm.NICs {
		networks = append(networks, nic.Network)
	}
	if !slices.Equal(networks, []string{"VM Network", ""}) {
		t.Errorf("interfaces are on %q", networks)
	}
	told := vm.conf.Network
	wantNIC := wire.NIC{Name: "eth0", MAC: vm.vm.NICs[0].MAC, Addresses: []netip.Prefix{prefix("10.9.0.2/24")}, Gateways: []netip.Addr{netip.MustParseAddr("10.9.0.1")},
		Filter: &wire.Filter{Trust: wire.Peers, First: netip.MustParseAddr("10.9.0.10"), Last: netip.MustParseAddr("10.9.0.20"), Ports: []wire.FilterPort{{Proto: "tcp", Port: 8080, To: 80}}}}
	if !reflect.DeepEqual(told.NICs[0], wantNIC) || told.NICs[1].Filter != nil || len(told.NICs[1].Gateways) != 0 || !told.Filters {
		t.Errorf("the guest was told %+v", told)
	}
	if bridge, _ := s.Network("bridge"); !slices.Equal(told.DNS.Servers, []netip.Addr{bridge.Gateway}) {
		t.Errorf("the guest asks %v for names", told.DNS.Servers)
	}

	if err := c.Connect(ctx, "leased", EndpointSpec{Priority: 2}); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		e := c.Info().Endpoints
		if len(e) != 3 || e[2].Network != "leased" || e[2].IP != prefix("10.77.0.9/24") || !e[2].Default || e[0].Default {
			t.Fatalf("endpoints are %+v", e)
		}
		want := PortBinding{Proto: "tcp", Port: 80, HostPort: 8080, HostIP: e[2].IP.Addr()}
		if len(e[0].Ports) != 0 || len(e[2].Ports) != 1 || e[2].Ports[0] != want {
			t.Errorf("ports are %+v and %+v", e[0].Ports, e[2].Ports)
		}
	}
	check()
	vm.mu.Lock()
	last := vm.told[len(vm.told)-1].NICs
	vm.mu.Unlock()
	if nic := last[2]; !nic.DHCP || nic.Unrouted || len(nic.Addresses) != 0 || nic.Filter.Trust != wire.Published || len(nic.Filter.Ports) != 1 || len(last[0].Gateways) != 0 || len(last[0].Filter.Ports) != 0 {
		t.Errorf("the guest was told %+v", last)
	}
	id := c.Info().Endpoints[2].ID
	s.reopen()
	c = s.byID(c.ID())
	check()
	if got := c.Info().Endpoints[2].ID; got != id {
		t.Errorf("the endpoint is another one after a restart")
	}
	// The port goes where the default route goes, and is the host's there.
	for _, network := range []string{"leased", "lan"} {
		if err := c.Disconnect(ctx, network, false); err != nil {
			t.Fatal(err)
		}
	}
	if e := c.Info().Endpoints; len(e) != 1 || len(e[0].Ports) != 1 || e[0].Ports[0].HostIP.IsValid() {
		t.Errorf("endpoints are %+v", e)
	}

	alone := s.run(Spec{Args: []string{"sleep"}, Network: on("leased")})
	if e := alone.Info().Endpoints; len(e) != 1 || e[0].IP != prefix("10.77.0.9/24") {
		t.Errorf("endpoints are %+v", e)
	}
	if told := s.rack.vm(alone.ID()).conf.Network; len(told.DNS.Servers) != 0 {
		t.Errorf("the guest was told %+v", told)
	}
	only := s.run(Spec{Args: []string{"sleep"}, Network: on("lan")})
	if told := s.rack.vm(only.ID()).conf.Network; !slices.Equal(told.DNS.Servers, []netip.Addr{netip.MustParseAddr("10.9.0.53")}) {
		t.Errorf("the guest was told %+v", told)
	}
	for _, a := range []string{"10.9.0.21", "10.9.1.12"} {
		refused := on("lan")
		refused.Endpoints[0].IP = netip.MustParseAddr(a)
		_, err := s.Create(ctx, Spec{Args: []string{"sleep"}, Network: refused})
		wantError(t, err, ErrInvalid, a)
	}
}
