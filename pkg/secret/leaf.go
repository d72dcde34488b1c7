package secret

import (
	"crypto"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"slices"
	"strings"
)

var (
	oidKeyUsage   = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidTLSFeature = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 24} // RFC 7633, Section 6
)

// The TLS features that ask for an OCSP staple: status_request and status_request_v2.
const (
	featureStatusRequest   = 5
	featureStatusRequestV2 = 17
)

// maxSerialSize is the longest serial number in bytes (RFC 5280, Section 4.1.2.2), also because it is written everywhere.
const maxSerialSize = 20

// findLeaf returns the certificate that the key belongs to. Where there is none, it is taken to be the first one, so that
// the rest of the chain can be judged all the same.
func findLeaf(chain []*x509.Certificate, key crypto.Signer, p *problems) *x509.Certificate {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	i := slices.IndexFunc(chain, func(c *x509.Certificate) bool { return ok && public.Equal(c.PublicKey) })
	switch {
	case i < 0:
		p.add(RuleKeyMismatch, "the key belongs neither to %s nor to another certificate of the chain", p.describe(chain[0]))
		return chain[0]
	case i > 0:
		p.add(RuleLeafNotFirst, "chain: the key belongs to %s, which is not the first", p.describe(chain[i]))
	}
	return chain[i]
}

// checkLeaf applies the rules of the leaf alone. Envoy enforces only those of the key type and of must-staple; clients the
// others (RFC 5280, Sections 4.1 and 4.2; RFC 6125, Section 6).
func checkLeaf(leaf *x509.Certificate, p *problems) {
	if _, err := keyType(leaf.PublicKey); err != nil {
		p.add(RuleKeyType, "leaf: %v", err)
	}
	if leaf.IsCA {
		p.add(RuleCALeaf, "leaf: %s is a CA certificate", p.describe(leaf))
	}
	if len(leaf.DNSNames)+len(leaf.IPAddresses) == 0 {
		p.add(RuleNoSAN, "leaf: no DNS name and no IP address in subjectAltName")
	}
	for _, name := range leaf.DNSNames {
		if !matchable(name) {
			p.add(RuleSANMalformed, "leaf: the DNS name %.80q can match no host", name)
		}
	}
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		p.add(RuleEKU, "leaf: the extended key usage does not list serverAuth")
	}
	if hasExtension(leaf, oidKeyUsage) && leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		p.add(RuleKeyUsage, "leaf: the key usage does not list digitalSignature")
	}
	if mustStaple(leaf) {
		p.add(RuleMustStaple, "leaf: must-staple: it asks for an OCSP staple in each handshake")
	}
	for _, oid := range leaf.UnhandledCriticalExtensions {
		if !oid.Equal(oidTLSFeature) { // clients know it
			p.add(RuleCriticalExtension, "leaf: unknown critical extension %v", oid)
		}
	}
	if n := len(leaf.SerialNumber.Bytes()); n > maxSerialSize {
		p.add(RuleSerial, "leaf: the serial number has %d bytes, more than %d", n, maxSerialSize)
	}
	if !leaf.NotAfter.After(leaf.NotBefore) {
		p.add(RuleValidity, "leaf: it ends before it begins")
	}
}

// mustStaple reports whether a certificate asks for an OCSP staple. One that cannot be read counts as asking.
func mustStaple(c *x509.Certificate) bool {
	for _, extension := range c.Extensions {
		if !extension.Id.Equal(oidTLSFeature) {
			continue
		}
		var features []int
		rest, err := asn1.Unmarshal(extension.Value, &features)
		if err != nil || len(rest) > 0 ||
			slices.Contains(features, featureStatusRequest) || slices.Contains(features, featureStatusRequestV2) {
			return true
		}
	}
	return false
}

// matchable reports whether any client would match a host with this DNS name of a certificate: letters, digits, hyphens and
// (in private networks) underscores, and a wildcard only as the whole leftmost of several labels (RFC 6125, Section 6.4.3).
func matchable(name string) bool {
	if name == "" || len(name) > 253 {
		return false
	}
	labels := strings.Split(strings.ToLower(name), ".")
	if labels[0] == "*" && len(labels) > 1 {
		labels = labels[1:]
	}
	for _, label := range labels {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// hasExtension reports whether a certificate has an extension, whatever its value.
func hasExtension(c *x509.Certificate, oid asn1.ObjectIdentifier) bool {
	for _, extension := range c.Extensions {
		if extension.Id.Equal(oid) {
			return true
		}
	}
	return false
}

// RenewalInfoID returns the identifier by which the CA is asked when to renew a TLS certificate (RFC 9773, Section 4.1): the key
// identifier of the leaf's authorityKeyIdentifier, a dot, and its serial number in DER, both in base64url without padding. It is
// empty where the leaf names no such key, and for the other kinds.
func (s *Secret) RenewalInfoID() string {
	leaf := s.Leaf()
	if leaf == nil || len(leaf.AuthorityKeyId) == 0 {
		return ""
	}
	serial := leaf.SerialNumber.Bytes() // parsed certificates have no negative ones
	if len(serial) == 0 || serial[0] >= 0x80 {
		serial = append([]byte{0}, serial...) // DER's sign
	}
	return base64.RawURLEncoding.EncodeToString(leaf.AuthorityKeyId) + "." + base64.RawURLEncoding.EncodeToString(serial)
}
