package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm/appliance"
)

// An authority made by openssl, with one between it and the server, is taken, and the appliance shows the whole chain: what lacks a part of it, or is
// for another name, is refused. Certificates that are made keep their authority, and are made anew when that is asked for.
func TestCertificates(t *testing.T) {
	openssl := oracle.Find(t, "openssl")
	l := newLab(t, vcsim.Options{Switched: []string{"bridge", "other"}})
	l.ok("update", "firewall", "--allow")
	certs := filepath.Join(l.dir, "certs")
	in := func(elem ...string) string { return filepath.Join(append([]string{certs}, elem...)...) }
	read := func(file string) []byte {
		t.Helper()
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	write := func(file string, text []byte) {
		t.Helper()
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// issue makes a certificate by another; of itself if that is "".
	issue := func(name, by string, extensions ...string) {
		t.Helper()
		if err := os.MkdirAll(in(name), 0o700); err != nil {
			t.Fatal(err)
		}
		args := []string{"req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", in(name, "key.pem"), "-out", in(name, "cert.pem"), "-subj", "/CN=" + name, "-days", "2"}
		if by != "" {
			args = append(args, "-CA", in(by, "cert.pem"), "-CAkey", in(by, "key.pem"))
		}
		for _, e := range extensions {
			args = append(args, "-addext", e)
		}
		if text, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %v: %v\n%s", args, err, text)
		}
	}
	const authority = "keyUsage=critical,keyCertSign"
	server := []string{"basicConstraints=critical,CA:FALSE", "subjectAltName=IP:" + l.ip, "extendedKeyUsage=serverAuth"}
	issue("ca", "", authority)
	issue("between", "ca", authority)
	issue("server", "between", server...)
	args := l.create("--tls-server-cert", in("server", "cert.pem"), "--tls-server-key", in("server", "key.pem"), "--tls-ca", in("ca", "cert.pem"))
	if _, _, err := machine(t, args...); err == nil || !strings.Contains(err.Error(), "--tls-ca: clients that trust the authority do not trust the server") {
		t.Errorf("without what is between: %v", err)
	}
	chain := append(read(in("server", "cert.pem")), read(in("between", "cert.pem"))...)
	write(in("server", "cert.pem"), chain)
	if _, _, err := machine(t, append(args, "--tls-cname", "vch.example.org")...); err == nil || !strings.Contains(err.Error(), "--tls-cname: the certificate is not for vch.example.org") {
		t.Errorf("for another name: %v", err)
	}
	l.ok(args...)
	shown := func() (cert, ca []byte) {
		t.Helper()
		c, err := appliance.Read(func(key string) (string, error) { return l.extra("vch1", key), nil })
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(c.Args, " "); !strings.Contains(text, "--tlsverify") {
			t.Errorf("vic serve is told %s", text)
		}
		for _, f := range c.Files {
			switch filepath.Base(f.Path) {
			case "cert.pem":
				cert = f.Content
			case "ca.pem":
				ca = f.Content
			}
		}
		return cert, ca
	}
	if cert, ca := shown(); !bytes.Equal(cert, chain) || !bytes.Equal(ca, read(in("ca", "cert.pem"))) {
		t.Errorf("the appliance shows\n%s, and trusts\n%s", cert, ca)
	}
	command := l.ok("inspect", "config", "-n", "vch1")
	for _, want := range []string{"--tls-server-cert " + in("server", "cert.pem"), "--tls-server-key " + in("server", "key.pem"), "--tls-ca " + in("ca", "cert.pem")} {
		if !strings.Contains(command, want) {
			t.Errorf("no %q in %s", want, command)
		}
	}
	// Others in their place.
	issue("server", "ca", server...)
	l.ok("configure", "-n", "vch1", "--tls-server-cert", in("server", "cert.pem"), "--tls-server-key", in("server", "key.pem"), "--tls-ca", in("ca", "cert.pem"))
	if cert, _ := shown(); !bytes.Equal(cert, read(in("server", "cert.pem"))) || bytes.Equal(cert, chain) {
		t.Errorf("replaced, the appliance shows\n%s", cert)
	}
	l.ok("delete", "-n", "vch1")
	if err := os.RemoveAll(certs); err != nil {
		t.Fatal(err)
	}
	// Those that are made.
	l.ok(l.create()...)
	made, _ := shown()
	first := read(in("ca", "cert.pem"))
	l.ok("configure", "-n", "vch1", "--renew-certificates")
	if cert, ca := shown(); bytes.Equal(cert, made) || !bytes.Equal(cert, read(in("server", "cert.pem"))) || !bytes.Equal(ca, first) {
		t.Error("renewed, the certificate is the same, or the authority is not")
	}
	if text, err := exec.Command(openssl, "verify", "-CAfile", in("client", "ca.pem"), "-verify_ip", l.ip, in("server", "cert.pem")).CombinedOutput(); err != nil {
		t.Errorf("openssl verify: %v\n%s", err, text)
	}
	l.ok("delete", "-n", "vch1")
}
