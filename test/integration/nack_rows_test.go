package integration

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"golang.org/x/crypto/ocsp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/pkg/secret"
)

// verdict is what a real Envoy does with a row that is pushed over a good certificate.
type verdict string

const (
	rejects verdict = "NACKs, and serves the old one"
	drops   verdict = "ACKs, and serves the old one"
	takes   verdict = "ACKs, and serves the bad one"
	agrees  verdict = "ACKs, and serves the new one, which is good"
)

// nackRow is a row of the table of what Envoy rejects. It is the one place of the table: the test against a real Envoy and the test that
// nothing of it can pass validation both read it, and a third one compares it with the rows of pkg/secret, name by name.
type nackRow struct {
	name    string
	verdict verdict
	// message is a part of what Envoy says when it rejects.
	message string
	// pair makes a chain and a key for a host name. It is nil where the row has other content than a pair, see raw.
	pair func(t *testing.T, p *pki, host string) pair
	// rules are those that the content breaks in pkg/secret: all of them.
	rules []secret.Rule
	// binary says that the pair cannot stand in a stored record, which is text.
	binary bool
	// raw makes a resource that no stored record of a certificate can express. Where parse is nil, pkg/secret has no parameter for such
	// content either, so that nothing needs to refuse it: the row shows that Envoy's NACK does no harm should it ever be sent.
	raw func(t *testing.T, p *pki, host string) *anypb.Any
	// parse gives the content of raw to pkg/secret, where it breaks the rules.
	parse func(name string) (*secret.Secret, error)
	// unseenInSotW says that Envoy drops the resource in state of the world, ACKs, and serves the old one.
	unseenInSotW bool
	// kind is set where the row's secret is not a certificate.
	kind *otherKind
}

