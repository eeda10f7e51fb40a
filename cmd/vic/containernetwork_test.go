package main

import (
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"vic/containervm"
)

func parseContainerNetworks(args ...string) ([]containervm.ContainerNetwork, error) {
	var f containerNetworkFlags
	fl := pflag.NewFlagSet("vic", pflag.ContinueOnError)
	f.add(fl)
	if err := fl.Parse(args); err != nil {
		return nil, err
	}
	return f.parse()
}

func TestContainerNetworkFlags(t *testing.T) {
	got, err := parseContainerNetworks(
		"--container-network=VM Network:vms",
		"--container-network=dmz",
		"--container-network=dmz: 2:dmz2",
		"--container-network-gateway=VM Network:10.9.0.1/22",
		"--container-network-ip-range=VM Network:10.9.1.0-10.9.2.255",
		"--container-network-dns=VM Network:10.9.0.53",
		"--container-network-dns=VM Network:fd00::53",
		"--container-network-firewall=VM Network:peers",
		"--container-network-gateway=dmz: 2:192.0.2.1/24",
		"--container-network-firewall=dmz:open")
	if err != nil {
		t.Fatal(err)
	}
	want := []containervm.ContainerNetwork{
		{PortGroup: "VM Network", Name: "vms", Gateway: netip.MustParsePrefix("10.9.0.1/22"), First: netip.MustParseAddr("10.9.1.0"), Last: netip.MustParseAddr("10.9.2.255"),
			DNS: []netip.Addr{netip.MustParseAddr("10.9.0.53"), netip.MustParseAddr("fd00::53")}, Trust: "peers"},
		{PortGroup: "dmz", Trust: "open"},
		{PortGroup: "dmz: 2", Name: "dmz2", Gateway: netip.MustParsePrefix("192.0.2.1/24")},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got\n%+v, want\n%+v", got, want)
	}
	if all, err := parseContainerNetworks(); len(all) != 0 || err != nil {
		t.Errorf("without flags %v, %v", all, err)
	}
}

func TestContainerNetworkFlagsRefused(t *testing.T) {
	const pg = "--container-network=pg"
	for name, c := range map[string]struct{ args, want string }{
		"spaces":                   {"--container-network=VM Network", `container network "VM Network" needs another name for docker`},
		"no name":                  {pg + ":", "no name after the colon"},
		"name of another":          {pg + ":bridge", "bridge is the name of another network"},
		"a name with a slash":      {pg + ":a/b", `"a/b" is not a name for docker`},
		"twice":                    {pg + ";" + pg + ":b", "the port group is given twice"},
		"not there":                {pg + ";--container-network-gateway=other:10.0.0.1/24", "it begins with none of the port groups"},
		"no value":                 {pg + ";--container-network-dns=pg", "it begins with none of the port groups"},
		"gateway without bits":     {pg + ";--container-network-gateway=pg:10.0.0.1", "no '/'"},
		"gateway twice":            {pg + ";--container-network-gateway=pg:10.0.0.1/24;--container-network-gateway=pg:10.0.0.2/24", "has a gateway already"},
		"gateway of no host":       {pg + ";--container-network-gateway=pg:10.0.0.0/24", "10.0.0.0 is not the address of a host of subnet 10.0.0.0/24"},
		"gateway of IPv6":          {pg + ";--container-network-gateway=pg:fd00::1/64", "is not an IPv4 address"},
		"range without gateway":    {pg + ";--container-network-ip-range=pg:10.0.0.5-10.0.0.9", "needs a gateway"},
		"range of one":             {pg + ";--container-network-ip-range=pg:10.0.0.5", "a range is FIRST-LAST"},
		"range elsewhere":          {pg + ";--container-network-gateway=pg:10.0.0.1/24;--container-network-ip-range=pg:10.0.1.5-10.0.1.9", "is not within subnet 10.0.0.0/24"},
		"range the other way":      {pg + ";--container-network-gateway=pg:10.0.0.1/24;--container-network-ip-range=pg:10.0.0.9-10.0.0.5", "ends before it begins"},
		"range that is none":       {pg + ";--container-network-gateway=pg:10.0.0.1/24;--container-network-ip-range=pg:10.0.0.9-x", "unable to parse IP"},
		"DNS that is none":         {pg + ";--container-network-dns=pg:ns1", "unable to parse IP"},
		"DNS nowhere":              {pg + ";--container-network-dns=pg:0.0.0.0", "is not the address of a DNS server"},
		"level":                    {pg + ";--container-network-firewall=pg:friends", `trust level "friends" is none of closed, outbound, peers, published and open`},
		"level twice":              {pg + ";--container-network-firewall=pg:open;--container-network-firewall=pg:open", "has a level of trust already"},
		"peers that nobody counts": {pg + ";--container-network-firewall=pg:peers", "needs a range of addresses"},
		"all that is wrong":        {pg + ";--container-network-dns=pg:x;--container-network-dns=pg:y", `"y"`},
	} {
		if all, err := parseContainerNetworks(strings.Split(c.args, ";")...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %q", name, all, err, c.want)
		}
	}
}
