package secret

import (
	"bytes"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/big"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

func parse(t testing.TB, in input) *Secret {
	t.Helper()
	s, err := ParseCertificate(in.name, in.chain, in.key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAccessorsShowLeaf(t *testing.T) {
	w := newWorld(t)
	in := w.leafWith(t, func(c *x509.Certificate) {
		c.SerialNumber = big.NewInt(0x0abc)
		c.DNSNames = []string{"b.example", "A.Example", "a.example", "*.B.example"}
		c.IPAddresses = append(c.IPAddresses, netip.MustParseAddr("2001:db8::1").AsSlice(), netip.MustParseAddr("192.0.2.1").AsSlice())
		c.NotBefore = begin.In(time.FixedZone("", 3600))
	})
	s := parse(t, in)
	digest := sha256.Sum256(s.Leaf().Raw)
	for _, row := range []struct {
		name      string
		got, want any
	}{
		{"name", s.Name(), "a.example"},
		{"kind", s.Kind(), KindTLSCertificate},
		{"serial", s.Serial(), "0abc"},
		{"sha256", s.SHA256(), hex.EncodeToString(digest[:])},
		{"key type", s.KeyType(), "ecdsa-p256"},
		{"issuer", s.IssuerName(), "Intermediate"},
		{"not before", s.NotBefore(), begin},
		{"not after", s.NotAfter(), begin.Add(life)},
		{"DNS names", fmt.Sprint(s.DNSNames()), "[*.b.example a.example b.example]"},
		{"addresses", fmt.Sprint(s.IPAddresses()), "[192.0.2.1 2001:db8::1]"},
		{"chain length", len(s.Chain()), 2},
		{"chain begins with the leaf", s.Chain()[0] == s.Leaf(), true},
		{"short version", Version("0123456789abcdef").Short(), "0123456789ab"},
		{"short version of a short one", Version("01").Short(), "01"},
	} {
		if row.got != row.want {
			t.Errorf("%s: got %v, want %v", row.name, row.got, row.want)
		}
	}
}

func TestSerialKeepsWholeBytes(t *testing.T) {
	w := newWorld(t)
	for number, want := range map[int64]string{0: "00", 4: "04", 0x80: "80", 0xabc: "0abc", 0xff00: "ff00"} {
		s := parse(t, w.leafWith(t, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(number) }))
		if got := s.Serial(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestIssuerWithoutCommonNameHasWholeName(t *testing.T) {
	w := newWorld(t)
	middle := w.root.newCA(t, "", func(c *x509.Certificate) { c.Subject = pkix.Name{Organization: []string{"Example"}} })
	if got := parse(t, w.under(t, middle)).IssuerName(); got != "O=Example" {
		t.Errorf("got %q, want O=Example", got)
	}
}

// TestSpellingDoesNotMatter is the reason for a canonical encoding: the same pair has one version.
func TestSpellingDoesNotMatter(t *testing.T) {
	w := newWorld(t)
	key := []byte("key")
	want := parse(t, w.good(t))
	crlf := w.good(t)
	crlf.chain = bytes.ReplaceAll(crlf.chain, []byte("\n"), []byte("\r\n"))
	sec1 := w.good(t)
	sec1.key = join(ecParameters, sec1Text(t, w.key))
	oneLine := w.good(t)
	oneLine.chain = join([]byte("-----BEGIN CERTIFICATE-----\n"+base64.StdEncoding.EncodeToString(w.leaf.Raw)+"\n-----END CERTIFICATE-----\n\n"), chainText(w.middle.cert))
	for name, in := range map[string]input{"CRLF": crlf, "SEC 1": sec1, "one long line": oneLine} {
		got := parse(t, in)
		if got.Version(key) != want.Version(key) {
			t.Errorf("%s: got version %s, want %s", name, got.Version(key), want.Version(key))
		}
		if !bytes.Equal(got.ChainPEM(), chainText(w.leaf, w.middle.cert)) || !bytes.Equal(got.KeyPEM(), keyText(t, w.key)) {
			t.Errorf("%s: got another encoding than the canonical one", name)
		}
	}
}

func TestVersionDependsOnContentAlone(t *testing.T) {
	w := newWorld(t)
	hmacKey := []byte("0123456789abcdef0123456789abcdef")
	in := w.good(t)
	first := parse(t, in)
	want := first.Version(hmacKey)

	in.name = "b.example"
	if got := parse(t, in).Version(hmacKey); got != want {
		t.Errorf("other name: got %s, want %s", got, want)
	}
	if got := first.Version(hmacKey[1:]); got == want {
		t.Error("other HMAC key: got the same version, want another")
	}
	if got := with(first, func(s *Secret, _ *content) { s.kind = KindGenericSecret }).Version(hmacKey); got == want {
		t.Error("other kind: got the same version, want another")
	}
	longer := parse(t, w.of(t, w.leaf, w.middle.cert, w.root.cert))
	if got := longer.Version(hmacKey); got == want {
		t.Error("other chain: got the same version, want another")
	}
	otherKey := keyText(t, newKey(t, elliptic.P256()))
	if got := with(first, func(_ *Secret, c *content) { c.keyPEM = otherKey }).Version(hmacKey); got == want {
		t.Error("other private key: got the same version, want another")
	}
	divided := with(first, func(_ *Secret, c *content) {
		last := len(c.chainPEM) - 1
		c.chainPEM, c.keyPEM = c.chainPEM[:last], join(c.chainPEM[last:], c.keyPEM)
	})
	if got := divided.Version(hmacKey); got == want {
		t.Error("same bytes, divided in another way: got the same version, want another")
	}
}

// with is a copy of a secret with something changed that no input can change alone.
func with(s *Secret, change func(*Secret, *content)) *Secret {
	c, changed := *s.content(), *s
	change(&changed, &c)
	changed.content = func() *content { return &c }
	return &changed
}

// TestVersionIsStable pins the digest: a change would give every secret in every store a new version, and every Envoy a push.
func TestVersionIsStable(t *testing.T) {
	s := parse(t, golden(t))
	const want = "cdcb8b8ced64e2b10cc6bd3e31d7855ea48401b99b4d2e10497d6d93db467f7f"
	if got := s.Version([]byte("0123456789abcdef0123456789abcdef")); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// golden is a pair that openssl made: openssl req -x509 -newkey ed25519 -nodes -days 36500 -subj /CN=golden.example, with
// the SAN DNS:golden.example, CA:FALSE, serverAuth and digitalSignature.
func golden(t testing.TB) input {
	t.Helper()
	chain, err := os.ReadFile("testdata/golden/ed25519-self-signed.crt")
	if err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile("testdata/golden/ed25519-self-signed.key")
	if err != nil {
		t.Fatal(err)
	}
	return input{"golden.example", chain, key}
}

func TestReturnedValuesAreCopies(t *testing.T) {
	w := newWorld(t)
	in := w.leafWith(t, func(c *x509.Certificate) { c.IPAddresses = append(c.IPAddresses, []byte{192, 0, 2, 1}) })
	s := parse(t, in)
	before := s.Version(nil)
	chain, key, names, addresses, leaf := s.ChainPEM(), s.KeyPEM(), s.DNSNames(), s.IPAddresses(), s.Leaf()
	clear(in.chain)
	clear(in.key)
	clear(s.ChainPEM())
	clear(s.KeyPEM())
	clear(s.Chain())
	clear(s.DNSNames())
	clear(s.IPAddresses())
	if s.Version(nil) != before || !bytes.Equal(s.ChainPEM(), chain) || !bytes.Equal(s.KeyPEM(), key) ||
		!slices.Equal(s.DNSNames(), names) || !slices.Equal(s.IPAddresses(), addresses) || s.Chain()[0] != leaf {
		t.Error("got a secret that changed with what it returned, want it unchanged")
	}
}

// keyTraces are spellings of a private key, of which none may appear anywhere.
func keyTraces(t testing.TB, text []byte) []string {
	t.Helper()
	traces := []string{labelPKCS8, strings.Trim(fmt.Sprintf("%d", text[30:60]), "[]"), hex.EncodeToString(text[30:60])}
	traces = append(traces, strings.ToUpper(hex.EncodeToString(text[30:60])), base64.StdEncoding.EncodeToString(text)[40:80])
	for line := range strings.Lines(string(text)) {
		if line = strings.TrimSpace(line); !strings.HasPrefix(line, pemTail) && len(line) >= 16 {
			// The first line holds little more than the algorithm; parts of each line are looked for.
			traces = append(traces, line[len(line)-16:])
		}
	}
	return traces
}

func checkNoTrace(t *testing.T, where, text string, traces []string) {
	t.Helper()
	for _, trace := range traces {
		if strings.Contains(text, trace) {
			t.Errorf("%s: got %.200q, which contains %q of the private key", where, text, trace)
		}
	}
}

func TestPrintingShowsNoKey(t *testing.T) {
	s := parse(t, newWorld(t).good(t))
	traces := keyTraces(t, s.KeyPEM())
	checkNoTraceIsMeaningful(t, s, traces)
	type holder struct {
		hidden  Secret
		pointer *Secret
		Public  Secret
		List    []*Secret
	}
	h := holder{*s, s, *s, []*Secret{s}}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "% x", "%#x", "%d", "%o", "%b", "%c", "%U", "%t", "%g", "%p", "%T", "%z"} {
		for _, value := range []any{s, *s, h, &h, []Secret{*s}, map[string]Secret{"a": *s}, []any{s}} {
			checkNoTrace(t, fmt.Sprintf("%s of %T", verb, value), fmt.Sprintf(verb, value), traces)
		}
	}
	for _, value := range []any{s, *s, h, map[string]any{"s": s}} {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		checkNoTrace(t, "JSON", string(text), traces)
	}
	if got := fmt.Sprint(s); !strings.Contains(got, "a.example") || !strings.Contains(got, s.Serial()) {
		t.Errorf("got %q, want the name and the serial number", got)
	}
	if got := fmt.Sprintf("%v %+v", Secret{}, &Secret{}); strings.Contains(got, "PANIC") {
		t.Errorf("got %q for an empty secret, want no panic", got)
	}
}

// checkNoTraceIsMeaningful makes sure that the search would find a key.
func checkNoTraceIsMeaningful(t *testing.T, s *Secret, traces []string) {
	t.Helper()
	key := s.KeyPEM()
	shown := fmt.Sprintf("%s %v %x %X %s", key, key, key, key, base64.StdEncoding.EncodeToString(key))
	for _, trace := range traces {
		if !strings.Contains(shown, trace) {
			t.Fatalf("got a trace %q that no printed key has, want one that is found", trace)
		}
	}
}

func TestLogHasNameAndNoKey(t *testing.T) {
	s := parse(t, newWorld(t).good(t))
	traces := keyTraces(t, s.KeyPEM())
	for name, handler := range map[string]func(*bytes.Buffer) slog.Handler{
		"text": func(b *bytes.Buffer) slog.Handler { return slog.NewTextHandler(b, nil) },
		"JSON": func(b *bytes.Buffer) slog.Handler { return slog.NewJSONHandler(b, nil) },
	} {
		var out bytes.Buffer
		slog.New(handler(&out)).InfoContext(t.Context(), "stored", "secret", s, "value", *s, "list", []any{s, *s})
		checkNoTrace(t, name, out.String(), traces)
		for _, want := range []string{"a.example", "tls_certificate", s.Serial(), "2027-02-22"} {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: got %q, want %q in it", name, out.String(), want)
			}
		}
	}
}

// TestProblemsShowNoKey puts the key where it does not belong, whole and mangled.
func TestProblemsShowNoKey(t *testing.T) {
	w := newWorld(t)
	good := w.good(t)
	traces := keyTraces(t, good.key)[1:] // the label is no secret
	body := bytes.Join(bytes.Split(bytes.TrimSpace(good.key), []byte("\n"))[1:4], []byte("\n"))
	for name, text := range map[string][]byte{
		"body alone":              body,
		"body in the BEGIN line":  join([]byte("-----BEGIN "), body, []byte("-----\n")),
		"body in the END line":    join([]byte("-----BEGIN PRIVATE KEY-----\n-----END "), body, []byte("-----\n")),
		"body as label":           join([]byte("-----BEGIN "), bytes.ToUpper(body[:40]), []byte("-----\nAAAA\n-----END "), bytes.ToUpper(body[:40]), []byte("-----\n")),
		"no END line":             good.key[:len(good.key)-10],
		"a header":                bytes.Replace(good.key, []byte("KEY-----\n"), []byte("KEY-----\nA: b\n"), 1),
		"another label":           bytes.ReplaceAll(good.key, []byte(labelPKCS8), []byte(labelCertificate)),
		"a wrong character":       bytes.Replace(good.key, []byte("\n"), []byte("\n!"), 1),
		"under the label of SEC1": bytes.ReplaceAll(good.key, []byte(labelPKCS8), []byte(labelSEC1)),
		"twice":                   join(good.key, good.key),
		"whole":                   good.key,
	} {
		for where, in := range map[string]input{
			"as chain":         {good.name, text, good.key},
			"behind the chain": {good.name, join(good.chain, text), good.key},
			"as key":           {"\x00", good.chain, text},
		} {
			_, err := ParseCertificate(in.name, in.chain, in.key)
			if err == nil {
				t.Fatalf("%s %s: got no error, want one", name, where)
			}
			checkNoTrace(t, name+" "+where, fmt.Sprintf("%v %+v %#v %q", err, err, err, Hints(err)), traces)
		}
	}
}

func TestRulesOfWrappedErrors(t *testing.T) {
	w := newWorld(t)
	in := w.good(t)
	in.name, in.key = "", nil
	_, err := ParseCertificate(in.name, in.chain, in.key)
	wrapped := fmt.Errorf("import: %w, and %w", err, parse(t, w.good(t)).Validate(now, Expectation{}))
	if got, want := Rules(wrapped), []Rule{RuleName, RuleEmptyKey, RuleNoExpectedName}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := len(Hints(wrapped)); got != 3 {
		t.Errorf("got %d hints, want 3", got)
	}
	if Rules(nil) != nil || Hints(os.ErrNotExist) != nil {
		t.Error("got rules of errors that have none, want none")
	}
}

// TestProblemsAreBounded feeds what breaks a rule thousands of times.
func TestProblemsAreBounded(t *testing.T) {
	in := newWorld(t).good(t)
	in.chain = bytes.Repeat([]byte("-----BEGIN A-----\n-----END A-----\n"), 1900)
	_, err := ParseCertificate(in.name, in.chain, in.key)
	if got := len(Rules(err)); got != maxProblems {
		t.Errorf("got %d problems, want %d", got, maxProblems)
	}
}

func TestProblemsNameCertificateByNumber(t *testing.T) {
	w := newWorld(t)
	nameless := w.middle.newLeaf(t, w.key, func(c *x509.Certificate) { c.Subject = pkix.Name{} })
	bare := w.middle.newLeaf(t, w.key, func(c *x509.Certificate) { c.Subject, c.DNSNames = pkix.Name{}, nil })
	for want, in := range map[string]input{
		`secret "a.example": chain: certificate 3 ("Intermediate") occurs twice`:                            w.of(t, w.leaf, w.middle.cert, w.middle.cert),
		`secret "a.example": chain: the key belongs to certificate 2 ("a.example"), which is not the first`: w.of(t, w.middle.cert, nameless),
		`certificate 2 issued no other certificate`:                                                         w.of(t, w.leaf, bare, w.middle.cert),
	} {
		_, err := ParseCertificate(in.name, in.chain, in.key)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}
