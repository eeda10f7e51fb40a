package api

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"vic/containervm"
)

// TestContainerNetworkReply tells of networks of the hypervisor's what docker network inspect shows.
func TestContainerNetworkReply(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	for name, c := range map[string]struct {
		conf containervm.NetworkConfig
		want string
	}{
		"range": {
			containervm.NetworkConfig{ID: "1", Name: "lan", Subnet: prefix("10.9.0.0/24"), Gateway: addr("10.9.0.1"), External: &containervm.ContainerNetwork{
				PortGroup: "VM Network", First: addr("10.9.0.10"), Last: addr("10.9.0.20"), DNS: []netip.Addr{addr("10.9.0.53"), addr("10.9.0.54")}, Trust: "peers"}},
			`{"Driver":"external","EnableIPv4":true,"IPAM":{"Driver":"default","Config":[{"Subnet":"10.9.0.0/24","Gateway":"10.9.0.1"}]},"Options":{"dns":"10.9.0.53,10.9.0.54","firewall":"peers","ip-range":"10.9.0.10-10.9.0.20","port-group":"VM Network"}}`,
		},
		"DHCP": {
			containervm.NetworkConfig{ID: "2", Name: "leased", External: &containervm.ContainerNetwork{PortGroup: "leased", Trust: "published"}},
			`{"Driver":"external","EnableIPv4":true,"IPAM":{"Driver":"dhcp","Config":[]},"Options":{"firewall":"published","port-group":"leased"}}`,
		},
	} {
		n := containervm.NetworkInfo{NetworkConfig: c.conf}
		reply := networkReply(n)
		got, err := json.Marshal(struct {
			Driver     string
			EnableIPv4 bool
			IPAM       struct {
				Driver string
				Config any
			}
			Options map[string]string
		}{reply.Driver, reply.EnableIPv4, struct {
			Driver string
			Config any
		}{reply.IPAM.Driver, reply.IPAM.Config}, reply.Options})
		if err != nil || string(got) != c.want {
			t.Errorf("%s: inspect says\n%s, want\n%s, %v", name, got, c.want, err)
		}
		if !builtin(n) {
			t.Errorf("%s: it could be removed", name)
		}
	}
	if _, err := networkConfig(&networkBody{Name: "n", Driver: "external"}); err == nil || !strings.Contains(err.Error(), "--driver external is not supported") {
		t.Errorf("to make one gives %v", err)
	}
}
