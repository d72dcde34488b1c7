package secret

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// Rule is the stable identifier of a rule that a secret has to keep. It is what tests, logs and machine-readable output
// name; the text beside it may change.
type Rule string

// The rules of the input as text: sizes, PEM blocks, the secret's name.
const (
	RuleName                 Rule = "name"                  // the secret's name is empty, too long, unprintable or "*"
	RuleEmptyChain           Rule = "empty_chain"           // no certificate given
	RuleEmptyKey             Rule = "empty_key"             // no private key given
	RuleTooLarge             Rule = "too_large"             // more than MaxChainSize or MaxKeySize bytes
	RuleTooManyCertificates  Rule = "too_many_certificates" // more than MaxCertificates
	RuleDER                  Rule = "der"                   // binary DER instead of PEM
	RulePEMTrailing          Rule = "pem_trailing"          // text before, between or after PEM blocks
	RulePEMGarbage           Rule = "pem_garbage"           // a PEM block that is not base64, or has headers
	RulePEMTruncated         Rule = "pem_truncated"         // a PEM block without its END line
	RulePEMType              Rule = "pem_type"              // a PEM block of a type that does not belong here
	RuleKeyInChain           Rule = "key_in_chain"          // a private key among the certificates
	RuleCertificateInKey     Rule = "certificate_in_key"    // a certificate in the private key's input
	RuleSeveralKeys          Rule = "several_keys"          // more than one private key
	RuleEncryptedKey         Rule = "encrypted_key"         // a private key behind a passphrase
	RuleCertificateMalformed Rule = "certificate_malformed" // a block that is no X.509 certificate (RFC 5280, Section 4.1)
	RuleKeyMalformed         Rule = "key_malformed"         // a block that is no PKCS#8, PKCS#1 or SEC 1 private key
)

// The rules of a validation context.
const (
	RuleEmptyCA         Rule = "empty_ca"           // no CA certificate given
	RuleCATooLarge      Rule = "ca_too_large"       // more than MaxCASize bytes
	RuleKeyInCA         Rule = "key_in_ca"          // a private key among the CA certificates
	RuleNotCA           Rule = "not_ca"             // a certificate that may not issue others
	RuleCANamesTooLarge Rule = "ca_names_too_large" // more names than fit into a TLS handshake
	RuleNoValidCA       Rule = "no_valid_ca"        // all of them have expired, or begin later
	RuleCANotYetValid   Rule = "ca_not_yet_valid"   // the next certificate of a CA, which would hide the one in force
)

// The rules of session ticket keys and of generic secrets.
const (
	RuleEmptyTicketKeys    Rule = "empty_ticket_keys"    // no key given
	RuleTooManyTicketKeys  Rule = "too_many_ticket_keys" // more than MaxTicketKeys
	RuleTicketKeySize      Rule = "ticket_key_size"      // not TicketKeySize bytes
	RuleTicketKeyWeak      Rule = "ticket_key_weak"      // a part of it is one byte over and over
	RuleDuplicateTicketKey Rule = "duplicate_ticket_key" // two keys of one name
	RuleEmptyGeneric       Rule = "empty_generic"        // no content
	RuleGenericTooLarge    Rule = "generic_too_large"    // more than MaxGenericSize bytes
)

// The rules of the leaf certificate and its key.
const (
	RuleKeyMismatch       Rule = "key_mismatch"       // the key belongs to no certificate of the chain
	RuleLeafNotFirst      Rule = "leaf_not_first"     // the key belongs to a later certificate of the chain
	RuleKeyType           Rule = "key_type"           // a key of a kind or size that Envoy or clients refuse
	RuleCALeaf            Rule = "ca_leaf"            // the leaf is a CA certificate
	RuleNoSAN             Rule = "no_san"             // no DNS name and no IP address; clients ignore the common name
	RuleSANMalformed      Rule = "san_malformed"      // a DNS name that no client can match
	RuleEKU               Rule = "eku"                // not for server authentication
	RuleKeyUsage          Rule = "key_usage"          // key usage without digitalSignature
	RuleMustStaple        Rule = "must_staple"        // wants an OCSP staple (RFC 7633), and none is served
	RuleCriticalExtension Rule = "critical_extension" // a critical extension that clients do not know
	RuleWeakSignature     Rule = "weak_signature"     // signed with MD5, SHA-1, DSA or something unknown
	RuleValidity          Rule = "validity"           // NotAfter is not later than NotBefore
	RuleSerial            Rule = "serial"             // a serial number of more than 20 bytes
)

// The rules of the chain above the leaf.
const (
	RuleChainOrder           Rule = "chain_order"           // the right certificates in the wrong order
	RuleChainSignature       Rule = "chain_signature"       // the next certificate has the issuer's name but not its key
	RuleChainKeyID           Rule = "chain_key_id"          // the key identifiers of a certificate and its issuer differ
	RuleUnrelatedCertificate Rule = "unrelated_certificate" // a certificate that issued none of the others
	RuleDuplicateCertificate Rule = "duplicate_certificate" // the same certificate twice
	RuleIssuerNotCA          Rule = "issuer_not_ca"         // an issuer in the chain that may not issue
	RuleChainIncomplete      Rule = "chain_incomplete"      // a leaf without the intermediate that issued it
)

