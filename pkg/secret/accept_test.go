package secret

import (
	"bytes"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// acceptance is one row: an input that breaks no rule.
type acceptance struct {
	name    string
	input   func(t *testing.T, w *world) input
	want    func(w *world, e *Expectation)
	now     time.Time
	keyType string
}

// TestAccepts has what Envoy ACKs and clients accept.
func TestAccepts(t *testing.T) {
	w := newWorld(t)
	for _, row := range accepted {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			expectation := Expectation{DNSNames: []string{"a.example"}, Roots: w.roots(), KeyType: row.keyType}
			if row.want != nil {
				row.want(w, &expectation)
			}
			at := now
			if !row.now.IsZero() {
				at = row.now
			}
			if err := judge(row.input(t, w), at, expectation); err != nil {
				t.Fatalf("got %v, want no error", err)
			}
		})
	}
}

// ecLeaf is an input with a key on this curve.
func ecLeaf(curve elliptic.Curve) func(t *testing.T, w *world) input {
	return func(t *testing.T, w *world) input {
		key := newKey(t, curve)
		return input{"a.example", chainText(w.middle.newLeaf(t, key), w.middle.cert), keyText(t, key)}
	}
}

// rsaLeaf is an input with an RSA key in PKCS#1 of so many bits.
func rsaLeaf(bits int) func(t *testing.T, w *world) input {
	return func(t *testing.T, w *world) input {
		key := newRSAKey(t, bits)
		text := encodePEM(labelPKCS1, x509.MarshalPKCS1PrivateKey(key))
		return input{"a.example", chainText(w.middle.newLeaf(t, key), w.middle.cert), text}
	}
}

var accepted = []acceptance{
	{name: "P-256", keyType: "ecdsa-p256", input: ecLeaf(elliptic.P256())},
	{name: "P-384", keyType: "ecdsa-p384", input: ecLeaf(elliptic.P384())},
	{name: "P-521", keyType: "ecdsa-p521", input: ecLeaf(elliptic.P521())},
	{name: "RSA-2048", keyType: "rsa-2048", input: rsaLeaf(2048)},
	{name: "RSA-4096", keyType: "rsa-4096", input: rsaLeaf(4096)},
	{
		name: "Ed25519", keyType: "ed25519",
		input: func(t *testing.T, w *world) input {
			_, key, err := ed25519.GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			return input{"a.example", chainText(w.middle.newLeaf(t, key), w.middle.cert), keyText(t, key)}
		},
	},
	{
		name: "CRLF PEM",
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = bytes.ReplaceAll(in.chain, []byte("\n"), []byte("\r\n"))
			in.key = bytes.ReplaceAll(in.key, []byte("\n"), []byte("\r\n"))
			return in
		},
	},
	{
		name: "extra EC PARAMETERS block", keyType: "ecdsa-p256",
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = join(ecParameters, sec1Text(t, w.key))
			return in
		},
	},
	{
		name: "white space around blocks, no last line end",
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join([]byte("\n \t\n"), chainText(w.leaf), []byte("\n\n"), bytes.TrimSpace(chainText(w.middle.cert)))
			return in
		},
	},
	{
		name:  "root sent along",
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf, w.middle.cert, w.root.cert) },
	},
	{
		name: "root sent along that signed itself with SHA-1", want: func(_ *world, e *Expectation) { e.Roots = nil },
		input: func(t *testing.T, w *world) input {
			root := newRoot(t, "Old", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })
			middle := root.newCA(t, "Middle")
			return w.of(t, middle.newLeaf(t, w.key), middle.cert, root.cert)
		},
	},
	{
		name: "cross-signed intermediate",
		input: func(t *testing.T, w *world) input {
			other := newRoot(t, "New Root")
			cross := w.root.newCAWithKey(t, "New Root", other.key)
			middle := other.newCA(t, "New Middle")
			return w.of(t, middle.newLeaf(t, w.key), middle.cert, cross.cert)
		},
	},
	{
		name: "10 certificates",
		input: func(t *testing.T, w *world) input {
			chain, issuer := []*x509.Certificate{w.root.cert}, w.root
			for i := range MaxCertificates - 2 {
				issuer = issuer.newCA(t, fmt.Sprint("Intermediate ", i))
				chain = append([]*x509.Certificate{issuer.cert}, chain...)
			}
			return w.of(t, append([]*x509.Certificate{issuer.newLeaf(t, w.key)}, chain...)...)
		},
	},
	{
		name: "roots unknown", want: func(_ *world, e *Expectation) { e.Roots = nil },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name:  "leaf of a known root, alone",
		input: func(t *testing.T, w *world) input { return w.of(t, w.root.newLeaf(t, w.key)) },
	},
	{
		name: "lone leaf, allowed", want: func(_ *world, e *Expectation) { e.Roots, e.AllowLoneLeaf = nil, true },
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf) },
	},
	{
		name: "self-signed leaf, roots unknown", want: func(_ *world, e *Expectation) { e.Roots = nil },
		input: func(t *testing.T, w *world) input { return w.of(t, selfSigned(t, w.key)) },
	},
	{
		name: "any names", want: func(_ *world, e *Expectation) { e.DNSNames, e.AnyNames = nil, true },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "wanted public key", want: func(w *world, e *Expectation) { e.PublicKey = w.key.Public() },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "name in another case", want: func(_ *world, e *Expectation) { e.DNSNames = []string{"A.Example"} },
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = []string{"a.EXAMPLE"} })
		},
	},
	{
		name: "wildcard for one label", want: func(_ *world, e *Expectation) { e.DNSNames = []string{"b.a.example", "*.A.example"} },
		input: func(t *testing.T, w *world) input { return w.leafWith(t, wildcard) },
	},
	{
		name: "addresses",
		want: func(_ *world, e *Expectation) {
			e.DNSNames = []string{"2001:db8::1"}
			e.IPAddresses = []netip.Addr{netip.MustParseAddr("::ffff:192.0.2.1"), netip.MustParseAddr("2001:db8::1")}
		},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) {
				c.DNSNames = nil
				c.IPAddresses = append(c.IPAddresses, netip.MustParseAddr("192.0.2.1").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice())
			})
		},
	},
	{
		name: "no subject, other TLS feature, other extension, no key usage",
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, mustStapleExtension(16), extension(false, []byte{5, 0}, 1, 2, 3, 4), func(c *x509.Certificate) {
				c.Subject, c.KeyUsage = pkix.Name{}, 0
			})
		},
	},
	{
		name: "serial number zero",
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.SerialNumber = new(big.Int) })
		},
	},
	{
		name: "first second", now: begin,
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "a second more than a day left", now: begin.Add(life - 24*time.Hour - time.Second),
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "a second more than a tenth of a minute left", now: begin.Add(53 * time.Second),
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.NotAfter = begin.Add(time.Minute) })
		},
	},
	{
		name: "name at its longest, with spaces and other letters",
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.name = "bücher .example " + strings.Repeat("x", MaxNameSize-17)
			return in
		},
	},
}
