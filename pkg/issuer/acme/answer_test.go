package acme

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/secret"
)

func TestBadChainIsRefused(t *testing.T) {
	t.Parallel()
	authority, err := issuertest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	// signed makes a chain of a CA that is trusted here, for our key or another one.
	signed := func(o *order, ours bool, leaf issuertest.Leaf) []byte {
		key, err := decodeKey(o.Key)
		if err != nil {
			t.Fatal(err)
		}
		public, ok := key.Public().(*ecdsa.PublicKey)
		if !ok {
			t.Fatal("no ECDSA key")
		}
		if !ours {
			public = &other.PublicKey
		}
		chain, err := authority.Sign(leaf, public)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	valid := issuertest.Leaf{
		Name: "www", DNSNames: []string{"a.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour),
	}
	tests := []struct {
		name   string
		change func(chain []byte, o *order) []byte
		rule   secret.Rule
	}{
		{"leaf alone", func(chain []byte, _ *order) []byte { return blocks(chain)[0] }, secret.RuleChainIncomplete},
		{"reordered", func(chain []byte, _ *order) []byte {
			b := blocks(chain)
			return bytes.Join([][]byte{b[1], b[0]}, nil)
		}, secret.RuleLeafNotFirst},
		{"wrong key", func(_ []byte, o *order) []byte { return signed(o, false, valid) }, secret.RuleKeyMismatch},
		{"wrong name", func(_ []byte, o *order) []byte {
			l := valid
			l.DNSNames = []string{"b.example"}
			return signed(o, true, l)
		}, secret.RuleSANMissing},
		{"expired", func(_ []byte, o *order) []byte {
			l := valid
			l.NotBefore, l.NotAfter = l.NotBefore.Add(-48*time.Hour), l.NotBefore
			return signed(o, true, l)
		}, secret.RuleExpired},
		{"not yet valid", func(_ []byte, o *order) []byte {
			l := valid
			l.NotBefore = time.Now().Add(time.Hour)
			return signed(o, true, l)
		}, secret.RuleNotYetValid},
		{"another root", func(_ []byte, o *order) []byte { return signed(o, true, valid) }, secret.RuleUntrusted},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
				if kind != testenv.KindCert || resp.StatusCode != http.StatusOK {
					return nil
				}
				chain, err := io.ReadAll(resp.Body)
				if err != nil {
					return err
				}
				testenv.ReplaceBody(resp, tt.change(chain, f.storedOrder()))
				return nil
			})
			i := f.issuer(nil)
			s, err := i.Obtain(f.Ready(), request("a.example"))
			if s != nil {
				t.Error("got a certificate")
			}
			wantKind(t, err, issuer.KindRejected, string(tt.rule))
			f.wantNoOrder("after the refusal")
			f.proxy.SetRewrite(nil)
			f.obtain(i, request("a.example"))
		})
	}
}

// blocks splits a PEM chain.
func blocks(chain []byte) [][]byte {
	var out [][]byte
	for {
		block, rest := pem.Decode(chain)
		if block == nil {
			return out
		}
		out = append(out, pem.EncodeToMemory(block))
		chain = rest
	}
}

