package tether

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// networkTimeout bounds the wait for interfaces and DHCP servers.
const networkTimeout = 30 * time.Second

// A network is what the container is connected to.
type network struct {
	devices  *devices
	hostname string

	interfaces []*netInterface // as the host has ordered them
	filtered   bool            // there are rules of ours
	diagnose   func(error)     // nil until leases are kept
}

// A netInterface is one that has been set up.
type netInterface struct {
	conf  wire.NIC // with a name
	link  netlink.Link
	addrs []netip.Prefix
	lease *lease // nil without DHCP
	// routed says that conf.Gateways are routes by now, with this preference.
	routed     bool
	preference int
}

// first is the address by which the container knows itself.
func (n *network) first() netip.Addr {
	for _, i := range n.interfaces {
		for _, a := range i.all() {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

// all are the interface's addresses, with that of the lease.
func (i *netInterface) all() []netip.Prefix {
	if i.lease == nil {
		return i.addrs
	}
	return append(slices.Clone(i.addrs), i.lease.address())
}

func (n *network) addresses() [][]string {
	var out [][]string
	for _, i := range n.interfaces {
		var ss []string
		for _, a := range i.all() {
			ss = append(ss, a.String())
		}
		out = append(out, ss)
	}
	return out
}

func (n *network) leases() []*lease {
	var all []*lease
	for _, i := range n.interfaces {
		if i.lease != nil {
			all = append(all, i.lease)
		}
	}
	return all
}

// keep keeps the leases alive from now on, also those that come later. What fails is told to diagnose.
func (n *network) keep(diagnose func(error)) {
	n.diagnose = diagnose
	for _, l := range n.leases() {
		l.begin(diagnose)
	}
}

// arpPerInterface has each interface answer and ask in its own name only: several may be on one port group.
var arpPerInterface = map[string]string{"net.ipv4.conf.all.arp_ignore": "1", "net.ipv4.conf.all.arp_announce": "2"}

// setUpNetwork brings the interfaces up as the configuration says.
func setUpNetwork(ctx context.Context, d *devices, conf *wire.Config) (*network, error) {
	n := &network{devices: d, hostname: conf.Hostname}
	if err := loopbackUp(); err != nil {
		return nil, err
	}
	if err := writeSysctls(arpPerInterface); err != nil {
		return nil, err
	}
	return n, n.set(ctx, conf.NICs)
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring loopback interface up: %w", err)
	}
	return nil
}

// set makes the interfaces those of nics: others are taken down, new ones set up, and of all the default routes
// set.
func (n *network) set(ctx context.Context, nics []wire.NIC) error {
	nics = slices.Clone(nics)
	for i := range nics {
		if nics[i].Name == "" {
			nics[i].Name = fmt.Sprintf("eth%d", i)
		}
	}
	var kept []*netInterface
	for _, i := range n.interfaces {
		if slices.ContainsFunc(nics, i.is) && i.there() {
			kept = append(kept, i)
			continue
		}
		if i.lease != nil {
			i.lease.end()
		}
		if err := netlink.LinkSetDown(i.link); err != nil && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("take %s down: %w", i.conf.Name, err)
		}
	}
	n.interfaces = kept
	fresh := slices.DeleteFunc(slices.Clone(nics), func(nic wire.NIC) bool {
		return slices.ContainsFunc(kept, func(i *netInterface) bool { return i.is(nic) })
	})
	links, err := findLinks(n.devices, fresh, kept)
	if err != nil {
		return err
	}
	if err := renameLinks(links, fresh); err != nil {
		return err
	}
	if err := n.setFilters(nics); err != nil { // or no interface comes up
		return err
	}
	for at, nic := range fresh {
		i := &netInterface{conf: nic, link: links[at]}
		if err := i.setUp(); err != nil {
			return err
		}
		n.interfaces = append(n.interfaces, i)
	}
	place := func(i *netInterface) int { return slices.IndexFunc(nics, i.is) }
	slices.SortFunc(n.interfaces, func(a, b *netInterface) int { return place(a) - place(b) })
	for at, nic := range nics {
		i := n.interfaces[at]
		if err := i.know(nic.Neighbours); err != nil {
			return err
		}
		if err := i.route(nic.Gateways, at); err != nil {
			return err
		}
		if !nic.DHCP {
			continue
		}
		if i.lease != nil {
			if err := i.lease.reroute(!nic.Unrouted, at); err != nil {
				return err
			}
			continue
		}
		if i.lease, err = askDHCP(ctx, i.link, nic.Name, !nic.Unrouted, at, n.hostname); err != nil {
			return fmt.Errorf("DHCP on %s: %w", nic.Name, err)
		}
		if n.diagnose != nil {
			i.lease.begin(n.diagnose)
		}
	}
	return nil
}

// is says whether nic is this interface.
func (i *netInterface) is(nic wire.NIC) bool {
	return nic.Name == i.conf.Name && strings.EqualFold(nic.MAC, i.conf.MAC)
}

// there says whether the interface has not been pulled out, and perhaps another one put in its place.
func (i *netInterface) there() bool {
	l, err := netlink.LinkByIndex(i.link.Attrs().Index)
	return err == nil && l.Attrs().Name == i.conf.Name
}

func (i *netInterface) setUp() error {
	name := i.conf.Name
	if i.conf.MTU > 0 {
		if err := netlink.LinkSetMTU(i.link, i.conf.MTU); err != nil {
			return fmt.Errorf("set MTU of %s to %d: %w", name, i.conf.MTU, err)
		}
	}
	if !i.conf.DHCP {
		if err := refuseAdverts(name); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(i.link); err != nil {
		return fmt.Errorf("bring %s up: %w", name, err)
	}
	for _, a := range i.conf.Addresses {
		if err := addAddress(i.link, a); err != nil {
			return fmt.Errorf("give %s address %s: %w", name, a, err)
		}
	}
	i.addrs = slices.Clone(i.conf.Addresses)
	return nil
}

// refuseAdverts has an interface whose addresses are given take none from routers: any neighbour could say that it is one.
func refuseAdverts(name string) error {
	err := os.WriteFile(ownProc("sys/net/ipv6/conf/"+name+"/accept_ra"), []byte("0"), 0)
	if errors.Is(err, os.ErrNotExist) { // there is no IPv6
		return nil
	}
	return err
}

// know has the kernel know stations for good.
func (i *netInterface) know(neighbours []wire.Neighbour) error {
	for _, s := range neighbours {
		mac, err := net.ParseMAC(s.MAC)
		if err == nil {
			err = netlink.NeighSet(&netlink.Neigh{LinkIndex: i.link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: s.Addr.AsSlice(), HardwareAddr: mac})
		}
		if err != nil {
			return fmt.Errorf("have %s know %s as %s: %w", i.conf.Name, s.Addr, s.MAC, err)
		}
	}
	return nil
}

// route has the default routes through this interface be those by these gateways.
func (i *netInterface) route(gateways []netip.Addr, preference int) error {
	for _, gw := range i.conf.Gateways {
		if i.routed && (preference != i.preference || !slices.Contains(gateways, gw)) {
			if err := netlink.RouteDel(defaultRoute(i.link, gw)); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("take back route of %s by %s: %w", i.conf.Name, gw, err)
			}
		}
	}
	for _, gw := range gateways {
		if err := addDefaultRoute(i.link, gw, preference); err != nil {
			return fmt.Errorf("route %s by %s: %w", i.conf.Name, gw, err)
		}
	}
	i.conf.Gateways, i.preference, i.routed = gateways, preference, true
	return nil
}

// hardwareLinks are the interfaces that are no loopback and no tunnel, in the kernel's order.
func hardwareLinks() ([]netlink.Link, error) {
	links, err := undisturbed(netlink.LinkList)
	return slices.DeleteFunc(links, func(l netlink.Link) bool {
		_, err := os.Stat("/sys/class/net/" + l.Attrs().Name + "/device")
		return err != nil
	}), err
}

// undisturbed lists something of the kernel's, again if it changed meanwhile, until it keeps still.
func undisturbed[T any](list func() ([]T, error)) (all []T, err error) {
	for range 100 {
		if all, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return all, err
}

// findLinks finds the interface of each NIC: by its MAC address, or else in the
// kernel's order. Those of known are none of them.
func findLinks(d *devices, nics []wire.NIC, known []*netInterface) ([]netlink.Link, error) {
	if len(nics) == 0 {
		return nil, nil
	}
	found := make([]netlink.Link, len(nics))
	err := d.await(fmt.Sprintf("all of %d network interfaces", len(nics)), func() (bool, error) {
		links, err := hardwareLinks()
		if err != nil {
			return false, err
		}
		links = slices.DeleteFunc(links, func(l netlink.Link) bool {
			return slices.ContainsFunc(known, func(i *netInterface) bool { return i.link.Attrs().Index == l.Attrs().Index })
		})
		for _, byMAC := range []bool{true, false} {
			for i, nic := range nics {
				if (nic.MAC != "") != byMAC {
					continue
				}
				at := slices.IndexFunc(links, func(l netlink.Link) bool {
					return !byMAC || strings.EqualFold(l.Attrs().HardwareAddr.String(), nic.MAC)
				})
				if at < 0 {
					return false, nil
				}
				found[i] = links[at]
				links = slices.Delete(links, at, at+1)
			}
		}
		return true, nil
	})
	return found, err
}

// renameLinks calls each link as its NIC says, by way of names that nothing has.
func renameLinks(links []netlink.Link, nics []wire.NIC) error {
	right := true
	for i, l := range links {
		right = right && l.Attrs().Name == nics[i].Name
	}
	if right {
		return nil
	}
	for _, name := range []func(int) string{
		func(i int) string { return fmt.Sprintf("vic%d", i) },
		func(i int) string { return nics[i].Name },
	} {
		for i, l := range links {
			if err := netlink.LinkSetName(l, name(i)); err != nil {
				return fmt.Errorf("rename interface %s to %s: %w", l.Attrs().Name, name(i), err)
			}
		}
	}
	return nil
}

func addAddress(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // whoever gave the address knows that it is free
	}
	return netlink.AddrReplace(link, a)
}

func removeAddress(link netlink.Link, p netip.Prefix) error {
	return netlink.AddrDel(link, &netlink.Addr{IPNet: ipNet(p)})
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// addDefaultRoute routes by gw, which need not be in the link's subnet. Of several
// links the first is preferred.
func addDefaultRoute(link netlink.Link, gw netip.Addr, preference int) error {
	r := defaultRoute(link, gw)
	r.Priority = preference
	return netlink.RouteReplace(r)
}

func defaultRoute(link netlink.Link, gw netip.Addr) *netlink.Route {
	all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if gw.Is6() {
		all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(all), Gw: gw.AsSlice(), Flags: int(netlink.FLAG_ONLINK)}
}
