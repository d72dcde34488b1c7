// Package identity is the private certificate authority of the xDS channel: it makes the server's own certificate and signs the
// nodes' client certificates.
//
// Its key is sealed in the store and never leaves it (DESIGN 4, invariant 8): a node's key is made where the node is, and only a
// certificate request travels.
package identity

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	authorityKey = "channel/authority"
	// authorityLife is how long the channel's CA is valid: longer than any server or node certificate by far.
	authorityLife = 10 * 365 * 24 * time.Hour
	// backdate allows for clocks that are a little behind.
	backdate = time.Minute
)

// ErrNoAuthority is returned by Load for a store in which no channel CA was made.
var ErrNoAuthority = errors.New("the store holds no CA for the xDS channel")

// Authority signs certificates of the xDS channel.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// stored is the sealed form.
type stored struct {
	Certificate []byte `json:"certificate"` // DER
	Key         []byte `json:"key"`         // PKCS#8 DER
}

// Create makes the channel's CA and stores it; an existing one is an error.
func Create(ctx context.Context, s store.Store, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("channel CA key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "sds-server xDS channel"},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("channel CA certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("channel CA key: %w", err)
	}
	value, err := json.Marshal(stored{Certificate: der, Key: keyDER})
	if err != nil {
		return nil, fmt.Errorf("channel CA: %w", err)
	}
	_, err = s.Commit(ctx, []store.Condition{{Key: authorityKey}}, []store.Operation{store.Put(authorityKey, value)})
	if err != nil {
		return nil, fmt.Errorf("store the channel CA: %w", err)
	}
	return parse(value)
}

// Load reads the channel's CA, or returns ErrNoAuthority.
func Load(ctx context.Context, s store.Store) (*Authority, error) {
	e, err := s.Get(ctx, authorityKey)
	if errors.Is(err, store.ErrNotFound) {
		return nil, ErrNoAuthority
	}
	if err != nil {
		return nil, fmt.Errorf("read the channel CA: %w", err)
	}
	return parse(e.Value)
}

func parse(value []byte) (*Authority, error) {
	var v stored
	if err := json.Unmarshal(value, &v); err != nil {
		return nil, fmt.Errorf("stored value at %s: %w", authorityKey, err)
	}
	cert, err := x509.ParseCertificate(v.Certificate)
	if err != nil {
		return nil, fmt.Errorf("stored value at %s: %w", authorityKey, err)
	}
	key, err := x509.ParsePKCS8PrivateKey(v.Key)
	if err != nil {
		return nil, fmt.Errorf("stored value at %s: %w", authorityKey, err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("stored value at %s: a key that cannot sign", authorityKey)
	}
	return &Authority{cert: cert, key: signer}, nil
}

// CertificatePEM returns the CA certificate, which nodes and the server trust.
func (a *Authority) CertificatePEM() []byte { return encodeCert(a.cert.Raw) }

// Server makes the server's own certificate for the given DNS names and addresses, and its key in PKCS#8 PEM.
func (a *Authority) Server(names Names, now time.Time, life time.Duration) (certPEM, keyPEM []byte, err error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	template := a.template("sds-server", now, life, x509.ExtKeyUsageServerAuth)
	template.DNSNames, template.IPAddresses = names.DNS, names.IP
	certPEM, err = a.sign(template, key.Public())
	return certPEM, keyPEM, err
}

// NodeCertificate is a signed certificate of a node.
type NodeCertificate struct {
	PEM      []byte
	NotAfter time.Time // UTC; never after the end of the CA
}

// Node signs a certificate request for a node: the subject and every extension of the request are ignored, only its key counts. The
// one URI SAN is the node's identity.
func (a *Authority) Node(csrPEM []byte, node, uri string, now time.Time, life time.Duration) (NodeCertificate, error) {
	block, _ := pem.Decode(csrPEM)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return NodeCertificate{}, errors.New("certificate request: not a PEM block CERTIFICATE REQUEST")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return NodeCertificate{}, fmt.Errorf("certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return NodeCertificate{}, fmt.Errorf("certificate request: %w", err)
	}
	identity, err := url.Parse(uri)
	if err != nil {
		return NodeCertificate{}, fmt.Errorf("identity %q: %w", uri, err)
	}
	template := a.template(node, now, life, x509.ExtKeyUsageClientAuth)
	template.URIs = []*url.URL{identity}
	text, err := a.sign(template, csr.PublicKey)
	return NodeCertificate{PEM: text, NotAfter: template.NotAfter.UTC().Truncate(time.Second)}, err
}

func (a *Authority) template(name string, now time.Time, life time.Duration, usage x509.ExtKeyUsage) *x509.Certificate {
	notAfter := now.Add(life)
	if notAfter.After(a.cert.NotAfter) {
		notAfter = a.cert.NotAfter
	}
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-backdate), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, BasicConstraintsValid: true,
	}
}

func (a *Authority) sign(template *x509.Certificate, public crypto.PublicKey) ([]byte, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %q: %w", template.Subject.CommonName, err)
	}
	return encodeCert(der), nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// serial returns 128 random bits, more than the 64 that are customary.
func serial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b) // never fails
	b[0] &= 0x7f
	return new(big.Int).SetBytes(b)
}
