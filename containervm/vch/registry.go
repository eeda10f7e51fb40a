package vch

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"vic/api/certificate"
	"vic/containervm/appliance"
	"vic/fetch"
)

// registryCA is the file of one of the authorities of registries in the appliance.
func registryCA(i int) string {
	return path.Join(appliance.Roots, fmt.Sprintf("vic-registry-%d.pem", i))
}

// checkCAs checks authorities of registries.
func checkCAs(p *Problems, all [][]byte) {
	for _, text := range all {
		if _, err := certificate.Parse(text); err != nil {
			p.add("registry-ca", "%v", err)
		}
	}
}

// checkRegistries checks the names of registries.
func (s *Spec) checkRegistries(p *Problems) {
	for _, r := range s.Insecure {
		if !isRegistry(r) {
			p.add("insecure-registry", "%q is no registry: want HOST[:PORT] or CIDR", r)
		}
	}
	for _, r := range s.Whitelist {
		if err := fetch.CheckWhitelist([]string{r}); err != nil {
			p.add("whitelist-registry", "%v", err)
		}
	}
}

// isRegistry says whether a text is HOST[:PORT] or CIDR.
func isRegistry(text string) bool {
	if _, err := netip.ParsePrefix(text); err == nil {
		return true
	}
	u, err := url.Parse("//" + text)
	return err == nil && u.Host == text && u.Hostname() != "" && !strings.Contains(text, "*")
}

// dialTime bounds one try to reach a registry.
const dialTime = 5 * time.Second

// unreachable are warnings of registries by name that this machine does not reach. The VCH may.
func (s *Spec) unreachable(ctx context.Context) []string {
	if s.HTTPProxy != "" || s.HTTPS != "" {
		return nil // the way to them is the proxy's
	}
	var names []string
	for _, r := range slices.Concat(s.Insecure, s.Whitelist) {
		_, err := netip.ParsePrefix(r)
		if err != nil && isRegistry(r) && !slices.Contains(names, r) {
			names = append(names, r)
		}
	}
	errs := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() { errs[i] = reach(ctx, name) })
	}
	wg.Wait()
	var warnings []string
	for i, err := range errs {
		if err != nil {
			warnings = append(warnings, fmt.Sprintf("registry %s cannot be reached from here: %v", names[i], err))
		}
	}
	return warnings
}

// reach connects to a registry, at the ports that it may have if none is named.
func reach(ctx context.Context, name string) (err error) {
	ports := []string{"443", "80"}
	host := name
	if h, port, splitErr := net.SplitHostPort(name); splitErr == nil {
		host, ports = h, []string{port}
	} else if name == "docker.io" {
		host = "registry-1.docker.io"
	}
	for _, port := range ports {
		var conn net.Conn
		if conn, err = (&net.Dialer{Timeout: dialTime}).DialContext(ctx, "tcp", net.JoinHostPort(strings.Trim(host, "[]"), port)); err == nil {
			return conn.Close()
		}
	}
	return err
}
