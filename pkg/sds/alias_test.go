package sds

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// certify moves a group to a new version of a secret with the given DNS names.
func (f *fleet) certify(t testing.TB, group, name string, dnsNames ...string) secret.Version {
	t.Helper()
	chain, key := f.ca.issue(t, &x509.Certificate{DNSNames: dnsNames, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.ca.cert.Raw})...)
	s, err := secret.ParseCertificate(name, chain, key)
	if err != nil {
		t.Fatal(err)
	}
	p := f.cache.Plan()
	m, _, err := p.PutSecret(context.Background(), s, cache.Origin{Source: cache.SourceImport})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Move(context.Background(), group, map[string]secret.Version{name: m.Version}, cache.Why{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	commit(t, p)
	return m.Version
}

// covered returns the secret of which the node's answer under a name is the certificate.
func (f *fleet) covered(t *testing.T, a answer) string {
	t.Helper()
	metas, err := f.cache.Secrets(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range metas {
		if m.ChainPEM == a.chain {
			return m.Name
		}
	}
	return ""
}

func TestNameOfNoSecretIsSentTheCertificateThatCoversIt(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		f.certify(t, "canary", "zz-exact", "x.a.example", "*.z.example")
		f.certify(t, "canary", "b-second", "y.a.example")
		f.certify(t, "canary", "a-first", "Y.a.example", "b.example")
		f.certify(t, "canary", "b.example", "B.EXAMPLE", "q.a.example")
		f.certify(t, "canary", "own.a.example", "something.else")
		e := f.envoy(t, protocol, "edge-1")
		for asked, want := range map[string]string{
			"1.a.example":      "wild",
			"X.A.Example":      "zz-exact", // exact before wildcard, in any case
			"x.a.example":      "zz-exact",
			"y.a.example":      "a-first", // of several, the first by name
			"B.example":        "b.example",
			"b.example.":       "b.example", // the one that is called like it comes first
			"own.a.example":    "own.a.example",
			"OWN.a.example":    "wild", // no secret's own name
			"_dmarc.a.example": "wild",
		} {
			e.subscribe(asked)
			a := e.expect(asked)
			if got := f.covered(t, a); got != want {
				t.Errorf("%s is given the certificate of %q, want %q", asked, got, want)
			}
			if protocol.delta() && a.version == "" {
				t.Errorf("no version of %s", asked)
			}
		}
		for _, asked := range []string{
			"a.example", "1.2.a.example", ".a.example", "*.a.example", "a b.a.example", "ä.a.example", "z.example", "10.0.0.1", "", "..", ".",
			"1.a.example..", strings.Repeat("x", 64) + ".a.example", strings.Repeat("x.", 130) + "a.example", "1.a.example\x00", "1.a.example/",
		} {
			e.subscribe(asked)
			e.expectRemoved(asked)
		}
		e.silent()
	})
}

func TestAliasNeedsTheRightToTheSecretThatCoversIt(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{}, Group{Name: "canary", Secrets: []string{"mine*"}})
		f.certify(t, "canary", "theirs", "x.example", "y.example")
		f.certify(t, "canary", "x.example", "x.example") // the right is not to the name that is asked for
		f.certify(t, "canary", "mine", "*.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("x.example") // another secret's own name stays forbidden
		e.expectRemoved("x.example")
		e.subscribe("y.example")
		if got := f.covered(t, e.expect("y.example")); got != "mine" {
			t.Errorf("y.example is given %q, want the best one that the group may have", got)
		}
		f.SetPolicy(NewPolicy(everything("canary")))
		for range 2 {
			a := e.next()
			e.ack(a)
			if got, want := f.covered(t, a), map[string]string{"x.example": "x.example", "y.example": "theirs"}[a.name]; got != want {
				t.Errorf("%s is given %q, want %q", a.name, got, want)
			}
		}
		f.SetPolicy(NewPolicy([]Group{{Name: "canary", Secrets: []string{"x.example"}}}))
		e.expectRemoved("y.example")
		e.silent()
	})
}

