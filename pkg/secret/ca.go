package secret

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"slices"
	"strings"
	"time"
)

const (
	// MaxCASize is the most bytes of the CA certificates of a validation context, as given and as encoded. The roots of the web
	// have 220 KiB.
	MaxCASize = 320 << 10
	// maxCANames is the most bytes of the subjects, with two more for each: Envoy names its CAs to each client that it asks for a
	// certificate, and the list of these names has a length of 16 bits (RFC 8446, Section 4.2.4).
	maxCANames = 1<<16 - 1 - 512 // the rest is for what else stands in that message
)

// ParseValidationContext parses the CA certificates by which Envoy judges certificates of its peers, and applies every rule that
// needs no clock. Inputs are joined, each in PEM, possibly with comments around the blocks; a certificate that occurs twice counts once. The
// result does not depend on their order.
//
// Envoy rejects what it cannot parse, but accepts certificates that are no CA, or a private key among them, which it would keep
// in its memory on every node. An expired certificate among valid ones is accepted here, as Envoy accepts it: it convinces
// nobody, and if it were refused, the passing of time alone would make a file invalid that was valid, and keep later changes of it
// from taking effect.
//
// The error joins one [*Error] for each broken rule; see [Rules].
func ParseValidationContext(name string, inputs ...[]byte) (*Secret, error) {
	p := &problems{secret: name}
	checkName(name, p)
	total := 0
	for _, input := range inputs {
		total += len(input)
	}
	if total > MaxCASize {
		p.add(RuleCATooLarge, "CA certificates: %d bytes, more than %d", total, MaxCASize)
		return nil, p.err()
	}
	var all []*x509.Certificate
	for _, input := range inputs {
		all = append(all, parseCAs(input, p)...)
	}
	if len(all) == 0 && !p.found() {
		p.add(RuleEmptyCA, "CA certificates: empty")
	}
	all = slices.CompactFunc(sortCAs(all), (*x509.Certificate).Equal)
	p.chain = all
	checkCAs(all, p)
	ders := make([][]byte, len(all))
	for i, c := range all {
		ders[i] = c.Raw
	}
	c := &content{chain: all, chainPEM: encodePEM(labelCertificate, ders...)}
	if len(c.chainPEM) > MaxCASize { // long lines in the input
		p.add(RuleCATooLarge, "CA certificates: %d bytes, more than %d", len(c.chainPEM), MaxCASize)
	}
	if p.found() {
		return nil, p.err()
	}
	return &Secret{name: name, kind: KindValidationContext, content: func() *content { return c }}, nil
}

// parseCAs returns the certificates of one input.
func parseCAs(text []byte, p *problems) []*x509.Certificate {
	const source = "CA certificates"
	var all []*x509.Certificate
	for _, b := range scanBundle(text, source, p) {
		switch {
		case b.label == labelCertificate && !b.encrypted:
			c, err := x509.ParseCertificate(b.der)
			if err != nil {
				p.add(RuleCertificateMalformed, "%s: line %d: %.200v", source, b.line, err)
				continue
			}
			all = append(all, c)
		case strings.HasSuffix(b.label, labelPKCS8):
			p.add(RuleKeyInCA, "%s: line %d: a private key", source, b.line)
		default:
			p.add(RulePEMType, "%s: line %d: a block of type %s", source, b.line, b.label)
		}
	}
	return all
}

// sortCAs puts the certificates into the one canonical order: the one that ends last is first. Where a CA has renewed its own
// certificate under the same name and key, Envoy takes the first of them, and if that has expired refuses every client.
func sortCAs(all []*x509.Certificate) []*x509.Certificate {
	return slices.SortedFunc(slices.Values(all), func(a, b *x509.Certificate) int {
		return cmp.Or(b.NotAfter.Compare(a.NotAfter), bytes.Compare(a.Raw, b.Raw))
	})
}

// checkCAs applies the rules of the certificates.
func checkCAs(all []*x509.Certificate, p *problems) {
	names := 0
	for _, c := range all {
		names += len(c.RawSubject) + 2
		switch {
		case (!c.BasicConstraintsValid || !c.IsCA) && !oldRoot(c):
			p.add(RuleNotCA, "CA certificates: %s is not a CA certificate", p.describe(c))
		case hasExtension(c, oidKeyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0:
			p.add(RuleNotCA, "CA certificates: the key usage of %s does not allow it to sign certificates", p.describe(c))
		}
		if _, err := keyType(c.PublicKey); err != nil {
			p.add(RuleKeyType, "CA certificates: %s: %v", p.describe(c), err)
		}
		for _, oid := range c.UnhandledCriticalExtensions {
			p.add(RuleCriticalExtension, "CA certificates: %s has the unknown critical extension %v", p.describe(c), oid)
		}
		if !c.NotAfter.After(c.NotBefore) {
			p.add(RuleValidity, "CA certificates: %s ends before it begins", p.describe(c))
		}
	}
	if names > maxCANames {
		p.add(RuleCANamesTooLarge, "CA certificates: their names have %d bytes, more than the %d that fit into a TLS handshake", names, maxCANames)
	}
}

// oldRoot reports whether a certificate is a root of before X.509 version 3, which cannot say that it is a CA. Envoy takes it for one.
func oldRoot(c *x509.Certificate) bool {
	return c.Version == 1 && bytes.Equal(c.RawSubject, c.RawIssuer)
}

// checkSomeCA wants one CA certificate of a validation context that is valid at now, and none that is not yet valid before one of the
// same CA that is: see sortCAs.
func (s *Secret) checkSomeCA(now time.Time, p *problems) {
	if s.kind != KindValidationContext {
		return
	}
	valid := func(c *x509.Certificate) bool { return !now.Before(c.NotBefore) && !now.After(c.NotAfter) }
	if !slices.ContainsFunc(s.content().chain, valid) {
		p.add(RuleNoValidCA, "CA certificates: none is valid now, between %s and %s", stamp(s.NotBefore()), stamp(s.NotAfter()))
	}
	for i, c := range s.content().chain {
		hides := func(other *x509.Certificate) bool {
			return valid(other) && bytes.Equal(other.RawSubject, c.RawSubject) && bytes.Equal(other.RawSubjectPublicKeyInfo, c.RawSubjectPublicKeyInfo)
		}
		if now.Before(c.NotBefore) && slices.ContainsFunc(s.content().chain[i+1:], hides) {
			p.add(RuleCANotYetValid, "CA certificates: %s is valid only from %s, and would hide the one of the same CA that is valid now", p.describe(c), stamp(c.NotBefore))
		}
	}
}

// NextCAEnd returns when the first of those CA certificates of a validation context ends that are valid at now or later, in UTC;
// zero where there is none, and for the other kinds.
func (s *Secret) NextCAEnd(now time.Time) time.Time {
	var next time.Time
	if s.kind != KindValidationContext {
		return next
	}
	for _, c := range s.content().chain {
		if c.NotAfter.After(now) && (next.IsZero() || c.NotAfter.Before(next)) {
			next = c.NotAfter.UTC()
		}
	}
	return next
}

func first(all []*x509.Certificate) time.Time {
	begin := all[0].NotBefore
	for _, c := range all {
		if c.NotBefore.Before(begin) {
			begin = c.NotBefore
		}
	}
	return begin
}

func last(all []*x509.Certificate) time.Time {
	end := all[0].NotAfter
	for _, c := range all {
		if c.NotAfter.After(end) {
			end = c.NotAfter
		}
	}
	return end
}
