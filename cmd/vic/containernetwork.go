package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/pflag"

	"vic/containervm"
)

// containerNetworkFlags say which networks of the hypervisor's containers may join, and how. All but the first name a network by its
// port group before the first colon of what they say of it.
type containerNetworkFlags struct {
	networks, gateways, ranges, dns, firewalls []string
}

func (f *containerNetworkFlags) add(fl *pflag.FlagSet) {
	const often = " (may be given several times)"
	fl.StringArrayVar(&f.networks, "container-network", nil, "`PORTGROUP[:NAME]` that containers may join, by this name"+often)
	fl.StringArrayVar(&f.gateways, "container-network-gateway", nil, "`PORTGROUP:IP/BITS` of the router there; default by DHCP, as addresses are"+often)
	fl.StringArrayVar(&f.ranges, "container-network-ip-range", nil, "`PORTGROUP:FIRST-LAST` of addresses for containers; default the gateway's whole subnet"+often)
	fl.StringArrayVar(&f.dns, "container-network-dns", nil, "`PORTGROUP:IP` of a DNS server"+often)
	fl.StringArrayVar(&f.firewalls, "container-network-firewall", nil, "`PORTGROUP:LEVEL` of trust: closed, outbound, peers, published or open; default published"+often)
}

// parse makes networks of the flags. The error has all that is wrong with them.
func (f *containerNetworkFlags) parse() ([]containervm.ContainerNetwork, error) {
	var all []containervm.ContainerNetwork
	var errs []error
	refuse := func(flag, text, format string, args ...any) {
		errs = append(errs, fmt.Errorf("--%s %s: %w", flag, text, fmt.Errorf(format, args...)))
	}
	for _, text := range f.networks {
		n := containervm.ContainerNetwork{PortGroup: text}
		if at := strings.LastIndexByte(text, ':'); at >= 0 {
			n.PortGroup, n.Name = text[:at], text[at+1:]
			if n.Name == "" {
				refuse("container-network", text, "no name after the colon")
				continue
			}
		}
		for _, o := range all {
			if o.PortGroup == n.PortGroup {
				refuse("container-network", text, "the port group is given twice")
			}
		}
		all = append(all, n)
	}
	// each has set take in what the values of a flag say.
	each := func(flag string, values []string, set func(n *containervm.ContainerNetwork, value string) error) {
		for _, text := range values {
			n, value := match(all, text)
			if n == nil {
				refuse(flag, text, "it begins with none of the port groups of --container-network and a colon")
			} else if err := set(n, value); err != nil {
				refuse(flag, text, "%w", err)
			}
		}
	}
	each("container-network-gateway", f.gateways, func(n *containervm.ContainerNetwork, value string) (err error) {
		if n.Gateway.IsValid() {
			return errors.New("the network has a gateway already")
		}
		n.Gateway, err = netip.ParsePrefix(value)
		return err
	})
	each("container-network-ip-range", f.ranges, setRange)
	each("container-network-dns", f.dns, func(n *containervm.ContainerNetwork, value string) error {
		a, err := netip.ParseAddr(value)
		n.DNS = append(n.DNS, a)
		return err
	})
	each("container-network-firewall", f.firewalls, func(n *containervm.ContainerNetwork, value string) error {
		if n.Trust != "" {
			return errors.New("the network has a level of trust already")
		}
		n.Trust = containervm.Trust(value)
		return nil
	})
	if len(errs) == 0 {
		for _, n := range all {
			errs = append(errs, n.Check())
		}
	}
	return all, errors.Join(errs...)
}

// match finds the network whose port group a value begins with: of several the longest, for there may be colons in a name.
func match(all []containervm.ContainerNetwork, text string) (n *containervm.ContainerNetwork, value string) {
	for i := range all {
		rest, ok := strings.CutPrefix(text, all[i].PortGroup+":")
		if ok && (n == nil || len(all[i].PortGroup) > len(n.PortGroup)) {
			n, value = &all[i], rest
		}
	}
	return n, value
}

// setRange reads FIRST-LAST.
func setRange(n *containervm.ContainerNetwork, value string) error {
	if n.First.IsValid() {
		return errors.New("the network has a range already")
	}
	first, last, ok := strings.Cut(value, "-")
	if !ok {
		return errors.New("a range is FIRST-LAST")
	}
	var err error
	if n.First, err = netip.ParseAddr(first); err != nil {
		return err
	}
	n.Last, err = netip.ParseAddr(last)
	return err
}
