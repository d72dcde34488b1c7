package secret

import (
	"bytes"
	"crypto/ecdh"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
)

// TestRefusesForeignText has the other rules of the input as text.
func TestRefusesForeignText(t *testing.T) { runRefusals(t, textRules) }

var textRules = slices.Concat([]refusal{
	{
		name: "text before the first block", rules: []Rule{RulePEMTrailing},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join([]byte("Bag Attributes\n    friendlyName: a\n"), in.chain)
			return in
		},
	},
	{
		name: "text between blocks", rules: []Rule{RulePEMTrailing},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join(chainText(w.leaf), []byte("issuer\n"), chainText(w.middle.cert))
			return in
		},
	},
	{
		name: "byte order mark", rules: []Rule{RulePEMTrailing},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join([]byte("\ufeff\n"), in.chain)
			return in
		},
	},
	{
		name: "text around the key", rules: []Rule{RulePEMTrailing},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = join(in.key, []byte("password: hunter2\n"))
			return in
		},
	},
	{
		name: "block cut off before the next one", rules: []Rule{RulePEMTruncated},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			first := chainText(w.leaf)
			in.chain = join(first[:bytes.Index(first, []byte(pemEnd))], chainText(w.middle.cert))
			return in
		},
	},
	{
		name: "no line end between two blocks", rules: []Rule{RulePEMGarbage, RulePEMTrailing},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join(bytes.TrimSpace(chainText(w.leaf)), chainText(w.middle.cert))
			return in
		},
	},
	{
		name: "END line of another type", rules: []Rule{RulePEMGarbage},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = bytes.Replace(in.chain, []byte("END CERTIFICATE"), []byte("END CERTIFICATES"), 1)
			return in
		},
	},
	{
		name: "BEGIN line that is not one", rules: []Rule{RulePEMGarbage},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = bytes.Replace(in.chain, []byte("BEGIN CERTIFICATE-----"), []byte("BEGIN CERTIFICATE---"), 1)
			return in
		},
	},
	{
		name: "header lines in a certificate", rules: []Rule{RulePEMGarbage},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = bytes.Replace(in.chain, []byte("BEGIN CERTIFICATE-----\n"), []byte("BEGIN CERTIFICATE-----\nA: b\n\n"), 1)
			return in
		},
	},
	{
		name: "block without content", rules: []Rule{RulePEMGarbage},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = append(in.chain, "-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"...)
			return in
		},
	},
	{
		name: "certificate with trailing DER", rules: []Rule{RuleCertificateMalformed},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join(encodePEM(labelCertificate, append(bytes.Clone(w.leaf.Raw), 0)), chainText(w.middle.cert))
			return in
		},
	},
	{
		name: "PKCS7 block", rules: []Rule{RulePEMType},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = append(in.chain, encodePEM("PKCS7", []byte{0x30, 0})...)
			return in
		},
	},
	{
		name: "key in the chain", rules: []Rule{RuleKeyInChain},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join(in.chain, in.key)
			return in
		},
	},
	{
		name: "certificate in the key", rules: []Rule{RuleCertificateInKey},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = join(in.key, chainText(w.leaf))
			return in
		},
	},
	{
		name: "chain and key swapped", rules: []Rule{RuleKeyInChain, RuleCertificateInKey, RuleCertificateInKey},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain, in.key = in.key, in.chain
			return in
		},
	},
	{
		name: "two keys", rules: []Rule{RuleSeveralKeys},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = join(in.key, keyText(t, newKey(t, elliptic.P256())))
			return in
		},
	},
	{
		name: "encrypted PKCS#8 key", rules: []Rule{RuleEncryptedKey},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = encodePEM(labelEncrypted, []byte{0x30, 0})
			return in
		},
	},
	{
		name: "key encrypted by headers", rules: []Rule{RuleEncryptedKey},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = []byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END EC PRIVATE KEY-----\n")
			return in
		},
	},
	{
		name: "key with other headers", rules: []Rule{RulePEMGarbage},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = bytes.Replace(in.key, []byte("KEY-----\n"), []byte("KEY-----\nComment: mine\n\n"), 1)
			return in
		},
	},
	{
		name: "EC PARAMETERS alone", rules: []Rule{RulePEMType},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = ecParameters
			return in
		},
	},
	{
		name: "EC PARAMETERS behind the key", rules: []Rule{RulePEMType},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = join(sec1Text(t, w.key), ecParameters)
			return in
		},
	},
	{
		name: "OpenSSH key", rules: []Rule{RulePEMType},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = encodePEM("OPENSSH PRIVATE KEY", []byte("openssh-key-v1"))
			return in
		},
	},
	{
		name: "key that is none", rules: []Rule{RuleKeyMalformed},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = encodePEM(labelPKCS8, []byte("no key"))
			return in
		},
	},
	{
		name: "PKCS#8 key under the label of SEC 1", rules: []Rule{RuleKeyMalformed},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = bytes.ReplaceAll(in.key, []byte(labelPKCS8), []byte(labelSEC1))
			return in
		},
	},
	{
		name: "key that cannot sign", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			key, err := ecdh.X25519().GenerateKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			in := w.good(t)
			in.key = keyText(t, key)
			return in
		},
	},
	{
		name: "RSA key larger than clients take", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			one := big.NewInt(1)
			der, err := asn1.Marshal(struct {
				Version          int
				N, E, D, P, Q, R *big.Int
			}{0, wideModulus(8193), one, one, one, one, one})
			if err != nil {
				t.Fatal(err)
			}
			in := w.good(t)
			in.key = encodePEM(labelPKCS1, der)
			return in
		},
	},
	{
		name: "RSA key of three primes", rules: []Rule{RuleKeyType},
		input: func(t *testing.T, w *world) input {
			key, err := rsa.GenerateMultiPrimeKey(rand.Reader, 3, 2048) //nolint:staticcheck // deprecated, as it should be; such keys exist
			if err != nil {
				t.Fatal(err)
			}
			return input{"a.example", chainText(w.middle.newLeaf(t, key), w.middle.cert), keyText(t, key)}
		},
	},
	{
		name: "chain too large", rules: []Rule{RuleTooLarge},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.chain = join(in.chain, bytes.Repeat([]byte("\n"), MaxChainSize))
			return in
		},
	},
	{
		name: "key too large", rules: []Rule{RuleTooLarge},
		input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.key = join(in.key, bytes.Repeat([]byte("\n"), MaxKeySize))
			return in
		},
	},
	{
		name: "11 certificates", rules: []Rule{RuleTooManyCertificates},
		input: func(t *testing.T, w *world) input {
			chain := []*x509.Certificate{w.root.cert}
			issuer := w.root
			for i := range MaxCertificates - 1 {
				issuer = issuer.newCA(t, fmt.Sprint("Intermediate ", i))
				chain = append([]*x509.Certificate{issuer.cert}, chain...)
			}
			return w.of(t, append([]*x509.Certificate{issuer.newLeaf(t, w.key)}, chain...)...)
		},
	},
}, nameRules())

// nameRules has a row for each bad name of a secret.
func nameRules() []refusal {
	var rows []refusal
	for row, bad := range map[string]string{
		"empty name":                      "",
		"name too long":                   strings.Repeat("a", MaxNameSize+1),
		"name not UTF-8":                  "a\xff",
		"wildcard name":                   "*",
		"name with leading white space":   " a.example",
		"name with trailing white space":  "a.example\u00a0",
		"name with a line end":            "a.example\nb",
		"name with an escape sequence":    "a\x1b[2J",
		"name with a direction override":  "a\u202eelpmaxe",
		"name with only white space":      "  ",
		"name with a zero byte":           "a\x00b",
		"name with a zero width no-break": "a\ufeffb",
	} {
		rows = append(rows, refusal{name: row, rules: []Rule{RuleName}, input: func(t *testing.T, w *world) input {
			in := w.good(t)
			in.name = bad
			return in
		}})
	}
	return rows
}

// ecParameters is what "openssl ecparam -genkey" writes before a P-256 key.
var ecParameters = encodePEM(labelECParameters, []byte{6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7})
