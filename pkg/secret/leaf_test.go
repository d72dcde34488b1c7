package secret

import (
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
)

// TestRefusesBadLeaf has the other rules of the leaf.
func TestRefusesBadLeaf(t *testing.T) { runRefusals(t, leafRules) }

var leafRules = []refusal{
	{
		name: "self-signed CA as leaf", rules: []Rule{RuleCALeaf},
		input: func(t *testing.T, w *world) input {
			return w.of(t, selfSigned(t, w.key, func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = true, true }))
		},
	},
	{
		name: "only URI and mail SANs", rules: []Rule{RuleNoSAN},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames, c.EmailAddresses = nil, []string{"a@a.example"} })
		},
	},
	{
		name: "SAN with a partial wildcard", rules: []Rule{RuleSANMalformed},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "w*.a.example") })
		},
	},
	{
		name: "SAN with a wildcard inside", rules: []Rule{RuleSANMalformed},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "a.*.example") })
		},
	},
	{
		name: "SAN that is a bare wildcard", rules: []Rule{RuleSANMalformed},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "*") })
		},
	},
	{
		name: "SAN with a trailing dot", rules: []Rule{RuleSANMalformed},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "b.example.") })
		},
	},
	{
		name: "SAN with a zero byte", rules: []Rule{RuleSANMalformed},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "a.example\x00.b.example") })
		},
	},
	{
		name: "SAN with a label of 64 bytes", rules: []Rule{RuleSANMalformed},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, strings.Repeat("a", 64)+".example") })
		},
	},
	{
		name: "no EKU", rules: []Rule{RuleEKU},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.ExtKeyUsage = nil })
		},
	},
	{
		name: "any EKU only", rules: []Rule{RuleEKU},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} })
		},
	},
	{
		name: "key usage without digitalSignature", rules: []Rule{RuleKeyUsage},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment })
		},
	},
	{
		name: "empty key usage", rules: []Rule{RuleKeyUsage},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.KeyUsage = 0 }, extension(true, []byte{3, 1, 0}, 2, 5, 29, 15))
		},
	},
	{
		name: "must-staple among other features", rules: []Rule{RuleMustStaple},
		input: func(t *testing.T, w *world) input { return w.leafWith(t, mustStapleExtension(16, 5)) },
	},
	{
		name: "must-staple by status_request_v2", rules: []Rule{RuleMustStaple},
		input: func(t *testing.T, w *world) input { return w.leafWith(t, mustStapleExtension(17)) },
	},
	{
		name: "critical must-staple", rules: []Rule{RuleMustStaple},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, extension(true, []byte{0x30, 3, 2, 1, 5}, 1, 3, 6, 1, 5, 5, 7, 1, 24))
		},
	},
	{
		name: "unreadable TLS feature extension", rules: []Rule{RuleMustStaple},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, extension(false, []byte{4, 1, 5}, 1, 3, 6, 1, 5, 5, 7, 1, 24))
		},
	},
	{
		name: "unknown critical extension", rules: []Rule{RuleCriticalExtension},
		input: func(t *testing.T, w *world) input { return w.leafWith(t, extension(true, []byte{5, 0}, 1, 2, 3, 4)) },
	},
	{
		name: "precertificate", rules: []Rule{RuleCriticalExtension},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, extension(true, []byte{5, 0}, 1, 3, 6, 1, 4, 1, 11129, 2, 4, 3))
		},
	},
	{
		name: "leaf signed with SHA-1", rules: []Rule{RuleWeakSignature},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 })
		},
	},
	{
		name: "leaf signed with MD5", rules: []Rule{RuleWeakSignature},
		input: func(t *testing.T, w *world) input {
			middle := w.root.newCAWithKey(t, "RSA Intermediate", newRSAKey(t, 2048))
			leaf := replaceDER(t, middle.newLeaf(t, w.key), oidSHA256WithRSA, oidMD5WithRSA)
			return w.of(t, leaf, middle.cert)
		},
	},
	{
		name: "self-signed leaf with SHA-1", rules: []Rule{RuleWeakSignature},
		input: func(t *testing.T, w *world) input {
			return w.of(t, selfSigned(t, w.key, func(c *x509.Certificate) { c.SignatureAlgorithm = x509.ECDSAWithSHA1 }))
		},
	},
	{
		name: "ends before it begins", rules: []Rule{RuleValidity},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.NotAfter = c.NotBefore })
		},
	},
	{
		name: "serial number of 21 bytes", rules: []Rule{RuleSerial},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 160) })
		},
	},
	{
		name: "several rules at once", rules: []Rule{RuleNoSAN, RuleEKU, RuleKeyUsage},
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) {
				c.DNSNames, c.ExtKeyUsage, c.KeyUsage = nil, nil, x509.KeyUsageKeyAgreement
			})
		},
	},
}

var (
	oidSHA256WithRSA = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11}
	oidMD5WithRSA    = []byte{0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4}
)
