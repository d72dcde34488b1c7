package sds

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// stillThere leaves out the nodes for which nothing waits any more.
func stillThere(progress []NodeProgress) []NodeProgress {
	return slices.DeleteFunc(progress, func(p NodeProgress) bool { return p.Unsubscribed })
}

// elapse lets time pass in a bubble.
func elapse(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// wait is whom a wave of version v of a waits for, and how.
func (f *fleet) wait(name string, v secret.Version) string {
	var out []string
	for _, p := range f.Progress("canary", map[string]secret.Version{name: v}) {
		switch {
		case p.Unsubscribed && !p.Connected && p.LastSeen.IsZero() && !p.Acked:
			out = append(out, p.Node+" unsubscribed")
		case p.Unsubscribed:
			out = append(out, fmt.Sprintf("%s unsubscribed but %+v", p.Node, p))
		case p.NACK != nil:
			out = append(out, p.Node+" refused")
		case p.Acked:
			out = append(out, p.Node+" acked")
		case !p.Returning.IsZero() && !p.Connected:
			out = append(out, fmt.Sprintf("%s returning for %s", p.Node, time.Until(p.Returning)))
		case p.Connected:
			out = append(out, p.Node+" connected")
		default:
			out = append(out, fmt.Sprintf("%s gone for %s", p.Node, time.Since(p.LastSeen)))
		}
	}
	return strings.Join(out, ", ")
}

func (f *fleet) waits(t testing.TB, name string, v secret.Version, want string) {
	t.Helper()
	if got := f.wait(name, v); got != want {
		t.Errorf("a wave of %s waits for %q, want %q", name, got, want)
	}
}

// entries returns what the store says of where nodes are, by node id.
func (f *fleet) entries(t testing.TB) map[string]storedNode {
	t.Helper()
	list, _, err := f.store.List(t.Context(), nodePrefix+"/")
	if err != nil {
		t.Fatal(err)
	}
	nodes := map[string]storedNode{}
	for _, e := range list {
		var n storedNode
		if err := json.Unmarshal(e.Value, &n); err != nil {
			t.Fatal(err)
		}
		nodes[store.Parts(e.Key)[2]] = n
	}
	return nodes
}

// sets counts the sets of names in the store.
func (f *fleet) sets(t testing.TB) int {
	t.Helper()
	list, _, err := f.store.List(t.Context(), nameSetPrefix+"/")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// kill ends the server without a last write, and starts another one over the same store.
func (f *fleet) kill(t testing.TB) {
	t.Helper()
	f.store.broken.Store(true)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f.Shutdown(ctx)
	f.stopRun()
	f.store.broken.Store(false)
	f.start(t)
}

func TestWaveWaitsForTheNodesOfBeforeTheRestart(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(*fleet, *testing.T)
	}{{"clean", func(f *fleet, t *testing.T) { f.restart(t) }}, {"killed", func(f *fleet, t *testing.T) { f.kill(t) }}} {
		t.Run(end.name, func(t *testing.T) {
			both(t, func(t *testing.T, protocol Protocol) {
				f := newFleet(t, Limits{})
				f.rotate(t, "canary", "a", "b")
				var envoys []*envoy
				for i := range 3 {
					e := f.envoy(t, protocol, fmt.Sprintf("edge-%d", i))
					e.subscribe("a", "b")
					e.expect("a")
					e.expect("b")
					envoys = append(envoys, e)
				}
				other := f.envoy(t, protocol, "edge-b")
				other.subscribe("b")
				other.expect("b")
				elapse(time.Minute)
				envoys[2].leave() // long before the end
				elapse(5 * time.Minute)
				v := f.rotate(t, "canary", "a")
				envoys[0].expect("a")
				envoys[1].expect("a")
				synctest.Wait()
				f.waits(t, "a", v, "edge-0 acked, edge-1 acked, edge-2 gone for 5m0s")
				end.do(f, t)

				f.waits(t, "a", v, "edge-0 gone for 0s, edge-1 gone for 0s, edge-2 gone for 5m0s")
				if n := f.node(t, "edge-1"); n.State != Offline || n.Connected || n.Protocol != protocol || len(n.Secrets) != 2 || n.Secrets[0].Want != v || n.Secrets[0].Acked != nil {
					t.Errorf("node %+v, want OFFLINE with a and b", n)
				}
				elapse(time.Minute)
				f.waits(t, "a", v, "edge-0 gone for 1m0s, edge-1 gone for 1m0s, edge-2 gone for 6m0s")
				e := f.envoy(t, protocol, "edge-1")
				e.reconnected(nil, "b")
				e.expect("b")
				elapse(time.Second)
				f.waits(t, "a", v, "edge-0 gone for 1m1s, edge-1 returning for 9s, edge-2 gone for 6m1s")
				again := f.envoy(t, protocol, "edge-1") // without ADS each secret has its own stream
				again.subscribe("a")
				answer := again.next()
				f.waits(t, "a", v, "edge-0 gone for 1m1s, edge-1 connected, edge-2 gone for 6m1s")
				again.ack(answer)
				again.silent()
				f.waits(t, "a", v, "edge-0 gone for 1m1s, edge-1 acked, edge-2 gone for 6m1s")
			})
		})
	}
}

// A wave waits from when the node was last seen, which is the first start after it, not each one.
func TestAnAbsentNodeIsNotSeenAtEachStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		v := f.rotate(t, "canary", "a")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		elapse(time.Minute)
		f.kill(t)
		elapse(3 * time.Minute)
		f.kill(t)
		f.waits(t, "a", v, "edge-1 gone for 3m0s")
	})
}

