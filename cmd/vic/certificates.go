package main

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"vic/api/certificate"
)

// certificateFiles are the files of TLS, PEM, by dockerd's names.
type certificateFiles struct {
	ca   string // the authorities that sign clients' certificates
	cert string // the server's certificate, and those between it and its authority
	key  string // its private key
}

// complete fills in the files that were not named: where dockerd and docker look for theirs.
func (f certificateFiles) complete(verify bool) (certificateFiles, error) {
	dir := os.Getenv("DOCKER_CERT_PATH")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			return f, fmt.Errorf("where are the certificates? name them with --tlscacert, --tlscert and --tlskey: %w", err)
		}
		dir = filepath.Join(home, ".docker")
	}
	f.cert = cmp.Or(f.cert, filepath.Join(dir, "cert.pem"))
	f.key = cmp.Or(f.key, filepath.Join(dir, "key.pem"))
	if verify {
		f.ca = cmp.Or(f.ca, filepath.Join(dir, "ca.pem"))
	}
	return f, nil
}

// certificates are what a server shows, and whose it wants to see. New connections have what was read
// last; those that are open stay.
type certificates struct {
	files   certificateFiles // without ca anybody may connect
	current atomic.Pointer[tls.Config]
}

// openCertificates reads the plan's files; nil if it has no TLS.
func openCertificates(p listenPlan) (*certificates, error) {
	if !p.tls {
		return nil, nil
	}
	files, err := p.files.complete(p.verify)
	if err != nil {
		return nil, err
	}
	c := &certificates{files: files}
	return c, c.read()
}

// read reads the files again. If something is wrong with them, what was read before stays.
func (c *certificates) read() error {
	pair, err := readPair(c.files.cert, c.files.key)
	if err != nil {
		return err
	}
	config := &tls.Config{
		Certificates: []tls.Certificate{pair},
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"http/1.1"}, // a connection of HTTP/2 cannot be taken over
	}
	if c.files.ca != "" {
		config.ClientAuth = tls.RequireAndVerifyClientCert
		if config.ClientCAs, err = readAuthorities(c.files.ca); err != nil {
			return err
		}
	}
	c.current.Store(config)
	return nil
}

// readPair reads a server's certificate with its key, and refuses one that no client would take.
func readPair(certFile, keyFile string) (tls.Certificate, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the server's certificate, --tlscert: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read the server's private key, --tlskey: %w", err)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		if strings.Contains(err.Error(), "does not match") {
			return pair, fmt.Errorf("--tlskey %s is not the key of the certificate --tlscert %s", keyFile, certFile)
		}
		return pair, fmt.Errorf("--tlscert %s, --tlskey %s: %w", certFile, keyFile, err)
	}
	if err := certificate.CheckServer(pair.Leaf, time.Now()); err != nil {
		return pair, fmt.Errorf("--tlscert %s: %w", certFile, err)
	}
	return pair, nil
}

// readAuthorities reads certificates of authorities, of which one at least must still count.
func readAuthorities(file string) (*x509.CertPool, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the certificates of clients' authorities, --tlscacert: %w", err)
	}
	found, err := certificate.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("--tlscacert %s: %w", file, err)
	}
	pool := x509.NewCertPool()
	var outdated error
	usable := false
	for _, c := range found {
		if err := certificate.Valid(c, time.Now()); err != nil {
			outdated = errors.Join(outdated, err)
			continue
		}
		usable = true
		pool.AddCert(c)
	}
	if !usable {
		return nil, fmt.Errorf("--tlscacert %s: %w", file, outdated)
	}
	return pool, nil
}

// listener is l with TLS.
func (c *certificates) listener(l net.Listener) net.Listener {
	return tls.NewListener(l, &tls.Config{
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) { return c.current.Load(), nil },
	})
}
