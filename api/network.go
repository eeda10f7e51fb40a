package api

import (
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/network"

	"vic/containervm"
)

// Options of a network's driver that say something here.
const (
	bridgePrefix = "com.docker.network.bridge."
	mtuOption    = "com.docker.network.driver.mtu"
)

// noneID is the ID of the network none, which is the lack of one and the same on every host.
var noneID = func() string {
	sum := sha256.Sum256([]byte("network none"))
	return hex.EncodeToString(sum[:])
}()

// networks are those of this host: what containervm has, and none.
func (s *Server) networks() []containervm.NetworkInfo {
	return append(s.containers.ListNetworks(), containervm.NetworkInfo{NetworkConfig: containervm.NetworkConfig{ID: noneID, Name: network.NetworkNone}})
}

// findNetwork finds a network by ID, name, or the beginning of its ID.
func (s *Server) findNetwork(ref string) (containervm.NetworkInfo, error) {
	for _, n := range s.networks() {
		if n.ID == noneID && (ref == n.Name || ref == noneID) {
			return n, nil
		}
	}
	return s.containers.Network(ref)
}

// networkReply is what list and inspect tell of a network. Only inspect names its containers.
func networkReply(n containervm.NetworkInfo) network.Inspect {
	out := network.Inspect{Network: network.Network{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: driverOf(n), EnableIPv4: n.ID != noneID, EnableIPv6: n.IPv6,
		IPAM:     network.IPAM{Driver: "default", Config: []network.IPAMConfig{}},
		Internal: n.Internal, Attachable: n.Attachable, Options: n.Options, Labels: n.Labels,
	}, Containers: make(map[string]network.EndpointResource)}
	if n.Subnet.IsValid() {
		out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: n.Subnet, IPRange: n.Range, Gateway: n.Gateway, AuxAddress: n.Reserved})
	}
	if n.IPv6 {
		out.IPAM.Config = append(out.IPAM.Config, network.IPAMConfig{Subnet: n.Subnet6, Gateway: n.Gateway6})
	}
	if n.External != nil {
		out.Options = externalOptions(*n.External)
		if !n.Subnet.IsValid() {
			out.IPAM.Driver = "dhcp"
		}
	}
	if n.Name == containervm.Bridge {
		out.Options = map[string]string{
			bridgePrefix + "default_bridge":       "true",
			bridgePrefix + "enable_icc":           "true",
			bridgePrefix + "enable_ip_masquerade": "true",
			bridgePrefix + "host_binding_ipv4":    "0.0.0.0",
		}
	}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	for _, m := range n.Members {
		e := m.Endpoint
		out.Containers[m.Container] = network.EndpointResource{
			Name: m.Name, EndpointID: e.ID, MacAddress: macOf(e.MAC), IPv4Address: e.IP, IPv6Address: e.IP6,
		}
	}
	return out
}

func driverOf(n containervm.NetworkInfo) string {
	if n.ID == noneID {
		return "null"
	}
	return n.Driver()
}

// externalOptions say what a container network is, in the words of vic serve's flags.
func externalOptions(n containervm.ContainerNetwork) map[string]string {
	options := map[string]string{"port-group": n.PortGroup, "firewall": string(n.Trust)}
	if n.First.IsValid() {
		options["ip-range"] = n.First.String() + "-" + n.Last.String()
	}
	var servers []string
	for _, a := range n.DNS {
		servers = append(servers, a.String())
	}
	if len(servers) > 0 {
		options["dns"] = strings.Join(servers, ",")
	}
	return options
}

// networkDrivers are those of this host's networks.
func (s *Server) networkDrivers() []string {
	all := []string{"bridge", "null"}
	for _, n := range s.containers.ListNetworks() {
		if driver := n.Driver(); !slices.Contains(all, driver) {
			all = append(all, driver)
		}
	}
	slices.Sort(all)
	return all
}

// builtin says whether a network is one that cannot be made or removed.
func builtin(n containervm.NetworkInfo) bool {
	return n.ID == noneID || n.Name == containervm.Bridge || n.External != nil
}

