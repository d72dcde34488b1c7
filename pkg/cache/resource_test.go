package cache

import (
	"slices"
	"strings"
	"testing"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestResourceIsTheSecretUnderAnyName(t *testing.T) {
	b := newBench(t, "a")
	s := newSecret(t, "www.example.com")
	b.plan(func(p *Plan) error {
		m, _, err := p.PutSecret(b.ctx(), s, Origin{Source: SourceACME, Issuer: "le"})
		if err == nil {
			_, err = p.Move(b.ctx(), "a", map[string]secret.Version{s.Name(): m.Version}, Why{})
		}
		return err
	})
	for range 2 {
		res, number := b.Resource("a", s.Name())
		if res == nil || number != b.at("a").Number || res.Version != b.Version(s) {
			t.Fatalf("got %v at %d, want version %s", res, number, b.Version(s).Short())
		}
		for _, name := range []string{s.Name(), "alias.example.com", strings.Repeat("ü", 127)} {
			var got tlsv3.Secret
			if err := proto.Unmarshal(append(Prefix(name), res.Body()...), &got); err != nil {
				t.Fatal(err)
			}
			pair := got.GetTlsCertificate()
			if got.GetName() != name || string(pair.GetCertificateChain().GetInlineBytes()) != string(s.ChainPEM()) ||
				string(pair.GetPrivateKey().GetInlineBytes()) != string(s.KeyPEM()) || len(got.ProtoReflect().GetUnknown()) > 0 {
				t.Errorf("decoded under %q it is not the secret", name)
			}
		}
		b.reopen()
	}
	if res, number := b.Resource("a", "unknown"); res != nil || number != b.at("a").Number {
		t.Errorf("an unknown name is %v at %d, want nothing at %d", res, number, b.at("a").Number)
	}
	if res, number := b.Resource("nowhere", s.Name()); res != nil || number != 0 {
		t.Errorf("an unknown group serves %v at %d, want nothing", res, number)
	}
}

func TestVersionsOutOfUseAreInTheStoreOnly(t *testing.T) {
	b := newBench(t, "a", "b")
	v1 := b.put("s", "a", "b")
	v2 := b.put("s", "a")
	if _, ok := b.Meta("s", v1); !ok {
		t.Error("a version that group b is at is not in memory")
	}
	b.move("b", Why{}, map[string]secret.Version{"s": v2})
	if _, ok := b.Meta("s", v1); ok {
		t.Error("a version that no group is at is in memory")
	}
	if waiting := b.put("s"); true {
		if _, ok := b.Meta("s", waiting); ok {
			t.Error("a version that no group is at yet is in memory")
		}
	}
	b.move("a", Why{}, map[string]secret.Version{"s": v1})
	if res, _ := b.Resource("a", "s"); res == nil || res.Version != v1 {
		t.Errorf("moved to it again, group a serves %v, want %s", res, v1.Short())
	}
	b.move("a", Why{}, map[string]secret.Version{"s": ""})
	b.move("b", Why{}, map[string]secret.Version{"s": ""})
	if len(b.resources) != 0 {
		t.Errorf("%d names are in memory, want none", len(b.resources))
	}
}

func TestVersionKeyOutlivesARestart(t *testing.T) {
	b := newBench(t, "a")
	s := newSecret(t, "s")
	want := b.Version(s)
	b.reopen()
	if got := b.Version(s); got != want {
		t.Errorf("after a restart the version is %s, want %s", got, want)
	}
	if other := newBench(t); other.Version(s) == want {
		t.Error("two stores give one version: it can be guessed")
	}
}

func TestRestartRestoresEveryGroup(t *testing.T) {
	b := newBench(t, "a", "b", "c")
	b.put("s", "a", "b")
	b.put("t", "b")
	b.put("s", "a")
	before := b.state()
	b.reopen()
	if got := b.state(); got != before {
		t.Errorf("after a restart: %s, want %s", got, before)
	}
}

func TestPruneKeepsTheNewestAndWhatIsReferredTo(t *testing.T) {
	b := newBench(t, "a", "b", "c")
	var v []secret.Version
	for i := range 8 {
		groups := map[int][]string{0: {"b"}, 1: {"a"}, 2: {"a"}}[i]
		v = append(v, b.put("s", groups...)) // b at v0; a at v2, before at v1
	}
	other := b.put("t")
	var fresh secret.Version
	b.plan(func(p *Plan) error {
		m, _, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"})
		if err != nil {
			return err
		}
		fresh = m.Version
		return p.Prune(b.ctx(), "s", func(x secret.Version) bool { return x == v[3] }) // held
	})
	versions, err := b.Versions(b.ctx(), "s")
	if err != nil {
		t.Fatal(err)
	}
	var got []secret.Version
	for _, m := range versions {
		got = append(got, m.Version)
	}
	want := []secret.Version{fresh, v[7], v[6], v[3], v[2], v[1], v[0]}
	if !slices.Equal(got, want) {
		t.Errorf("got %d versions, want the newest 3, the held one, and where groups are or would go back to: %d", len(got), len(want))
	}
	if versions, err := b.Versions(b.ctx(), "t"); err != nil || len(versions) != 1 || versions[0].Version != other {
		t.Errorf("another secret was pruned: %v, %v", versions, err)
	}
	b.plan(func(p *Plan) error { return p.Prune(b.ctx(), "unknown", func(secret.Version) bool { return false }) })
	b.reopen()
}

func TestNoKeyIsLoggedOrDescribed(t *testing.T) {
	b := newBench(t, "a")
	b.put("s", "a")
	b.put("s", "a")
	b.reopen()
	b.disk.fail(true, false)
	p := b.Plan()
	if _, _, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"}); err != nil {
		t.Fatal(err)
	}
	err := p.Commit(b.ctx())
	if err == nil {
		t.Fatal("a failing store is no error")
	}
	metas, listErr := b.Secrets(b.ctx())
	if listErr != nil || len(metas) != 2 {
		t.Fatalf("%d versions, %v; want 2", len(metas), listErr)
	}
	if !strings.Contains(b.log.String(), "group moved") {
		t.Error("a moved group is not logged")
	}
	for what, text := range map[string]string{"log": b.log.String(), "error": err.Error(), "description": string(mustJSON(metas))} {
		if strings.Contains(text, "PRIVATE KEY") {
			t.Errorf("the %s shows a private key: %s", what, text)
		}
	}
}
