package secret

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is looked at, so that hostile input is cheap. Real chains have 2 to 4 certificates and under 8 KiB.
const (
	MaxNameSize     = 255      // bytes of a secret's name
	MaxChainSize    = 64 << 10 // bytes of the chain as given
	MaxKeySize      = 16 << 10 // bytes of the key as given
	MaxCertificates = 10       // certificates in a chain, the leaf included
	minRSABits      = 2048     // Envoy rejects less
	maxRSABits      = 8192     // Go's and other TLS clients reject more
)

// ParseCertificate parses a TLS certificate chain and its private key and applies every rule that needs neither a clock nor
// an expectation. The result is immutable and canonically encoded, whatever the spelling of the input was.
//
// The chain is PEM: CERTIFICATE blocks, leaf first, each followed by the certificate that issued it (RFC 8446, Section
// 4.4.2). A self-signed root at the end is unneeded but legal, and is kept. The key is one unencrypted PEM block, PKCS#8,
// PKCS#1 or SEC 1; an EC PARAMETERS block may stand before it, as openssl writes it. CRLF line ends are accepted. White space
// is the only thing that may stand outside of blocks.
//
// The error joins one [*Error] for each broken rule; see [Rules]. A lone leaf is judged by [Secret.Validate].
func ParseCertificate(name string, chainPEM, keyPEM []byte) (*Secret, error) {
	p := &problems{secret: name}
	checkName(name, p)
	chain := parseChain(chainPEM, p)
	key := parseKey(keyPEM, p)
	if p.found() {
		// Judging the rest of a chain of which a part is missing would only add noise.
		return nil, p.err()
	}
	p.chain = chain
	leaf := findLeaf(chain, key, p)
	checkLeaf(leaf, p)
	checkChain(leafFirst(chain, leaf), p)
	if p.found() {
		return nil, p.err()
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		p.add(RuleKeyMalformed, "key: cannot be encoded as PKCS#8") // likewise without err, see decodeKey
		return nil, p.err()
	}
	c := newContent(chain, keyDER)
	return &Secret{name: name, kind: KindTLSCertificate, content: func() *content { return c }}, nil
}

// newContent computes what the accessors return.
func newContent(chain []*x509.Certificate, keyDER []byte) *content {
	ders := make([][]byte, len(chain))
	for i, certificate := range chain {
		ders[i] = certificate.Raw
	}
	leaf := chain[0]
	c := &content{chain: chain, chainPEM: encodePEM(labelCertificate, ders...), keyPEM: encodePEM(labelPKCS8, keyDER)}
	c.keyType, _ = keyType(leaf.PublicKey) // checkLeaf has refused the others
	for _, dnsName := range leaf.DNSNames {
		c.dnsNames = append(c.dnsNames, strings.ToLower(dnsName))
	}
	for _, ip := range leaf.IPAddresses {
		if address, ok := netip.AddrFromSlice(ip); ok {
			c.addresses = append(c.addresses, address)
		}
	}
	slices.Sort(c.dnsNames)
	c.dnsNames = slices.Compact(c.dnsNames)
	slices.SortFunc(c.addresses, netip.Addr.Compare)
	c.addresses = slices.Compact(c.addresses)
	return c
}

// checkName applies the rules of a secret's name. It appears in logs, tables and file-like store paths.
func checkName(name string, p *problems) {
	switch {
	case name == "":
		p.add(RuleName, "the name is empty")
	case len(name) > MaxNameSize:
		p.add(RuleName, "the name has %d bytes, more than %d", len(name), MaxNameSize)
	case !utf8.ValidString(name):
		p.add(RuleName, "the name is not UTF-8")
	case name == "*":
		p.add(RuleName, "the name is *, which subscribes to everything in xDS")
	case strings.TrimSpace(name) != name:
		p.add(RuleName, "the name begins or ends with white space")
	case strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }):
		p.add(RuleName, "the name has an unprintable character")
	}
}

// parseChain returns the certificates in the order of the input.
func parseChain(text []byte, p *problems) []*x509.Certificate {
	if len(text) > MaxChainSize {
		p.add(RuleTooLarge, "chain: %d bytes, more than %d", len(text), MaxChainSize)
		return nil
	}
	before := len(p.errs)
	var chain []*x509.Certificate
	blocks := scanPEM(text, "chain", p)
	for _, b := range blocks {
		switch {
		case b.label == labelCertificate && !b.encrypted:
			certificate, err := x509.ParseCertificate(b.der)
			if err != nil {
				p.add(RuleCertificateMalformed, "chain: line %d: %.200v", b.line, err)
				continue
			}
			chain = append(chain, certificate)
		case strings.HasSuffix(b.label, labelPKCS8):
			p.add(RuleKeyInChain, "chain: line %d: a private key", b.line)
		default:
			p.add(RulePEMType, "chain: line %d: a block of type %s", b.line, b.label)
		}
	}
	if len(chain) == 0 && len(p.errs) == before {
		p.add(RuleEmptyChain, "chain: empty")
	}
	if len(chain) > MaxCertificates {
		p.add(RuleTooManyCertificates, "chain: %d certificates, more than %d", len(chain), MaxCertificates)
	}
	return chain
}