func (s *Server) listNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	dangling, err := f.boolean("dangling", false)
	if err != nil {
		return err
	}
	for _, t := range f["type"] {
		if t != "custom" && t != "builtin" {
			return badRequest("invalid filter: 'type'='%s'", t)
		}
	}
	for _, v := range f["scope"] {
		if v != "local" && v != "global" && v != "swarm" {
			return badRequest("invalid filter: 'scope'='%s'", v)
		}
	}
	out := []network.Inspect{}
	for _, n := range s.networks() {
		kind := "custom"
		if builtin(n) {
			kind = "builtin"
		}
		if f.match("name", n.Name) && f.match("id", n.ID) && f.exact("driver", driverOf(n)) && f.exact("scope", "local") &&
			f.labels("label", n.Labels) && f.exact("type", kind) && (!f.has("dangling") || dangling == s.dangling(n)) {
			reply := networkReply(n)
			reply.Containers = map[string]network.EndpointResource{}
			out = append(out, reply)
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// dangling says whether no container is on a network that could be removed.
func (s *Server) dangling(n containervm.NetworkInfo) bool { return !builtin(n) && len(n.Members) == 0 }

func (s *Server) inspectNetwork(w http.ResponseWriter, r *http.Request) error {
	if scope := r.URL.Query().Get("scope"); scope != "" && scope != "local" {
		return notFound("network %s not found", param(r, "name"))
	}
	n, err := s.findNetwork(param(r, "name"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusOK, networkReply(n))
}

// networkBody is the body of POST /networks/create. CheckDuplicate, which old clients send, is what happens anyway.
type networkBody struct {
	Name       string
	Driver     string
	Scope      string
	EnableIPv4 *bool
	EnableIPv6 *bool
	IPAM       *network.IPAM
	Internal   bool
	Attachable bool
	Ingress    bool
	ConfigOnly bool
	ConfigFrom *network.ConfigReference
	Options    map[string]string
	Labels     map[string]string
}

func (s *Server) createNetwork(w http.ResponseWriter, r *http.Request) error {
	var body networkBody
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	conf, err := networkConfig(&body)
	if err != nil {
		return err
	}
	if conf, err = s.containers.CreateNetwork(r.Context(), conf); err != nil {
		return err
	}
	return writeJSON(w, http.StatusCreated, network.CreateResponse{ID: conf.ID})
}

// networkConfig makes a network's configuration of a create body, and refuses what this host has not.
func networkConfig(body *networkBody) (containervm.NetworkConfig, error) {
	c := containervm.NetworkConfig{
		Name: body.Name, Internal: body.Internal, Attachable: body.Attachable, Labels: body.Labels, Options: body.Options,
		IPv6: body.EnableIPv6 != nil && *body.EnableIPv6,
	}
	switch {
	case body.Driver == "external":
		return c, badRequest("--driver external is not supported: it is that of the hypervisor's networks, which the administrator of this host gives it (--container-network)")
	case body.Driver != "" && body.Driver != "bridge" && body.Driver != "default":
		if slices.Contains([]string{"overlay", "macvlan", "ipvlan", "host", "null"}, body.Driver) {
			return c, badRequest("--driver %s is not supported: this host has networks of driver bridge only", body.Driver)
		}
		return c, notFound("could not find plugin %s in v1 plugin registry: plugin not found", body.Driver)
	case body.Scope != "" && body.Scope != "local":
		return c, badRequest("--scope %s is not supported: the networks of this host are its own", body.Scope)
	case body.EnableIPv4 != nil && !*body.EnableIPv4:
		return c, badRequest("--ipv4=false is not supported: a network of this host has IPv4")
	case body.Ingress:
		return c, badRequest("--ingress is not supported: this host is not a swarm manager")
	case body.ConfigOnly || body.ConfigFrom != nil && body.ConfigFrom.Network != "":
		return c, badRequest("--config-only and --config-from are not supported: say what the network is to be")
	}
	if body.IPAM != nil {
		if err := setIPAM(&c, body.IPAM); err != nil {
			return c, err
		}
	}
	return c, setDriverOptions(&c, body.Options)
}

// setIPAM takes over at most one subnet of each version of IP.
func setIPAM(c *containervm.NetworkConfig, ipam *network.IPAM) error {
	if ipam.Driver != "" && ipam.Driver != "default" {
		return badRequest("--ipam-driver %s is not supported: this host has its own", ipam.Driver)
	}
	if len(ipam.Options) > 0 {
		return badRequest("--ipam-opt is not supported: the address management of this host has no options")
	}
	for _, i := range ipam.Config {
		six := i.Subnet.Addr().Is6() || !i.Subnet.IsValid() && i.Gateway.Is6()
		if six && c.Subnet6.IsValid() || !six && c.Subnet.IsValid() {
			return badRequest("bridge driver doesn't support multiple subnets")
		}
		if !six {
			c.Subnet, c.Range, c.Gateway, c.Reserved, c.Static = i.Subnet, i.IPRange, i.Gateway, i.AuxAddress, i.Subnet.IsValid()
			continue
		}
		if i.IPRange.IsValid() || len(i.AuxAddress) > 0 {
			return badRequest("--ip-range and --aux-address are not supported for IPv6: containers get addresses from the whole subnet")
		}
		if !c.IPv6 { // docker has it so: the subnet is kept for a network that does not use it
			return badRequest("subnet %s needs --ipv6", i.Subnet)
		}
		c.Subnet6, c.Gateway6, c.Static6 = i.Subnet, i.Gateway, true
	}
	return nil
}

// driverOptions are options of docker's bridge driver, and which values say what happens anyway: the rest is refused.
var driverOptions = map[string]func(string) bool{
	bridgePrefix + "name":                 func(string) bool { return true }, // of an interface that there is none of
	bridgePrefix + "enable_icc":           isTrue,
	bridgePrefix + "enable_ip_masquerade": isTrue,
	bridgePrefix + "default_bridge":       func(v string) bool { return !isTrue(v) },
	bridgePrefix + "host_binding_ipv4":    func(v string) bool { a, err := netip.ParseAddr(v); return err == nil && a.IsUnspecified() },
	mtuOption:                             func(string) bool { return true }, // setDriverOptions reads it
}

func isTrue(v string) bool {
	b, err := strconv.ParseBool(v)
	return err == nil && b
}

func setDriverOptions(c *containervm.NetworkConfig, options map[string]string) error {
	for key, value := range options {
		if ok := driverOptions[key]; ok == nil || !ok(value) {
			return badRequest("--opt %s=%s is not supported: networks of this host have no such option", key, value)
		}
	}
	if text, ok := options[mtuOption]; ok {
		mtu, err := strconv.Atoi(text)
		if err != nil || mtu <= 0 {
			return badRequest("--opt %s=%s: it must be a whole number", mtuOption, text)
		}
		c.MTU = mtu
	}
	return nil
}

func (s *Server) removeNetwork(w http.ResponseWriter, r *http.Request) error {
	n, err := s.findNetwork(param(r, "name"))
	if err != nil {
		return err
	}
	if n.ID == noneID {
		return forbidden("%s is a pre-defined network and cannot be removed", n.Name)
	}
	if _, err := s.containers.RemoveNetwork(n.ID); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) pruneNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "label", "label!", "until")
	if err != nil {
		return err
	}
	until, err := untilOf(f)
	if err != nil {
		return err
	}
	used := make(map[string]bool) // by containers that do not run, too
	for _, c := range s.containers.List() {
		for _, e := range c.Info().Spec.Network.Endpoints {
			used[e.ID], used[e.Network] = true, true
		}
	}
	report := network.PruneReport{NetworksDeleted: []string{}}
	for _, n := range s.containers.ListNetworks() {
		if builtin(n) || used[n.ID] || used[n.Name] || !until.IsZero() && !n.Created.Before(until) || !f.labelsPass(n.Labels) {
			continue
		}
		if _, err := s.containers.RemoveNetwork(n.ID); err != nil {
			s.log.Warn("network not pruned", "network", n.ID, "error", err)
			continue
		}
		report.NetworksDeleted = append(report.NetworksDeleted, n.Name)
	}
	s.pruned("network", 0)
	return writeJSON(w, http.StatusOK, report)
}

func (s *Server) connectNetwork(w http.ResponseWriter, r *http.Request) error {
	var body network.ConnectRequest
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	n, err := s.findNetwork(param(r, "name"))
	if err != nil {
		return err
	}
	c, err := s.containers.Container(body.Container)
	if err != nil {
		return err
	}
	if n.ID == noneID {
		return badRequest("container cannot be connected to multiple networks with one of the networks in private (none) mode")
	}
	e := containervm.EndpointSpec{}
	if body.EndpointConfig != nil {
		if e, err = endpointSpec(n.Name, body.EndpointConfig); err != nil {
			return err
		}
	}
	if err := c.Connect(finish(r), n.ID, e); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (s *Server) disconnectNetwork(w http.ResponseWriter, r *http.Request) error {
	var body network.DisconnectRequest
	if err := decodeBody(r, &body); err != nil {
		return err
	}
	c, err := s.containers.Container(body.Container)
	if err != nil {
		return err
	}
	if err := c.Disconnect(finish(r), param(r, "name"), body.Force); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

// endpointSpec is what a client says of a container's place in a network.
func endpointSpec(name string, e *network.EndpointSettings) (containervm.EndpointSpec, error) {
	spec := containervm.EndpointSpec{Network: name, Aliases: orNil(e.Aliases), Priority: e.GwPriority}
	if err := checkOptions(endpointOptions, e); err != nil {
		return spec, err
	}
	if e.IPAMConfig != nil {
		spec.IP, spec.IP6 = e.IPAMConfig.IPv4Address, e.IPAMConfig.IPv6Address
	}
	if len(e.MacAddress) > 0 {
		spec.MAC = e.MacAddress.String()
	}
	links, err := parseLinks(e.Links)
	spec.Links = links
	return spec, err
}

// orNil makes no difference between an empty list and none, as records do not.
func orNil(list []string) []string {
	if len(list) == 0 {
		return nil
	}
	return list
}
