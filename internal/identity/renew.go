package identity

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// The certificates that have nothing to renew.
var (
	ErrForeign = errors.New("the certificate was not signed by the CA of this server's xDS channel")
	ErrNoNode  = errors.New("not the client certificate of a node: it has to name one URI")
)

// Holder is who a node's certificate was made for.
type Holder struct {
	Node string        // common name of the subject
	URI  string        // the identity
	Life time.Duration // that it was issued for
}

// Issued reports whether the CA signed the certificate, be it valid still or not.
func (a *Authority) Issued(cert *x509.Certificate) bool {
	return cert.CheckSignatureFrom(a.cert) == nil
}

// Holder reads a node's certificate that this CA signed; it may have ended. The error is ErrForeign, ErrNoNode, or that of the PEM.
func (a *Authority) Holder(certPEM []byte) (Holder, error) {
	block, _ := pem.Decode(certPEM)
	if block == nil || block.Type != "CERTIFICATE" {
		return Holder{}, errors.New("certificate: not a PEM block CERTIFICATE")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Holder{}, fmt.Errorf("certificate: %w", err)
	}
	if !a.Issued(cert) {
		return Holder{}, ErrForeign
	}
	if len(cert.URIs) != 1 || !slices.Contains(cert.ExtKeyUsage, x509.ExtKeyUsageClientAuth) {
		return Holder{}, ErrNoNode
	}
	return Holder{Node: cert.Subject.CommonName, URI: cert.URIs[0].String(), Life: cert.NotAfter.Sub(cert.NotBefore) - backdate}, nil
}

// RenewServer makes a certificate and a key that take the place of the server's certificate old, with its names. It is ErrForeign if this
// CA did not sign old, and an error if it would not last longer than old: the CA itself ends.
func (a *Authority) RenewServer(old *x509.Certificate, now time.Time, life time.Duration) (certPEM, keyPEM []byte, err error) {
	if !a.Issued(old) {
		return nil, nil, ErrForeign
	}
	if !now.Add(life).After(old.NotAfter) || !a.cert.NotAfter.After(old.NotAfter) {
		return nil, nil, fmt.Errorf("the CA of the xDS channel ends at %s, no certificate can last longer", a.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return a.Server(Names{DNS: old.DNSNames, IP: old.IPAddresses}, now, life)
}
