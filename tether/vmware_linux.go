package tether

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"

	"vic/tether/guestrpc"
	"vic/tether/wire"
)

// hostStrings are what the host has written into the machine: a Config's strings, or those that say that it is a
// template.
func hostStrings() ([]string, error) {
	if guestrpc.Present() {
		return wire.ReadGuestInfo(guestrpc.Info)
	}
	return oemStrings()
}

// haltGrace is how long a process may take to end when vSphere shuts its guest down, which says nothing of that: as
// long as docker stop gives it.
const haltGrace = 10 * time.Second

// serveVMware stands in for VMware Tools in a VMware VM.
func (g *guest) serveVMware() {
	if !guestrpc.Present() {
		return
	}
	tools := &guestrpc.Tools{Shutdown: g.endByHost, SetClock: stepClock, Diagnose: g.diagnose}
	go tools.Run(context.Background()) // for the life of the VM
	go func() {                        // likewise
		if err := watchAddresses(g.diagnose, func(nics []guestrpc.NIC) error {
			return tools.Report(guestrpc.Guest{Hostname: g.conf.Hostname, NICs: nics})
		}); err != nil {
			g.diagnose(err)
		}
	}()
}

// endByHost begins what vSphere calls "Shut Down Guest OS", or with reboot "Restart Guest OS".
func (g *guest) endByHost(reboot bool) error {
	g.mu.Lock()
	g.reboot = reboot
	g.mu.Unlock()
	err := g.shutdown(haltGrace)
	if err != nil {
		g.mu.Lock()
		g.reboot = false
		g.mu.Unlock()
	}
	return err
}

// changesRest is for how long addresses that change without end are not told.
const changesRest = time.Second

// watchAddresses tells the addresses that the guest has, now and whenever they change. What comes of that is told to diagnose.
func watchAddresses(diagnose func(error), tell func([]guestrpc.NIC) error) error {
	for {
		changes := make(chan netlink.AddrUpdate, 64)
		if err := netlink.AddrSubscribe(changes, nil); err != nil {
			return fmt.Errorf("watch addresses: %w", err)
		}
		for open := true; open; _, open = <-changes { // it is closed when the kernel had more changes than it keeps
			for range len(changes) {
				<-changes
			}
			nics, err := reportedNICs()
			if err == nil {
				err = tell(nics)
			}
			if err != nil {
				diagnose(err)
			}
		}
		time.Sleep(changesRest)
	}
}

// reportedNICs are the interfaces with their addresses as they are now.
func reportedNICs() ([]guestrpc.NIC, error) {
	links, err := hardwareLinks()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var nics []guestrpc.NIC
	for _, l := range links {
		nic, err := reportedNIC(l)
		if err != nil {
			return nil, err
		}
		nics = append(nics, nic)
	}
	return nics, nil
}

func reportedNIC(l netlink.Link) (guestrpc.NIC, error) {
	addrs, err := undisturbed(func() ([]netlink.Addr, error) { return netlink.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return guestrpc.NIC{}, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	nic := guestrpc.NIC{MAC: l.Attrs().HardwareAddr}
	for _, a := range addrs {
		if p, ok := prefix(a.IPNet); ok {
			nic.Addresses = append(nic.Addresses, p)
		}
	}
	return nic, nil
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	ip, ok := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(ip.Unmap(), ones), ok
}
