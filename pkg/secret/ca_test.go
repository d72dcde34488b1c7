package secret

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"slices"
	"testing"
	"time"
)

// The fixed clock of the tests: certificates are issued at begin, for 90 days, and looked at an hour later.
var (
	begin = time.Date(2026, 11, 24, 6, 0, 0, 0, time.UTC)
	now   = begin.Add(time.Hour)
)

const life = 90 * 24 * time.Hour

// edit changes the template of a certificate.
type edit func(*x509.Certificate)

// authority is a CA of the tests.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// world is a root, an intermediate and a good leaf under it.
type world struct {
	root, middle authority
	oldRoot      authority // the root in an expired certificate
	key          *ecdsa.PrivateKey
	leaf         *x509.Certificate
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{root: newRoot(t, "Root"), key: newKey(t, elliptic.P256())}
	w.oldRoot = newRootWithKey(t, "Root", w.root.key, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) })
	w.middle = w.root.newCA(t, "Intermediate")
	w.leaf = w.middle.newLeaf(t, w.key)
	return w
}

// good is the input that breaks no rule.
func (w *world) good(t testing.TB) input { return w.of(t, w.leaf, w.middle.cert) }

// of is an input with another chain and the good key.
func (w *world) of(t testing.TB, chain ...*x509.Certificate) input {
	return input{name: "a.example", chain: chainText(chain...), key: keyText(t, w.key)}
}

// leafWith is an input with a leaf that differs from the good one.
func (w *world) leafWith(t testing.TB, edits ...edit) input {
	return w.of(t, w.middle.newLeaf(t, w.key, edits...), w.middle.cert)
}

// roots is a pool of the world's root.
func (w *world) roots() *x509.CertPool { return poolOf(w.root.cert) }

// under is an input with the good key and a leaf under another intermediate.
func (w *world) under(t testing.TB, middle authority, edits ...edit) input {
	return w.of(t, middle.newLeaf(t, w.key, edits...), middle.cert)
}

func newKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newRSAKey(t testing.TB, bits int) *rsa.PrivateKey {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// caTemplate is the template of a CA certificate that outlives the leafs.
func caTemplate(t testing.TB, name string, edits ...edit) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          newSerial(t),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             begin.AddDate(-1, 0, 0),
		NotAfter:              begin.AddDate(5, 0, 0),
		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	for _, e := range edits {
		e(template)
	}
	return template
}

func newSerial(t testing.TB) *big.Int {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return serial.Add(serial, big.NewInt(1))
}

func newRoot(t testing.TB, name string, edits ...edit) authority {
	t.Helper()
	return newRootWithKey(t, name, newKey(t, elliptic.P256()), edits...)
}

func newRootWithKey(t testing.TB, name string, key crypto.Signer, edits ...edit) authority {
	t.Helper()
	template := caTemplate(t, name, edits...)
	return authority{cert: sign(t, template, template, key.Public(), key), key: key}
}

// newCA issues an intermediate.
func (a authority) newCA(t testing.TB, name string, edits ...edit) authority {
	t.Helper()
	return a.newCAWithKey(t, name, newKey(t, elliptic.P256()), edits...)
}

func (a authority) newCAWithKey(t testing.TB, name string, key crypto.Signer, edits ...edit) authority {
	t.Helper()
	return authority{cert: sign(t, caTemplate(t, name, edits...), a.cert, key.Public(), a.key), key: key}
}

// leafTemplate is the template of a server certificate for a.example.
func leafTemplate(t testing.TB, edits ...edit) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: newSerial(t),
		Subject:      pkix.Name{CommonName: "a.example"},
		NotBefore:    begin,
		NotAfter:     begin.Add(life),
		DNSNames:     []string{"a.example"},
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, e := range edits {
		e(template)
	}
	return template
}

// newLeaf issues a server certificate.
func (a authority) newLeaf(t testing.TB, key crypto.Signer, edits ...edit) *x509.Certificate {
	t.Helper()
	return sign(t, leafTemplate(t, edits...), a.cert, key.Public(), a.key)
}

// selfSigned makes a leaf that signs itself.
func selfSigned(t testing.TB, key crypto.Signer, edits ...edit) *x509.Certificate {
	t.Helper()
	template := leafTemplate(t, edits...)
	return sign(t, template, template, key.Public(), key)
}

func sign(t testing.TB, template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	return reparse(t, der)
}

func reparse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

// replaceDER swaps bytes of equal length in a certificate; the signature is wrong afterwards.
func replaceDER(t testing.TB, c *x509.Certificate, before, after []byte) *x509.Certificate {
	t.Helper()
	if len(before) != len(after) || !bytes.Contains(c.Raw, before) {
		t.Fatalf("got no %x to replace by %x", before, after)
	}
	return reparse(t, bytes.ReplaceAll(c.Raw, before, after))
}

// extension adds an extension to a template.
func extension(critical bool, value []byte, oid ...int) edit {
	return func(c *x509.Certificate) {
		c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: oid, Critical: critical, Value: value})
	}
}

// mustStapleExtension is the TLS feature extension with these features (RFC 7633).
func mustStapleExtension(features ...byte) edit {
	value := []byte{0x30, byte(3 * len(features))}
	for _, feature := range features {
		value = append(value, 2, 1, feature)
	}
	return extension(false, value, 1, 3, 6, 1, 5, 5, 7, 1, 24)
}

func chainText(chain ...*x509.Certificate) []byte {
	var text []byte
	for _, c := range chain {
		text = append(text, encodePEM(labelCertificate, c.Raw)...)
	}
	return text
}

func keyText(t testing.TB, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM(labelPKCS8, der)
}

func sec1Text(t testing.TB, key *ecdsa.PrivateKey) []byte {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encodePEM(labelSEC1, der)
}

func poolOf(certificates ...*x509.Certificate) *x509.CertPool {
	pool := x509.NewCertPool()
	for _, c := range certificates {
		pool.AddCert(c)
	}
	return pool
}

// join concatenates texts.
func join(texts ...[]byte) []byte { return slices.Concat(texts...) }

// wideModulus is an odd number of so many bits that stands for an RSA modulus nobody has to factor.
func wideModulus(bits int) *big.Int {
	seed := sha256.Sum256([]byte("modulus"))
	n := new(big.Int).SetBytes(bytes.Repeat(seed[:], bits/256+1))
	n.SetBit(n, bits-1, 1)
	n.SetBit(n, 0, 1)
	return n.And(n, new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), uint(bits)), big.NewInt(1)))
}
