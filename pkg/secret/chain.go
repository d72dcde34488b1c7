package secret

import (
	"bytes"
	"crypto/x509"
	"slices"
)

// leafFirst returns the chain with the leaf moved to the front, so that a misplaced leaf is one problem and not two.
func leafFirst(chain []*x509.Certificate, leaf *x509.Certificate) []*x509.Certificate {
	if chain[0] == leaf {
		return chain
	}
	rest := slices.DeleteFunc(slices.Clone(chain), func(c *x509.Certificate) bool { return c == leaf })
	return slices.Insert(rest, 0, leaf)
}

// checkChain applies the rules of what stands above the leaf, which is first in chain.
func checkChain(chain []*x509.Certificate, p *problems) {
	chain = dropDuplicates(chain, p)
	path := walkPath(chain)
	checkLinks(chain, path, p)
	for i, c := range path {
		checkSignatureAlgorithm(c, p)
		if i > 0 {
			checkIssuer(c, p)
			checkKeyID(c, path[i-1], p)
		}
	}
}

// dropDuplicates records certificates that occur twice, and returns the chain without them.
func dropDuplicates(chain []*x509.Certificate, p *problems) []*x509.Certificate {
	var unique []*x509.Certificate
	for _, c := range chain {
		if slices.ContainsFunc(unique, c.Equal) {
			p.add(RuleDuplicateCertificate, "chain: %s occurs twice", p.describe(c))
			continue
		}
		unique = append(unique, c)
	}
	return unique
}

// walkPath follows the chain from its leaf to the issuer of each certificate, wherever that stands, and returns what it met.
// It ends at a self-signed certificate or where no issuer is found.
func walkPath(chain []*x509.Certificate) []*x509.Certificate {
	path := chain[:1:1]
	for len(path) < len(chain) {
		last := path[len(path)-1]
		if selfIssued(last) {
			break
		}
		i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return !slices.Contains(path, c) && issued(c, last) })
		if i < 0 {
			break
		}
		path = append(path, chain[i])
	}
	return path
}

// checkLinks compares the chain as it is with the path through it.
func checkLinks(chain, path []*x509.Certificate, p *problems) {
	top := path[len(path)-1]
	for _, c := range chain {
		switch {
		case slices.Contains(path, c):
		case bytes.Equal(c.RawSubject, top.RawIssuer) && !selfIssued(top):
			p.add(RuleChainSignature, "chain: %s has the name of the issuer of %s, but did not sign it", p.describe(c), p.describe(top))
		default:
			p.add(RuleUnrelatedCertificate, "chain: %s issued no other certificate of the chain", p.describe(c))
		}
	}
	inOrder := slices.DeleteFunc(slices.Clone(chain), func(c *x509.Certificate) bool { return !slices.Contains(path, c) })
	if !slices.Equal(inOrder, path) {
		p.add(RuleChainOrder, "chain: a certificate stands before one that it should follow")
	}
}

// checkIssuer applies the rules of one certificate above the leaf (RFC 5280, Sections 4.2.1.3 and 4.2.1.9).
func checkIssuer(c *x509.Certificate, p *problems) {
	switch {
	case !c.BasicConstraintsValid || !c.IsCA:
		p.add(RuleIssuerNotCA, "chain: %s is not a CA certificate", p.describe(c))
	case hasExtension(c, oidKeyUsage) && c.KeyUsage&x509.KeyUsageCertSign == 0:
		p.add(RuleIssuerNotCA, "chain: the key usage of %s does not allow it to sign certificates", p.describe(c))
	}
	if _, err := keyType(c.PublicKey); err != nil {
		p.add(RuleKeyType, "chain: %s: %v", p.describe(c), err)
	}
	for _, oid := range c.UnhandledCriticalExtensions {
		p.add(RuleCriticalExtension, "chain: %s has the unknown critical extension %v", p.describe(c), oid)
	}
	if !c.NotAfter.After(c.NotBefore) {
		p.add(RuleValidity, "chain: %s ends before it begins", p.describe(c))
	}
}

// checkKeyID refuses an issuer that is not the one that c names by its authorityKeyIdentifier (RFC 5280, Section 4.2.1.1):
// OpenSSL does not look further then, even though the signature is right.
func checkKeyID(issuer, c *x509.Certificate, p *problems) {
	if len(issuer.SubjectKeyId) > 0 && len(c.AuthorityKeyId) > 0 && !bytes.Equal(issuer.SubjectKeyId, c.AuthorityKeyId) {
		p.add(RuleChainKeyID, "chain: the key identifier of %s is not the one that %s names", p.describe(issuer), p.describe(c))
	}
}

// checkSignatureAlgorithm refuses signatures that clients refuse. A self-signed certificate is trusted for being known, not
// for its signature, unless it is the leaf; see checkLeaf.
func checkSignatureAlgorithm(c *x509.Certificate, p *problems) {
	if selfIssued(c) && c.IsCA {
		return
	}
	if !strongSignature(c.SignatureAlgorithm) {
		p.add(RuleWeakSignature, "chain: %s is signed with %v", p.describe(c), c.SignatureAlgorithm)
	}
}

// strongSignature reports whether clients accept a signature algorithm in a certificate.
func strongSignature(algorithm x509.SignatureAlgorithm) bool {
	switch algorithm {
	case x509.SHA256WithRSA, x509.SHA384WithRSA, x509.SHA512WithRSA,
		x509.SHA256WithRSAPSS, x509.SHA384WithRSAPSS, x509.SHA512WithRSAPSS,
		x509.ECDSAWithSHA256, x509.ECDSAWithSHA384, x509.ECDSAWithSHA512, x509.PureEd25519:
		return true
	}
	return false
}

// issued reports whether issuer signed c. Where the signature cannot be checked at a bounded price, or only by an algorithm
// that is refused elsewhere, the names decide.
func issued(issuer, c *x509.Certificate) bool {
	if !bytes.Equal(issuer.RawSubject, c.RawIssuer) {
		return false
	}
	if _, err := keyType(issuer.PublicKey); err != nil || !strongSignature(c.SignatureAlgorithm) {
		return true
	}
	return issuer.CheckSignature(c.SignatureAlgorithm, c.RawTBSCertificate, c.Signature) == nil
}

// selfIssued reports whether c names itself as its issuer and, as far as that can be checked, signed itself.
func selfIssued(c *x509.Certificate) bool { return issued(c, c) }