// parseKey returns the one private key of the input.
func parseKey(text []byte, p *problems) crypto.Signer {
	if len(text) > MaxKeySize {
		p.add(RuleTooLarge, "key: %d bytes, more than %d", len(text), MaxKeySize)
		return nil
	}
	before := len(p.errs)
	var keys []block
	blocks := scanPEM(text, "key", p)
	for i, b := range blocks {
		switch {
		case b.encrypted || b.label == labelEncrypted:
			p.add(RuleEncryptedKey, "key: line %d: the key is encrypted", b.line)
		case b.label == labelPKCS8 || b.label == labelPKCS1 || b.label == labelSEC1:
			keys = append(keys, b)
		case b.label == labelECParameters && i == 0 && len(blocks) > 1 && blocks[1].label == labelSEC1:
			// The key itself names its curve; openssl writes it twice.
		case b.label == labelCertificate:
			p.add(RuleCertificateInKey, "key: line %d: a certificate", b.line)
		default:
			p.add(RulePEMType, "key: line %d: a block of type %s", b.line, b.label)
		}
	}
	switch {
	case len(keys) > 1:
		p.add(RuleSeveralKeys, "key: %d private keys, the second at line %d", len(keys), keys[1].line)
		return nil
	case len(keys) == 1:
		return decodeKey(keys[0], p)
	case len(p.errs) == before:
		p.add(RuleEmptyKey, "key: empty")
	}
	return nil
}

// decodeKey decodes one private key and refuses what no certificate that passes checkLeaf can belong to.
func decodeKey(b block, p *problems) crypto.Signer {
	if bits := rsaBits(b); bits > 0 && (bits < minRSABits || bits > maxRSABits) {
		// Before it is decoded: that takes long for a large key, and Go refuses a small one without saying so clearly.
		p.add(RuleKeyType, "key: line %d: RSA with %d bits, not %d to %d", b.line, bits, minRSABits, maxRSABits)
		return nil
	}
	var key any
	var err error
	switch b.label {
	case labelPKCS1:
		key, err = x509.ParsePKCS1PrivateKey(b.der)
	case labelSEC1:
		key, err = x509.ParseECPrivateKey(b.der)
	default:
		key, err = x509.ParsePKCS8PrivateKey(b.der)
	}
	if err != nil {
		// The decoder's error stays here: it is about the bytes of a private key.
		p.add(RuleKeyMalformed, "key: line %d: cannot be decoded as %s", b.line, b.label)
		return nil
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		p.add(RuleKeyType, "key: line %d: a key that cannot sign", b.line)
		return nil
	}
	if k, ok := key.(*rsa.PrivateKey); ok && len(k.Primes) != 2 {
		p.add(RuleKeyType, "key: line %d: RSA with %d primes, Envoy takes 2", b.line, len(k.Primes))
		return nil
	}
	return signer
}

// rsaBits returns the size of an RSA key's modulus without judging the key, 0 if it is none.
func rsaBits(b block) int {
	der := b.der
	if b.label == labelPKCS8 {
		// RFC 5958, Section 2; later fields are of no interest.
		var outer struct {
			Version    int
			Algorithm  asn1.RawValue
			PrivateKey []byte
		}
		if _, err := asn1.Unmarshal(der, &outer); err != nil {
			return 0 // the real decoder will say why
		}
		der = outer.PrivateKey
	}
	// RFC 8017, Appendix A.1.2.
	var inner struct {
		Version int
		Modulus asn1.RawValue
	}
	if _, err := asn1.Unmarshal(der, &inner); err != nil || inner.Modulus.Tag != asn1.TagInteger {
		return 0 // likewise
	}
	return new(big.Int).SetBytes(inner.Modulus.Bytes).BitLen()
}

// errKeyType is what keyType returns for keys that are refused, with the reason wrapped around it.
var errKeyType = errors.New("not accepted")

// keyType names the type of a public key that Envoy and clients accept; else the error says what it is.
func keyType(key crypto.PublicKey) (string, error) {
	switch k := key.(type) {
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256():
			return "ecdsa-p256", nil
		case elliptic.P384():
			return "ecdsa-p384", nil
		case elliptic.P521():
			return "ecdsa-p521", nil
		}
		return "", fmt.Errorf("ECDSA %s: %w", k.Curve.Params().Name, errKeyType)
	case ed25519.PublicKey:
		return "ed25519", nil
	case *rsa.PublicKey:
		bits := k.N.BitLen()
		if bits < minRSABits || bits > maxRSABits {
			return "", fmt.Errorf("RSA with %d bits: %w", bits, errKeyType)
		}
		return fmt.Sprintf("rsa-%d", bits), nil
	}
	return "", fmt.Errorf("key of type %T: %w", key, errKeyType)
}
