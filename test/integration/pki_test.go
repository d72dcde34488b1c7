package integration

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"
)

// ca is a certificate authority that issues what testenv.Authority never would.
type ca struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// pki is a root and an intermediate under it.
type pki struct {
	root, middle ca
	rsa          map[int][]*rsa.PrivateKey // by size: they take long to make
}

// pair is a certificate chain, leaf first, and a key, as they are stored: usually PEM.
type pair struct {
	chain, key []byte
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{root: newCA(t, "Root", ca{}), rsa: map[int][]*rsa.PrivateKey{}}
	p.middle = newCA(t, "Intermediate", p.root)
	return p
}

// newCA makes an authority under another one, or a root.
func newCA(t testing.TB, name string, issuer ca) ca {
	t.Helper()
	key := newECKey(t, elliptic.P256())
	template := &x509.Certificate{
		SerialNumber: newSerial(t), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	if issuer.cert == nil {
		issuer = ca{template, key}
	}
	return ca{sign(t, template, issuer, key.Public()), key}
}

// leaf issues a certificate for a name and a key; edits change its template.
func (c ca) leaf(t testing.TB, name string, key crypto.Signer, edits ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: newSerial(t), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(60 * 24 * time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, edit := range edits {
		edit(template)
	}
	return sign(t, template, c, key.Public())
}

// good is a pair that breaks no rule.
func (p *pki) good(t testing.TB, name string) pair { return p.with(t, name) }

// with is a pair whose leaf differs from that of a good one.
func (p *pki) with(t testing.TB, name string, edits ...func(*x509.Certificate)) pair {
	t.Helper()
	return p.keyed(t, name, newECKey(t, elliptic.P256()), edits...)
}

// keyed is a pair with a key of the caller.
func (p *pki) keyed(t testing.TB, name string, key crypto.Signer, edits ...func(*x509.Certificate)) pair {
	t.Helper()
	return pair{certText(p.middle.leaf(t, name, key, edits...), p.middle.cert), keyText(t, key)}
}

// client is a certificate for a client.
func (p *pki) client(t testing.TB) tls.Certificate {
	t.Helper()
	key := newECKey(t, elliptic.P256())
	leaf := p.middle.leaf(t, "client.example", key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
	return tls.Certificate{Certificate: [][]byte{leaf.Raw, p.middle.cert.Raw}, PrivateKey: key}
}

func sign(t testing.TB, template *x509.Certificate, issuer ca, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, public, issuer.key)
	must(t, err)
	cert, err := x509.ParseCertificate(der)
	must(t, err)
	return cert
}

func newECKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	must(t, err)
	return key
}

// rsaKey is the n-th RSA key of a size.
func (p *pki) rsaKey(t testing.TB, bits, n int) *rsa.PrivateKey {
	t.Helper()
	for len(p.rsa[bits]) <= n {
		key, err := rsa.GenerateKey(rand.Reader, bits)
		must(t, err)
		p.rsa[bits] = append(p.rsa[bits], key)
	}
	return p.rsa[bits][n]
}

func newSerial(t testing.TB) *big.Int {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	must(t, err)
	return serial.Add(serial, new(big.Int).Lsh(big.NewInt(1), 120)) // no zero byte in front
}

func certText(chain ...*x509.Certificate) []byte {
	var text []byte
	for _, cert := range chain {
		text = slices.Concat(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	return text
}

func keyDER(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	return der
}

func keyText(t testing.TB, key crypto.Signer) []byte {
	t.Helper()
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER(t, key)})
}
