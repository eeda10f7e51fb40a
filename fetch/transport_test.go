package fetch

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// A tunnel is a proxy that leads connections for names to servers on loopback:
// only behind it is a registry neither on loopback nor on the internet.
type tunnel struct {
	*httptest.Server
	mu sync.Mutex
	to map[string]string // address by host:port asked for
}

func newTunnel(t *testing.T) *tunnel {
	p := &tunnel{to: map[string]string{}}
	p.Server = httptest.NewServer(p)
	t.Cleanup(p.Close)
	return p
}

func (p *tunnel) lead(host string, to *httptest.Server) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.to[host] = to.Listener.Addr().String()
}

func (p *tunnel) proxy(*http.Request) (*url.URL, error) { return url.Parse(p.URL) }

func (p *tunnel) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	to := p.to[r.Host]
	p.mu.Unlock()
	up, err := net.Dial("tcp", to)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer up.Close()
	if r.Method != http.MethodConnect {
		// HTTP without TLS: not a tunnel but a request to pass on.
		r.Close = true
		if err := r.WriteProxy(up); err == nil {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err == nil {
				io.Copy(conn, up)
				conn.Close()
			}
		}
		return
	}
	w.WriteHeader(http.StatusOK)
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	var wg sync.WaitGroup
	wg.Go(func() { io.Copy(up, buf); up.(*net.TCPConn).CloseWrite() })
	io.Copy(conn, up)
	conn.Close()
	wg.Wait()
}

// An authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &a.key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

// issue returns a certificate and its key in PEM.
func (a *authority) issue(t *testing.T, names ...string) (cert, key []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd})
}

