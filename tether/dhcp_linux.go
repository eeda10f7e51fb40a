package tether

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
)

// A lease is what a DHCP server has given an interface.
type lease struct {
	link       netlink.Link
	name       string // of the interface
	preference int    // of its default route
	hostname   string // told to the server

	addr   netip.Prefix
	dns    []netip.Addr
	search []string
	got    *nclient4.Lease
}

// askDHCP gets a lease and gives the interface its address and routes.
func askDHCP(ctx context.Context, link netlink.Link, name string, preference int, hostname string) (*lease, error) {
	l := &lease{link: link, name: name, preference: preference, hostname: hostname}
	return l, l.request(ctx)
}

// with runs f with a client on the interface.
func (l *lease) with(f func(*nclient4.Client, ...dhcpv4.Modifier) (*nclient4.Lease, error)) error {
	c, err := nclient4.New(l.name, nclient4.WithTimeout(250*time.Millisecond), nclient4.WithRetry(8))
	if err != nil {
		return err
	}
	var options []dhcpv4.Modifier
	if l.hostname != "" {
		options = append(options, dhcpv4.WithOption(dhcpv4.OptHostName(l.hostname)))
	}
	got, err := f(c, options...)
	if err := errors.Join(err, c.Close()); err != nil {
		return err
	}
	return l.apply(got)
}

func (l *lease) request(ctx context.Context) error {
	for {
		err := l.with(func(c *nclient4.Client, o ...dhcpv4.Modifier) (*nclient4.Lease, error) {
			return c.Request(ctx, o...)
		})
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
}

// apply sets the interface to what the server said.
func (l *lease) apply(got *nclient4.Lease) error {
	ack := got.ACK
	ip, ok := netip.AddrFromSlice(ack.YourIPAddr.To4())
	ones, bits := ack.SubnetMask().Size()
	if !ok || bits != 32 {
		return fmt.Errorf("offer of address %v with mask %v", ack.YourIPAddr, ack.SubnetMask())
	}
	addr := netip.PrefixFrom(ip, ones)
	if err := addAddress(l.link, addr); err != nil {
		return fmt.Errorf("set address %s: %w", addr, err)
	}
	if l.addr.IsValid() && l.addr != addr {
		if err := removeAddress(l.link, l.addr); err != nil {
			return fmt.Errorf("remove address %s: %w", l.addr, err)
		}
	}
	for _, r := range ack.Router() {
		if gw, ok := netip.AddrFromSlice(r.To4()); ok {
			if err := addDefaultRoute(l.link, gw, l.preference); err != nil {
				return fmt.Errorf("route by %s: %w", gw, err)
			}
			break // the most preferred
		}
	}
	l.addr, l.got, l.dns, l.search = addr, got, nil, nil
	for _, s := range ack.DNS() {
		if a, ok := netip.AddrFromSlice(s.To4()); ok {
			l.dns = append(l.dns, a)
		}
	}
	if s := ack.DomainSearch(); s != nil {
		l.search = s.Labels
	} else if d := ack.DomainName(); d != "" {
		l.search = []string{d}
	}
	return nil
}

// keep renews the lease at half its time, and asks for a new one when it has run out.
// It never returns, unless the lease is for ever.
func (l *lease) keep(diagnose func(error)) {
	ctx := context.Background()
	for {
		term := l.got.ACK.IPAddressLeaseTime(0)
		if term <= 0 || term >= 1<<32*time.Second-time.Second { // none, or infinity (RFC 2131 section 3.3)
			return
		}
		end := time.Now().Add(term)
		renewed := false
		for !renewed && time.Now().Before(end) {
			time.Sleep(max(time.Until(end)/2, time.Second)) // RFC 2131 section 4.4.5
			err := l.with(func(c *nclient4.Client, o ...dhcpv4.Modifier) (*nclient4.Lease, error) {
				return c.Renew(ctx, l.got, o...)
			})
			if renewed = err == nil; !renewed {
				diagnose(fmt.Errorf("renew DHCP lease on %s: %w", l.name, err))
			}
		}
		if !renewed {
			for l.request(ctx) != nil {
				time.Sleep(time.Second)
			}
		}
	}
}