func TestSteadyStateAndReconnectsCostNoWrite(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		f.rotate(t, "canary", "a", "b")
		connect := func() *envoy {
			e := f.envoy(t, protocol, "edge-1")
			e.reconnected(nil, "a", "x.a.example")
			e.expect("a")
			e.expect("x.a.example")
			return e
		}
		e := connect()
		elapse(time.Minute)
		if n := f.entries(t)["edge-1"]; n.Group != "canary" || n.Left != 0 || n.Names != newNameSet([]string{"a", "wild"}).digest {
			t.Fatalf("the store says %+v, want a and wild", n)
		}
		writes := func(step string, want int64, do func()) {
			t.Helper()
			before := f.store.commits.Load()
			do()
			elapse(2 * time.Minute)
			if got := f.store.commits.Load() - before; got != want {
				t.Errorf("%s: %d commits, want %d", step, got, want)
			}
		}
		writes("nothing", 0, func() { elapse(time.Hour) })
		writes("reconnect", 0, func() { e.leave(); elapse(3 * time.Second); e = connect() })
		writes("unknown names", 0, func() {
			e.subscribe("unknown.example")
			e.expectRemoved("unknown.example")
		})
		writes("one more alias", 0, func() { e.subscribe("y.a.example"); e.expect("y.a.example") })
		writes("a rotation", 1, func() { f.rotate(t, "canary", "a"); e.expect("a") }) // the rotation itself
		writes("a restart", 0, func() {})
		before := f.store.commits.Load()
		f.restart(t)
		made := f.store.commits.Load() - before
		e = connect()
		elapse(2 * time.Minute)
		if got := f.store.commits.Load() - before; got != made {
			t.Errorf("%d commits after the restart, want none", got-made)
		}
		writes("it leaves", 1, func() { e.leave() })
		writes("it comes back", 1, func() { e = connect() })
		writes("a new name", 2, func() { // its set and its entry in one commit, and the old set
			e.subscribe("b")
			e.expect("b")
		})
	})
}

func TestNodeThatComesBackWithOtherNamesIsNotWaitedForInVain(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "b")
		v := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		e.expect("b")
		elapse(time.Minute)
		f.kill(t)
		f.waits(t, "a", v, "edge-1 gone for 0s")
		e = f.envoy(t, protocol, "edge-1")
		e.subscribe("b")
		e.expect("b")
		elapse(leaveGrace - time.Second)
		f.waits(t, "a", v, "edge-1 returning for 1s")
		elapse(time.Second)
		f.waits(t, "a", v, "edge-1 unsubscribed")
		elapse(time.Minute)
		if n := f.entries(t)["edge-1"]; n.Names != newNameSet([]string{"b"}).digest || f.sets(t) != 1 {
			t.Errorf("the store says %+v and has %d sets, want b alone", n, f.sets(t))
		}
		f.kill(t)
		f.waits(t, "a", v, "")
	})
}

func TestConnectedNodeThatUnsubscribesLeavesTheCount(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "b")
		v := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		e.unsubscribe(e.expect("b"), "a")
		e.silent()
		f.waits(t, "a", v, "edge-1 unsubscribed")
		e.leave()
		f.waits(t, "a", v, "edge-1 unsubscribed")

		// One of several streams that breaks may come again.
		one, two := f.envoy(t, protocol, "edge-2"), f.envoy(t, protocol, "edge-2")
		one.subscribe("a")
		one.expect("a")
		two.subscribe("b")
		two.expect("b")
		one.leave()
		elapse(leaveGrace - time.Second)
		f.waits(t, "a", v, "edge-1 unsubscribed, edge-2 returning for 1s")
		elapse(2 * time.Second)
		f.waits(t, "a", v, "edge-1 unsubscribed, edge-2 unsubscribed")
	})
}

func TestNodeWhoseAliasIsNotCoveredAnyMoreLeavesTheCount(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("x.a.example")
		e.expect("x.a.example")
		synctest.Wait()
		v := f.certify(t, "canary", "wild", "*.b.example")
		f.waits(t, "wild", v, "edge-1 unsubscribed") // before it was told anything
	})
}

