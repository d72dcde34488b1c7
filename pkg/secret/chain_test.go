package secret

import (
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"testing"
)

// TestRefusesBadChain has the other rules of what stands above the leaf.
func TestRefusesBadChain(t *testing.T) { runRefusals(t, chainRules) }

var chainRules = []refusal{
	{
		name: "root before intermediate", rules: []Rule{RuleChainOrder},
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf, w.root.cert, w.middle.cert) },
	},
	{
		name: "leaf in the middle", rules: []Rule{RuleLeafNotFirst},
		input: func(t *testing.T, w *world) input { return w.of(t, w.middle.cert, w.leaf, w.root.cert) },
	},
	{
		name: "all backwards", rules: []Rule{RuleLeafNotFirst, RuleChainOrder},
		input: func(t *testing.T, w *world) input { return w.of(t, w.root.cert, w.middle.cert, w.leaf) },
	},
	{
		name: "intermediate skipped", rules: []Rule{RuleUnrelatedCertificate},
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf, w.root.cert) },
	},
	{
		name: "unrelated certificate at the end", rules: []Rule{RuleUnrelatedCertificate},
		input: func(t *testing.T, w *world) input {
			return w.of(t, w.leaf, w.middle.cert, newRoot(t, "Other").cert)
		},
	},
	{
		name: "certificate behind the root", rules: []Rule{RuleUnrelatedCertificate},
		input: func(t *testing.T, w *world) input {
			return w.of(t, w.leaf, w.middle.cert, w.root.cert, newRoot(t, "Other").cert)
		},
	},
	{
		name: "certificate behind a self-signed leaf", rules: []Rule{RuleUnrelatedCertificate},
		input: func(t *testing.T, w *world) input { return w.of(t, selfSigned(t, w.key), w.middle.cert) },
	},
	{
		name: "another leaf", rules: []Rule{RuleUnrelatedCertificate},
		input: func(t *testing.T, w *world) input {
			return w.of(t, w.leaf, w.middle.cert, w.middle.newLeaf(t, newKey(t, elliptic.P256())))
		},
	},
	{
		name: "intermediate twice", rules: []Rule{RuleDuplicateCertificate},
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf, w.middle.cert, w.middle.cert) },
	},
	{
		name: "leaf twice", rules: []Rule{RuleDuplicateCertificate},
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf, w.leaf, w.middle.cert) },
	},
	{
		name: "intermediate of the same name with another key", rules: []Rule{RuleChainSignature},
		input: func(t *testing.T, w *world) input { return w.of(t, w.leaf, w.root.newCA(t, "Intermediate").cert) },
	},
	{
		name: "key identifiers differ", rules: []Rule{RuleChainKeyID},
		input: func(t *testing.T, w *world) input {
			parent := *w.middle.cert
			parent.SubjectKeyId = []byte{1, 2, 3}
			return w.of(t, authority{&parent, w.middle.key}.newLeaf(t, w.key), w.middle.cert)
		},
	},
	{
		name: "issuer that is no CA", rules: []Rule{RuleIssuerNotCA},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "No CA", func(c *x509.Certificate) { c.IsCA = false }))
		},
	},
	{
		name: "issuer without basic constraints", rules: []Rule{RuleIssuerNotCA},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "No CA", func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = false, false }))
		},
	},
	{
		name: "issuer that may not sign", rules: []Rule{RuleIssuerNotCA},
		input: func(t *testing.T, w *world) input {
			// Go would not sign with it: the template that signs says that it may.
			middle := w.root.newCA(t, "No Signer", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign })
			parent := *middle.cert
			parent.KeyUsage = x509.KeyUsageCertSign
			return w.of(t, authority{&parent, middle.key}.newLeaf(t, w.key), middle.cert)
		},
	},
	{
		name: "intermediate signed with SHA-1", rules: []Rule{RuleWeakSignature},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Weak", func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }))
		},
	},
	{
		name: "intermediate with RSA-1024", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCAWithKey(t, "Small", newRSAKey(t, 1024)))
		},
	},
	{
		name: "intermediate with an RSA key larger than clients take", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			wide := &rsa.PublicKey{N: wideModulus(100_000), E: 65537}
			middle := sign(t, caTemplate(t, "Wide"), w.root.cert, wide, w.root.key)
			parent := *middle
			parent.PublicKey = nil // Go would see that the signing key is another
			return w.of(t, authority{&parent, w.root.key}.newLeaf(t, w.key), middle)
		},
	},
	{
		name: "intermediate with P-224", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCAWithKey(t, "Small", newKey(t, elliptic.P224())))
		},
	},
	{
		name: "intermediate with an unknown critical extension", rules: []Rule{RuleCriticalExtension},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Critical", extension(true, []byte{5, 0}, 1, 2, 3, 4)))
		},
	},
	{
		name: "intermediate that ends before it begins", rules: []Rule{RuleValidity},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Never", func(c *x509.Certificate) { c.NotAfter = c.NotBefore }))
		},
	},
}
