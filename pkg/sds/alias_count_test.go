package sds

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"testing/synctest"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// certifyBoth moves a group to two secrets that hold the same pair.
func (f *fleet) certifyBoth(t testing.TB, group, one, other string, dnsNames ...string) secret.Version {
	t.Helper()
	chain, key := f.ca.issue(t, &x509.Certificate{DNSNames: dnsNames, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.ca.cert.Raw})...)
	p := f.cache.Plan()
	changes := map[string]secret.Version{}
	for _, name := range []string{one, other} {
		s, err := secret.ParseCertificate(name, chain, key)
		if err != nil {
			t.Fatal(err)
		}
		m, _, err := p.PutSecret(context.Background(), s, cache.Origin{Source: cache.SourceImport})
		if err != nil {
			t.Fatal(err)
		}
		changes[name] = m.Version
	}
	if _, err := p.Move(context.Background(), group, changes, cache.Why{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	commit(t, p)
	return changes[one]
}

// An on-demand Envoy that is told that there is nothing ends its subscription. What it said of the version before that counts all the same: a
// wave with such nodes only would pass otherwise.
func TestNackOfAnAliasCountsAfterItsSubscriptionHasEnded(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		bad := f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("other")
		e.expectRemoved("other")
		e.subscribe("1.a.example")
		a := e.next()
		e.nack(a, "bad")
		e.expectRemoved("1.a.example")
		e.unsubscribe(a, "1.a.example")
		synctest.Wait()
		check := func(step string) {
			t.Helper()
			p := f.Progress("canary", map[string]secret.Version{"wild": bad})
			if len(p) != 1 || p[0].Acked || p[0].NACK == nil || p[0].NACK.Secret != "wild" || p[0].NACK.Version != bad {
				t.Errorf("%s: progress %+v, want the NACK", step, p)
			}
		}
		check("unsubscribed")
		e.leave()
		check("offline")
		f.Release("wild", bad)
		if p := stillThere(f.Progress("canary", map[string]secret.Version{"wild": bad})); len(p) != 0 {
			t.Errorf("progress %+v after the release, want none: nobody subscribes", p)
		}
		next := f.certify(t, "canary", "wild", "*.a.example")
		if p := stillThere(f.Progress("canary", map[string]secret.Version{"wild": next})); len(p) != 0 {
			t.Errorf("progress %+v of another version, want none", p)
		}
	})
}

// Two secrets may hold the same pair. Their bytes are the same, and so is what the node would do with them.
func TestRejectedBytesAreNotSentAgainAsThoseOfAnotherSecret(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		bad := f.certifyBoth(t, "canary", "a-first", "b-second", "x.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("x.a.example")
		e.nack(e.next(), "bad")
		e.expectRemoved("x.a.example")
		e.silent()
		p := f.Progress("canary", map[string]secret.Version{"a-first": bad})
		if len(p) != 1 || p[0].NACK == nil || p[0].NACK.Secret != "a-first" {
			t.Errorf("progress %+v, want the NACK", p)
		}
	})
}

// A name that made room for others, and then becomes a secret's own, is no alias any more.
func TestEvictedNameThatBecomesASecretCounts(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{AliasesPerNode: 1})
		f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example")
		e.expect("1.a.example")
		e.subscribe("2.a.example")
		evicted := "2.a.example"
		if protocol.delta() {
			evicted = "1.a.example"
			for range 2 {
				e.ack(e.next())
			}
		}
		e.silent()
		own := f.certify(t, "canary", evicted, evicted)
		a := e.next()
		synctest.Wait()
		if p := f.Progress("canary", map[string]secret.Version{evicted: own}); len(p) != 1 || p[0].Acked {
			t.Errorf("progress %+v, want it to wait for the node", p)
		}
		e.ack(a)
		synctest.Wait()
		if p := f.Progress("canary", map[string]secret.Version{evicted: own}); len(p) != 1 || !p[0].Acked {
			t.Errorf("progress %+v, want ACKed", p)
		}
		for _, s := range f.node(t, "edge-1").Secrets {
			if s.Name == evicted && s.Want != own {
				t.Errorf("%+v, want the secret's own version wanted", s)
			}
		}
	})
}

// A name may be covered before there is a secret of it. A node that rejects that one goes on with what covers the name, as long as it may have it.
func TestRejectedSecretTakesNothingAwayFromItsName(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example")
		e.expect("1.a.example")
		bad := f.certify(t, "canary", "1.a.example", "1.a.example")
		e.nack(e.next(), "bad")
		e.silent() // it has the other one still
		if p := f.Progress("canary", map[string]secret.Version{"1.a.example": bad}); len(p) != 1 || p[0].NACK == nil {
			t.Errorf("progress %+v, want the NACK", p)
		}
		f.certify(t, "canary", "wild", "*.a.example")
		if a := e.expect("1.a.example"); f.covered(t, a) != "wild" {
			t.Errorf("given %q, want the renewed one that covers the name", f.covered(t, a))
		}
		e.leave()
		f.restart(t)
		e = f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example")
		if a := e.expect("1.a.example"); f.covered(t, a) != "wild" {
			t.Errorf("given %q after a restart", f.covered(t, a))
		}
		f.SetPolicy(NewPolicy([]Group{{Name: "canary", Secrets: []string{"1.*"}}})) // the right to the other one has ended
		e.expectRemoved("1.a.example")
		e.silent()
		good := f.certify(t, "canary", "1.a.example", "1.a.example")
		if a := e.expect("1.a.example"); f.covered(t, a) != "1.a.example" {
			t.Errorf("given %q, want the secret's own", f.covered(t, a))
		}
		synctest.Wait()
		if p := f.Progress("canary", map[string]secret.Version{"1.a.example": good}); len(p) != 1 || !p[0].Acked {
			t.Errorf("progress %+v, want ACKed", p)
		}
	})
}
