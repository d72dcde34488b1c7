package cache

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// otherKinds are secrets of every kind but certificates, with what only nodes may see of them.
func otherKinds(t *testing.T) map[*secret.Secret][][]byte {
	t.Helper()
	must := func(s *secret.Secret, err error) *secret.Secret {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	keys := [][]byte{bytes.Repeat([]byte("first-key!"), 8), bytes.Repeat([]byte("other-key!"), 8)}
	keys[1][0], keys[0][20] = 0xff, 0
	token := []byte("a very private token \xff")
	return map[*secret.Secret][][]byte{
		must(secret.ParseValidationContext("ca", newCA(t))): nil,
		must(secret.NewTicketKeys("tickets", keys)):         keys,
		must(secret.NewGeneric("token", token)):             {token},
	}
}

func TestEachKindIsStoredAndSentAsItself(t *testing.T) {
	for s, private := range otherKinds(t) {
		t.Run(string(s.Kind()), func(t *testing.T) {
			b := newBench(t, "a")
			b.plan(func(p *Plan) error {
				m, _, err := p.PutSecret(b.ctx(), s, Origin{Source: SourceFile})
				if err == nil {
					_, err = p.Move(b.ctx(), "a", map[string]secret.Version{s.Name(): m.Version}, Why{})
				}
				return err
			})
			for range 2 {
				res, _ := b.Resource("a", s.Name())
				if res == nil || res.Version != b.Version(s) {
					t.Fatalf("got %v, want version %s", res, b.Version(s).Short())
				}
				if got := sentParts(t, res); !slices.EqualFunc(got, wantParts(s), bytes.Equal) {
					t.Errorf("what is sent is not the secret: %d parts", len(got))
				}
				if err := b.Reencode(b.ctx(), s.Name(), res.Version); err != nil {
					t.Fatal(err)
				}
				again, _ := b.Resource("a", s.Name())
				if bytes.Equal(again.Body(), res.Body()) {
					t.Error("encoded again it is the same bytes")
				}
				if got := sentParts(t, again); !slices.EqualFunc(got, wantParts(s), bytes.Equal) {
					t.Error("encoded again it is another secret")
				}
				b.reopen()
			}
			m, ok := b.Meta(s.Name(), b.Version(s))
			if !ok || m.Kind != s.Kind() || m.Source != SourceFile || m.ChainPEM != string(s.ChainPEM()) || !m.NotAfter.Equal(s.NotAfter()) {
				t.Errorf("described as %+v", m)
			}
			shown := fmt.Sprintf("%+v %s", m, mustJSON(m)) + b.log.String()
			for _, part := range private {
				for _, trace := range []string{string(part[:12]), fmt.Sprintf("%x", part[:12]), string(mustJSON(part))[1:16]} {
					if strings.Contains(shown, trace) {
						t.Errorf("the description holds %q", trace)
					}
				}
			}
		})
	}
}

// wantParts is the content of a secret as it is sent.
func wantParts(s *secret.Secret) [][]byte {
	switch s.Kind() {
	case secret.KindValidationContext:
		return [][]byte{s.ChainPEM()}
	case secret.KindGenericSecret:
		return [][]byte{s.Generic()}
	}
	return s.TicketKeys()
}

// sentParts decodes what is sent; white space at the end of PEM does not count.
func sentParts(t *testing.T, res *Resource) [][]byte {
	t.Helper()
	var got tlsv3.Secret
	if err := proto.Unmarshal(res.Body(), &got); err != nil {
		t.Fatal(err)
	}
	if err := got.ValidateAll(); err != nil {
		t.Errorf("it breaks a rule of the API: %v", err)
	}
	switch k := got.GetType().(type) {
	case *tlsv3.Secret_ValidationContext:
		return [][]byte{append(bytes.TrimSpace(k.ValidationContext.GetTrustedCa().GetInlineBytes()), '\n')}
	case *tlsv3.Secret_GenericSecret:
		return [][]byte{k.GenericSecret.GetSecret().GetInlineBytes()}
	case *tlsv3.Secret_SessionTicketKeys:
		var parts [][]byte
		for _, key := range k.SessionTicketKeys.GetKeys() {
			parts = append(parts, key.GetInlineBytes())
		}
		return parts
	default:
		t.Fatalf("it is a %T", k)
		return nil
	}
}

// TestRecordOfTheFirstReleaseIsReadAsItWas has a record as it was written when certificates were the only kind.
func TestRecordOfTheFirstReleaseIsReadAsItWas(t *testing.T) {
	b := newBench(t, "a")
	s := newSecret(t, "www")
	version := b.Version(s)
	old := map[string]any{
		"name": "www", "kind": "tls_certificate", "version": version, "created": time.Now().UTC(), "source": "acme", "issuer": "le", "serial": s.Serial(),
		"sha256": s.SHA256(), "dns_names": s.DNSNames(), "not_before": s.NotBefore(), "not_after": s.NotAfter(), "key_type": s.KeyType(),
		"chain_pem": string(s.ChainPEM()), "key_pem": string(s.KeyPEM()),
	}
	value, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.disk.Commit(b.ctx(), nil, []store.Operation{store.Put(secretKey("www", version), value)}); err != nil {
		t.Fatal(err)
	}
	b.move("a", Why{}, map[string]secret.Version{"www": version})
	res, _ := b.Resource("a", "www")
	want, err := encode(newRecord(Meta{Kind: secret.KindTLSCertificate, ChainPEM: string(s.ChainPEM())}, s), "")
	if err != nil || res == nil || !bytes.Equal(res.Body(), want.Body()) {
		t.Errorf("got %v, %v; want the certificate as it is encoded now", res, err)
	}
	m, _ := b.Meta("www", version)
	if diff := string(mustJSON(record{Meta: m, KeyPEM: string(s.KeyPEM())})); !sameJSON(t, diff, string(value)) {
		t.Errorf("written again it is %s", diff)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y map[string]any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		t.Fatal("not JSON")
	}
	return fmt.Sprint(x) == fmt.Sprint(y)
}

func TestUnknownKindIsAnError(t *testing.T) {
	if _, err := encode(record{Meta: Meta{Name: "x", Kind: "pkcs12"}}, ""); err == nil || !strings.Contains(err.Error(), "pkcs12") {
		t.Errorf("got %v, want an error that names the kind", err)
	}
}

func TestVersionWithoutAnEndNeverEnds(t *testing.T) {
	now := time.Now()
	for _, row := range []struct {
		end  time.Time
		want bool
	}{{time.Time{}, false}, {now.Add(1), false}, {now, true}, {now.Add(-1), true}} {
		if got := (Meta{NotAfter: row.end}).Ended(now); got != row.want {
			t.Errorf("end %v: got %v, want %v", row.end, got, row.want)
		}
	}
}