func TestAliasesOfBeforeTheRestartCountForTheirSecret(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		v := f.certify(t, "canary", "wild", "*.a.example")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("x.a.example")
		e.expect("x.a.example")
		elapse(time.Minute)
		f.kill(t)
		f.waits(t, "wild", v, "edge-1 gone for 0s")
		e = f.envoy(t, protocol, "edge-1")
		e.subscribe("y.a.example") // its clients want another name now
		e.expect("y.a.example")
		e.silent()
		f.waits(t, "wild", v, "edge-1 acked")
	})
}

func TestNodeThatChangesItsGroupLeavesTheOldOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, everything("canary", "production")...)
		v := f.rotate(t, "canary", "a")
		f.move(t, "production", "a", v)
		connect := func(group string) *envoy {
			e := newEnvoy(t, dial(t, f.buffer, nil), Delta, &corev3.Node{Id: "edge-1", Cluster: group})
			e.subscribe("a")
			e.expect("a")
			return e
		}
		e := connect("canary")
		elapse(time.Minute)
		e.leave()
		connect("production")
		f.waits(t, "a", v, "edge-1 unsubscribed")
		elapse(time.Minute)
		if n := f.entries(t)["edge-1"]; n.Group != "production" || len(f.entries(t)) != 1 {
			t.Errorf("the store says %+v, want one node in production", n)
		}
		f.kill(t)
		f.waits(t, "a", v, "")
		if p := f.Progress("production", map[string]secret.Version{"a": v}); len(p) != 1 || p[0].Acked || p[0].Connected {
			t.Errorf("progress of production %+v, want the absent node", p)
		}
		connect("canary") // and back
		if p := f.Progress("production", map[string]secret.Version{"a": v}); len(p) != 1 || !p[0].Unsubscribed {
			t.Errorf("progress of production %+v, want nothing to wait for", p)
		}
		f.waits(t, "a", v, "edge-1 connected")
	})
}

func TestNodeWithAnotherIDIsAnotherNode(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		v := f.rotate(t, "canary", "a")
		for _, id := range []string{"edge-1", "edge/ä%2F\n"} {
			e := f.envoy(t, protocol, id)
			e.subscribe("a")
			e.expect("a")
			elapse(time.Minute)
			e.leave()
		}
		f.restart(t)
		f.waits(t, "a", v, "edge-1 gone for 1m0s, edge/ä%2F\n gone for 0s")
	})
}

func TestNodeWithoutRightsIsNotWaitedFor(t *testing.T) {
	for _, lost := range []struct {
		name   string
		groups []Group
		shown  bool // the group is there still
	}{
		{"identity", []Group{{Name: "canary", Secrets: []string{"*"}, Deny: []string{plaintextIdentity}}}, true},
		{"group", everything("other"), false},
	} {
		t.Run(lost.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, Limits{})
				v := f.rotate(t, "canary", "a")
				left, stays := f.envoy(t, Delta, "edge-1"), f.envoy(t, Delta, "edge-2")
				for _, e := range []*envoy{left, stays} {
					e.subscribe("a")
					e.expect("a")
				}
				elapse(time.Minute)
				left.leave()
				elapse(time.Minute)
				if got := len(f.entries(t)); got != 2 {
					t.Fatalf("%d nodes are stored, want 2", got)
				}
				f.SetPolicy(NewPolicy(lost.groups))
				synctest.Wait()
				if lost.shown {
					f.waits(t, "a", v, "edge-1 unsubscribed, edge-2 unsubscribed")
				} else {
					f.waits(t, "a", v, "")
				}
				elapse(time.Minute)
				if got := f.entries(t); len(got) != 0 || f.sets(t) != 0 {
					t.Errorf("%v and %d sets are stored, want nothing", got, f.sets(t))
				}
			})
		})
		t.Run(lost.name+" while the server is down", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, Limits{})
				v := f.rotate(t, "canary", "a")
				e := f.envoy(t, Delta, "edge-1")
				e.subscribe("a")
				e.expect("a")
				elapse(time.Minute)
				f.groups = lost.groups
				f.restart(t)
				f.waits(t, "a", v, "")
				elapse(2 * time.Minute)
				if got := f.entries(t); len(got) != 0 || f.sets(t) != 0 {
					t.Errorf("%v and %d sets are stored, want nothing", got, f.sets(t))
				}
			})
		})
	}
}

func TestNodesThatAreGoneForLongLeaveTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		v := f.rotate(t, "canary", "a")
		stays := f.envoy(t, Delta, "edge-2")
		stays.subscribe("a")
		stays.expect("a")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		elapse(time.Minute)
		e.leave()
		elapse(keptAbsent - time.Hour)
		if got := len(f.entries(t)); got != 2 {
			t.Fatalf("%d nodes are stored, want 2", got)
		}
		f.restart(t)
		f.waits(t, "a", v, "edge-1 gone for 23h0m0s, edge-2 gone for 0s")
		again := f.envoy(t, Delta, "edge-2")
		again.subscribe("a")
		again.expect("a")
		elapse(2 * time.Hour)
		if got := f.entries(t); len(got) != 1 || got["edge-2"].Group == "" {
			t.Errorf("%v are stored, want edge-2 alone", got)
		}
	})
}

// The nodes that left first make room, also in the store.
func TestNodesOfOneGroupAreBoundedInTheStore(t *testing.T) {
	f := newFleet(t, Limits{})
	f.rotate(t, "canary", "a")
	f.stopRun()
	var clock atomic.Int64
	at := func() time.Time { return time.Now().Add(time.Duration(clock.Add(1)) * time.Millisecond) }
	l, r := f.offstage(f.store)
	come := func(id int) (*node, *record) {
		t.Helper()
		n, err := l.connect(nodeKey{"id", fmt.Sprint(id)}, "canary", TLS, Delta, at())
		if err != nil {
			t.Fatal(err)
		}
		rec := l.subscribe(n, "a")
		res, _ := f.cache.Resource("canary", "a")
		n.noteSent("a", rec, res, time.Now())
		return n, rec
	}
	flush := func() {
		t.Helper()
		if err := r.flush(t.Context(), time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range maxNodes {
		n, rec := come(i)
		if i < 2 {
			l.disconnect(n, map[string]*subscription{"a": {record: rec}}, nil, at(), false)
		}
	}
	flush()
	if got := len(f.entries(t)); got != maxNodes || f.sets(t) != 1 {
		t.Fatalf("%d nodes and %d sets are stored, want %d and 1", got, f.sets(t), maxNodes)
	}
	come(maxNodes) // node 0 makes room
	flush()
	got := f.entries(t)
	if _, oldest := got["0"]; oldest || len(got) != maxNodes || got[fmt.Sprint(maxNodes)].Group == "" {
		t.Errorf("%d nodes are stored, the oldest: %t", len(got), oldest)
	}
	come(maxNodes + 1) // node 1 makes room
	come(maxNodes + 2) // nobody is offline
	flush()
	if got := len(f.entries(t)); got != maxNodes || r.groups["canary"] != maxNodes {
		t.Errorf("%d nodes are stored, want %d", got, maxNodes)
	}

	reloaded, again := f.offstage(f.store)
	if err := again.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(reloaded.nodes) != maxNodes || len(again.sets) != 1 || again.setsBytes != r.setsBytes {
		t.Errorf("%d nodes were loaded, want %d", len(reloaded.nodes), maxNodes)
	}
}

// offstage makes a ledger and what writes it, without a server.
func (f *fleet) offstage(db store.Store) (*ledger, *registrar) {
	l := newLedger(2 * maxNodes)
	r := newRegistrar(db, l, slog.New(slog.DiscardHandler))
	l.marked = r.mark
	r.rights = func() *Policy {
		return NewPolicy([]Group{{Name: "canary", Identities: []string{"*"}, Secrets: []string{"*"}}})
	}
	r.secretOf = f.registrar.secretOf
	return l, r
}

func TestNodeWithTooManyNamesCountsForEverySecret(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		v := f.rotate(t, "canary", "a", "b")
		f.rotate(t, "canary", "b")
		f.registrar.setsLimit = 5 // one name of one letter
		for i, name := range []string{"a", "b"} {
			e := f.envoy(t, Delta, fmt.Sprintf("edge-%d", i))
			e.subscribe(name)
			e.expect(name)
			elapse(time.Minute)
		}
		if got := f.sets(t); got != 1 {
			t.Fatalf("%d sets are stored, want 1", got)
		}
		f.kill(t)
		f.waits(t, "a", v, "edge-0 gone for 0s, edge-1 gone for 0s")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("b")
		e.expect("b")
		elapse(time.Minute)
		f.waits(t, "a", v, "edge-0 gone for 1m0s")
		if n := f.entries(t)["edge-1"]; n.Names != newNameSet([]string{"b"}).digest {
			t.Errorf("the store says %+v, want b: there is room again", n)
		}
	})
}

func TestBrokenStoreDelaysNoStreamAndLosesNoNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		v := f.rotate(t, "canary", "a")
		f.store.broken.Store(true)
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		elapse(time.Minute)
		if got := strings.Count(f.log.String(), "which nodes there are cannot be stored"); got != 1 {
			t.Errorf("logged %d times, want once", got)
		}
		f.store.broken.Store(false)
		elapse(retryMost)
		f.kill(t)
		f.waits(t, "a", v, "edge-1 gone for 0s")
	})
}
