package tether

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv4/nclient4"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A lease is what a DHCP server has given an interface.
type lease struct {
	link     netlink.Link
	name     string // of the interface
	hostname string // told to the server
	ended    context.Context
	end      context.CancelFunc // lets it run out

	mu         sync.Mutex
	routed     bool // the server's default route is taken
	preference int  // of that
	addr       netip.Prefix
	dns        []netip.Addr
	search     []string
	got        *nclient4.Lease
}

// askDHCP gets a lease and gives the interface its address and, if it is to be routed, the default route.
func askDHCP(ctx context.Context, link netlink.Link, name string, routed bool, preference int, hostname string) (*lease, error) {
	l := &lease{link: link, name: name, routed: routed, preference: preference, hostname: hostname}
	l.ended, l.end = context.WithCancel(context.Background())
	if err := l.request(ctx); err != nil {
		l.end()
		return nil, err
	}
	return l, nil
}

func (l *lease) address() netip.Prefix {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}

// names are the servers for names, and the domains that are searched.
func (l *lease) names() (servers []netip.Addr, search []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dns, l.search
}

// reroute takes the server's default route, or gives it up.
func (l *lease) reroute(routed bool, preference int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if gw, ok := router(l.got); ok && l.routed && (!routed || preference != l.preference) {
		r := defaultRoute(l.link, gw)
		r.Priority = l.preference
		if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("take back route of %s by %s: %w", l.name, gw, err)
		}
	}
	l.routed, l.preference = routed, preference
	return l.route()
}

// route sets the default route. Call it with mu held.
func (l *lease) route() error {
	gw, ok := router(l.got)
	if !ok || !l.routed {
		return nil
	}
	if err := addDefaultRoute(l.link, gw, l.preference); err != nil {
		return fmt.Errorf("route by %s: %w", gw, err)
	}
	return nil
}

// router is the one that the server prefers.
func router(got *nclient4.Lease) (netip.Addr, bool) {
	for _, r := range got.ACK.Router() {
		if gw, ok := netip.AddrFromSlice(r.To4()); ok {
			return gw, true
		}
	}
	return netip.Addr{}, false
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
	l.mu.Lock()
	defer l.mu.Unlock()
	addr := netip.PrefixFrom(ip, ones)
	if err := addAddress(l.link, addr); err != nil {
		return fmt.Errorf("set address %s: %w", addr, err)
	}
	if l.addr.IsValid() && l.addr != addr {
		if err := removeAddress(l.link, l.addr); err != nil {
			return fmt.Errorf("remove address %s: %w", l.addr, err)
		}
	}
	l.addr, l.got, l.dns, l.search = addr, got, nil, nil
	if err := l.route(); err != nil {
		return err
	}
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

// begin keeps the lease until it is ended.
func (l *lease) begin(diagnose func(error)) { go l.keep(l.ended, diagnose) }

// keep renews the lease at half its time, and asks for a new one when it has run out. It returns when ctx
// ends, or if the lease is for ever.
func (l *lease) keep(ctx context.Context, diagnose func(error)) {
	for ctx.Err() == nil {
		term := l.got.ACK.IPAddressLeaseTime(0)
		if term <= 0 || term >= 1<<32*time.Second-time.Second { // none, or infinity (RFC 2131 section 3.3)
			return
		}
		end := time.Now().Add(term)
		renewed := false
		for !renewed && time.Now().Before(end) {
			if !rest(ctx, max(time.Until(end)/2, time.Second)) { // RFC 2131 section 4.4.5
				return
			}
			err := l.with(func(c *nclient4.Client, o ...dhcpv4.Modifier) (*nclient4.Lease, error) {
				return c.Renew(ctx, l.got, o...)
			})
			if renewed = err == nil; !renewed && ctx.Err() == nil {
				diagnose(fmt.Errorf("renew DHCP lease on %s: %w", l.name, err))
			}
		}
		if !renewed {
			for l.request(ctx) != nil {
				if !rest(ctx, time.Second) {
					return
				}
			}
		}
	}
}

// rest waits, and says whether ctx has not ended.
func rest(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}
