package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"io/fs"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestListenPlan(t *testing.T) {
	certs := func(p listenPlan) listenPlan {
		p.cert, p.key, p.ca = "c", "k", "a"
		return p
	}
	for _, tt := range []struct {
		name string
		plan listenPlan
		want string // a part of the error; "" for none
	}{
		{"socket", listenPlan{addresses: []string{"unix:///run/x.sock"}}, ""},
		{"loopback", listenPlan{addresses: []string{"tcp://127.0.0.1:2375", "tcp://[::1]:2375", "tcp://localhost:1"}}, ""},
		{"everywhere", listenPlan{addresses: []string{"tcp://0.0.0.0:2375"}}, "--no-tls"},
		{"no host", listenPlan{addresses: []string{"tcp://:2375"}}, "--no-tls"},
		{"a name", listenPlan{addresses: []string{"tcp://example.org:2375"}}, "--no-tls"},
		{"everywhere, said so", listenPlan{addresses: []string{"tcp://0.0.0.0:2375"}, noTLS: true}, ""},
		{"everywhere with certificates", certs(listenPlan{addresses: []string{"tcp://0.0.0.0:2376"}}), ""},
		{"both", certs(listenPlan{addresses: []string{"tcp://0.0.0.0:2376"}, noTLS: true}), "contradicts"},
		{"half the certificates", listenPlan{addresses: []string{"tcp://0.0.0.0:2376"}, cert: "c", key: "k"}, "--tls-ca"},
		{"relative socket", listenPlan{addresses: []string{"unix://x.sock"}}, "unix:///PATH"},
		{"no port", listenPlan{addresses: []string{"tcp://127.0.0.1"}}, "tcp://HOST:PORT"},
		{"no scheme", listenPlan{addresses: []string{"127.0.0.1:2375"}}, "tcp://HOST:PORT"},
		{"nothing", listenPlan{}, "no --listen"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := tt.plan.check()
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

func TestListenUnix(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(path)
	if err != nil || fi.Mode() != fs.ModeSocket|socketMode {
		t.Errorf("socket: %v, %v", fi.Mode(), err)
	}
	if _, err := listenUnix(path); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second listener: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is still there: %v", err)
	}

	// A process that died leaves its socket.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if l, err = listenUnix(path); err != nil {
		t.Fatal(err)
	}
	// One that was replaced leaves the other's alone.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	other, err := listenUnix(path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	l.Close()
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the other's socket is gone: %v", err)
	} else {
		c.Close()
	}

	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := listenUnix(file); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("file: %q, %v", b, err)
	}
	left, err := filepath.Glob(filepath.Join(filepath.Dir(path), ".vic-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// certificate makes a key and a certificate signed by the parent's, or by itself, as PEM files.
func certificate(t *testing.T, dir, name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: parent == nil, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{"cert": {Type: "CERTIFICATE", Bytes: der}, "key": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name+"."+file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return c, key
}

// Only who shows a certificate of the right authority is served.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca, caKey := certificate(t, dir, "ca", nil, nil)
	certificate(t, dir, "server", ca, caKey)
	certificate(t, dir, "client", ca, caKey)
	stranger, strangerKey := certificate(t, dir, "stranger-ca", nil, nil)
	certificate(t, dir, "stranger", stranger, strangerKey)
	plan := listenPlan{
		addresses: []string{"tcp://127.0.0.1:0"}, cert: filepath.Join(dir, "server.cert"), key: filepath.Join(dir, "server.key"), ca: filepath.Join(dir, "ca.cert"),
	}
	addresses, err := plan.check()
	if err != nil {
		t.Fatal(err)
	}
	l, err := plan.listen(addresses[0])
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })}
	go srv.Serve(l)
	defer srv.Close()
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	for _, tt := range []struct {
		name string
		ok   bool
	}{{"client", true}, {"stranger", false}, {"", false}} {
		t.Run("certificate "+tt.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: pool}
			if tt.name != "" {
				pair, err := tls.LoadX509KeyPair(filepath.Join(dir, tt.name+".cert"), filepath.Join(dir, tt.name+".key"))
				if err != nil {
					t.Fatal(err)
				}
				// Shown whatever the server asks for.
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			transport := &http.Transport{TLSClientConfig: config}
			defer transport.CloseIdleConnections()
			resp, err := (&http.Client{Transport: transport}).Get("https://" + l.Addr().String())
			if err == nil {
				resp.Body.Close()
			}
			if (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}
