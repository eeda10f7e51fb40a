package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"time"

	"vic/containervm"
	"vic/containervm/vspc"
)

// parseSerial reads --serial-address.
func parseSerial(text string) (host, port string, err error) {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "tcp" || u.Hostname() == "" || u.Port() == "" || u.Port() == "0" || u.Path != "" {
		return "", "", usageErrorf("--serial-address %s: it must be tcp://HOST:PORT, or tcp://INTERFACE:PORT", text)
	}
	return u.Hostname(), u.Port(), nil
}

// addressOf is host, or the first address of the interface of that name.
func addressOf(host string) (string, error) {
	iface, err := net.InterfaceByName(host)
	if err != nil {
		return host, nil
	}
	all, err := iface.Addrs()
	if err != nil {
		return "", err
	}
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return n.IP.String(), nil
		}
	}
	return "", fmt.Errorf("network interface %s has no address yet", host)
}

// serveSerial listens for the hosts of VMs with serial ports, and returns the URI that leads them here. What they know this host by is a
// certificate of its own, in file.
func (h *host) serveSerial(name, port, listen, file string, log *slog.Logger) (*vspc.Server, string, error) {
	name, err := addressOf(name)
	if err != nil {
		return nil, "", fmt.Errorf("--serial-address: %w", err)
	}
	cert, err := keepSelfSigned(file)
	if err != nil {
		return nil, "", fmt.Errorf("certificate for serial ports: %w", err)
	}
	if listen == "" {
		listen = net.JoinHostPort("", port)
	}
	l, err := tls.Listen("tcp", listen, &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, "", fmt.Errorf("--serial-address: %w", err)
	}
	s := vspc.NewServer(vspc.Options{Log: log})
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	h.closers = append(h.closers, func() error { return errors.Join(s.Close(), <-served) })
	return s, vspc.ProxyURI(net.JoinHostPort(name, port), cert.Certificate[0]), nil
}

// keepSelfSigned reads a certificate and its key from a file, which it makes if it is not there. Hosts know it by its thumbprint, for as
// long as VMs run: so it does not expire (RFC 5280, section 4.1.2.5).
func keepSelfSigned(file string) (tls.Certificate, error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if text, err = selfSigned(); err == nil {
			err = containervm.WriteFile(file, text)
		}
	}
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.X509KeyPair(text, text)
}

func selfSigned() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "VIC serial ports"},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...), nil
}