// The rules that need a clock or an expectation; see [Secret.Validate].
const (
	RuleNotYetValid       Rule = "not_yet_valid"        // the leaf's NotBefore lies ahead
	RuleExpired           Rule = "expired"              // the leaf's NotAfter has passed
	RuleShortLife         Rule = "short_life"           // too little life is left to be worth serving
	RuleIssuerNotYetValid Rule = "issuer_not_yet_valid" // the NotBefore of an issuer in the chain lies ahead
	RuleIssuerExpired     Rule = "issuer_expired"       // the NotAfter of an issuer in the chain has passed
	RuleNoExpectedName    Rule = "no_expected_name"     // the expectation has no name and does not say AnyNames
	RuleSANMissing        Rule = "san_missing"          // a wanted name that no SAN covers
	RuleKeyTypeUnwanted   Rule = "key_type_unwanted"    // another key type than wanted
	RulePublicKeyUnwanted Rule = "public_key_unwanted"  // another public key than wanted
	RuleUntrusted         Rule = "untrusted"            // does not verify to the expected roots
	RulePathLength        Rule = "path_length"          // more intermediates than one of them allows
	RuleNameConstraints   Rule = "name_constraints"     // a name that an issuer in the chain may not certify
	RuleCertificationPath Rule = "certification_path"   // not a valid path for another reason (RFC 5280, Section 6)
)

// hints says for each rule what a person can do about it.
var hints = map[Rule]string{
	RuleName:                 "name the secret as Envoy asks for it, such as www.example.com",
	RuleEmptyChain:           "give the leaf certificate and its intermediates in PEM",
	RuleEmptyKey:             "give the private key in PEM",
	RuleTooLarge:             "keep only the leaf and its intermediates in the chain, and one key in the key",
	RuleTooManyCertificates:  "keep only the leaf and its intermediates; a CA bundle does not belong here",
	RuleDER:                  "convert it: openssl x509 -inform DER -in FILE -out FILE.pem (for a key: openssl pkey)",
	RulePEMTrailing:          "keep only the PEM blocks: sed -n '/^-----BEGIN/,/^-----END/p' FILE",
	RulePEMGarbage:           "export the block again; each BEGIN and END needs a line of its own, with base64 between",
	RulePEMTruncated:         "the file was probably cut while it was copied: copy it again",
	RulePEMType:              "a chain holds CERTIFICATE blocks, a key one PRIVATE KEY, RSA PRIVATE KEY or EC PRIVATE KEY",
	RuleKeyInChain:           "take the private key out of the chain and give it as the key",
	RuleCertificateInKey:     "take the certificates out of the key and give them as the chain",
	RuleSeveralKeys:          "keep only the key of the leaf",
	RuleEncryptedKey:         "decrypt it first: openssl pkey -in FILE -out FILE.pem",
	RuleCertificateMalformed: "look at the block with openssl x509 -text and export it again",
	RuleKeyMalformed:         "look at the key with openssl pkey -noout -check and export it again",

	RuleEmptyCA:         "give the certificates of the CAs in PEM",
	RuleCATooLarge:      "keep only the CAs whose certificates are to be accepted",
	RuleKeyInCA:         "take the private key out, and replace it: every Envoy would have got it",
	RuleNotCA:           "give the certificate of the CA that issued it (basicConstraints=CA:TRUE, keyUsage with keyCertSign)",
	RuleCANamesTooLarge: "keep only the CAs whose certificates are to be accepted",
	RuleCANotYetValid:   "add it when it begins; until then the one in force is enough",
	RuleNoValidCA:       "check this machine's clock, or give the CA certificates that are in force now",

	RuleEmptyTicketKeys:    "give at least one key: openssl rand 80",
	RuleTooManyTicketKeys:  "keep fewer keys, or rotate them less often",
	RuleTicketKeySize:      "make keys of 80 bytes: openssl rand 80",
	RuleTicketKeyWeak:      "make keys of random bytes: openssl rand 80",
	RuleDuplicateTicketKey: "make another key: its first 16 bytes are the name by which it is found",
	RuleEmptyGeneric:       "write the secret into the file",
	RuleGenericTooLarge:    "give only the secret; SDS is no way to send large files",

	RuleKeyMismatch:       "find the key that the certificate was requested with, or issue a new pair",
	RuleLeafNotFirst:      "put the leaf first, then the certificate that issued it, and so on",
	RuleKeyType:           "use ECDSA P-256, P-384 or P-521, Ed25519, or RSA with 2048 to 8192 bits",
	RuleCALeaf:            "issue a leaf with basicConstraints=CA:FALSE (openssl req -x509 makes a CA by default)",
	RuleNoSAN:             "issue it with subjectAltName: clients no longer look at the common name",
	RuleSANMalformed:      "issue it with plain host names; a * may only be the whole leftmost label",
	RuleEKU:               "issue it with extendedKeyUsage=serverAuth",
	RuleKeyUsage:          "issue it with keyUsage=digitalSignature",
	RuleMustStaple:        "issue it without must-staple: no OCSP staple is served",
	RuleCriticalExtension: "issue it without that extension, or with the extension not critical",
	RuleWeakSignature:     "have it signed with SHA-256 or better",
	RuleValidity:          "issue it with an end after its begin",
	RuleSerial:            "issue it with a serial number of at most 20 bytes",

	RuleChainOrder:           "put each certificate behind the one that it issued: leaf, intermediate, and so on",
	RuleChainSignature:       "the CA probably has a newer certificate under the same name: fetch the chain again",
	RuleChainKeyID:           "fetch the chain again: the authorityKeyIdentifier names another key of the CA",
	RuleUnrelatedCertificate: "remove it, or replace it by the intermediate that issued the one before it",
	RuleDuplicateCertificate: "remove the second one",
	RuleIssuerNotCA:          "replace it by the CA certificate that issued the one before it",
	RuleChainIncomplete:      "append the intermediate certificate of the CA to the chain",

	RuleNotYetValid:       "check this machine's clock, or wait",
	RuleExpired:           "issue a new one",
	RuleShortLife:         "issue a new one",
	RuleIssuerNotYetValid: "check this machine's clock, or fetch the chain of the CA again",
	RuleIssuerExpired:     "fetch the chain of the CA again",
	RuleNoExpectedName:    "say which names the certificate has to cover, or that any will do",
	RuleSANMissing:        "issue it for this name, too; a wildcard covers exactly one label",
	RuleKeyTypeUnwanted:   "issue it with the configured key type, or change the configuration",
	RulePublicKeyUnwanted: "the certificate answers another request: order it again",
	RuleUntrusted:         "check that the chain is complete, and that the expected roots are those of this CA",
	RulePathLength:        "ask the CA for a chain that it may issue",
	RuleNameConstraints:   "ask a CA that may certify this name",
	RuleCertificationPath: "ask the CA for a valid chain",
}

