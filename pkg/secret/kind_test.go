package secret

import (
	"bytes"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

// otherRefusal is one row: a secret of another kind than a certificate that breaks exactly these rules.
type otherRefusal struct {
	name  string
	parse func(t *testing.T, w *world) (*Secret, error)
	rules []Rule
}

func ca(inputs ...[]byte) (*Secret, error) { return ParseValidationContext("corp-ca", inputs...) }

func newTicketKey(t testing.TB) []byte {
	t.Helper()
	key := make([]byte, TicketKeySize)
	rand.Read(key) // never fails
	return key
}

func ticketKeys(t testing.TB, n int) [][]byte {
	t.Helper()
	var keys [][]byte
	for range n {
		keys = append(keys, newTicketKey(t))
	}
	return keys
}

func TestRefusesOtherKinds(t *testing.T) {
	w := newWorld(t)
	for _, row := range slices.Concat(envoyRejectsKinds, caRules, ticketRules, genericRules) {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s, err := row.parse(t, w)
			if err == nil {
				err = s.Validate(now, Expectation{})
			}
			if got := Rules(err); !slices.Equal(got, row.rules) {
				t.Fatalf("got rules %q, want %q: %v", got, row.rules, err)
			}
			if !strings.HasPrefix(err.Error(), "secret ") || len(Hints(err)) == 0 {
				t.Errorf("got error %q with hints %q, want the name of the secret and a hint", err, Hints(err))
			}
		})
	}
}