func TestChangesReachEveryAlias(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example", "2.a.example")
		e.expectRemoved("1.a.example")
		e.expectRemoved("2.a.example")
		expectBoth := func(want string) {
			t.Helper()
			var names []string
			for range 2 {
				a := e.next()
				e.ack(a)
				names = append(names, a.name)
				if got := f.covered(t, a); got != want {
					t.Errorf("%s is given %q, want %q", a.name, got, want)
				}
			}
			slices.Sort(names)
			if !slices.Equal(names, []string{"1.a.example", "2.a.example"}) {
				t.Errorf("answers for %v, want one for each alias", names)
			}
			e.silent()
		}
		f.certify(t, "canary", "wild", "*.a.example") // appears late
		expectBoth("wild")
		f.certify(t, "canary", "wild", "*.a.example") // is rotated
		expectBoth("wild")
		f.certify(t, "canary", "exact", "1.a.example") // another one is better now
		if a := e.expect("1.a.example"); f.covered(t, a) != "exact" {
			t.Errorf("given %q, want the exact one", f.covered(t, a))
		}
		e.silent()
		f.certify(t, "canary", "exact", "3.a.example") // covers it no more: the next best
		if a := e.expect("1.a.example"); f.covered(t, a) != "wild" {
			t.Errorf("given %q, want the wildcard", f.covered(t, a))
		}
		e.silent()
		f.certify(t, "canary", "wild", "*.b.example") // covers none of them any more
		removed := func() {
			t.Helper()
			if !protocol.delta() {
				e.silent()
				return
			}
			names := []string{}
			for range 2 {
				a := e.next()
				e.ack(a)
				names = append(names, a.removed)
			}
			slices.Sort(names)
			if !slices.Equal(names, []string{"1.a.example", "2.a.example"}) {
				t.Errorf("removals of %v, want both", names)
			}
			e.silent()
		}
		removed()
		f.certify(t, "canary", "wild", "*.a.example")
		expectBoth("wild")
		f.move(t, "canary", "wild", "") // is removed
		removed()
		f.certify(t, "canary", "2.a.example", "unrelated.example") // a secret of that name
		if a := e.expect("2.a.example"); f.covered(t, a) != "2.a.example" {
			t.Errorf("given %q, want the secret of that name", f.covered(t, a))
		}
		e.silent()
	})
}

func TestAliasesAreSharedBodies(t *testing.T) {
	f := newFleet(t, Limits{})
	f.certify(t, "canary", "wild", "*.a.example")
	own, _ := f.cache.Resource("canary", "wild")
	for i := range 3 {
		found := f.cache.Covering("canary", fmt.Sprintf("%d.a.example", i))
		if len(found) != 1 || &found[0].Body()[0] != &own.Body()[0] {
			t.Errorf("alias %d has a body of its own", i)
		}
	}
}

