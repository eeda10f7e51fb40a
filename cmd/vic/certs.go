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
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

func certsCommand() *cobra.Command {
	var names []string
	var days int
	cmd := &cobra.Command{
		Use:   "certs DIR --name NAME",
		Short: "Make the certificates for mutual TLS: an authority, a server's, a client's",
		Long: `Make what vic serve --tlsverify and docker clients show each other, in DIR:

  ca/{cert,key}.pem         the authority. Keep its key away from the others: who has it can make clients
  server/{ca,cert,key}.pem  for vic serve
  client/{ca,cert,key}.pem  for clients: their DOCKER_CERT_PATH

An authority that is there already stays, so the same command makes new certificates before the old ones
expire. vic serve reads its own again on SIGHUP.`,
		Example: `  vic certs /etc/vic/certs --name vch.example.org --name 192.0.2.7
  DOCKER_CERT_PATH=/etc/vic/certs/server vic serve --store /var/lib/vic --tlsverify -H tcp://0.0.0.0:2376
  DOCKER_CERT_PATH=/etc/vic/certs/client DOCKER_TLS_VERIFY=1 docker -H tcp://vch.example.org:2376 info`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if len(names) == 0 {
				return usageErrorf("give each name and address that clients reach the server by with --name")
			}
			if days < 1 || days > authorityDays {
				return usageErrorf("--days %d: use 1 to %d", days, authorityDays)
			}
			return makeCertificates(args[0], names, time.Now(), days)
		},
	}
	fl := cmd.Flags()
	fl.StringArrayVar(&names, "name", nil, "`NAME` or IP address that clients reach the server by (may be given several times)")
	fl.IntVar(&days, "days", 397, "how `many` days the server's and the client's certificates count")
	return cmd
}

// authorityDays is how long an authority counts.
const authorityDays = 3652

// An issuer signs certificates.
type issuer struct {
	cert *x509.Certificate
	key  any // of x509.CreateCertificate
}

// makeCertificates makes the files of vic certs.
func makeCertificates(dir string, names []string, now time.Time, days int) error {
	ca, err := authority(filepath.Join(dir, "ca"), now)
	if err != nil {
		return err
	}
	end := now.AddDate(0, 0, days)
	if end.After(ca.cert.NotAfter) {
		return fmt.Errorf("the authority in %s counts only until %s: make another in another folder, or give fewer --days",
			filepath.Join(dir, "ca"), ca.cert.NotAfter.Format(time.DateOnly))
	}
	server := &x509.Certificate{
		Subject: pkix.Name{CommonName: names[0]}, NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			server.IPAddresses = append(server.IPAddresses, ip)
		} else {
			server.DNSNames = append(server.DNSNames, n)
		}
	}
	client := &x509.Certificate{
		Subject: pkix.Name{CommonName: "vic client"}, NotBefore: now.Add(-clockSkew), NotAfter: end,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if err := ca.issue(filepath.Join(dir, "server"), server); err != nil {
		return err
	}
	return ca.issue(filepath.Join(dir, "client"), client)
}

// clockSkew is how far behind the clock of one who looks at a new certificate may be.
const clockSkew = time.Hour

// authority reads the authority in a folder, or makes one.
func authority(dir string, now time.Time) (*issuer, error) {
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	switch {
	case err == nil:
		if !pair.Leaf.IsCA {
			return nil, fmt.Errorf("%s is not the certificate of an authority", certFile)
		}
		if err := valid(pair.Leaf, now); err != nil {
			return nil, fmt.Errorf("%s: %w", certFile, err)
		}
		return &issuer{pair.Leaf, pair.PrivateKey}, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read the authority in %s: %w", dir, err)
	}
	for _, file := range []string{certFile, keyFile} {
		if _, err := os.Lstat(file); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is there without the other half of the authority", file)
		}
	}
	cert := &x509.Certificate{
		Subject: pkix.Name{CommonName: "vic certs " + now.UTC().Format(time.RFC3339)}, NotBefore: now.Add(-clockSkew), NotAfter: now.AddDate(0, 0, authorityDays),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := (&issuer{cert, key}).sign(cert, key)
	if err != nil {
		return nil, err
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	return &issuer{cert, key}, writePair(dir, der, key)
}

// issue makes a key, and the certificate for it, in a folder beside the authority's own.
func (ca *issuer) issue(dir string, cert *x509.Certificate) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := ca.sign(cert, key)
	if err != nil {
		return err
	}
	if err := writePair(dir, der, key); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, "ca.pem"), 0o644, "CERTIFICATE", ca.cert.Raw)
}

func (ca *issuer) sign(cert *x509.Certificate, key *ecdsa.PrivateKey) ([]byte, error) {
	var err error
	if cert.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)); err != nil {
		return nil, err
	}
	return x509.CreateCertificate(rand.Reader, cert, ca.cert, &key.PublicKey, ca.key)
}

// writePair writes cert.pem and key.pem.
func writePair(dir string, cert []byte, key *ecdsa.PrivateKey) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := writePEM(filepath.Join(dir, "key.pem"), 0o600, "PRIVATE KEY", der); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, "cert.pem"), 0o644, "CERTIFICATE", cert)
}

func writePEM(path string, mode fs.FileMode, kind string, der []byte) error {
	return writeFile(path, mode, func(f *os.File) error { return pem.Encode(f, &pem.Block{Type: kind, Bytes: der}) })
}

// parseCertificates reads all the certificates of a PEM file.
func parseCertificates(text []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for len(text) > 0 {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		if text = rest; block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errors.New("there is no certificate in PEM")
	}
	return out, nil
}