var caRules = []otherRefusal{
	{"nothing", func(*testing.T, *world) (*Secret, error) { return ca() }, []Rule{RuleEmptyCA}},
	{"white space", func(*testing.T, *world) (*Secret, error) { return ca([]byte("\n \n"), nil) }, []Rule{RuleEmptyCA}},
	{"no name", func(_ *testing.T, w *world) (*Secret, error) {
		return ParseValidationContext("", chainText(w.root.cert))
	}, []Rule{RuleName}},
	{"junk beside a CA", func(_ *testing.T, w *world) (*Secret, error) {
		return ca(chainText(w.root.cert), []byte("junk"))
	}, []Rule{RulePEMTrailing}},
	{"what is left of a block", func(_ *testing.T, w *world) (*Secret, error) {
		_, rest, _ := bytes.Cut(chainText(w.middle.cert), []byte("\n"))
		return ca(join([]byte("# Root\n"), chainText(w.root.cert), rest))
	}, []Rule{RulePEMTrailing}},
	{"one line that is left of a block", func(_ *testing.T, w *world) (*Secret, error) {
		line := bytes.Split(chainText(w.middle.cert), []byte("\n"))[1]
		return ca(join(chainText(w.root.cert), line))
	}, []Rule{RulePEMTrailing}},
	{"a BEGIN line that is indented", func(_ *testing.T, w *world) (*Secret, error) {
		return ca(join(chainText(w.root.cert), []byte(" -----BEGIN CERTIFICATE-----\n")))
	}, []Rule{RulePEMTrailing}},
	{"comments only", func(*testing.T, *world) (*Secret, error) { return ca([]byte("# Root\n")) }, []Rule{RulePEMTrailing}},
	{"cut off", func(_ *testing.T, w *world) (*Secret, error) {
		text := chainText(w.root.cert, w.middle.cert)
		return ca(text[:len(text)-40])
	}, []Rule{RulePEMTruncated}},
	{"DER", func(_ *testing.T, w *world) (*Secret, error) { return ca(w.root.cert.Raw) }, []Rule{RuleDER}},
	{"a CRL", func(_ *testing.T, w *world) (*Secret, error) {
		return ca(chainText(w.root.cert), encodePEM("X509 CRL", []byte("x")))
	}, []Rule{RulePEMType}},
	{"no certificate in the block", func(_ *testing.T, w *world) (*Secret, error) {
		return ca(chainText(w.root.cert), encodePEM(labelCertificate, []byte("x")))
	}, []Rule{RuleCertificateMalformed}},
	{"a private key", func(t *testing.T, w *world) (*Secret, error) {
		return ca(chainText(w.root.cert), keyText(t, w.key))
	}, []Rule{RuleKeyInCA}},
	{"an encrypted private key", func(_ *testing.T, w *world) (*Secret, error) {
		return ca(join(encodePEM(labelEncrypted, []byte("x")), chainText(w.root.cert)))
	}, []Rule{RuleKeyInCA}},
	{"a leaf", func(_ *testing.T, w *world) (*Secret, error) { return ca(chainText(w.leaf, w.root.cert)) }, []Rule{RuleNotCA}},
	{"a CA that may not sign", func(t *testing.T, _ *world) (*Secret, error) {
		return ca(chainText(newRoot(t, "Mute", func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageCRLSign }).cert))
	}, []Rule{RuleNotCA}},
	{"weak key", func(t *testing.T, _ *world) (*Secret, error) {
		return ca(chainText(newRootWithKey(t, "Weak", newRSAKey(t, 1024)).cert))
	}, []Rule{RuleKeyType}},
	{"unknown critical extension", func(t *testing.T, _ *world) (*Secret, error) {
		return ca(chainText(newRoot(t, "Critical", extension(true, []byte{5, 0}, 1, 2, 3, 4)).cert))
	}, []Rule{RuleCriticalExtension}},
	{"no life", func(t *testing.T, _ *world) (*Secret, error) {
		return ca(chainText(newRoot(t, "Short", func(c *x509.Certificate) { c.NotAfter = c.NotBefore }).cert))
	}, []Rule{RuleValidity}},
	{"too large", func(_ *testing.T, w *world) (*Secret, error) {
		return ca(chainText(w.root.cert), bytes.Repeat([]byte("\n"), MaxCASize))
	}, []Rule{RuleCATooLarge}},
	{"too large only with usual lines", func(t *testing.T, _ *world) (*Secret, error) {
		big := newRoot(t, "Big", extension(false, make([]byte, MaxCASize*3/4-1000), 1, 2, 3, 4)).cert
		text := base64.StdEncoding.EncodeToString(big.Raw)
		return ca([]byte("-----BEGIN CERTIFICATE-----\n" + text + "\n-----END CERTIFICATE-----\n"))
	}, []Rule{RuleCATooLarge}},
	{"too many names", func(t *testing.T, _ *world) (*Secret, error) {
		long := newRoot(t, "", func(c *x509.Certificate) {
			for range 700 {
				c.Subject.OrganizationalUnit = append(c.Subject.OrganizationalUnit, strings.Repeat("x", 90))
			}
		})
		return ca(chainText(long.cert))
	}, []Rule{RuleCANamesTooLarge}},
	{"all expired", func(_ *testing.T, w *world) (*Secret, error) { return ca(chainText(w.oldRoot.cert)) }, []Rule{RuleNoValidCA}},
	{"the next certificate of the same CA", func(t *testing.T, w *world) (*Secret, error) {
		next := newRootWithKey(t, "Root", w.root.key, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), begin.AddDate(9, 0, 0) })
		return ca(chainText(w.root.cert, next.cert))
	}, []Rule{RuleCANotYetValid}},
	{"all later", func(t *testing.T, _ *world) (*Secret, error) {
		return ca(chainText(newRoot(t, "Later", func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) }).cert))
	}, []Rule{RuleNoValidCA}},
}