func TestAnswersUnderAliasesCountForTheSecret(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		first := f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example", "2.a.example")
		e.expect("1.a.example")
		a := e.next()
		progress := func(v secret.Version) NodeProgress {
			t.Helper()
			synctest.Wait()
			p := f.Progress("canary", map[string]secret.Version{"wild": v})
			if len(p) != 1 {
				t.Fatalf("progress %+v, want one node", p)
			}
			return p[0]
		}
		if p := progress(first); p.Acked || p.NACK != nil || p.Since.IsZero() {
			t.Errorf("progress %+v, want it to wait for the second alias", p)
		}
		e.ack(a)
		if p := progress(first); !p.Acked {
			t.Errorf("progress %+v, want ACKed", p)
		}
		second := f.certify(t, "canary", "wild", "*.a.example")
		a, b := e.next(), e.next()
		e.ack(a)
		e.nack(b, "bad")
		e.silent() // goes on with what it has
		if p := progress(second); p.Acked || p.NACK == nil || p.NACK.Secret != "wild" || p.NACK.Version != second {
			t.Errorf("progress %+v, want a NACK of the secret", p)
		}
		n := f.node(t, "edge-1")
		if n.State != Nacked || len(n.Secrets) != 2 {
			t.Fatalf("node %+v, want NACKED with two names", n)
		}
		for _, s := range n.Secrets {
			if s.CoveredBy != "wild" || s.Want != second {
				t.Errorf("%+v, want it covered by the wildcard", s)
			}
			if (s.Nacked != nil) != (s.Name == b.name) {
				t.Errorf("%+v: the NACK was under %s", s, b.name)
			}
		}
		if got := f.counter(t, "sds_nacks_total", "wild"); got != 1 {
			t.Errorf("%v NACKs counted of the secret, want 1", got)
		}
		f.move(t, "canary", "wild", first) // taken back
		if got := e.expect(a.name); f.covered(t, got) != "wild" {
			t.Errorf("given %q", f.covered(t, got))
		}
		e.silent() // the other name has it
		if p := progress(first); !p.Acked {
			t.Errorf("progress %+v, want ACKed", p)
		}
		f.move(t, "canary", "wild", second) // again: what was rejected under one name is sent under none
		e.silent()
		f.Release("wild", second)
		for range 2 {
			e.ack(e.next())
		}
		if p := progress(second); !p.Acked {
			t.Errorf("progress %+v, want ACKed after the release", p)
		}
		f.move(t, "canary", "wild", "")
		if protocol.delta() {
			e.ack(e.next())
			e.ack(e.next())
		}
		synctest.Wait()
		if got := f.counter(t, "sds_nacks_total", "wild"); got != 0 {
			t.Errorf("%v NACKs counted of a secret that is gone: its series should be, too", got)
		}
	})
}

func TestRejectedAliasesSurviveRestarts(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		good := f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example")
		goodChain := e.expect("1.a.example").chain
		bad := f.certify(t, "canary", "wild", "*.a.example")
		e.nack(e.next(), "bad")
		e.silent()
		e.leave()
		f.restart(t)
		if n := f.node(t, "edge-1"); len(n.Secrets) != 2 || n.Secrets[0].Nacked == nil || n.Secrets[0].Nacked.Secret != "wild" || n.Secrets[0].Nacked.Version != bad || n.Secrets[1].Name != "wild" {
			t.Fatalf("node %+v, want the NACK of the secret under the alias, and the secret", n)
		}
		if refers := f.Refers("wild"); !refers(good) {
			t.Error("the version that the node goes on with may be pruned")
		}
		e = f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example")
		if a := e.expect("1.a.example"); a.chain != goodChain {
			t.Error("the node was not given back what it acknowledged last")
		}
		e.silent()
		// A name that it never asked for: what it acknowledged under the other one covers this one, too.
		e.subscribe("2.a.example")
		if a := e.expect("2.a.example"); a.chain != goodChain {
			t.Error("the node was sent what it rejected, or something else, under another name")
		}
		e.silent()
		f.Release("wild", bad)
		for range 2 {
			if a := e.next(); a.chain == goodChain {
				t.Error("the released version is not sent")
			} else {
				e.ack(a)
			}
		}
		e.silent()
		if n := f.node(t, "edge-1"); n.State != Synced || n.Secrets[0].Nacked != nil {
			t.Errorf("node %+v, want SYNCED without a NACK", n)
		}
	})
}

// A node that rejected the first certificate of a name has none: its handshakes shall fail, not wait.
func TestRejectedFirstCertificateOfAnAliasIsRemoved(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example")
		e.nack(e.next(), "bad")
		e.expectRemoved("1.a.example")
		e.silent()
		e.subscribe("2.a.example")
		e.expectRemoved("2.a.example")
		f.certify(t, "canary", "better", "2.a.example") // another one that covers it
		e.expect("2.a.example")
		e.silent()
	})
}

