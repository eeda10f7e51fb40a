package fetch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
)

// CheckWhitelist says what is wrong with a Client.Whitelist.
func CheckWhitelist(entries []string) error {
	for _, e := range entries {
		if _, err := parseListed(e); err != nil {
			return err
		}
	}
	return nil
}

// A listed is an entry of a whitelist: a network, or else a name.
type listed struct {
	net  netip.Prefix
	name string // of a host, or .DOMAIN for all hosts below it
	port string // "" is any
}

func parseListed(entry string) (l listed, err error) {
	bad := fmt.Errorf("registry %q is neither HOST[:PORT], *.DOMAIN[:PORT] nor CIDR", entry)
	if p, err := netip.ParsePrefix(entry); err == nil {
		return listed{net: p.Masked()}, nil
	}
	wild := strings.HasPrefix(entry, "*.")
	host := strings.TrimPrefix(entry, "*")
	if !wild && (strings.Contains(entry, "://") || !strings.Contains(entry, "/")) {
		host = apiHost(entry)
	}
	u, err := url.Parse("//" + strings.TrimPrefix(host, "."))
	if err != nil || entry == "" || u.Host == "" || u.Path != "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.Contains(host, "*") {
		return l, bad
	}
	l.name, l.port = u.Hostname(), u.Port()
	if l.name == "" {
		return l, bad
	}
	if wild {
		l.name = "." + l.name
	}
	return l, nil
}

// matches says whether the entry has a name in it that this is.
func (l listed) matches(name, port string) bool {
	switch {
	case l.name == "" || l.port != "" && l.port != port:
		return false
	case l.name[0] == '.':
		return len(name) > len(l.name) && strings.EqualFold(name[len(name)-len(l.name):], l.name)
	}
	return strings.EqualFold(l.name, name)
}

// permitted says whether the registry at host:port may be spoken to. If that is so because its name leads to certain addresses, it
// returns which.
func (c *Client) permitted(ctx context.Context, host string) ([]netip.Prefix, error) {
	if len(c.Whitelist) == 0 {
		return nil, nil
	}
	u := url.URL{Host: host}
	port := u.Port()
	if port == "" {
		port = "443"
	}
	var nets []netip.Prefix
	for _, e := range c.Whitelist {
		l, err := parseListed(e)
		if err != nil {
			return nil, err
		}
		if l.net.IsValid() {
			nets = append(nets, l.net)
		} else if l.matches(u.Hostname(), port) {
			return nil, nil
		}
	}
	denied := &classError{class: ErrForbidden, msg: fmt.Sprintf("Access denied to unauthorized registry (%s) while VCH is in whitelist mode", host)}
	if a, err := netip.ParseAddr(u.Hostname()); err == nil {
		if within(a, nets) {
			return nil, nil
		}
		return nil, denied
	}
	if len(nets) == 0 || c.proxied(host) { // only the proxy knows what the name means
		return nil, denied
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", denied, err)
	}
	for _, a := range addrs {
		if within(a, nets) {
			return nets, nil
		}
	}
	return nil, denied
}
