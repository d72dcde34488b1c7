package sds

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestOldestAliasMakesRoom(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{AliasesPerNode: 3})
		f.certify(t, "canary", "wild", "*.a.example")
		f.certify(t, "canary", "own", "own.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("own")
		e.expect("own")
		for i := range 3 {
			e.subscribe(fmt.Sprintf("%d.a.example", i))
			e.expect(fmt.Sprintf("%d.a.example", i))
		}
		if !protocol.delta() { // SotW cannot say that a name is gone: the new one gets nothing
			e.subscribe("3.a.example")
			e.silent()
			f.denied(t, "aliases", 1)
			f.certify(t, "canary", "wild", "*.a.example")
			for range 3 {
				e.ack(e.next())
			}
			e.silent()
			return
		}
		e.subscribe("0.a.example") // asked for once more
		e.expect("0.a.example")
		e.subscribe("3.a.example")
		e.expect("3.a.example")
		e.expectRemoved("1.a.example")
		e.silent()
		f.denied(t, "aliases", 1)
		f.certify(t, "canary", "wild", "*.a.example") // does not bring it back
		for range 3 {
			if a := e.next(); a.name == "1.a.example" {
				t.Error("the evicted alias came back by itself")
			} else {
				e.ack(a)
			}
		}
		e.silent()
		e.subscribe("1.a.example") // asked for again
		e.expect("1.a.example")
		e.expectRemoved("2.a.example")
		e.silent()
		f.rotate(t, "canary", "own")
		e.expect("own")
		synctest.Wait()
		if n := f.node(t, "edge-1"); n.State != Synced {
			t.Errorf("node %+v, want SYNCED", n)
		}
	})
}

// Without ADS each name has a stream of its own: the bound is the node's.
func TestAliasesAreBoundedOverTheStreamsOfANode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{AliasesPerNode: 2})
		f.certify(t, "canary", "wild", "*.a.example")
		conn := dial(t, f.buffer, nil)
		ask := func(i int) *envoy {
			e := newEnvoy(t, conn, Delta, &corev3.Node{Id: "edge-1", Cluster: "edge"})
			e.subscribe(fmt.Sprintf("%d.a.example", i))
			e.expect(fmt.Sprintf("%d.a.example", i))
			return e
		}
		zero, one := ask(0), ask(1)
		other := newEnvoy(t, conn, Delta, &corev3.Node{Id: "edge-2", Cluster: "edge"})
		other.subscribe("0.a.example")
		other.expect("0.a.example")
		two := ask(2)
		zero.expectRemoved("0.a.example")
		one.silent()
		other.silent() // another node
		one.leave()    // makes room
		ask(3)
		two.silent()
		f.denied(t, "aliases", 1)
	})
}

func TestAliasesLeaveNothingBehind(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("1.a.example", "unknown.example")
		a := e.expect("1.a.example")
		e.expectRemoved("unknown.example")
		e.unsubscribe(a, "1.a.example")
		synctest.Wait()
		f.ledger.mu.Lock()
		n := f.ledger.nodes[nodeKey{plaintextIdentity, "edge-1"}]
		f.ledger.mu.Unlock()
		n.mu.Lock()
		if n.aliases.Len() != 0 || len(n.records) != 1 {
			t.Errorf("%d aliases and %d records are left, want 0 and that of the unknown name", n.aliases.Len(), len(n.records))
		}
		n.mu.Unlock()
		f.denied(t, "unknown_name", 1)
	})
}

func TestExplainSaysWhichCertificateCoversAName(t *testing.T) {
	f := newFleet(t, Limits{}, Group{Name: "canary", Identities: []string{"dns:n"}, Secrets: []string{"wild"}}, Group{Name: "other", Secrets: []string{"*"}})
	f.certify(t, "canary", "wild", "*.a.example")
	f.certify(t, "canary", "theirs.a.example", "theirs.a.example")
	peer := Peer{Transport: TLS, Identities: []string{"dns:n"}}
	e := f.Explain(peer, "x.a.example")
	if g := e.Groups[0]; !e.Allowed || g.CoveredBy == nil || *g.CoveredBy != "wild" || *g.SecretRule != "wild" ||
		!strings.Contains(e.Reason, `the name by the certificate of the secret "wild"`) {
		t.Errorf("explanation %+v", e)
	}
	for _, name := range []string{"x.y.a.example", "theirs.a.example"} {
		if e := f.Explain(peer, name); e.Allowed || e.Groups[0].CoveredBy != nil {
			t.Errorf("explanation of %s %+v", name, e)
		}
	}
	if e := f.Explain(peer, "wild"); !e.Allowed || e.Groups[0].CoveredBy != nil {
		t.Errorf("explanation %+v", e)
	}
}

// wildNode is a node that is an Envoy, of which a client has sent "*" as SNI.
func wildNode() *corev3.Node {
	return &corev3.Node{Id: "edge-1", Cluster: "edge", UserAgentName: envoyAgent}
}

func TestWildcardOfAClientOfAnEnvoyEndsNoStream(t *testing.T) {
	for _, protocol := range []Protocol{Delta, ADSDelta} {
		t.Run(string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, Limits{})
				v := f.certify(t, "canary", "wild", "*.a.example")
				conn := dial(t, f.buffer, nil)
				e := newEnvoy(t, conn, protocol, wildNode())
				e.subscribe() // its first request, if that was the first client
				e.expectRemoved("*")
				e.subscribe("1.a.example")
				e.expect("1.a.example")
				e.subscribe("*") // a later one
				e.expectRemoved("*")
				f.denied(t, "wildcard", 2)
				if n := f.node(t, "edge-1"); len(n.Secrets) != 1 {
					t.Errorf("secrets %+v, want nothing kept of the wildcard", n.Secrets)
				}
				// While it subscribes to the wildcard, it rejects everything.
				next := f.certify(t, "canary", "wild", "*.a.example")
				for range 30 {
					e.nack(e.next(), "Unexpected SDS secret (expecting *): 1.a.example")
					e.expectRemoved("*")
				}
				e.expect("1.a.example")
				e.silent()
				p := f.Progress("canary", map[string]secret.Version{"wild": next})
				if len(p) != 1 || !p[0].Acked || next == v {
					t.Errorf("progress %+v, want an ACK: the NACKs said nothing of the secret", p)
				}
				e.leave()
				e = newEnvoy(t, conn, protocol, wildNode())
				e.reconnected(map[string]secret.Version{"1.a.example": next}, "*", "1.a.example")
				e.expectRemoved("*")
				e.silent()
			})
		})
	}
}

func TestNackThatBlamesAWildcardIsSlowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		e := newEnvoy(t, dial(t, f.buffer, nil), ADSDelta, wildNode())
		e.subscribe("1.a.example")
		began := time.Now()
		for range 3 * misledPerSecond { // one second's allowance at once
			e.nack(e.next(), "(expecting *)")
			e.expectRemoved("*")
		}
		if d := time.Since(began); d < 1900*time.Millisecond {
			t.Errorf("%d rejections took %v, want about 2s", 3*misledPerSecond, d)
		}
	})
}
