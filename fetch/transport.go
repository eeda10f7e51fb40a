package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	defaultCertsDir = "/etc/docker/certs.d"

	dialTimeout      = 30 * time.Second
	lookupTimeout    = 5 * time.Second
	handshakeTimeout = 10 * time.Second
	idleConnTimeout  = 30 * time.Second
	idleConnsPerHost = 8
	maxReplyHeader   = 256 << 10 // bytes

	// maxTransports bounds what redirects to ever new hosts can cost.
	maxTransports = 64
)

// loopback is insecure without being listed: what goes there is seen by nobody
// else.
var loopback = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}

// A hostTransport speaks with one host:port.
type hostTransport struct {
	*http.Transport
	insecure bool   // no verified TLS, or none at all
	stamp    string // state of the host's folder in CertsDir when it was read
}

// router sends each request, also a redirected one, through the transport of
// its host: no host sees another's client certificate, is trusted for
// another's CA, or goes unverified because another may.
type router struct{ client *Client }

func (r router) RoundTrip(req *http.Request) (*http.Response, error) {
	t, err := r.client.transport(req.Context(), req.URL.Host, false)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(req)
}

// transport returns the transport for a host:port. If fresh, changes of
// certificates on disk since it was made are heeded.
func (c *Client) transport(ctx context.Context, host string, fresh bool) (*hostTransport, error) {
	c.mu.Lock()
	t := c.transports[host]
	c.mu.Unlock()
	if t != nil && !fresh {
		return t, nil
	}
	dir := c.certsDir(host)
	stamp, err := stampDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	insecure, only, err := c.insecure(ctx, host)
	if err != nil {
		return nil, err
	}
	if t != nil && t.stamp == stamp && t.insecure == insecure {
		return t, nil
	}
	listed, err := c.permitted(ctx, host)
	if err != nil {
		listed = nil // it is what a registry redirects to: the registry was let in by open
	}
	if t, err = c.newTransport(dir, insecure, only, listed); err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	t.stamp = stamp
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.transports == nil || len(c.transports) >= maxTransports {
		c.transports = map[string]*hostTransport{}
	}
	c.transports[host] = t
	return t, nil
}

// newTransport makes a transport with the certificates in dir. It connects to
// addresses alone that are within each of only that is not empty.
func (c *Client) newTransport(dir string, insecure bool, only ...[]netip.Prefix) (*hostTransport, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}
	if err := loadCerts(conf, dir); err != nil {
		return nil, err
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	// The name was looked up to see that it is within a CIDR. It must not
	// mean something else now.
	dialer.Control = func(_, address string, _ syscall.RawConn) error {
		for _, nets := range only {
			if ap, err := netip.ParseAddrPort(address); len(nets) > 0 && (err != nil || !within(ap.Addr(), nets)) {
				return fmt.Errorf("%s is not an address of an insecure or whitelisted registry", address)
			}
		}
		return nil
	}
	return &hostTransport{
		Transport: &http.Transport{
			Proxy:                  c.Proxy,
			DialContext:            dialer.DialContext,
			TLSClientConfig:        conf, // and thereby HTTP/1.1: a connection for each blob
			TLSHandshakeTimeout:    handshakeTimeout,
			IdleConnTimeout:        idleConnTimeout,
			MaxIdleConnsPerHost:    idleConnsPerHost,
			MaxResponseHeaderBytes: maxReplyHeader,
			DisableCompression:     true,
		},
		insecure: insecure,
	}, nil
}

// insecure says whether host:port may do without verified TLS. If that is so
// because its name leads to certain addresses, it returns which.
func (c *Client) insecure(ctx context.Context, host string) (bool, []netip.Prefix, error) {
	nets := loopback
	hostname := (&url.URL{Host: host}).Hostname()
	for _, entry := range c.Insecure {
		if p, err := netip.ParsePrefix(entry); err == nil {
			nets = append(nets[:len(nets):len(nets)], p.Masked())
			continue
		}
		name := strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(entry, "https://"), "http://"), "/")
		if name == "" || strings.Contains(name, "/") {
			return false, nil, fmt.Errorf("insecure registry %q is neither HOST, HOST:PORT nor CIDR", entry)
		}
		if strings.EqualFold(name, host) || strings.EqualFold(name, hostname) {
			return true, nil, nil
		}
	}
	if a, err := netip.ParseAddr(hostname); err == nil {
		return within(a, nets), nil, nil
	}
	if c.proxied(host) {
		return false, nil, nil // only the proxy knows what the name means
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", hostname)
	if err != nil {
		return false, nil, nil // connecting will say it better
	}
	for _, a := range addrs {
		if within(a, nets) {
			return true, nets, nil
		}
	}
	return false, nil, nil
}

// proxied says whether requests to host go through a proxy.
func (c *Client) proxied(host string) bool {
	if c.Proxy == nil {
		return false
	}
	u, err := c.Proxy(&http.Request{URL: &url.URL{Scheme: "https", Host: host}})
	return u != nil || err != nil
}

func within(a netip.Addr, nets []netip.Prefix) bool {
	a = a.Unmap().WithZone("")
	for _, p := range nets {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// certsDir is the folder with a host's certificates, or "".
func (c *Client) certsDir(host string) string {
	dir := c.CertsDir
	if dir == "" {
		dir = defaultCertsDir
	}
	// A redirect may name any host.
	if host == "." || host == ".." || strings.ContainsAny(host, `/\`) || host == "" {
		return ""
	}
	return filepath.Join(dir, host)
}

// stampDir describes the state of a folder, "" if it does not exist.
func stampDir(dir string) (string, error) {
	if dir == "" {
		return "", nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var b strings.Builder
	for _, e := range entries {
		info, err := os.Stat(filepath.Join(dir, e.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&b, "%s %d %d\n", e.Name(), info.Size(), info.ModTime().UnixNano())
	}
	return b.String(), nil
}

// loadCerts reads a host's folder as docker does: *.crt are CAs, NAME.cert and
// NAME.key together a client certificate.
func loadCerts(conf *tls.Config, dir string) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	have := map[string]bool{}
	for _, e := range entries {
		have[e.Name()] = true
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		base := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))
		switch filepath.Ext(e.Name()) {
		case ".crt":
			pem, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if conf.RootCAs == nil {
				if conf.RootCAs, err = x509.SystemCertPool(); err != nil {
					return fmt.Errorf("unable to get system cert pool: %w", err)
				}
			}
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("%s holds no certificate in PEM", path)
			}
		case ".cert":
			if !have[base+".key"] {
				return fmt.Errorf("missing key %s.key for client certificate %s. CA certificates must use the extension .crt", base, e.Name())
			}
			pair, err := tls.LoadX509KeyPair(path, filepath.Join(dir, base+".key"))
			if err != nil {
				return fmt.Errorf("client certificate %s: %w", path, err)
			}
			conf.Certificates = append(conf.Certificates, pair)
		case ".key":
			if !have[base+".cert"] {
				return fmt.Errorf("missing client certificate %s.cert for key %s", base, e.Name())
			}
		}
	}
	return nil
}