// host is the name of the row's secret, and the SNI of its filter chain.
func (r nackRow) host() string {
	words := strings.FieldsFunc(strings.ToLower(r.name), func(c rune) bool { return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyz0123456789", c) })
	return strings.Join(words, "-") + ".example"
}

// nackRows is the whole table.
func nackRows() []nackRow {
	var rows []nackRow
	for _, part := range []struct {
		verdict verdict
		rows    []nackRow
	}{{rejects, rejectedPairs}, {rejects, rejectedOthers}, {rejects, otherKinds}, {takes, takenPairs}, {agrees, agreedPairs}} {
		for _, row := range part.rows {
			row.verdict = part.verdict
			rows = append(rows, row)
		}
	}
	return rows
}

var rejectedPairs = []nackRow{
	{
		name: "key mismatch, EC", message: "KEY_VALUES_MISMATCH", rules: []secret.Rule{secret.RuleKeyMismatch},
		pair: func(t *testing.T, p *pki, host string) pair {
			return pair{p.good(t, host).chain, keyText(t, newECKey(t, elliptic.P256()))}
		},
	},
	{
		name: "key mismatch, RSA", message: "KEY_VALUES_MISMATCH", rules: []secret.Rule{secret.RuleKeyMismatch},
		pair: func(t *testing.T, p *pki, host string) pair {
			return pair{p.keyed(t, host, p.rsaKey(t, 2048, 0)).chain, keyText(t, p.rsaKey(t, 2048, 1))}
		},
	},
	{
		name: "key mismatch, EC certificate with RSA key", message: "KEY_TYPE_MISMATCH", rules: []secret.Rule{secret.RuleKeyMismatch},
		pair: func(t *testing.T, p *pki, host string) pair {
			return pair{p.good(t, host).chain, keyText(t, p.rsaKey(t, 2048, 0))}
		},
	},
	{
		name: "intermediate before leaf", message: "KEY_VALUES_MISMATCH", rules: []secret.Rule{secret.RuleLeafNotFirst},
		pair: func(t *testing.T, p *pki, host string) pair {
			key := newECKey(t, elliptic.P256())
			return pair{certText(p.middle.cert, p.middle.leaf(t, host, key)), keyText(t, key)}
		},
	},
	{
		name: "garbage extra PEM block", message: chainMessage, rules: []secret.Rule{secret.RulePEMGarbage},
		pair: extra([]byte("-----BEGIN CERTIFICATE-----\n!!!! no base64 !!!!\n-----END CERTIFICATE-----\n")),
	},
	{
		name: "garbage extra PEM block that is base64", message: chainMessage, rules: []secret.Rule{secret.RuleCertificateMalformed},
		pair: extra(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")})),
	},
	{
		name: "truncated extra PEM block", message: chainMessage, rules: []secret.Rule{secret.RulePEMTruncated},
		pair: func(t *testing.T, p *pki, host string) pair {
			good, root := p.good(t, host), certText(p.root.cert)
			return pair{slices.Concat(good.chain, root[:len(root)/2]), good.key}
		},
	},
	{
		name: "DER", message: chainMessage, rules: []secret.Rule{secret.RuleDER}, binary: true,
		pair: func(t *testing.T, p *pki, host string) pair {
			key := newECKey(t, elliptic.P256())
			return pair{p.middle.leaf(t, host, key).Raw, keyText(t, key)}
		},
	},
	{
		name: "DER key", message: "Failed to load private key from <inline>", rules: []secret.Rule{secret.RuleDER}, binary: true,
		pair: func(t *testing.T, p *pki, host string) pair {
			key := newECKey(t, elliptic.P256())
			return pair{p.keyed(t, host, key).chain, keyDER(t, key)}
		},
	},
	{
		name: "P-224", message: chainMessage, rules: []secret.Rule{secret.RuleKeyType},
		pair: func(t *testing.T, p *pki, host string) pair { return p.keyed(t, host, newECKey(t, elliptic.P224())) },
	},
	{
		name: "empty chain", message: "certificate chain not set", rules: []secret.Rule{secret.RuleEmptyChain},
		pair: func(t *testing.T, p *pki, host string) pair { return pair{nil, p.good(t, host).key} },
	},
	{
		name: "empty key", message: "Failed to load incomplete private key from path: ", rules: []secret.Rule{secret.RuleEmptyKey},
		pair: func(t *testing.T, p *pki, host string) pair { return pair{p.good(t, host).chain, nil} },
	},
	{
		name: "both empty", message: "Failed to load incomplete private key from path: ", rules: []secret.Rule{secret.RuleEmptyChain, secret.RuleEmptyKey},
		pair: func(*testing.T, *pki, string) pair { return pair{} },
	},
	{
		name: "RSA-1024", message: "only RSA certificates with 2048-bit or larger keys are supported", rules: []secret.Rule{secret.RuleKeyType},
		pair: func(t *testing.T, p *pki, host string) pair { return p.keyed(t, host, p.rsaKey(t, 1024, 0)) },
	},
	{
		name: "must-staple certificate without staple", message: "OCSP response is required for must-staple certificate", rules: []secret.Rule{secret.RuleMustStaple},
		pair: func(t *testing.T, p *pki, host string) pair {
			return p.with(t, host, func(c *x509.Certificate) { // RFC 7633, Section 6: status_request (5)
				c.ExtraExtensions = []pkix.Extension{{Id: []int{1, 3, 6, 1, 5, 5, 7, 1, 24}, Value: []byte{0x30, 3, 2, 1, 5}}}
			})
		},
	},
}

const chainMessage = "Failed to load certificate chain from <inline>"

// extra is a good pair with something behind its chain.
func extra(text []byte) func(*testing.T, *pki, string) pair {
	return func(t *testing.T, p *pki, host string) pair {
		good := p.good(t, host)
		return pair{slices.Concat(good.chain, text), good.key}
	}
}

// rejectedOthers have content that no stored record of a certificate can express.
var rejectedOthers = []nackRow{
	{
		name: "garbage staple", message: "OCSP response",
		raw: func(t *testing.T, p *pki, host string) *anypb.Any {
			return stapled(t, host, p.good(t, host), []byte("no staple"))
		},
	},
	{
		name: "staple of another certificate", message: "OCSP response does not match its TLS certificate",
		raw: func(t *testing.T, p *pki, host string) *anypb.Any {
			other := p.middle.leaf(t, host, newECKey(t, elliptic.P256()))
			staple, err := ocsp.CreateResponse(p.middle.cert, p.middle.cert, ocsp.Response{
				Status: ocsp.Good, SerialNumber: other.SerialNumber, ThisUpdate: time.Now().Add(-time.Hour), NextUpdate: time.Now().Add(time.Hour),
			}, p.middle.key)
			must(t, err)
			return stapled(t, host, p.good(t, host), staple)
		},
	},
	{
		name: "resource with another name inside", unseenInSotW: true, // delta has the right name around it
		message: "Unexpected SDS secret (expecting resource-with-another-name-inside.example): other.example",
		raw: func(t *testing.T, p *pki, host string) *anypb.Any {
			return pairResource(t, "other.example", p.good(t, host))
		},
	},
	{
		name: "PKCS#12", message: "Certificate configuration can't have both pkcs12 and certificate_chain",
		raw: func(t *testing.T, _ *pki, host string) *anypb.Any {
			data, err := os.ReadFile("testdata/golden.p12") // openssl pkcs12 -export, no password
			must(t, err)
			return packed(t, &tlsv3.Secret{Name: host, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
				Pkcs12: inline(data), Password: inline(nil),
			}}})
		},
	},
	{
		name: "no type", message: "Failed to load incomplete private key from path: ",
		raw: func(t *testing.T, _ *pki, host string) *anypb.Any { return packed(t, &tlsv3.Secret{Name: host}) },
	},
	{
		// A generic secret is good as such: a name has one kind, see internal/config.
		name: "generic secret instead", message: "Failed to load incomplete private key from path: ",
		raw: func(t *testing.T, _ *pki, host string) *anypb.Any {
			return packed(t, &tlsv3.Secret{Name: host, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{Secret: inline([]byte("token"))}}})
		},
	},
	{
		name: "resource of another type", message: "envoy.config.cluster.v3.Cluster",
		raw: func(t *testing.T, _ *pki, host string) *anypb.Any { return packed(t, &clusterv3.Cluster{Name: host}) },
	},
}