var ticketRules = []otherRefusal{
	{"no ticket key", func(*testing.T, *world) (*Secret, error) { return NewTicketKeys("tickets", nil) }, []Rule{RuleEmptyTicketKeys}},
	{"name of ticket keys", func(t *testing.T, _ *world) (*Secret, error) {
		return NewTicketKeys("*", ticketKeys(t, 1))
	}, []Rule{RuleName}},
	{"too many ticket keys", func(t *testing.T, _ *world) (*Secret, error) {
		return NewTicketKeys("tickets", ticketKeys(t, MaxTicketKeys+1))
	}, []Rule{RuleTooManyTicketKeys}},
	{"long ticket key", func(t *testing.T, _ *world) (*Secret, error) {
		return NewTicketKeys("tickets", [][]byte{append(newTicketKey(t), 1)})
	}, []Rule{RuleTicketKeySize}},
	{"zeros", func(*testing.T, *world) (*Secret, error) {
		return NewTicketKeys("tickets", [][]byte{make([]byte, TicketKeySize)})
	}, []Rule{RuleTicketKeyWeak}},
	{"AES key of zeros", func(t *testing.T, _ *world) (*Secret, error) {
		key := newTicketKey(t)
		clear(key[48:])
		return NewTicketKeys("tickets", [][]byte{key})
	}, []Rule{RuleTicketKeyWeak}},
	{"two ticket keys of one name", func(t *testing.T, _ *world) (*Secret, error) {
		keys := ticketKeys(t, 2)
		copy(keys[1], keys[0][:16])
		return NewTicketKeys("tickets", keys)
	}, []Rule{RuleDuplicateTicketKey}},
}

var genericRules = []otherRefusal{
	{"empty generic", func(*testing.T, *world) (*Secret, error) { return NewGeneric("token", nil) }, []Rule{RuleEmptyGeneric}},
	{"name of a generic", func(*testing.T, *world) (*Secret, error) { return NewGeneric(" token", []byte("x")) }, []Rule{RuleName}},
	{"large generic", func(*testing.T, *world) (*Secret, error) {
		return NewGeneric("token", make([]byte, MaxGenericSize+1))
	}, []Rule{RuleGenericTooLarge}},
}

// TestCABundleIsASet is the reason for the canonical order: neither order, nor spelling, nor repetition makes another version.
func TestCABundleIsASet(t *testing.T) {
	w := newWorld(t)
	other := newRoot(t, "Other").cert
	key := []byte("key")
	want := mustCA(t, chainText(w.root.cert, other)).Version(key)
	for name, inputs := range map[string][][]byte{
		"other order":     {chainText(other, w.root.cert)},
		"two files":       {chainText(other), chainText(w.root.cert)},
		"twice":           {chainText(other, w.root.cert), chainText(other)},
		"CRLF":            {bytes.ReplaceAll(chainText(w.root.cert, other), []byte("\n"), []byte("\r\n"))},
		"no last line":    {bytes.TrimSpace(chainText(w.root.cert)), chainText(other)},
		"and white space": {chainText(w.root.cert, other), []byte("\n")},
		"comments as in the bundles of distributions": {
			join([]byte("##\n## Roots: \"x\"\n##\n\n# Root\n"), chainText(w.root.cert), []byte("\nOther\n"+strings.Repeat("=", 44)+"\n"), chainText(other)),
		},
		"comments as of openssl": {
			join([]byte("Bag Attributes\n    localKeyID: 01 02\nsubject=CN = Root\n\n"), chainText(w.root.cert),
				[]byte("Certificate:\n    Data:\n        Version: 3 (0x2)\n         5d:"+strings.Repeat("ff:", 17)+"\n-----\n"), chainText(other)),
		},
	} {
		if got := mustCA(t, inputs...).Version(key); got != want {
			t.Errorf("%s: got version %s, want %s", name, got, want)
		}
	}
	if got := mustCA(t, chainText(other)).Version(key); got == want {
		t.Error("one CA less: got the same version, want another")
	}
}

// oldRootText is a root as they were before X.509 version 3, by openssl 3.0.
const oldRootText = `-----BEGIN CERTIFICATE-----
MIIBDjCBtgIBATAKBggqhkjOPQQDAjATMREwDwYDVQQDDAhPbGQgUm9vdDAgFw0y
NjExMjQxMDQ1MjJaGA8yMTI2MTAzMTEwNDUyMlowEzERMA8GA1UEAwwIT2xkIFJv
b3QwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATkccu8XW5ZpUOCekf26lbW8nQ8
YiYZ/OkxKjTUijY7H39quqzXk0ez9fZAfKL/eRmBOG0Rf8VgZZhgyAhKjyNQMAoG
CCqGSM49BAMCA0cAMEQCIGaGBnQxgFpEu9+2Y9JMv+49S7T0N3rRvsfkf4ct20ZM
AiBhnzId7qO70fN4XTrr9C6KW1GAwPf0HgvOdSv1NmdQPw==
-----END CERTIFICATE-----
`

