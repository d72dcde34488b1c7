package testenv

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Authority is a small CA of our own: for the HTTPS of Pebble and Proxy, and for anything else a test trusts.
type Authority struct {
	// File holds the CA certificate (PEM); trust it to trust what the Authority issued.
	File string
	// Pool holds the CA certificate alone.
	Pool *x509.CertPool

	cert *x509.Certificate
	key  crypto.Signer
}

// LeafOptions says what Authority.Issue puts into a certificate.
type LeafOptions struct {
	// DNSNames is used for the subject alternative names; IPs, too.
	DNSNames []string
	IPs      []net.IP
	URIs     []*url.URL
	// NotBefore and NotAfter default to an hour ago and in a day.
	NotBefore, NotAfter time.Time
}

// Leaf is an issued certificate with its key, for servers and for clients.
type Leaf struct {
	TLS tls.Certificate
	// CertPEM is the certificate alone; KeyPEM is PKCS #8.
	CertPEM, KeyPEM []byte
}

// NewAuthority makes a CA and writes its certificate and key below dir as NAME-ca.pem and NAME-ca.key. Where these are
// there already, it uses them, so that clients keep their trust when a part is started again.
func NewAuthority(dir, name string) (*Authority, error) {
	a := &Authority{File: filepath.Join(dir, name+"-ca.pem")}
	keyFile := filepath.Join(dir, name+"-ca.key")
	pair, err := tls.LoadX509KeyPair(a.File, keyFile)
	switch {
	case errors.Is(err, os.ErrNotExist):
		if err := a.create(name, keyFile); err != nil {
			return nil, fmt.Errorf("authority %s: %w", name, err)
		}
	case err != nil:
		return nil, fmt.Errorf("authority %s: %w", name, err)
	default:
		signer, ok := pair.PrivateKey.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("authority %s: %s: not a signing key", name, keyFile)
		}
		a.cert, a.key = pair.Leaf, signer
	}
	a.Pool = x509.NewCertPool()
	a.Pool.AddCert(a.cert)
	return a, nil
}

func (a *Authority) create(name, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name + " test CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(30 * 24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return err
	}
	a.cert, a.key = cert, key
	if err := os.WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(a.File, encodeCert(der), 0o600)
}

// Issue makes a new ECDSA key and a certificate for server and client use.
func (a *Authority) Issue(o LeafOptions) (Leaf, error) {
	leaf, err := a.issue(o)
	if err != nil {
		return Leaf{}, fmt.Errorf("authority: leaf: %w", err)
	}
	return leaf, nil
}

func (a *Authority) issue(o LeafOptions) (Leaf, error) {
	if o.NotBefore.IsZero() {
		o.NotBefore = time.Now().Add(-time.Hour)
	}
	if o.NotAfter.IsZero() {
		o.NotAfter = time.Now().Add(24 * time.Hour)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return Leaf{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Leaf{}, err
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(2)),
		NotBefore:    o.NotBefore,
		NotAfter:     o.NotAfter,
		DNSNames:     o.DNSNames,
		IPAddresses:  o.IPs,
		URIs:         o.URIs,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		return Leaf{}, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return Leaf{}, err
	}
	leaf := Leaf{CertPEM: encodeCert(der), KeyPEM: keyPEM}
	leaf.TLS, err = tls.X509KeyPair(leaf.CertPEM, keyPEM)
	return leaf, err
}

// Local issues a certificate for localhost and 127.0.0.1.
func (a *Authority) Local() (Leaf, error) {
	return a.Issue(LeafOptions{DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}})
}

// Write writes the leaf as certFile and keyFile.
func (l Leaf) Write(certFile, keyFile string) error {
	if err := os.WriteFile(keyFile, l.KeyPEM, 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, l.CertPEM, 0o600)
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// parseCert returns the first certificate of a PEM text.
func parseCert(data []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no PEM certificate")
	}
	return x509.ParseCertificate(block.Bytes)
}
