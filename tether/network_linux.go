package tether

import (
	"context"
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
	addrs  [][]netip.Prefix // of each interface
	leases []*lease
}

// first is the address by which the container knows itself.
func (n *network) first() netip.Addr {
	for _, addrs := range n.addrs {
		for _, a := range addrs {
			return a.Addr()
		}
	}
	return netip.Addr{}
}

func (n *network) addresses() [][]string {
	var out [][]string
	for _, addrs := range n.addrs {
		var ss []string
		for _, a := range addrs {
			ss = append(ss, a.String())
		}
		out = append(out, ss)
	}
	return out
}

// keep keeps the leases alive from now on. What fails is told to diagnose.
func (n *network) keep(diagnose func(error)) {
	for _, l := range n.leases {
		go l.keep(diagnose) // for the life of the VM
	}
}

// setUpNetwork brings the interfaces up as the configuration says.
func setUpNetwork(ctx context.Context, d *devices, conf *wire.Config) (*network, error) {
	n := new(network)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find loopback interface: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return nil, fmt.Errorf("bring loopback interface up: %w", err)
	}
	links, err := findLinks(d, conf.NICs)
	if err != nil {
		return nil, err
	}
	if err := renameLinks(links); err != nil {
		return nil, err
	}
	for i, nic := range conf.NICs {
		link, name := links[i], linkName(i)
		if nic.MTU > 0 {
			if err := netlink.LinkSetMTU(link, nic.MTU); err != nil {
				return nil, fmt.Errorf("set MTU of %s to %d: %w", name, nic.MTU, err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("bring %s up: %w", name, err)
		}
		for _, a := range nic.Addresses {
			if err := addAddress(link, a); err != nil {
				return nil, fmt.Errorf("give %s address %s: %w", name, a, err)
			}
		}
		for _, gw := range nic.Gateways {
			if err := addDefaultRoute(link, gw, i); err != nil {
				return nil, fmt.Errorf("route %s by %s: %w", name, gw, err)
			}
		}
		addrs := slices.Clone(nic.Addresses)
		if nic.DHCP {
			l, err := askDHCP(ctx, link, name, i, conf.Hostname)
			if err != nil {
				return nil, fmt.Errorf("DHCP on %s: %w", name, err)
			}
			n.leases = append(n.leases, l)
			addrs = append(addrs, l.addr)
		}
		n.addrs = append(n.addrs, addrs)
	}
	return n, nil
}

func linkName(i int) string { return fmt.Sprintf("eth%d", i) }

// findLinks finds the interface of each NIC: by its MAC address, or else in the
// kernel's order.
func findLinks(d *devices, nics []wire.NIC) ([]netlink.Link, error) {
	if len(nics) == 0 {
		return nil, nil
	}
	found := make([]netlink.Link, len(nics))
	err := d.await(fmt.Sprintf("all of %d network interfaces", len(nics)), func() (bool, error) {
		links, err := netlink.LinkList()
		if err != nil {
			return false, err
		}
		links = slices.DeleteFunc(links, func(l netlink.Link) bool {
			_, err := os.Stat("/sys/class/net/" + l.Attrs().Name + "/device")
			return err != nil // no hardware: loopback, tunnels
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

// renameLinks calls the i-th link eth<i>, by way of names that nothing has.
func renameLinks(links []netlink.Link) error {
	right := true
	for i, l := range links {
		right = right && l.Attrs().Name == linkName(i)
	}
	if right {
		return nil
	}
	for _, format := range []string{"vic%d", "eth%d"} {
		for i, l := range links {
			if err := netlink.LinkSetName(l, fmt.Sprintf(format, i)); err != nil {
				return fmt.Errorf("rename interface %s: %w", l.Attrs().Name, err)
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
	_, all, err := net.ParseCIDR("0.0.0.0/0")
	if gw.Is6() {
		_, all, err = net.ParseCIDR("::/0")
	}
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{
		LinkIndex: link.Attrs().Index, Dst: all, Gw: gw.AsSlice(),
		Priority: preference, Flags: int(netlink.FLAG_ONLINK),
	})
}
