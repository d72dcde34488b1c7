// Package secret is one SDS secret of any kind: parsed, checked, immutable.
//
// It stands between the issuance loop (or an import, or a file) and the store: what comes from a CA or a person is foreign
// text, and what leaves here can be sent to every Envoy. Two steps judge it. [ParseCertificate], [ParseValidationContext],
// [NewTicketKeys] and [NewGeneric] apply every rule that needs neither a clock nor an expectation, [Secret.Validate] the
// others. Together they refuse what Envoy would reject and, more important, what Envoy accepts without a word while its
// clients would not.
//
// Invariants: a [Secret] never changes after it was parsed; what is served is its canonical encoding, never the text that
// came in; equal content has an equal [Version] under the same key; no method but KeyPEM, TicketKeys and Generic gives out
// anything private, not even its length, and no problem quotes its input.
package secret

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"log/slog"
	"net/netip"
	"slices"
	"time"
)

// Kind says what a secret holds. The values are those of the JSON output.
type Kind string

// The kinds of secrets that Envoy knows.
const (
	KindTLSCertificate    Kind = "tls_certificate"
	KindValidationContext Kind = "validation_context"
	KindSessionTicketKeys Kind = "session_ticket_keys"
	KindGenericSecret     Kind = "generic_secret"
)

// Version is the digest of a secret's content: HMAC-SHA-256 over its kind and canonical encoding, without its name, as 64
// lower-case hexadecimal digits. It is the resource version in delta xDS.
type Version string

// Short returns the first 12 digits, for people.
func (v Version) Short() string { return string(v[:min(len(v), 12)]) }

// Secret is one parsed secret. Its methods may be called from several goroutines.
//
// However it is printed, logged or marshalled, it shows its name and validity and nothing private: no key, and of a generic
// secret not even the length.
type Secret struct {
	name string
	kind Kind
	// content is behind a function because that is what neither package fmt nor a reflecting printer looks into: through
	// a pointer, a wrong verb prints the key of a Secret that is an unexported field of something else.
	content func() *content
}

// content is what a secret holds, computed once. What its kind does not have is empty.
type content struct {
	chain     []*x509.Certificate // leaf first; of a validation context all certificates, see sortCAs
	chainPEM  []byte
	keyPEM    []byte
	keyType   string
	dnsNames  []string
	addresses []netip.Addr
	tickets   [][]byte // the first one encrypts
	generic   []byte
}

// Name returns the resource name, such as "www.example.com".
func (s *Secret) Name() string { return s.name }

// Kind returns what the secret holds.
func (s *Secret) Kind() Kind { return s.kind }

// ChainPEM returns a copy of the canonical certificates, one CERTIFICATE block for each and nothing else: of a TLS certificate
// its chain, leaf first; of a validation context its CA certificates. It is empty for the other kinds.
func (s *Secret) ChainPEM() []byte { return slices.Clone(s.content().chainPEM) }

// KeyPEM returns a copy of the canonical private key of a TLS certificate: one PRIVATE KEY block (PKCS#8, RFC 5958). It may
// leave the sealed store only over SDS to an authorised node: never in a log, error, metric or API.
func (s *Secret) KeyPEM() []byte { return slices.Clone(s.content().keyPEM) }

// TicketKeys returns a copy of the session ticket keys, [TicketKeySize] bytes each; the first one encrypts. They are as private
// as KeyPEM.
func (s *Secret) TicketKeys() [][]byte {
	keys := slices.Clone(s.content().tickets)
	for i, key := range keys {
		keys[i] = slices.Clone(key)
	}
	return keys
}

// Generic returns a copy of the content of a generic secret. It is as private as KeyPEM.
func (s *Secret) Generic() []byte { return slices.Clone(s.content().generic) }

// Leaf returns the certificate that the key of a TLS certificate belongs to; nil for the other kinds. It must not be modified.
func (s *Secret) Leaf() *x509.Certificate {
	if s.kind != KindTLSCertificate {
		return nil
	}
	return s.content().chain[0]
}

// Chain returns all certificates: leaf first, or the CA certificates of a validation context. They must not be modified; the
// slice may be.
func (s *Secret) Chain() []*x509.Certificate { return slices.Clone(s.content().chain) }

// DNSNames returns the DNS names of the leaf, lower case, sorted, each once. Wildcards are as in the certificate.
func (s *Secret) DNSNames() []string { return slices.Clone(s.content().dnsNames) }

// IPAddresses returns the IP addresses of the leaf, sorted, each once.
func (s *Secret) IPAddresses() []netip.Addr { return slices.Clone(s.content().addresses) }

// NotBefore returns the first instant at which the secret can be used, in UTC: that of the leaf, or of the first CA certificate
// of a validation context. It is zero for kinds that have no such instant.
func (s *Secret) NotBefore() time.Time {
	switch s.kind {
	case KindTLSCertificate:
		return s.Leaf().NotBefore.UTC()
	case KindValidationContext:
		return first(s.content().chain).UTC()
	}
	return time.Time{}
}

