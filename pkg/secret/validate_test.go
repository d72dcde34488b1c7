package secret

import (
	"crypto/x509"
	"net/netip"
	"testing"
	"time"
)

// TestRefusesWhatIsNotExpected has the other rules that need a clock or an expectation.
func TestRefusesWhatIsNotExpected(t *testing.T) { runRefusals(t, validateRules) }

var validateRules = []refusal{
	{
		name: "a tenth of a short life left", rules: []Rule{RuleShortLife}, now: begin.Add(54 * time.Minute),
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.NotAfter = begin.Add(time.Hour) })
		},
	},
	{
		name: "a day of a long life left", rules: []Rule{RuleShortLife}, now: begin.Add(life - 24*time.Hour),
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "a day left without the skew", rules: []Rule{RuleShortLife}, now: begin.Add(life - 24*time.Hour - time.Minute),
		want:  func(_ *world, e *Expectation) { e.Skew = time.Minute },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "negative skew gives nothing away", rules: []Rule{RuleShortLife}, now: begin.Add(life - 24*time.Hour),
		want:  func(_ *world, e *Expectation) { e.Skew = -time.Hour },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "skew gives nothing at the begin", rules: []Rule{RuleNotYetValid}, now: begin.Add(-time.Second),
		want:  func(_ *world, e *Expectation) { e.Skew = time.Hour },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "intermediate expired", rules: []Rule{RuleIssuerExpired},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Old", func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }))
		},
	},
	{
		name: "intermediate not yet valid", rules: []Rule{RuleIssuerNotYetValid},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "New", func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }))
		},
	},
	{
		name: "intermediate about to expire", rules: []Rule{RuleShortLife},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Old", func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) }))
		},
	},
	{
		name: "expired and untrusted", rules: []Rule{RuleExpired, RuleUntrusted}, now: begin.Add(life + time.Second),
		want:  func(w *world, e *Expectation) { e.Roots = poolOf(w.leaf) },
		input: func(t *testing.T, w *world) input { return w.under(t, w.middle.newCA(t, "Other")) },
	},
	{
		name: "no name expected", rules: []Rule{RuleNoExpectedName},
		want:  func(_ *world, e *Expectation) { e.DNSNames = nil },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "one of two names missing", rules: []Rule{RuleSANMissing},
		want:  func(_ *world, e *Expectation) { e.DNSNames = []string{"a.example", "b.example"} },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "names given are checked even if any will do", rules: []Rule{RuleSANMissing},
		want:  func(_ *world, e *Expectation) { e.AnyNames, e.DNSNames = true, []string{"b.example"} },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "wildcard for its own parent", rules: []Rule{RuleSANMissing},
		input: func(t *testing.T, w *world) input { return w.leafWith(t, wildcard) },
	},
	{
		name: "wildcard for two labels", rules: []Rule{RuleSANMissing},
		want:  func(_ *world, e *Expectation) { e.DNSNames = []string{"c.b.a.example"} },
		input: func(t *testing.T, w *world) input { return w.leafWith(t, wildcard) },
	},
	{
		name: "wildcard for an empty label", rules: []Rule{RuleSANMissing},
		want:  func(_ *world, e *Expectation) { e.DNSNames = []string{".a.example"} },
		input: func(t *testing.T, w *world) input { return w.leafWith(t, wildcard) },
	},
	{
		name: "wanted wildcard is not covered by a host", rules: []Rule{RuleSANMissing},
		want:  func(_ *world, e *Expectation) { e.DNSNames = []string{"*.example"} },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "address missing", rules: []Rule{RuleSANMissing},
		want:  func(_ *world, e *Expectation) { e.IPAddresses = []netip.Addr{netip.MustParseAddr("192.0.2.1")} },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "address as a DNS name", rules: []Rule{RuleSANMissing},
		want: func(_ *world, e *Expectation) { e.DNSNames = []string{"192.0.2.1"} },
		input: func(t *testing.T, w *world) input {
			return w.leafWith(t, func(c *x509.Certificate) { c.DNSNames = []string{"192.0.2.1"} })
		},
	},
	{
		name: "key type unwanted", rules: []Rule{RuleKeyTypeUnwanted},
		want:  func(_ *world, e *Expectation) { e.KeyType = "rsa-2048" },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "public key unwanted", rules: []Rule{RulePublicKeyUnwanted},
		want:  func(w *world, e *Expectation) { e.PublicKey = w.root.key.Public() },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "public key that is none", rules: []Rule{RulePublicKeyUnwanted},
		want:  func(_ *world, e *Expectation) { e.PublicKey = "a key" },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "root of another CA", rules: []Rule{RuleUntrusted},
		input: func(t *testing.T, w *world) input {
			return w.under(t, newRoot(t, "Other").newCA(t, "Other Intermediate"))
		},
	},
	{
		name: "root of another CA, sent along", rules: []Rule{RuleUntrusted},
		input: func(t *testing.T, w *world) input {
			other := newRoot(t, "Other")
			return w.of(t, other.newLeaf(t, w.key), other.cert)
		},
	},
	{
		name: "self-signed leaf, with roots", rules: []Rule{RuleUntrusted},
		input: func(t *testing.T, w *world) input { return w.of(t, selfSigned(t, w.key)) },
	},
	{
		name: "no roots", rules: []Rule{RuleUntrusted},
		want:  func(_ *world, e *Expectation) { e.Roots = x509.NewCertPool() },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "root expired", rules: []Rule{RuleUntrusted},
		want:  func(w *world, e *Expectation) { e.Roots = poolOf(w.oldRoot.cert) },
		input: func(t *testing.T, w *world) input { return w.good(t) },
	},
	{
		name: "upper intermediate missing", rules: []Rule{RuleUntrusted},
		input: func(t *testing.T, w *world) input { return w.under(t, w.middle.newCA(t, "Lower")) },
	},
	{
		name: "path length, roots unknown", rules: []Rule{RulePathLength},
		want: func(_ *world, e *Expectation) { e.Roots = nil },
		input: func(t *testing.T, w *world) input {
			upper := w.root.newCA(t, "Upper", func(c *x509.Certificate) { c.MaxPathLenZero = true })
			lower := upper.newCA(t, "Lower")
			return w.of(t, lower.newLeaf(t, w.key), lower.cert, upper.cert)
		},
	},
	{
		name: "path length of the root", rules: []Rule{RulePathLength},
		want: func(_ *world, e *Expectation) { e.Roots = nil },
		input: func(t *testing.T, w *world) input {
			root := newRoot(t, "Short", func(c *x509.Certificate) { c.MaxPathLenZero = true })
			middle := root.newCA(t, "Lower")
			return w.of(t, middle.newLeaf(t, w.key), middle.cert, root.cert)
		},
	},
	{
		name: "name constraints", rules: []Rule{RuleNameConstraints},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Limited", func(c *x509.Certificate) {
				c.PermittedDNSDomainsCritical, c.PermittedDNSDomains = true, []string{"other.example"}
			}))
		},
	},
	{
		name: "intermediate for clients only", rules: []Rule{RuleEKU},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Clients", func(c *x509.Certificate) {
				c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
			}))
		},
	},
	{
		name: "policy required but absent", rules: []Rule{RuleCertificationPath},
		input: func(t *testing.T, w *world) input {
			return w.under(t, w.root.newCA(t, "Policy", extension(true, []byte{0x30, 3, 0x80, 1, 0}, 2, 5, 29, 36)))
		},
	},
}

func wildcard(c *x509.Certificate) { c.DNSNames = []string{"*.a.example"} }