// What a node rejected under a secret's own name is not sent to it under an alias either, and the other way round.
func TestRejectedVersionIsSentUnderNoOtherName(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("wild")
		good := e.expect("wild").chain
		f.certify(t, "canary", "wild", "*.a.example")
		e.nack(e.next(), "bad")
		e.silent()
		e.subscribe("1.a.example")
		if a := e.expect("1.a.example"); a.chain != good {
			t.Error("the alias is not what was acknowledged under the secret's own name")
		}
		e.silent()
		f.certify(t, "canary", "second", "*.b.example")
		e.subscribe("1.b.example")
		e.nack(e.next(), "bad")
		e.expectRemoved("1.b.example")
		e.subscribe("second")
		e.expectRemoved("second")
		e.silent()

		// What was acknowledged does not cover every name that the rejected one does.
		f.certify(t, "canary", "third", "*.c.example")
		e.subscribe("1.c.example")
		e.expect("1.c.example")
		f.certify(t, "canary", "third", "*.c.example", "*.d.example")
		e.nack(e.next(), "bad")
		e.silent()
		e.subscribe("1.d.example")
		e.expectRemoved("1.d.example")
		e.silent()
	})
}

func TestEnvoyThatHasSomethingIsNotRevokedByARejectedVersion(t *testing.T) {
	for _, protocol := range []Protocol{Delta, ADSDelta} {
		t.Run(string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, Limits{})
				first := f.certify(t, "canary", "wild", "*.a.example")
				f.certify(t, "canary", "wild", "*.a.example")
				f.rotate(t, "canary", "own")
				e := f.envoy(t, protocol, "edge-1")
				e.subscribe("1.a.example", "own")
				alias, own := e.next(), e.next()
				e.nack(alias, "bad")
				e.nack(own, "bad")
				e.expectRemoved("1.a.example")
				e.silent()
				e.leave()
				f.restart(t)

				// Here it acknowledged nothing, but it says that it has a version, of which the bytes are stored.
				e = f.envoy(t, protocol, "edge-1")
				e.reconnected(map[string]secret.Version{"1.a.example": first}, "1.a.example")
				if a := e.expect("1.a.example"); a.version != first {
					t.Errorf("it is sent %s, want the version that it has", a.version.Short())
				}
				e.silent()
				e.leave()

				// Nothing is known of this one: under the name of a secret it is left alone, an alias may be of a certificate that was removed.
				unknown := secret.Version(strings.Repeat("a", 64))
				e = f.envoy(t, protocol, "edge-1")
				e.empty = true
				e.reconnected(map[string]secret.Version{"own": unknown}, "own")
				if a := e.next(); a.name != "" || a.removed != "" {
					t.Errorf("answer for %q, removes %q: want one that says nothing", a.name, a.removed)
				} else {
					e.ack(a)
				}
				e.silent()
				e.subscribe("own") // its Envoy lost it and asks again: that is answered
				e.expectRemoved("own")
				e.leave()
				other := f.envoy(t, protocol, "edge-2")
				other.subscribe("1.a.example")
				other.nack(other.next(), "bad")
				other.expectRemoved("1.a.example")
				other.leave()
				other = f.envoy(t, protocol, "edge-2")
				other.reconnected(map[string]secret.Version{"1.a.example": unknown}, "1.a.example")
				other.expectRemoved("1.a.example")
				other.silent()
			})
		})
	}
}

func TestDisplacesTellsWhichNewSecretWouldTakeAName(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		f.certify(t, "canary", "own.a.example", "own.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example", "own.a.example", "nobody.b.example")
		synctest.Wait()
		for _, row := range []struct {
			name     string
			dnsNames []string
			want     bool
		}{
			{"new", []string{"1.a.example"}, true},
			{"new", []string{"1.A.example"}, true},
			{"new", []string{"*.a.example"}, true},
			{"1.a.example", []string{"elsewhere.example"}, true}, // by its own name
			{"new", []string{"2.a.example"}, false},              // nobody has asked for it
			{"new", []string{"own.a.example"}, false},            // a secret's own name
			{"new", []string{"nobody.b.example"}, false},         // nothing stands there yet
			{"wild", []string{"*.a.example"}, false},
		} {
			if got := f.Displaces("canary", row.name, row.dnsNames); got != row.want {
				t.Errorf("%s with %v: got %v, want %v", row.name, row.dnsNames, got, row.want)
			}
		}
		if f.Displaces("production", "new", []string{"1.a.example"}) {
			t.Error("another group's nodes count")
		}
	})
}
