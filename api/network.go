package api

import (
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"github.com/moby/moby/api/types/network"
)

// The networks of this host: bridge, which containervm makes, and none, which is the lack of one.
func (s *Server) networks() []network.Network {
	base := network.Network{
		Scope: "local", EnableIPv4: true, Options: map[string]string{}, Labels: map[string]string{},
	}
	bridge, none := base, base
	n := s.host.Network
	bridge.Name, bridge.Driver, bridge.ID = n.Name, "bridge", s.networkID(n.Name)
	bridge.IPAM = network.IPAM{Driver: "default", Config: []network.IPAMConfig{{Subnet: n.Subnet, Gateway: n.Gateway}}}
	bridge.Options = map[string]string{
		"com.docker.network.bridge.default_bridge":       "true",
		"com.docker.network.bridge.enable_icc":           "true",
		"com.docker.network.bridge.enable_ip_masquerade": "true",
		"com.docker.network.bridge.host_binding_ipv4":    "0.0.0.0",
	}
	none.Name, none.Driver, none.ID = network.NetworkNone, "null", s.networkID(network.NetworkNone)
	none.EnableIPv4 = false
	none.IPAM = network.IPAM{Driver: "default", Config: []network.IPAMConfig{}}
	return []network.Network{bridge, none}
}

func (s *Server) listNetworks(w http.ResponseWriter, r *http.Request) error {
	f, err := filtersOf(r, "dangling", "driver", "id", "label", "name", "scope", "type")
	if err != nil {
		return err
	}
	if _, err := f.boolean("dangling", false); err != nil {
		return err
	}
	for _, t := range f["type"] {
		if t != "custom" && t != "builtin" {
			return badRequest("invalid filter: 'type'='%s'", t)
		}
	}
	out := []network.Inspect{}
	for _, n := range s.networks() {
		// Both are built in and neither is ever dangling.
		if f.match("name", n.Name) && f.match("id", n.ID) && f.exact("driver", n.Driver) && f.exact("scope", n.Scope) &&
			f.labels("label", n.Labels) && f.exact("type", "builtin") && f.exact("dangling", "false") {
			out = append(out, network.Inspect{Network: n, Containers: map[string]network.EndpointResource{}})
		}
	}
	return writeJSON(w, http.StatusOK, out)
}

// findNetwork finds a network by name, ID or the beginning of its ID.
func (s *Server) findNetwork(ref string) (network.Network, error) {
	for _, n := range s.networks() {
		if ref == n.Name || ref != "" && strings.HasPrefix(n.ID, ref) {
			return n, nil
		}
	}
	return network.Network{}, notFound("network %s not found", ref)
}

func (s *Server) inspectNetwork(w http.ResponseWriter, r *http.Request) error {
	n, err := s.findNetwork(param(r, "name"))
	if err != nil {
		return err
	}
	reply := network.Inspect{Network: n, Containers: make(map[string]network.EndpointResource)}
	for _, c := range s.containers.List() {
		info := c.Info()
		e := info.Endpoint
		if e == nil || e.Network != n.Name {
			continue
		}
		reply.Containers[info.ID] = network.EndpointResource{
			Name: info.Name, EndpointID: endpointID(info.ID), MacAddress: macOf(e.MAC), IPv4Address: e.IP, IPv6Address: netip.Prefix{},
		}
	}
	return writeJSON(w, http.StatusOK, reply)
}

func (s *Server) removeNetwork(_ http.ResponseWriter, r *http.Request) error {
	n, err := s.findNetwork(param(r, "name"))
	if err != nil {
		return err
	}
	return &statusError{http.StatusForbidden, errors.New(n.Name + " is a pre-defined network and cannot be removed")}
}

func (s *Server) pruneNetworks(w http.ResponseWriter, _ *http.Request) error {
	return writeJSON(w, http.StatusOK, network.PruneReport{})
}