func TestRootOfBeforeVersion3IsAccepted(t *testing.T) {
	if c := mustCA(t, []byte(oldRootText)).Chain()[0]; c.Version != 1 || c.IsCA {
		t.Errorf("got version %d, CA %v: shows nothing", c.Version, c.IsCA)
	}
}

func mustCA(t testing.TB, inputs ...[]byte) *Secret {
	t.Helper()
	s, err := ca(inputs...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestExpiredCAAmongValidOnesStays is a decision: see ParseValidationContext. A newer certificate of the same CA comes first.
func TestExpiredCAAmongValidOnesStays(t *testing.T) {
	w := newWorld(t)
	s := mustCA(t, chainText(w.oldRoot.cert, w.root.cert))
	if err := s.Validate(now, Expectation{}); err != nil {
		t.Errorf("got %v, want no error", err)
	}
	if want := chainText(w.root.cert, w.oldRoot.cert); !bytes.Equal(s.ChainPEM(), want) {
		t.Errorf("got %d certificates in another order, want the newer first", len(s.Chain()))
	}
	if got := s.NotAfter(); !got.Equal(w.root.cert.NotAfter) {
		t.Errorf("not after: got %v, want %v", got, w.root.cert.NotAfter)
	}
	if got := s.NextCAEnd(now); !got.Equal(w.root.cert.NotAfter) {
		t.Errorf("next end: got %v, want %v", got, w.root.cert.NotAfter)
	}
	if got := s.NextCAEnd(w.oldRoot.cert.NotAfter.Add(-1)); !got.Equal(w.oldRoot.cert.NotAfter) {
		t.Errorf("next end before the first: got %v, want %v", got, w.oldRoot.cert.NotAfter)
	}
	if got := s.NextCAEnd(w.root.cert.NotAfter); !got.IsZero() {
		t.Errorf("next end after the last: got %v, want none", got)
	}
}

func TestLaterCAThatHidesNoneIsAccepted(t *testing.T) {
	w := newWorld(t)
	later := func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Hour), begin.AddDate(9, 0, 0) }
	for name, next := range map[string]authority{"another CA": newRoot(t, "Next", later), "another key": newRoot(t, "Root", later)} {
		if err := mustCA(t, chainText(w.root.cert, next.cert)).Validate(now, Expectation{}); err != nil {
			t.Errorf("%s: got %v, want no error", name, err)
		}
	}
}

// TestRootsOfTheWebFit guards the bounds: the CA certificates that a Linux distribution trusts are a bundle that people use. They
// are 150 with 1,100 bytes each, and subjects of 110 bytes.
func TestRootsOfTheWebFit(t *testing.T) {
	var bundle []byte
	key := newKey(t, elliptic.P256())
	for range 150 {
		bundle = append(bundle, chainText(newRootWithKey(t, "Some Certification Authority Root Class 3 G5", key, extension(false, make([]byte, 600), 1, 2, 3, 4),
			func(c *x509.Certificate) {
				c.Subject.Organization, c.Subject.Country = []string{"Some Certification Authority Limited"}, []string{"XX"}
			}).cert)...)
	}
	if len(bundle) < 220<<10 {
		t.Fatalf("the bundle has %d bytes: too few to show anything", len(bundle))
	}
	mustCA(t, bundle)
}

func TestOtherKindsHaveNothingOfACertificate(t *testing.T) {
	tickets, generic := private(t)
	for _, s := range []*Secret{tickets, generic} {
		if s.Leaf() != nil || s.Chain() != nil || len(s.ChainPEM()) > 0 || len(s.KeyPEM()) > 0 || s.Serial() != "" || s.SHA256() != "" ||
			s.KeyType() != "" || s.IssuerName() != "" || s.DNSNames() != nil || s.IPAddresses() != nil || !s.NotBefore().IsZero() || !s.NotAfter().IsZero() {
			t.Errorf("%v: got something of a certificate, want nothing", s)
		}
		if err := s.Validate(time.Time{}, Expectation{}); err != nil {
			t.Errorf("%v: got %v, want no rule that needs a clock", s, err)
		}
	}
	w := newWorld(t)
	s := mustCA(t, chainText(w.root.cert))
	if s.Leaf() != nil || s.Serial() != "" || s.IssuerName() != "" || len(s.KeyPEM()) > 0 || len(s.SHA256()) != 64 {
		t.Errorf("%v: got a leaf, or no digest", s)
	}
}

