package main

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"vic/bench/oracle"
)

// An issuer signs certificates.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// forge writes DIR/NAME/{cert,key}.pem for a certificate that change has made different from a good one,
// signed by ca, or by itself if that is nil.
func forge(t *testing.T, dir, name string, ca *issuer, change func(*x509.Certificate)) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(c)
	}
	if ca == nil {
		ca = &issuer{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name, file), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return &issuer{c, key}
}

func isAuthority(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }

// tlsServer serves hello by a plan's certificates.
func tlsServer(t *testing.T, files certificateFiles) (*certificates, string) {
	t.Helper()
	plan := listenPlan{addresses: []string{"tcp://127.0.0.1:0"}, verify: true, files: files}
	addresses, err := plan.check()
	if err != nil {
		t.Fatal(err)
	}
	certs, err := openCertificates(plan)
	if err != nil {
		t.Fatal(err)
	}
	l, err := addresses[0].listen(certs)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug),
	}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return certs, l.Addr().String()
}

func fetchHello(addr string, config *tls.Config) error {
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get("https://" + addr)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// Only who shows a certificate of the right authority is served, by TLS 1.2 or later; certificates may
// have others between them and the authority.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca := forge(t, dir, "ca", nil, isAuthority)
	between := forge(t, dir, "between", ca, isAuthority)
	forge(t, dir, "server", between, nil)
	forge(t, dir, "client", ca, nil)
	forge(t, dir, "chained", between, nil)
	forge(t, dir, "expired", ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	forge(t, dir, "server's own", ca, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] })
	forge(t, dir, "stranger", forge(t, dir, "stranger-ca", nil, isAuthority), nil)
	for _, name := range []string{"server", "chained"} { // as files of a chain are: the leaf first
		appendFile(t, filepath.Join(dir, name, "cert.pem"), filepath.Join(dir, "between", "cert.pem"))
	}
	_, addr := tlsServer(t, certificateFiles{ca: filepath.Join(dir, "ca/cert.pem"), cert: filepath.Join(dir, "server/cert.pem"), key: filepath.Join(dir, "server/key.pem")})
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	for _, tt := range []struct {
		name, client string
		version      uint16
		want         string // a part of the error, "" for none
	}{
		{"client", "client", 0, ""},
		{"client of TLS 1.2", "client", tls.VersionTLS12, ""},
		{"client of TLS 1.1", "client", tls.VersionTLS11, "protocol version not supported"},
		{"through another authority", "chained", 0, ""},
		{"no certificate", "", 0, "certificate required"},
		{"no certificate in TLS 1.2", "", tls.VersionTLS12, "handshake failure"},
		{"another authority's", "stranger", 0, "unknown certificate authority"},
		{"expired", "expired", 0, "expired"},
		{"not a client's", "server's own", 0, "bad certificate"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS10, MaxVersion: tt.version}
			if tt.client != "" {
				pair, err := tls.LoadX509KeyPair(filepath.Join(dir, tt.client, "cert.pem"), filepath.Join(dir, tt.client, "key.pem"))
				if err != nil {
					t.Fatal(err)
				}
				// Shown whatever the server asks for.
				config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
			}
			err := fetchHello(addr, config)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// appendFile appends a file to another.
func appendFile(t *testing.T, file, more string) {
	t.Helper()
	var all []byte
	for _, f := range []string{file, more} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, b...)
	}
	if err := os.WriteFile(file, all, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestCertificateErrors(t *testing.T) {
	dir := t.TempDir()
	ca := forge(t, dir, "ca", nil, isAuthority)
	forge(t, dir, "server", ca, nil)
	forge(t, dir, "other", ca, nil)
	forge(t, dir, "expired", ca, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	forge(t, dir, "future", ca, func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) })
	forge(t, dir, "client", ca, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] })
	forge(t, dir, "nameless", ca, func(c *x509.Certificate) { c.IPAddresses = nil })
	forge(t, dir, "old-ca", nil, func(c *x509.Certificate) {
		isAuthority(c)
		c.NotAfter = time.Now().Add(-time.Minute)
	})
	if err := os.WriteFile(filepath.Join(dir, "text"), []byte("hello"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, ca, cert, key, want string }{
		{"good", "ca/cert.pem", "server/cert.pem", "server/key.pem", ""},
		{"no certificate", "ca/cert.pem", "nope", "server/key.pem", "read the server's certificate, --tlscert: open "},
		{"no key", "ca/cert.pem", "server/cert.pem", "nope", "read the server's private key, --tlskey: open "},
		{"no authority", "nope", "server/cert.pem", "server/key.pem", "--tlscacert: open "},
		{"key of another", "ca/cert.pem", "server/cert.pem", "other/key.pem", "is not the key of the certificate"},
		{"key as certificate", "ca/cert.pem", "server/key.pem", "server/key.pem", "PEM inputs may have been switched"},
		{"expired", "ca/cert.pem", "expired/cert.pem", "expired/key.pem", "the certificate of CN=expired expired on 20"},
		{"not yet", "ca/cert.pem", "future/cert.pem", "future/key.pem", "clock"},
		{"for clients", "ca/cert.pem", "client/cert.pem", "client/key.pem", "not for a server"},
		{"nameless", "ca/cert.pem", "nameless/cert.pem", "nameless/key.pem", "no subject alternative name"},
		{"text for an authority", "text", "server/cert.pem", "server/key.pem", "no certificate in PEM"},
		{"expired authority", "old-ca/cert.pem", "server/cert.pem", "server/key.pem", "expired on"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			plan := listenPlan{tls: true, verify: true, files: certificateFiles{
				ca: filepath.Join(dir, tt.ca), cert: filepath.Join(dir, tt.cert), key: filepath.Join(dir, tt.key),
			}}
			_, err := openCertificates(plan)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	t.Run("default files", func(t *testing.T) {
		t.Setenv("DOCKER_CERT_PATH", filepath.Join(dir, "server"))
		if _, err := openCertificates(listenPlan{tls: true}); err != nil {
			t.Error(err)
		}
		_, err := openCertificates(listenPlan{tls: true, verify: true})
		if want := filepath.Join(dir, "server", "ca.pem"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	})
}

// openssl judges what vic certs makes; a server takes new ones at SIGHUP, and keeps the old ones if the
// new are no good.
func TestCerts(t *testing.T) {
	oracle.Need(t, "openssl")
	dir := t.TempDir()
	at := func(parts ...string) string { return filepath.Join(append([]string{dir}, parts...)...) }
	vic := func(args ...string) error {
		return run(t.Context(), args, strings.NewReader(""), io.Discard, io.Discard)
	}
	if err := vic("certs", dir); exitCode(err) != 2 {
		t.Errorf("certificates for nobody: %v", err)
	}
	if err := vic("certs", dir, "--name", "localhost", "--name", "127.0.0.1", "--days", "9999"); exitCode(err) != 2 {
		t.Errorf("certificates that outlive their authority: %v", err)
	}
	issue := func() {
		t.Helper()
		if err := vic("certs", dir, "--name", "localhost", "--name", "127.0.0.1"); err != nil {
			t.Fatal(err)
		}
		for _, args := range [][]string{
			{"verify", "-x509_strict", "-purpose", "sslserver", "-verify_ip", "127.0.0.1", "-CAfile", at("client/ca.pem"), at("server/cert.pem")},
			{"verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", "localhost", "-CAfile", at("client/ca.pem"), at("server/cert.pem")},
			{"verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", at("server/ca.pem"), at("client/cert.pem")},
			{"pkey", "-in", at("server/key.pem"), "-noout", "-check"},
		} {
			if out, err := exec.Command("openssl", args...).CombinedOutput(); err != nil {
				t.Errorf("openssl %s: %v\n%s", strings.Join(args, " "), err, out)
			}
		}
		for _, key := range []string{"ca", "server", "client"} {
			if fi, err := os.Stat(at(key, "key.pem")); err != nil || fi.Mode() != 0o600 {
				t.Errorf("key of the %s: %v, %v", key, fi.Mode(), err)
			}
		}
	}
	issue()
	ca, err := os.ReadFile(at("ca/cert.pem"))
	if err != nil {
		t.Fatal(err)
	}
	certs, addr := tlsServer(t, certificateFiles{ca: at("server/ca.pem"), cert: at("server/cert.pem"), key: at("server/key.pem")})
	told, log := io.Pipe()
	defer onHangup(certs, slog.New(slog.NewTextHandler(log, nil)))()
	lines := bufio.NewScanner(told)
	serial := func() string {
		t.Helper()
		out, err := exec.Command("openssl", "s_client", "-connect", addr, "-CAfile", at("client/ca.pem"), "-verify_return_error",
			"-cert", at("client/cert.pem"), "-key", at("client/key.pem")).Output()
		if err != nil {
			t.Fatalf("openssl s_client: %v\n%s", err, out)
		}
		cmd := exec.Command("openssl", "x509", "-noout", "-serial")
		cmd.Stdin = bytes.NewReader(out)
		text, err := cmd.Output()
		if err != nil {
			t.Fatalf("openssl x509: %v", err)
		}
		return string(text)
	}
	first := serial()
	issue()
	if again, err := os.ReadFile(at("ca/cert.pem")); err != nil || !bytes.Equal(ca, again) {
		t.Errorf("the authority was made again (%v)", err)
	}
	if now := serial(); now != first {
		t.Errorf("new certificates without being told: %s, %s", now, first)
	}
	hangup := func(wantLog string) {
		t.Helper()
		if err := syscall.Kill(os.Getpid(), syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if !lines.Scan() || !strings.Contains(lines.Text(), wantLog) {
			t.Errorf("log: %s, want %s", lines.Text(), wantLog)
		}
	}
	hangup(`msg="certificates read again"`)
	second := serial()
	if second == first {
		t.Error("the certificate is the one before")
	}
	if err := os.WriteFile(at("server/cert.pem"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	hangup("certificates not read again")
	if now := serial(); now != second {
		t.Errorf("the certificate changed with a file that holds none: %s, %s", now, second)
	}
	if err := os.Remove(at("ca/key.pem")); err != nil {
		t.Fatal(err)
	}
	if err := vic("certs", dir, "--name", "x"); err == nil || !strings.Contains(err.Error(), "other half") {
		t.Errorf("half an authority: %v", err)
	}
}
