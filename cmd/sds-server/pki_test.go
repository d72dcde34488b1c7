package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// pki is a root, an intermediate, and what they sign.
type pki struct {
	intermediate *x509.Certificate
	key          crypto.Signer
	chainPEM     []byte // the intermediate
	next         int64
}

func newPKI() (*pki, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	authority := func(name string, serial int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
			NotAfter: time.Now().Add(365 * 24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		}
	}
	root, err := signed(authority("test root", 1), nil, rootKey.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	p := &pki{key: key, next: 100}
	p.intermediate, err = signed(authority("test intermediate", 2), root, key.Public(), rootKey)
	if err != nil {
		return nil, err
	}
	p.chainPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.intermediate.Raw})
	return p, nil
}

func signed(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// leaf signs a certificate that ends at notAfter; the chain is the leaf and the intermediate.
func (p *pki) leaf(notAfter time.Time, names ...string) (leafPEM, chainPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	return p.leafOf(key, notAfter, names...)
}

// leafOf is leaf with a key that is there already.
func (p *pki) leafOf(key crypto.Signer, notAfter time.Time, names ...string) (leafPEM, chainPEM, keyPEM []byte, err error) {
	p.next++
	cert, err := signed(&x509.Certificate{
		SerialNumber: big.NewInt(p.next), DNSNames: names, NotBefore: notAfter.Add(-90 * 24 * time.Hour), NotAfter: notAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, p.intermediate, key.Public(), p.key)
	if err != nil {
		return nil, nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, nil, err
	}
	leafPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
	keyPEM = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return leafPEM, append(append([]byte{}, leafPEM...), p.chainPEM...), keyPEM, nil
}

// writePairs writes good pairs (a1 to a4 and rsa for www.example.com, b1 for other.example.com) and bad ones, each NAME.crt and NAME.key, and what they
// verify to as roots.pem.
func writePairs(parent string) (string, error) {
	dir := filepath.Join(parent, "pairs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	p, err := newPKI()
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "roots.pem"), p.chainPEM, 0o644); err != nil {
		return "", err
	}
	write := func(name string, chain, key []byte) error {
		if err := os.WriteFile(filepath.Join(dir, name+".crt"), chain, 0o644); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name+".key"), key, 0o600)
	}
	end := time.Now().Add(60 * 24 * time.Hour)
	var otherKey []byte
	for _, good := range []string{"a1", "a2", "a3", "a4", "b1"} {
		name := map[byte]string{'a': "www.example.com", 'b': "other.example.com"}[good[0]]
		_, chain, key, err := p.leaf(end, name)
		if err != nil {
			return "", err
		}
		if err := write(good, chain, key); err != nil {
			return "", err
		}
		otherKey = key
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return "", err
	}
	_, rsaChain, rsaPEM, err := p.leafOf(rsaKey, end, "www.example.com")
	if err != nil {
		return "", err
	}
	if err := write("rsa", rsaChain, rsaPEM); err != nil {
		return "", err
	}
	leaf, chain, key, err := p.leaf(end, "www.example.com")
	if err != nil {
		return "", err
	}
	_, expired, expiredKey, err := p.leaf(time.Now().Add(-time.Hour), "www.example.com")
	if err != nil {
		return "", err
	}
	bad := []struct {
		name       string
		chain, key []byte
	}{
		{"wrong-key", chain, otherKey},
		{"leaf-only", leaf, key},
		{"reordered", append(append([]byte{}, p.chainPEM...), leaf...), key},
		{"expired", expired, expiredKey},
		{"garbage", []byte("this is no certificate\n"), key},
		{"garbage-key", chain, []byte("this is no key\n")},
		{"empty", nil, nil},
		{"truncated", chain[:len(chain)-40], key},
		{"combined", append(append([]byte{}, chain...), key...), key},
		{"huge", append(append([]byte{}, chain...), make([]byte, 1<<20)...), key},
	}
	for _, b := range bad {
		if err := write(b.name, b.chain, b.key); err != nil {
			return "", err
		}
	}
	return dir, nil
}