// NotAfter returns the last instant at which the secret can be used, in UTC: that of the leaf (the certificates above it may
// end earlier), or of the last CA certificate of a validation context. It is zero for kinds that never end.
func (s *Secret) NotAfter() time.Time {
	switch s.kind {
	case KindTLSCertificate:
		return s.Leaf().NotAfter.UTC()
	case KindValidationContext:
		return last(s.content().chain).UTC()
	}
	return time.Time{}
}

// Serial returns the leaf's serial number in lower-case hexadecimal, two digits for each byte, without leading zero bytes:
// what "openssl x509 -serial" prints, in lower case. It is empty for the other kinds.
func (s *Secret) Serial() string {
	leaf := s.Leaf()
	if leaf == nil {
		return ""
	}
	serial := leaf.SerialNumber.Bytes()
	if len(serial) == 0 {
		return "00"
	}
	return hex.EncodeToString(serial)
}

// SHA256 returns a digest of what is public, as 64 lower-case hexadecimal digits: of the leaf's DER encoding, which a TLS
// handshake can be compared with, or of the PEM text of a validation context. It is empty for the other kinds: a digest of a
// short generic secret would give it away.
func (s *Secret) SHA256() string {
	public := s.content().chainPEM
	switch s.kind {
	case KindTLSCertificate:
		public = s.Leaf().Raw
	case KindSessionTicketKeys, KindGenericSecret:
		return ""
	}
	sum := sha256.Sum256(public)
	return hex.EncodeToString(sum[:])
}

// KeyType returns "ecdsa-p256", "ecdsa-p384", "ecdsa-p521", "ed25519", or "rsa-N" with N bits, such as "rsa-2048". It is empty
// for the other kinds.
func (s *Secret) KeyType() string { return s.content().keyType }

// IssuerName returns the common name of the leaf's issuer, or its whole distinguished name where it has no common name. It
// is foreign text and may hold any character. It is empty for the other kinds.
func (s *Secret) IssuerName() string {
	leaf := s.Leaf()
	if leaf == nil {
		return ""
	}
	if leaf.Issuer.CommonName == "" {
		return leaf.Issuer.String()
	}
	return leaf.Issuer.CommonName
}

// Version returns the digest of the content under key, which is sealed in the store and should have 32 random bytes. The
// name is not part of it, so the same pair under two names has one version.
func (s *Secret) Version(key []byte) Version {
	mac := hmac.New(sha256.New, key)
	writePart(mac, []byte(s.kind))
	for _, part := range s.parts() {
		writePart(mac, part)
	}
	return Version(hex.EncodeToString(mac.Sum(nil)))
}

// parts is the canonical content.
func (s *Secret) parts() [][]byte {
	c := s.content()
	switch s.kind {
	case KindValidationContext:
		return [][]byte{c.chainPEM}
	case KindSessionTicketKeys:
		return c.tickets
	case KindGenericSecret:
		return [][]byte{c.generic}
	default:
		return [][]byte{c.chainPEM, c.keyPEM}
	}
}

// writePart frames a part by its length (8 bytes, big endian), so that no two lists of parts give the same bytes.
func writePart(h hash.Hash, part []byte) {
	var length [8]byte
	binary.BigEndian.PutUint64(length[:], uint64(len(part)))
	h.Write(length[:]) // a hash never returns an error
	h.Write(part)
}

// LogValue returns name and kind, for package slog, and where the kind has them not_after and serial.
func (s Secret) LogValue() slog.Value {
	attrs := []slog.Attr{slog.String("name", s.name), slog.String("kind", string(s.kind))}
	if s.content == nil {
		return slog.GroupValue(attrs...)
	}
	if end := s.NotAfter(); !end.IsZero() {
		attrs = append(attrs, slog.Time("not_after", end))
	}
	if serial := s.Serial(); serial != "" {
		attrs = append(attrs, slog.String("serial", serial))
	}
	return slog.GroupValue(attrs...)
}

// String describes the secret in one line, without anything private.
func (s Secret) String() string {
	if s.content == nil {
		return fmt.Sprintf("secret %q (empty)", s.name)
	}
	text := string(s.kind)
	if serial := s.Serial(); serial != "" {
		text += ", serial " + serial
	}
	if end := s.NotAfter(); !end.IsZero() {
		text += ", not after " + end.Format(time.RFC3339)
	}
	return fmt.Sprintf("secret %q (%s)", s.name, text)
}

// Format writes what String returns, whatever the verb: %d, %x and %#v would otherwise print the key's bytes.
func (s Secret) Format(f fmt.State, _ rune) {
	io.WriteString(f, s.String()) //nolint:errcheck // a fmt.State keeps its own error
}

// MarshalJSON writes name, kind, not_after and serial. It is no way to store a secret: nothing private is in it.
func (s Secret) MarshalJSON() ([]byte, error) {
	public := struct {
		Name     string     `json:"name"`
		Kind     Kind       `json:"kind"`
		NotAfter *time.Time `json:"not_after"`
		Serial   string     `json:"serial"`
	}{Name: s.name, Kind: s.kind}
	if s.content != nil {
		if end := s.NotAfter(); !end.IsZero() {
			public.NotAfter = &end
		}
		public.Serial = s.Serial()
	}
	return json.Marshal(public)
}