// private is one secret of each kind that is all private.
func private(t testing.TB) (tickets, generic *Secret) {
	t.Helper()
	tickets, err := NewTicketKeys("tickets", ticketKeys(t, 2))
	if err != nil {
		t.Fatal(err)
	}
	generic, err = NewGeneric("token", []byte(hex.EncodeToString(newTicketKey(t))))
	if err != nil {
		t.Fatal(err)
	}
	return tickets, generic
}

func TestOtherKindsArePrintedWithoutContent(t *testing.T) {
	tickets, generic := private(t)
	short, err := NewGeneric("token", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Secret{tickets, generic} {
		var traces []string
		for _, part := range s.parts() {
			traces = append(traces, string(part[:16]), hex.EncodeToString(part[:16]), strings.ToUpper(hex.EncodeToString(part[:16])),
				strings.Trim(fmt.Sprintf("%d", part[:16]), "[]"), base64.StdEncoding.EncodeToString(part)[:20])
		}
		type holder struct {
			hidden Secret
			Public *Secret
		}
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).InfoContext(t.Context(), "stored", "secret", s, "value", *s)
		text, err := json.Marshal([]any{s, *s, holder{*s, s}})
		if err != nil {
			t.Fatal(err)
		}
		shown := log.String() + string(text)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%c"} {
			for _, value := range []any{s, *s, holder{*s, s}, []Secret{*s}} {
				shown += fmt.Sprintf(verb, value)
			}
		}
		checkNoTrace(t, string(s.Kind()), shown, traces)
		if !strings.Contains(shown, s.Name()) || !strings.Contains(shown, string(s.Kind())) {
			t.Errorf("got %.200q, want name and kind", shown)
		}
	}
	if got, want := fmt.Sprint(short), fmt.Sprint(generic); got != want {
		t.Errorf("two contents are printed as %q and %q: the length shows", got, want)
	}
}

func TestPrivateContentIsACopy(t *testing.T) {
	keys := ticketKeys(t, 2)
	tickets, err := NewTicketKeys("tickets", keys)
	if err != nil {
		t.Fatal(err)
	}
	data := []byte("token")
	generic, err := NewGeneric("token", data)
	if err != nil {
		t.Fatal(err)
	}
	versions := []Version{tickets.Version(nil), generic.Version(nil)}
	clear(keys[0])
	clear(data)
	clear(tickets.TicketKeys()[1])
	clear(generic.Generic())
	if got := []Version{tickets.Version(nil), generic.Version(nil)}; !slices.Equal(got, versions) {
		t.Error("got secrets that changed with what they were made of, want them unchanged")
	}
	if !bytes.Equal(generic.Generic(), []byte("token")) || !bytes.Equal(tickets.TicketKeys()[1], keys[1]) {
		t.Error("got another content than was given")
	}
}

func TestVersionOfOtherKindsDependsOnContent(t *testing.T) {
	key := []byte("key")
	keys := ticketKeys(t, 2)
	version := func(s *Secret, err error) Version {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s.Version(key)
	}
	seen := map[Version]string{}
	for name, v := range map[string]Version{
		"two keys":       version(NewTicketKeys("a", keys)),
		"other order":    version(NewTicketKeys("a", [][]byte{keys[1], keys[0]})),
		"one key":        version(NewTicketKeys("a", keys[:1])),
		"generic":        version(NewGeneric("a", keys[0])),
		"longer generic": version(NewGeneric("a", slices.Concat(keys...))),
	} {
		if other, known := seen[v]; known {
			t.Errorf("%s and %s: got one version, want two", name, other)
		}
		seen[v] = name
	}
	if version(NewTicketKeys("b", keys)) != version(NewTicketKeys("a", keys)) {
		t.Error("other name: got another version, want the same")
	}
}

