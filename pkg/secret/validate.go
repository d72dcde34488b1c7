package secret

import (
	"crypto"
	"crypto/x509"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// maxMargin is the most life that has to be left in a certificate, however long it lives.
const maxMargin = 24 * time.Hour

// Expectation is what a secret is wanted for. The zero value is refused: it has no name.
type Expectation struct {
	// DNSNames are host names that a SAN has to cover, in any case. A SAN *.example.com covers www.example.com, but neither
	// example.com nor a.b.example.com. A wanted *.example.com is covered by exactly this SAN. More SANs are no problem.
	DNSNames []string
	// IPAddresses are addresses that have to be among the SANs.
	IPAddresses []netip.Addr
	// AnyNames allows an expectation without names, for imports of which nothing is known. Names that are given are checked.
	AnyNames bool
	// Roots are the roots that clients trust; the chain has to verify to one of them by itself. Nil: the chain has to be
	// consistent up to its last certificate, whoever that is.
	Roots *x509.CertPool
	// AllowLoneLeaf accepts, when Roots is nil, a leaf alone that did not sign itself. It is right for a leaf that a private
	// root issued directly, and wrong for every public CA. With Roots the roots decide.
	AllowLoneLeaf bool
	// Skew is how far the clocks of clients may be ahead: life is counted to NotAfter-Skew. Default 0: none. There is no
	// tolerance at NotBefore, because clients have none.
	Skew time.Duration
	// KeyType is the wanted [Secret.KeyType]; "" is any.
	KeyType string
	// PublicKey is the wanted public key of the leaf, such as that of the CSR; nil is any.
	PublicKey crypto.PublicKey
}

// Validate applies the rules that need a clock or an expectation. The error joins one [*Error] for each broken rule.
//
// A certificate must be valid now and for more than min(24 h, a tenth of its life) from now; so must every certificate
// above it, measured by the leaf's margin. Of a validation context one certificate has to be valid now, and none may hide it; nothing is expected of
// it, nor of the other kinds, which have no rule that needs a clock.
func (s *Secret) Validate(now time.Time, want Expectation) error {
	p := &problems{secret: s.name, chain: s.content().chain}
	if s.kind != KindTLSCertificate {
		s.checkSomeCA(now, p)
		return p.err()
	}
	s.checkClock(now, want.Skew, p)
	s.checkNames(want, p)
	s.checkKey(want, p)
	s.checkTrust(now, want, p)
	return p.err()
}

// checkClock judges the validity of each certificate at now.
func (s *Secret) checkClock(now time.Time, skew time.Duration, p *problems) {
	leaf := s.Leaf()
	margin := min(maxMargin, leaf.NotAfter.Sub(leaf.NotBefore)/10)
	for i, c := range s.content().chain {
		notYet, expired := RuleIssuerNotYetValid, RuleIssuerExpired
		if i == 0 {
			notYet, expired = RuleNotYetValid, RuleExpired
		}
		switch left := c.NotAfter.Sub(now) - max(skew, 0); {
		case now.Before(c.NotBefore):
			p.add(notYet, "%s is valid only from %s", p.describe(c), stamp(c.NotBefore))
		case now.After(c.NotAfter):
			p.add(expired, "%s has expired at %s", p.describe(c), stamp(c.NotAfter))
		case left <= margin:
			p.add(RuleShortLife, "%s expires at %s, which is not more than %v ahead", p.describe(c), stamp(c.NotAfter), margin+max(skew, 0))
		}
	}
}

// checkNames judges the SANs of the leaf.
func (s *Secret) checkNames(want Expectation, p *problems) {
	if len(want.DNSNames)+len(want.IPAddresses) == 0 && !want.AnyNames {
		p.add(RuleNoExpectedName, "no name is expected of the certificate")
	}
	for _, name := range want.DNSNames {
		if !s.covers(name) {
			p.add(RuleSANMissing, "leaf: no DNS name covers %.260q", name)
		}
	}
	for _, address := range want.IPAddresses {
		if !slices.Contains(s.content().addresses, address.Unmap().WithZone("")) {
			p.add(RuleSANMissing, "leaf: the address %v is not in it", address)
		}
	}
}

// covers reports whether a client would accept the leaf for a host name (RFC 6125, Section 6.4). One that is spelt as an
// address is compared with the addresses, as clients do.
func (s *Secret) covers(name string) bool {
	if address, err := netip.ParseAddr(name); err == nil {
		return slices.Contains(s.content().addresses, address.Unmap().WithZone(""))
	}
	name = strings.ToLower(name)
	if slices.Contains(s.content().dnsNames, name) {
		return true
	}
	first, rest, found := strings.Cut(name, ".")
	return found && first != "" && first != "*" && slices.Contains(s.content().dnsNames, "*."+rest)
}

// checkKey judges the leaf's key by what was asked for.
func (s *Secret) checkKey(want Expectation, p *problems) {
	if want.KeyType != "" && want.KeyType != s.content().keyType {
		p.add(RuleKeyTypeUnwanted, "leaf: the key is %s, not %s", s.content().keyType, want.KeyType)
	}
	if want.PublicKey == nil {
		return
	}
	key, ok := want.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !key.Equal(s.Leaf().PublicKey) {
		p.add(RulePublicKeyUnwanted, "leaf: the public key is not the expected one")
	}
}

// checkTrust judges the certification path (RFC 5280, Section 6): first the chain by itself, then to the wanted roots.
func (s *Secret) checkTrust(now time.Time, want Expectation, p *problems) {
	chain := s.content().chain
	alone := len(chain) == 1 && !selfIssued(chain[0])
	at := s.insideValidity(now)
	if len(chain) > 1 {
		top := x509.NewCertPool()
		top.AddCert(chain[len(chain)-1])
		if err := s.verify(at, top); err != nil {
			p.add(pathRule(err), "chain: %.300v", err)
			return
		}
	}
	if want.Roots == nil {
		if alone && !want.AllowLoneLeaf {
			p.add(RuleChainIncomplete, "chain: only the leaf, without the certificate of its issuer")
		}
		return
	}
	if err := s.verify(at, want.Roots); err != nil {
		rule := pathRule(err)
		if rule == RuleUntrusted && alone {
			rule = RuleChainIncomplete
		}
		p.add(rule, "chain: to the expected roots: %.300v", err)
	}
}

// insideValidity returns the instant nearest to now at which every certificate of the chain is valid, so that a clock
// problem, which checkClock reports, hides no problem of trust. Where there is no such instant, it is some other one.
func (s *Secret) insideValidity(now time.Time) time.Time {
	for _, c := range s.content().chain {
		if now.Before(c.NotBefore) {
			now = c.NotBefore
		}
	}
	for _, c := range s.content().chain {
		if now.After(c.NotAfter) {
			now = c.NotAfter
		}
	}
	return now
}

// verify builds a path from the leaf through the chain to one of roots, for server authentication.
func (s *Secret) verify(at time.Time, roots *x509.CertPool) error {
	intermediates := x509.NewCertPool()
	for _, c := range s.content().chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := s.Leaf().Verify(x509.VerifyOptions{
		Roots:         roots,
		Intermediates: intermediates,
		CurrentTime:   at,
		KeyUsages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// pathRule finds the rule that an error of [x509.Certificate.Verify] stands for.
func pathRule(err error) Rule {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return RuleUntrusted
	}
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	if !ok {
		return RuleCertificationPath
	}
	switch invalid.Reason {
	case x509.TooManyIntermediates:
		return RulePathLength
	case x509.CANotAuthorizedForThisName:
		return RuleNameConstraints
	case x509.IncompatibleUsage:
		return RuleEKU
	case x509.Expired:
		return RuleUntrusted // a root; the chain itself is valid at that instant
	}
	return RuleCertificationPath
}

// stamp writes a time for a person.
func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
