package certificate

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Parse reads all the certificates of a PEM file. One that has none is an error.
func Parse(text []byte) ([]*x509.Certificate, error) {
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

// Valid says whether a certificate counts now.
func Valid(c *x509.Certificate, now time.Time) error {
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("the certificate of %s expired on %s", c.Subject, c.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(c.NotBefore):
		return fmt.Errorf("the certificate of %s counts only from %s on: is this machine's clock right?", c.Subject, c.NotBefore.UTC().Format(time.RFC3339))
	}
	return nil
}

// CheckServer refuses a server's certificate that no client would take.
func CheckServer(c *x509.Certificate, now time.Time) error {
	if err := Valid(c, now); err != nil {
		return err
	}
	if uses := c.ExtKeyUsage; len(uses) > 0 && !slices.Contains(uses, x509.ExtKeyUsageServerAuth) && !slices.Contains(uses, x509.ExtKeyUsageAny) {
		return errors.New("the certificate is not for a server: its extended key usage lacks serverAuth")
	}
	if len(c.DNSNames) == 0 && len(c.IPAddresses) == 0 {
		return errors.New("the certificate has no subject alternative name, so no client takes it")
	}
	return nil
}