// TestVersionsOfOtherKindsAreStable pins the digests: see TestVersionIsStable.
func TestVersionsOfOtherKindsAreStable(t *testing.T) {
	ring := make([]byte, TicketKeySize)
	for i := range ring {
		ring[i] = byte(i)
	}
	tickets, err := NewTicketKeys("tickets", [][]byte{ring})
	if err != nil {
		t.Fatal(err)
	}
	generic, err := NewGeneric("token", []byte("token"))
	if err != nil {
		t.Fatal(err)
	}
	root := parse(t, golden(t)).ChainPEM()
	block, _ := pem.Decode(root)
	bundle := &Secret{name: "ca", kind: KindValidationContext, content: func() *content { return &content{chainPEM: encodePEM(labelCertificate, block.Bytes)} }}
	key := []byte("0123456789abcdef0123456789abcdef")
	for _, row := range []struct {
		s    *Secret
		want Version
	}{
		{tickets, "775019c178e11bed0d6dbbf1540901d8d66d5881193d4fc64b354940fbb46536"},
		{generic, "c8f9e5b0aa1eb4cea58d5f6a3a2a1f80c608abc87649dd82b1f514dc68826b14"},
		{bundle, "8d467e63d7be3d35d3fe3a5d8f3afadb9c436efdd5608b072298e5b7cd60cf9b"},
	} {
		if got := row.s.Version(key); got != row.want {
			t.Errorf("%s: got %s, want %s", row.s.Kind(), got, row.want)
		}
	}
}

func FuzzParseValidationContext(f *testing.F) {
	w := newWorld(f)
	f.Add(chainText(w.root.cert, w.oldRoot.cert), chainText(w.middle.cert))
	f.Add(chainText(w.leaf), keyText(f, newKey(f, elliptic.P256())))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n"), []byte{0x30, 0})
	f.Fuzz(func(t *testing.T, one, two []byte) {
		s, err := ca(one, two)
		if err != nil {
			if len(Rules(err)) == 0 || strings.Contains(err.Error(), "%!") {
				t.Fatalf("got %q, want an error with rules", err)
			}
			return
		}
		again := mustCA(t, s.ChainPEM())
		if again.Version(nil) != s.Version(nil) {
			t.Fatalf("canonical form: got version %s, want %s", again.Version(nil), s.Version(nil))
		}
		if err := s.Validate(now, Expectation{}); err == nil && s.NextCAEnd(now).IsZero() {
			t.Fatal("it is valid, but no CA certificate ends")
		}
	})
}

// A file of one line of text is served without the end of the line. Where nothing is left, or too much, it is refused, by `validate` as by the
// running server.
func TestGenericFileIsReadByteByByteButForALineEnd(t *testing.T) {
	for content, want := range map[string]string{
		"token": "token", "token\n": "token", "token\r\n": "token", "to ken \n": "to ken ", "ü\n": "ü",
		"two\nlines\n": "two\nlines\n", "token\n\n": "token\n\n", "\xff\n": "\xff\n", "\x00\n": "\x00\n", "a\tb\n": "a\tb\n",
		strings.Repeat("a", MaxGenericSize) + "\n": strings.Repeat("a", MaxGenericSize),
	} {
		s, err := ParseGeneric("token", []byte(content))
		if err != nil {
			t.Errorf("%.20q: %v", content, err)
		} else if got := string(s.Generic()); got != want {
			t.Errorf("%.20q: got %.20q, want %.20q", content, got, want)
		}
	}
	for content, want := range map[string]Rule{"": RuleEmptyGeneric, "\n": RuleEmptyGeneric, strings.Repeat("a", MaxGenericSize+1) + "\n": RuleGenericTooLarge} {
		if _, err := ParseGeneric("token", []byte(content)); !slices.Equal(Rules(err), []Rule{want}) {
			t.Errorf("%.20q: got %v, want %s", content, err, want)
		}
	}
}