// Error is one rule that a secret breaks. A secret that breaks several gets one Error for each, joined by [errors.Join];
// [errors.AsType] with *Error finds the first, [Rules] and [Hints] list all.
type Error struct {
	Secret string // name of the secret, as given: possibly not a valid one
	Rule   Rule
	Detail string // what is wrong and where, such as "chain: line 12: ..."; never any content of a key
	Hint   string // what to do about it, for a person
}

// Error says which secret is wrong, what, and where. The hint is not part of it, because commands show it on its own.
func (e *Error) Error() string {
	return fmt.Sprintf("secret %q: %s", e.Secret, e.Detail)
}

// Problems lists every [Error] in err, in order. It looks through joined and wrapped errors.
func Problems(err error) []*Error {
	var all []*Error
	walk(err, func(e *Error) { all = append(all, e) })
	return all
}

// Rules lists the rule of every [Error] in err, in order. It looks through joined and wrapped errors.
func Rules(err error) []Rule {
	var rules []Rule
	walk(err, func(e *Error) { rules = append(rules, e.Rule) })
	return rules
}

// Hints lists the hint of every [Error] in err, in order, each text once.
func Hints(err error) []string {
	var texts []string
	walk(err, func(e *Error) {
		if e.Hint != "" && !slices.Contains(texts, e.Hint) {
			texts = append(texts, e.Hint)
		}
	})
	return texts
}

// walk calls visit for each Error in the tree of err, depth first.
func walk(err error, visit func(*Error)) {
	switch e := err.(type) { //nolint:errorlint // this is the traversal that errors.As does, but over all matches
	case nil:
	case *Error:
		visit(e)
	case interface{ Unwrap() []error }:
		for _, child := range e.Unwrap() {
			walk(child, visit)
		}
	case interface{ Unwrap() error }:
		walk(e.Unwrap(), visit)
	}
}

// maxProblems bounds what one secret can report: hostile input could break a rule thousands of times.
const maxProblems = 50

// problems collects what is wrong with one secret.
type problems struct {
	secret string
	chain  []*x509.Certificate // as given, to say which one is meant; nil before it is parsed
	errs   []error
}

// add records that a rule is broken, with the hint of that rule. What comes after maxProblems is dropped.
func (p *problems) add(rule Rule, format string, args ...any) {
	if len(p.errs) == maxProblems {
		return
	}
	p.errs = append(p.errs, &Error{Secret: p.secret, Rule: rule, Detail: fmt.Sprintf(format, args...), Hint: hints[rule]})
}

// found reports whether any rule is broken.
func (p *problems) found() bool { return len(p.errs) > 0 }

// err joins all problems; nil when there are none.
func (p *problems) err() error { return errors.Join(p.errs...) }

// describe says by number and name which certificate of the chain is meant. The name is bounded and quoted, because it is
// foreign text.
func (p *problems) describe(c *x509.Certificate) string {
	number := slices.Index(p.chain, c) + 1
	name := c.Subject.CommonName
	if name == "" && len(c.DNSNames) > 0 {
		name = c.DNSNames[0]
	}
	if name == "" {
		return fmt.Sprintf("certificate %d", number)
	}
	return fmt.Sprintf("certificate %d (%.80q)", number, name)
}