var takenPairs = []nackRow{
	{name: "expired", rules: []secret.Rule{secret.RuleExpired}, pair: edited(func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-24*time.Hour), time.Now().Add(-time.Hour)
	})},
	{name: "not yet valid", rules: []secret.Rule{secret.RuleNotYetValid}, pair: edited(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) })},
	{name: "wrong SAN", rules: []secret.Rule{secret.RuleSANMissing}, pair: edited(func(c *x509.Certificate) { c.DNSNames = []string{"b.example"} })},
	{name: "no SAN", rules: []secret.Rule{secret.RuleNoSAN}, pair: edited(func(c *x509.Certificate) { c.DNSNames = nil })},
	{name: "client-EKU only", rules: []secret.Rule{secret.RuleEKU}, pair: edited(func(c *x509.Certificate) {
		c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	})},
	{name: "leaf without intermediate, with roots", rules: []secret.Rule{secret.RuleChainIncomplete}, pair: alone},
	{name: "leaf without intermediate, roots unknown", rules: []secret.Rule{secret.RuleChainIncomplete}, pair: alone},
	{
		name: "leaf + unrelated intermediate", rules: []secret.Rule{secret.RuleUnrelatedCertificate},
		pair: func(t *testing.T, p *pki, host string) pair {
			key := newECKey(t, elliptic.P256())
			other := newCA(t, "Other", newCA(t, "Other Root", ca{}))
			return pair{certText(p.middle.leaf(t, host, key), other.cert), keyText(t, key)}
		},
	},
	{name: "CA certificate as leaf", rules: []secret.Rule{secret.RuleCALeaf}, pair: edited(func(c *x509.Certificate) { c.IsCA = true })},
	{name: "trailing text", rules: []secret.Rule{secret.RulePEMTrailing}, pair: extra([]byte("that was the chain\n"))},
}

// edited is a pair whose leaf differs from a good one.
func edited(edit func(*x509.Certificate)) func(*testing.T, *pki, string) pair {
	return func(t *testing.T, p *pki, host string) pair { return p.with(t, host, edit) }
}

// alone is a leaf without its intermediate.
func alone(t *testing.T, p *pki, host string) pair {
	key := newECKey(t, elliptic.P256())
	return pair{certText(p.middle.leaf(t, host, key)), keyText(t, key)}
}

var agreedPairs = []nackRow{
	{name: "P-256", pair: withKey(func(t *testing.T, _ *pki) crypto.Signer { return newECKey(t, elliptic.P256()) })},
	{name: "P-384", pair: withKey(func(t *testing.T, _ *pki) crypto.Signer { return newECKey(t, elliptic.P384()) })},
	{name: "P-521", pair: withKey(func(t *testing.T, _ *pki) crypto.Signer { return newECKey(t, elliptic.P521()) })},
	{name: "RSA-2048", pair: withKey(func(t *testing.T, p *pki) crypto.Signer { return p.rsaKey(t, 2048, 0) })},
	{name: "RSA-4096", pair: withKey(func(t *testing.T, p *pki) crypto.Signer { return p.rsaKey(t, 4096, 0) })},
	{name: "Ed25519", pair: withKey(func(t *testing.T, _ *pki) crypto.Signer {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		must(t, err)
		return key
	})},
	{
		name: "CRLF PEM",
		pair: func(t *testing.T, p *pki, host string) pair {
			good := p.good(t, host)
			return pair{bytes.ReplaceAll(good.chain, []byte("\n"), []byte("\r\n")), bytes.ReplaceAll(good.key, []byte("\n"), []byte("\r\n"))}
		},
	},
	{
		name: "extra EC PARAMETERS block",
		pair: func(t *testing.T, p *pki, host string) pair {
			key := newECKey(t, elliptic.P256())
			der, err := x509.MarshalECPrivateKey(key)
			must(t, err)
			curve := []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7} // the identifier of P-256, as openssl writes it
			return pair{p.keyed(t, host, key).chain, slices.Concat(
				pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: curve}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}),
			)}
		},
	},
}

func withKey(key func(*testing.T, *pki) crypto.Signer) func(*testing.T, *pki, string) pair {
	return func(t *testing.T, p *pki, host string) pair { return p.keyed(t, host, key(t, p)) }
}

func inline(data []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: data}}
}

func packed(t *testing.T, m proto.Message) *anypb.Any {
	t.Helper()
	a, err := anypb.New(m)
	must(t, err)
	return a
}

// message is a pair as Envoy wants it.
func (p pair) message(name string) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(p.chain), PrivateKey: inline(p.key),
	}}}
}

// pairResource is the resource of a pair.
func pairResource(t *testing.T, name string, p pair) *anypb.Any {
	t.Helper()
	return packed(t, p.message(name))
}

// stapled is the resource of a pair with an OCSP staple.
func stapled(t *testing.T, name string, p pair, staple []byte) *anypb.Any {
	t.Helper()
	m := p.message(name)
	m.GetTlsCertificate().OcspStaple = inline(staple)
	return packed(t, m)
}