// serveTLS starts a server with a certificate of a for names.
func (a *authority) serveTLS(t *testing.T, h http.Handler, clients *authority, names ...string) *httptest.Server {
	t.Helper()
	pair, err := tls.X509KeyPair(a.issue(t, names...))
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(h)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	if clients != nil {
		s.TLS.ClientAuth = tls.RequireAndVerifyClientCert
		s.TLS.ClientCAs = x509.NewCertPool()
		s.TLS.ClientCAs.AddCert(clients.cert)
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func writeFile(t *testing.T, b []byte, elem ...string) {
	t.Helper()
	path := filepath.Join(elem...)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// A registry that is not on loopback needs a certificate we can verify, and
// gets the client certificate that is for it.
func TestCertificates(t *testing.T) {
	ca, clientCA := newAuthority(t), newAuthority(t)
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	p := newTunnel(t)
	p.lead("plain.test:443", f.Server)
	p.lead("private.test:443", ca.serveTLS(t, f, nil, "private.test"))
	p.lead("mutual.test:5000", ca.serveTLS(t, f, clientCA, "mutual.test"))
	p.lead("other.test:443", ca.serveTLS(t, f, nil, "another.test"))
	dir := t.TempDir()
	c := &Client{Backoff: time.Microsecond, CertsDir: dir, Proxy: p.proxy}

	fails := func(ref, msg string) {
		t.Helper()
		if _, err := c.Resolve(t.Context(), named(t, ref), ResolveOptions{Platform: &amd64}); err == nil || !strings.Contains(err.Error(), msg) {
			t.Errorf("%s: %v, want %q", ref, err, msg)
		}
	}
	fails("plain.test/a", `Get "https://plain.test/v2/": `)
	fails("private.test/a", "certificate signed by unknown authority")
	// Certificates that come later are seen without a restart.
	writeFile(t, ca.pem, dir, "private.test", "ca.crt")
	mustResolve(t, c, "private.test/a", ResolveOptions{})
	fails("mutual.test:5000/a", "certificate signed by unknown authority")
	writeFile(t, ca.pem, dir, "mutual.test:5000", "ca.crt")
	fails("mutual.test:5000/a", "certificate required")
	cert, key := clientCA.issue(t, "client")
	writeFile(t, cert, dir, "mutual.test:5000", "client.cert")
	fails("mutual.test:5000/a", "missing key client.key for client certificate client.cert")
	writeFile(t, key, dir, "mutual.test:5000", "client.key")
	mustResolve(t, c, "mutual.test:5000/a", ResolveOptions{})
	writeFile(t, ca.pem, dir, "other.test", "ca.crt")
	fails("other.test/a", "certificate is valid for another.test, not other.test")

	writeFile(t, []byte("hello"), dir, "private.test", "bad.crt")
	fails("private.test/a", "bad.crt holds no certificate in PEM")
	if err := os.Remove(filepath.Join(dir, "mutual.test:5000", "client.cert")); err != nil {
		t.Fatal(err)
	}
	fails("mutual.test:5000/a", "missing client certificate client.cert for key client.key")
}

// A registry that is declared insecure is tried with HTTPS, unverified, then
// with HTTP.
func TestInsecureRegistry(t *testing.T) {
	ca := newAuthority(t)
	f := newFakeRegistry(t)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, nil, "latest")
	p := newTunnel(t)
	p.lead("unverified.test:443", ca.serveTLS(t, f, nil, "wrong.test"))
	p.lead("plain.test:443", f.Server)
	p.lead("plain.test", f.Server)
	p.lead("plain.test:5000", f.Server)
	for _, tc := range []struct {
		ref      string
		insecure []string
		ok       bool
	}{
		{"unverified.test/a", nil, false},
		{"unverified.test/a", []string{"other.test", "10.0.0.0/8"}, false},
		{"unverified.test/a", []string{"UNVERIFIED.test"}, true},
		{"plain.test/a", []string{"http://plain.test/"}, true},
		{"plain.test:5000/a", []string{"plain.test"}, true},
		{"plain.test:5000/a", []string{"plain.test:5000"}, true},
		{"plain.test:5000/a", []string{"plain.test:5001"}, false},
	} {
		c := &Client{Backoff: time.Microsecond, CertsDir: t.TempDir(), Proxy: p.proxy, Insecure: tc.insecure}
		_, err := c.Resolve(t.Context(), named(t, tc.ref), ResolveOptions{})
		if (err == nil) != tc.ok {
			t.Errorf("%s with %q: %v", tc.ref, tc.insecure, err)
		}
	}
	for _, bad := range []string{"", "a/b", "10.0.0.0/33"} {
		c := &Client{Insecure: []string{bad}}
		if _, err := c.Resolve(t.Context(), named(t, f.host+"/a"), ResolveOptions{}); err == nil || !strings.Contains(err.Error(), "is neither HOST, HOST:PORT nor CIDR") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestInsecureAddresses(t *testing.T) {
	c := &Client{Insecure: []string{"10.1.2.3/8", "192.0.2.7/32", "2001:db8::/32"}}
	for host, want := range map[string]bool{
		"127.0.0.1:5000":           true,
		"127.1.2.3":                true,
		"localhost:5000":           true,
		"[::1]:5000":               true,
		"[::ffff:127.0.0.1]:80":    true,
		"10.255.0.1":               true,
		"11.0.0.1":                 false,
		"192.0.2.7:443":            true,
		"192.0.2.8:443":            false,
		"[2001:db8::5]:5000":       true,
		"[2001:db9::5]:5000":       false,
		"[::ffff:10.9.9.9%eth0]:1": true,
		"nowhere.invalid":          false,
	} {
		got, only, err := c.insecure(t.Context(), host)
		if got != want || err != nil {
			t.Errorf("%s: %v, %v", host, got, err)
		}
		if (len(only) > 0) != (host == "localhost:5000") {
			t.Errorf("%s: only %v", host, only)
		}
	}
}

// What was taken for insecure by its address is spoken to at no other.
func TestInsecurePinned(t *testing.T) {
	f := newFakeRegistry(t)
	for want, only := range map[string]netip.Prefix{
		"":                                 netip.MustParsePrefix("127.0.0.0/8"),
		"is not an address of an insecure": netip.MustParsePrefix("10.0.0.0/8"),
	} {
		ht, err := new(Client).newTransport("", true, []netip.Prefix{only})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := (&http.Client{Transport: ht}).Get(f.URL + "/v2/")
		if err == nil {
			resp.Body.Close()
		}
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%v: %v", only, err)
		}
		ht.CloseIdleConnections()
	}
}

// HTTPS is not left for what cannot be verified otherwise, nor with
// credentials.
func TestHTTPSKept(t *testing.T) {
	ca := newAuthority(t)
	f := newFakeRegistry(t)
	layer := randomBytes(100)
	f.addImage(t, amd64, ocispec.MediaTypeImageLayer, [][]byte{layer}, "latest")
	s := newTokenService(t)
	p := newTunnel(t)
	server := ca.serveTLS(t, f, nil, "secure.test")
	p.lead("secure.test:443", server)
	p.lead("plain.test", f.Server)
	dir := t.TempDir()
	writeFile(t, ca.pem, dir, "secure.test", "ca.crt")
	c := &Client{Backoff: time.Microsecond, CertsDir: dir, Proxy: p.proxy}

	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.TLS != nil && strings.Contains(r.URL.Path, "/manifests/") {
			http.Redirect(w, r, "http://plain.test"+r.URL.Path, http.StatusFound)
			return true
		}
		return false
	}
	if _, err := c.Resolve(t.Context(), named(t, "secure.test/a"), ResolveOptions{}); err == nil || !strings.Contains(err.Error(), "redirect from HTTPS to http refused") {
		t.Errorf("redirect of a tag: %v", err)
	}
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		if r.TLS != nil && strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://plain.test"+r.URL.Path, http.StatusFound)
			return true
		}
		return false
	}
	img := mustResolve(t, c, "secure.test/a", ResolveOptions{})
	if got, err := readBlob(t, img, img.Layers()[0]); err != nil || !bytes.Equal(got, layer) {
		t.Errorf("redirect of a blob: %d bytes, %v", len(got), err)
	}

	realm := "http://plain.test/token"
	f.before = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	_, err := c.Resolve(t.Context(), named(t, "secure.test/a"), ResolveOptions{Credentials: Credentials{Username: "u", Password: "p"}})
	if err == nil || !strings.Contains(err.Error(), "token service plain.test of a registry with HTTPS is without it") {
		t.Errorf("token service without TLS: %v", err)
	}
	if n := len(f.asked("/token")); n != 0 {
		t.Error("it was asked")
	}
	// One on loopback is nobody else's business.
	realm = s.URL
	p.lead(strings.TrimPrefix(s.URL, "http://"), s.Server)
	if _, err := c.Resolve(t.Context(), named(t, "secure.test/a"), ResolveOptions{}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("token service on loopback: %v", err)
	}
	if len(s.requests()) == 0 {
		t.Error("the token service on loopback was not asked")
	}
}

// A redirect to a host with a strange name reads no certificates elsewhere.
func TestCertsDirConfined(t *testing.T) {
	c := &Client{CertsDir: "/certs"}
	for host, want := range map[string]string{
		"r.test:5000": "/certs/r.test:5000",
		"..":          "",
		".":           "",
		"":            "",
		"a/../..":     "",
		`a\b`:         "",
	} {
		if got := c.certsDir(host); got != want {
			t.Errorf("%q: %q", host, got)
		}
	}
	if got := new(Client).certsDir("r.test"); got != defaultCertsDir+"/r.test" {
		t.Errorf("default: %q", got)
	}
}

// Redirects to ever new hosts do not pile up.
func TestTransportsBounded(t *testing.T) {
	c := &Client{CertsDir: t.TempDir()}
	for i := range 3 * maxTransports {
		if _, err := c.transport(t.Context(), netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)}).String(), false); err != nil {
			t.Fatal(err)
		}
	}
	if len(c.transports) > maxTransports {
		t.Errorf("%d transports", len(c.transports))
	}
}
