package fetch

import (
	"errors"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Registries that are on the whitelist, by name or by address, are spoken to, and no others: not for pulls, pushes or logins.
func TestWhitelist(t *testing.T) {
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	p := newTunnel(t)
	for _, host := range []string{"one.corp.test:443", "one.corp.test", "corp.test:443", "corp.test", "notcorp.test:443", "notcorp.test", "one.corp.test:5000"} {
		p.lead(host, f.Server)
	}
	for _, tc := range []struct {
		ref  string
		list []string
		ok   bool
	}{
		{"one.corp.test/a", nil, true},
		{"one.corp.test/a", []string{"one.corp.test"}, true},
		{"one.corp.test/a", []string{"ONE.corp.test:443"}, true},
		{"one.corp.test/a", []string{"one.corp.test:5000"}, false},
		{"one.corp.test:5000/a", []string{"one.corp.test:5000"}, true},
		{"one.corp.test:5000/a", []string{"one.corp.test"}, true},
		{"one.corp.test/a", []string{"other.test", "*.corp.test"}, true},
		{"one.corp.test/a", []string{"*.corp.test:5000"}, false},
		{"one.corp.test:5000/a", []string{"*.corp.test:5000"}, true},
		{"corp.test/a", []string{"*.corp.test"}, false},
		{"notcorp.test/a", []string{"*.corp.test"}, false},
		{"one.corp.test/a", []string{"0.0.0.0/0"}, false}, // a proxy's name
		{"a", []string{"one.corp.test"}, false},
		{f.host + "/a", []string{"127.0.0.0/8"}, true},
		{f.host + "/a", []string{"10.0.0.0/8"}, false},
	} {
		// A registry without TLS, to be quick.
		c := &Client{Backoff: time.Microsecond, CertsDir: t.TempDir(), Proxy: p.proxy, Insecure: []string{"one.corp.test", "corp.test", "notcorp.test"}, Whitelist: tc.list}
		if strings.HasPrefix(tc.ref, f.host) {
			c.Proxy = nil
		}
		_, pull := c.Resolve(t.Context(), named(t, tc.ref), ResolveOptions{})
		if tc.ok {
			if pull != nil {
				t.Errorf("%s with %q: %v", tc.ref, tc.list, pull)
			}
			continue
		}
		_, login := c.Login(t.Context(), strings.TrimSuffix(tc.ref, "/a"), Credentials{})
		_, push := c.Repository(t.Context(), named(t, tc.ref), PushOptions{})
		for what, err := range map[string]error{"pull": pull, "login": login, "push": push} {
			if !errors.Is(err, ErrForbidden) || !strings.HasPrefix(err.Error(), "Access denied to unauthorized registry (") || !strings.HasSuffix(err.Error(), ") while VCH is in whitelist mode") {
				t.Errorf("%s of %s with %q: %v", what, tc.ref, tc.list, err)
			}
		}
	}
}

// Docker Hub goes by any of its names, and a name that is let in by its addresses is spoken to at these alone.
func TestWhitelistNames(t *testing.T) {
	for _, entry := range []string{"docker.io", "index.docker.io", "registry-1.docker.io", "https://index.docker.io/v1/", "*.docker.io"} {
		c := &Client{Whitelist: []string{entry}}
		if nets, err := c.permitted(t.Context(), apiHost("docker.io")); err != nil || nets != nil {
			t.Errorf("%s: %v, %v", entry, nets, err)
		}
	}
	c := &Client{Whitelist: []string{"192.0.2.0/24", "127.0.0.1/8"}}
	if nets, err := c.permitted(t.Context(), "localhost:5000"); err != nil || len(nets) != 2 {
		t.Errorf("localhost: only %v, %v", nets, err)
	}
	if _, err := c.permitted(t.Context(), "nowhere.invalid"); !errors.Is(err, ErrForbidden) {
		t.Errorf("nowhere.invalid: %v", err)
	}
	for _, bad := range []string{"", "a/b", "10.0.0.0/33", "*", "*.", "a.*.test", "u@h", "*.a/b", "h:port"} {
		if err := CheckWhitelist([]string{"fine.test", bad}); err == nil || !strings.Contains(err.Error(), "is neither HOST[:PORT], *.DOMAIN[:PORT] nor CIDR") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
