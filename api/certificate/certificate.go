// Package certificate makes and judges what the two sides of the Docker API show each other in mutual TLS: an authority, and the pairs
// of certificate and private key of a server and a client.
//
//	DIR/ca/{cert,key}.pem         the authority
//	DIR/server/{ca,cert,key}.pem  the server's pair, and the certificate of the authority
//	DIR/client/{ca,cert,key}.pem  the client's: a DOCKER_CERT_PATH
//
// Keys are ECDSA P-256, in PKCS #8. An authority that is in DIR already stays.
package certificate

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
)

// AuthorityDays is how long an authority counts.
const AuthorityDays = 3652

// An issuer signs certificates.
type issuer struct {
	cert *x509.Certificate
	key  any // of x509.CreateCertificate
}

// Make makes the files in dir, or makes the pairs in it again. Names are those, and the addresses, that clients reach the server by; one at
// least. The pairs count for so many days.
func Make(dir string, names []string, now time.Time, days int) error {
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
		if err := Valid(pair.Leaf, now); err != nil {
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
		Subject: pkix.Name{CommonName: "vic certs " + now.UTC().Format(time.RFC3339)}, NotBefore: now.Add(-clockSkew), NotAfter: now.AddDate(0, 0, AuthorityDays),
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

// writePEM writes a file that has its name once it is whole.
func writePEM(path string, mode fs.FileMode, kind string, der []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	err = pem.Encode(f, &pem.Block{Type: kind, Bytes: der})
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}
