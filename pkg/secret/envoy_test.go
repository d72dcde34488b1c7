package secret

import (
	"crypto/elliptic"
	"crypto/x509"
	"testing"
	"time"
)

// TestRefusesWhatEnvoyRejects has the rows that a real Envoy 1.40.0 NACKed. Staples, other resource types and other names
// inside of a resource cannot be expressed in this package.
func TestRefusesWhatEnvoyRejects(t *testing.T) { runRefusals(t, envoyRejects) }

var envoyRejects = []refusal{
	{
		name: "key mismatch, EC", rules: []Rule{RuleKeyMismatch},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = keyText(t, newKey(t, elliptic.P256()))
			return in
		},
	},
	{
		name: "key mismatch, RSA", rules: []Rule{RuleKeyMismatch},
		input: func(t *testing.T, w *world) input {
			leaf := w.middle.newLeaf(t, newRSAKey(t, 2048))
			return input{"a.example", chainText(leaf, w.middle.cert), keyText(t, newRSAKey(t, 2048))}
		},
	},
	{
		name: "key mismatch, EC certificate with RSA key", rules: []Rule{RuleKeyMismatch},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = keyText(t, newRSAKey(t, 2048))
			return in
		},
	},
	{
		name: "intermediate before leaf", rules: []Rule{RuleLeafNotFirst},
		input: func(t *testing.T, w *world) input { return w.of(t, w.middle.cert, w.leaf) },
	},
	{
		name: "garbage extra PEM block", rules: []Rule{RulePEMGarbage},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = append(in.chain, "-----BEGIN CERTIFICATE-----\n!!!! no base64 !!!!\n-----END CERTIFICATE-----\n"...)
			return in
		},
	},
	{
		name: "garbage extra PEM block that is base64", rules: []Rule{RuleCertificateMalformed},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = append(in.chain, encodePEM(labelCertificate, []byte("no certificate"))...)
			return in
		},
	},
	{
		name: "truncated extra PEM block", rules: []Rule{RulePEMTruncated},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			extra := chainText(w.root.cert)
			in.chain = append(in.chain, extra[:len(extra)/2]...)
			return in
		},
	},
	{
		name: "DER", rules: []Rule{RuleDER},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = w.leaf.Raw
			return in
		},
	},
	{
		name: "DER key", rules: []Rule{RuleDER},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			der, err := x509.MarshalPKCS8PrivateKey(w.key)
			if err != nil {
				t.Fatal(err)
			}
			in.key = der
			return in
		},
	},
	{
		name: "P-224", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			key := newKey(t, elliptic.P224())
			return input{"a.example", chainText(w.middle.newLeaf(t, key), w.middle.cert), keyText(t, key)}
		},
	},
	{
		name: "empty chain", rules: []Rule{RuleEmptyChain},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = []byte(" \r\n\t\n")
			return in
		},
	},
	{
		name: "empty key", rules: []Rule{RuleEmptyKey},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = nil
			return in
		},
	},
	{
		name: "both empty", rules: []Rule{RuleEmptyChain, RuleEmptyKey},
		input: func(*testing.T, *world) input { return input{name: "a.example"} },
	},
	{
		name: "RSA-1024", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			key := newRSAKey(t, 1024)
			return input{"a.example", chainText(w.middle.newLeaf(t, key), w.middle.cert), keyText(t, key)}
		},
	},
	{
		name: "must-staple certificate without staple", rules: []Rule{RuleMustStaple},
		input: func(t *testing.T, w *world) input { return w.leafWith(t, mustStapleExtension(5)) },
	},
}

// envoyRejectsKinds has the rows of other kinds than certificates that a real Envoy 1.40.0 NACKed. TestRefusesOtherKinds runs them.
var envoyRejectsKinds = []otherRefusal{
	{
		name: "junk CA bundle", rules: []Rule{RulePEMTrailing},
		parse: func(*testing.T, *world) (*Secret, error) { return ca([]byte("no certificates")) },
	},
	{
		name: "ticket key of 79 bytes", rules: []Rule{RuleTicketKeySize},
		parse: func(t *testing.T, _ *world) (*Secret, error) {
			return NewTicketKeys("tickets", [][]byte{newTicketKey(t), newTicketKey(t)[1:]})
		},
	},
}

// TestRefusesWhatOnlyClientsReject has the rows that a real Envoy 1.40.0 ACKed and served.
func TestRefusesWhatOnlyClientsReject(t *testing.T) { runRefusals(t, clientsReject) }

var clientsReject = []refusal{
	{
		name: "expired", rules: []Rule{RuleExpired}, now: begin.Add(life + time.Second),
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "not yet valid", rules: []Rule{RuleNotYetValid}, now: begin.Add(-time.Second),
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "wrong SAN", rules: []Rule{RuleSANMissing},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = []string{"b.example"} })
		},
	},
	{
		name: "no SAN", rules: []Rule{RuleNoSAN},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = nil })
		},
	},
	{
		name: "client-EKU only", rules: []Rule{RuleEKU},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })
		},
	},
	{
		name: "leaf without intermediate, with roots", rules: []Rule{RuleChainIncomplete},
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf) },
	},
	{
		name: "leaf without intermediate, roots unknown", rules: []Rule{RuleChainIncomplete},
		want:  func(_ *world, e *Expectation) { e.Roots = nil },
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf) },
	},
	{
		name: "leaf + unrelated intermediate", rules: []Rule{RuleUnrelatedCertificate},
		input: func(t *testing.T, w *world) input {
			return w.of(t, w.leaf, newRoot(t, "Other Root").newCA(t, "Other").cert)
		},
	},
	{
		name: "CA certificate as leaf", rules: []Rule{RuleCALeaf},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = true, true })
		},
	},
	{
		name: "trailing text", rules: []Rule{RulePEMTrailing},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = append(in.chain, "that was the chain\n"...)
			return in
		},
	},
}