// TestOddAnswers changes one field of the CA's answers, so that they are well-formed and make no sense.
func TestOddAnswers(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		kinds []testenv.Kind
		field string
		value any
		want  issuer.Kind
		text  string
	}{
		{"unknown status", []testenv.Kind{testenv.KindOrder}, "status", "frozen", issuer.KindRejected, `"frozen"`},
		{"invalid without a reason", []testenv.Kind{testenv.KindOrder}, "status", "invalid", issuer.KindRejected, "no reason"},
		{
			"ready for ever", []testenv.Kind{testenv.KindFinalize, testenv.KindOrder}, "status", "ready", issuer.KindTemporary, "",
		},
		{"no certificate", []testenv.Kind{testenv.KindFinalize, testenv.KindOrder}, "certificate", "", issuer.KindRejected, "no certificate"},
		{"no http-01", []testenv.Kind{testenv.KindAuthz}, "challenges", []any{}, issuer.KindRejected, "http-01"},
		{"no authorizations", []testenv.Kind{testenv.KindNewOrder}, "authorizations", []string{}, issuer.KindTemporary, "taken up again"},
		{"other identifiers", []testenv.Kind{testenv.KindNewOrder}, "identifiers", []any{}, issuer.KindTemporary, "cannot be understood"},
		{"too long", []testenv.Kind{testenv.KindNewOrder}, "x", strings.Repeat("x", maxBody), issuer.KindTemporary, "bytes"},
		{
			"subproblems", []testenv.Kind{testenv.KindOrder}, "error", map[string]any{
				"type": problemPrefix + "caa", "detail": "two names failed", "status": 403, "subproblems": []any{
					map[string]any{"type": problemPrefix + "caa", "detail": "forbidden", "identifier": map[string]any{"type": "dns", "value": "a.example"}},
				},
			}, issuer.KindRejected, "a.example: order: two names failed (caa); a.example: forbidden (caa)",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
				if !slices.Contains(tt.kinds, kind) || resp.StatusCode >= http.StatusBadRequest {
					return nil
				}
				fields := make(map[string]any)
				if err := json.NewDecoder(resp.Body).Decode(&fields); err != nil {
					return err
				}
				fields[tt.field] = tt.value
				if tt.field == "error" {
					fields["status"] = "invalid"
				}
				body, err := json.Marshal(fields)
				testenv.ReplaceBody(resp, body)
				return err
			})
			i := f.issuer(func(o *Options) { o.OrderTimeout = 3 * time.Second })
			began := time.Now()
			_, err := i.Obtain(f.Ready(), request("a.example"))
			wantKind(t, err, tt.want, tt.text)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("took %v with an order time of 3 s", took)
			}
			if n := f.proxy.Count(testenv.KindFinalize).Received; n > finalizeTries {
				t.Errorf("finalize was sent %d times, want at most %d", n, finalizeTries)
			}
			if n := f.proxy.Count(testenv.KindOrder).Received; n > 60 {
				t.Errorf("the order was asked for %d times in 3 s", n)
			}
		})
	}
}

// TestHugeErrorIsBounded has a CA that tells of far more problems than anybody reads: they are stored and logged.
func TestHugeErrorIsBounded(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("ä", 400)
	var subproblems, challenges []any
	for n := range 500 {
		one := map[string]any{"type": problemPrefix + "dns", "detail": long, "identifier": map[string]any{"type": "dns", "value": fmt.Sprintf("%d.example", n)}}
		subproblems = append(subproblems, one)
		challenges = append(challenges, map[string]any{"type": "other-01", "url": "https://ca.example/c", "status": "invalid", "error": one})
	}
	for name, sub := range map[string][]any{"subproblems": subproblems, "authorizations": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
				if resp.StatusCode >= http.StatusBadRequest || kind != testenv.KindOrder && kind != testenv.KindAuthz {
					return nil
				}
				fields := make(map[string]any)
				if err := json.NewDecoder(resp.Body).Decode(&fields); err != nil {
					return err
				}
				if all, ok := fields["challenges"].([]any); ok {
					fields["challenges"] = append(all, challenges...)
				}
				if kind == testenv.KindOrder {
					fields["status"], fields["error"] = "invalid", map[string]any{"type": problemPrefix + "caa", "detail": "no", "status": 403, "subproblems": sub}
				}
				body, err := json.Marshal(fields)
				testenv.ReplaceBody(resp, body)
				return err
			})
			_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
			e, ok := errors.AsType[*issuer.Error](err)
			if !ok {
				t.Fatalf("got %v, want an issuer error", err)
			}
			if len(e.Message) > maxMessage || len(e.Identifier) > maxMessage || !utf8.ValidString(e.Message) || !strings.HasSuffix(e.Message, "...; and 490 more") {
				t.Errorf("got a message of %d bytes and %d of identifiers, want at most %d and how many are left out: %.200s", len(e.Message), len(e.Identifier), maxMessage, e.Message)
			}
		})
	}
}

func TestOrderThatNeverBecomesReadyIsReplaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	first := f.obtain(f.issuer(nil), request("a.example"))
	f.changeOrder(func(o *order) { o.Created, o.Step = time.Now().Add(-longestPlaced-time.Hour), orderPlaced })
	if second := f.obtain(f.issuer(nil), request("a.example")); second.Serial() == first.Serial() {
		t.Error("the old order was taken up again")
	}
}
