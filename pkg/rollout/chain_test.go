package rollout

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
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// signer is a CA certificate with its key.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// newSigner makes a CA certificate; without a parent it is a root.
func newSigner(t *testing.T, name string, key crypto.Signer, parent *signer) *signer {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent = &signer{template, key}
	}
	return &signer{sign(t, template, key, parent), key}
}

func sign(t *testing.T, template *x509.Certificate, key crypto.Signer, parent *signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// issued describes a new certificate under the first of the CAs, with the others behind it; the last one is issued by the root.
func issued(t *testing.T, cas ...*signer) cache.Meta {
	t.Helper()
	leaf := sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}, ecKey(t), cas[0])
	chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})
	for _, ca := range cas {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	}
	return cache.Meta{Kind: secret.KindTLSCertificate, Source: cache.SourceACME, Issuer: "le", Profile: new("tlsserver"), KeyType: "ecdsa-p256", ChainPEM: string(chain)}
}

func TestChainChangeIsWhatClientsMayStumbleOver(t *testing.T) {
	root := newSigner(t, "root", ecKey(t), nil)
	first, second := newSigner(t, "E7", ecKey(t), root), newSigner(t, "E8", ecKey(t), root)
	before := issued(t, first)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	with := func(change func(*cache.Meta)) cache.Meta {
		m := issued(t, first)
		change(&m)
		return m
	}
	for _, c := range []struct {
		name string
		to   cache.Meta
		want bool
	}{
		{"renewal", issued(t, first), false},
		{"another intermediate under the same root", issued(t, second), false},
		{"another root", issued(t, newSigner(t, "E7", ecKey(t), newSigner(t, "root X2", ecKey(t), nil))), true},
		{"another root key under the same name", issued(t, newSigner(t, "E7", ecKey(t), newSigner(t, "root", ecKey(t), nil))), true},
		{"another number of CA certificates", issued(t, newSigner(t, "E9", ecKey(t), first), first), true},
		{"another signature algorithm", issued(t, newSigner(t, "R3", rsaKey, root)), true},
		{"another key type", with(func(m *cache.Meta) { m.KeyType = "rsa-2048" }), true},
		{"another issuer", with(func(m *cache.Meta) { m.Issuer = "gts" }), true},
		{"another profile", with(func(m *cache.Meta) { m.Profile = new("shortlived") }), true},
		{"the issuer's choice of a profile", with(func(m *cache.Meta) { m.Profile = new("") }), true},
		{"a profile that is not known", with(func(m *cache.Meta) { m.Profile = nil }), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, way := range [][2]*cache.Meta{{&before, &c.to}, {&c.to, &before}} {
				if got := chainChanges(way[0], way[1]); got != c.want {
					t.Errorf("got %v, want %v", got, c.want)
				}
			}
		})
	}
}

// What was stored before profiles were noted has none: that is no difference.
func TestAnotherProfileIsAChainChange(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	r.node("p1", "production", "www")
	accept := func(profile *string) *Rollout {
		t.Helper()
		a, err := r.c.Accept(r.ctx(), Proposal{
			Secret: newSecret(t, "www", 1<<50), Source: cache.SourceACME, Issuer: "le", Profile: profile, Reason: "issued by le",
		})
		if err != nil {
			t.Fatal(err)
		}
		r.settle()
		return r.get(a.Rollout)
	}
	accept(nil)
	for _, one := range []struct {
		name    string
		profile *string
		want    Kind
	}{
		{"known after unknown", new("tlsserver"), Renewal},
		{"the same", new("tlsserver"), Renewal},
		{"another one", new("shortlived"), Chain},
		{"the issuer's choice", new(""), Chain},
		{"unknown", nil, Renewal},
		{"known after unknown again", new("shortlived"), Renewal},
	} {
		got := accept(one.profile)
		if got.Change[0].Kind != one.want || got.State != Done {
			t.Errorf("%s: got %s that is %s, want %s", one.name, got.Change[0].Kind, got.State, one.want)
		}
		r.restart()
	}
}
