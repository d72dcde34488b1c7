package sds

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// stored counts the records of what nodes rejected.
func (f *fleet) stored(t testing.TB) int {
	t.Helper()
	entries, _, err := f.store.List(t.Context(), nackPrefix+"/")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestNackedBytesAreNotSentAgainAfterARestart(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		good := e.expect("a")
		e.expect("b")
		bad := f.rotate(t, "canary", "a")
		rejected := e.next()
		e.nack(rejected, "Failed to load")
		e.silent()
		f.restart(t)

		if n := f.node(t, "edge-1"); n.State != Offline || len(n.Secrets) != 2 || n.Secrets[0].Nacked == nil || n.Secrets[1].Nacked != nil || n.Protocol != protocol {
			t.Errorf("before it is back: %+v, want it OFFLINE with its names and its NACK", n)
		}
		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(nil, "a", "b")
		if got := again.expect("a"); got.chain != good.chain {
			t.Error("the node was not sent its last good bytes")
		}
		again.expect("b")
		again.silent()
		n := f.node(t, "edge-1")
		if s := n.Secrets[0]; n.State != Nacked || s.Nacked == nil || s.Nacked.Version != bad || s.Nacked.Message != "Failed to load" {
			t.Errorf("node is %s, nacked %+v", n.State, s.Nacked)
		}
		p := f.Progress("canary", map[string]secret.Version{"a": bad})
		if len(p) != 1 || p[0].NACK == nil || p[0].NACK.Secret != "a" || p[0].NACK.Version != bad {
			t.Errorf("progress %+v, want one node with its NACK", p)
		}

		// A node of the same name with another identity, and another node, are sent them.
		other := f.envoy(t, protocol, "edge-2")
		other.subscribe("a")
		if got := other.expect("a"); got.chain != rejected.chain {
			t.Error("another node was not sent the new bytes")
		}

		f.Release("a", bad)
		if got := again.expect("a"); got.chain != rejected.chain || got.raw == rejected.raw {
			t.Error("after the release the node was not sent the version in other bytes")
		}
		synctest.Wait()
		if got := f.stored(t); got != 0 {
			t.Errorf("%d records are stored after the release, want 0", got)
		}
		f.restart(t)
		last := f.envoy(t, protocol, "edge-1")
		last.reconnected(nil, "a")
		if got := last.expect("a"); got.chain != rejected.chain {
			t.Error("the release did not outlive the restart")
		}
	})
}

func TestDeltaNodeWithItsLastGoodVersionIsNotSentTheNackedOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		good := f.rotate(t, "canary", "a")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		first := e.expect("a")
		e.leave()
		f.restart(t) // which forgets the acknowledgement
		bad := f.rotate(t, "canary", "a")
		e = f.envoy(t, Delta, "edge-1")
		e.reconnected(map[string]secret.Version{"a": good}, "a")
		e.nack(e.next(), "bad")
		e.silent()
		if keeps := f.Refers("a"); !keeps(good) || keeps(bad) {
			t.Error("the version that the node has is not the one that must stay")
		}
		f.restart(t)
		e = f.envoy(t, Delta, "edge-1")
		e.reconnected(map[string]secret.Version{"a": good}, "a")
		if got := e.expect("a"); got.chain != first.chain {
			t.Error("the node was not sent its last good bytes")
		}
		e.silent()
	})
}

func TestLastGoodVersionIsThatBeforeTheLastNack(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		bad := f.rotate(t, "canary", "a")
		e.nack(e.next(), "bad")
		e.silent()
		newest := f.rotate(t, "canary", "a")
		good := e.expect("a")
		synctest.Wait()
		if keeps := f.Refers("a"); !keeps(newest) || keeps(bad) {
			t.Error("what the node acknowledged last is not what must stay")
		}
		f.move(t, "canary", "a", bad)
		e.silent()
		f.restart(t)
		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(nil, "a")
		if got := again.expect("a"); got.chain != good.chain {
			t.Error("the node was not sent what it acknowledged last")
		}
	})
}

func TestBrokenStoreDelaysNoStreamAndLosesNoNack(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		f.store.broken.Store(true)
		e.nack(e.next(), "bad")
		e.expect("b")
		time.Sleep(time.Minute) //nolint:forbidigo // the clock of the bubble: many attempts
		e.silent()
		if got := f.stored(t); got != 0 {
			t.Fatalf("%d records are stored by a broken store", got)
		}
		if got := strings.Count(f.log.String(), "rejected versions cannot be stored"); got != 1 {
			t.Errorf("logged %d times, want once", got)
		}
		f.store.broken.Store(false)
		time.Sleep(retryMost) //nolint:forbidigo // the clock of the bubble
		synctest.Wait()
		if got := f.stored(t); got != 1 {
			t.Errorf("%d records are stored, want 1", got)
		}
		f.restart(t)
		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(nil, "a")
		again.expectRemoved("a") // it never acknowledged anything
	})
}

func TestNacksAreStoredWhenTheServerStops(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		f.store.broken.Store(true)
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.nack(e.next(), "bad")
		synctest.Wait()
		f.store.broken.Store(false)
		f.stopRun()
		if got := f.stored(t); got != 1 {
			t.Errorf("%d records are stored, want 1", got)
		}
	})
}

func TestNacksGoWithTheirVersion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		good := f.rotate(t, "canary", "a")
		e := f.envoy(t, Delta, "edge-1")
		e.subscribe("a")
		e.expect("a")
		bad := f.rotate(t, "canary", "a")
		e.nack(e.next(), "bad")
		e.leave()
		renew := func() {
			t.Helper()
			f.rotate(t, "canary", "a")
			p := f.cache.Plan()
			if err := p.Prune(t.Context(), "a", f.Refers("a")); err != nil {
				t.Fatal(err)
			}
			commit(t, p)
			synctest.Wait()
		}
		has := func(v secret.Version) bool {
			_, err := f.cache.Stored(t.Context(), "a", v)
			return err == nil
		}
		for i := 0; has(bad); i++ {
			if !has(good) {
				t.Fatal("the last good version of an offline node was pruned")
			}
			if got := f.stored(t); got != 1 {
				t.Fatalf("%d records are stored, want 1", got)
			}
			if i > 10 {
				t.Fatal("the rejected version is never pruned")
			}
			renew()
		}
		renew()
		renew()
		if has(good) || f.stored(t) != 0 {
			t.Errorf("the good version is stored: %t, records: %d; want both to be gone with the rejected version", has(good), f.stored(t))
		}
	})
}

func TestForgottenNodesLeaveTheStore(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{NodesPerIdentity: 3})
		f.rotate(t, "canary", "a")
		for i := range 5 {
			e := f.envoy(t, protocol, fmt.Sprintf("edge-%d", i))
			e.subscribe("a")
			e.nack(e.next(), "bad")
			e.leave()
			time.Sleep(time.Second) //nolint:forbidigo // the clock of the bubble: they leave one after another
		}
		synctest.Wait()
		if got := f.stored(t); got != 3 {
			t.Errorf("%d records are stored, want those of 3 nodes", got)
		}
		f.restart(t)
		e := f.envoy(t, protocol, "edge-9") // the oldest makes room also after a restart
		e.subscribe("a")
		e.nack(e.next(), "bad")
		e.silent()
		for _, n := range f.Nodes() {
			if n.ID == "edge-0" || n.ID == "edge-1" || n.ID == "edge-2" {
				t.Errorf("%s is still known", n.ID)
			}
		}
		if got := f.stored(t); got != 3 {
			t.Errorf("%d records are stored after the restart, want 3", got)
		}
	})
}

func TestRecordsOfOneIdentityAreBounded(t *testing.T) {
	f := newFleet(t, Limits{})
	f.stopRun()
	l := newLedger(10)
	k := newKeeper(f.store, f.cache, l, slog.New(slog.DiscardHandler))
	k.limit = 3
	l.changed = k.mark
	reject := func(identity, id string, names ...string) {
		t.Helper()
		n, err := l.connect(nodeKey{identity, id}, "canary", TLS, Delta, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			n.noteNACK(name, l.subscribe(n, name), NACK{Secret: name, Version: "v"})
		}
		if err := k.flush(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	reject("x", "1", "a", "b")
	reject("x", "2", "a", "b", "c")
	reject("y", "1", "a")
	if got := f.stored(t); got != 4 {
		t.Errorf("%d records are stored, want 3 of one identity and 1 of the other", got)
	}
	l.forgetNACKs("a", func(secret.Version) bool { return true })
	if err := k.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	reject("x", "3", "d", "e", "f", "g")
	if got := len(k.stored["x"]); got != 3 || f.stored(t) != 3 {
		t.Errorf("%d records of the identity, %d in all are stored; want 3: what is forgotten makes room", got, f.stored(t))
	}
}

func TestManyNacksAreStoredInFewCommits(t *testing.T) {
	f := newFleet(t, Limits{})
	f.stopRun()
	counter := &counted{disk: f.store}
	l := newLedger(1000)
	k := newKeeper(counter, f.cache, l, slog.New(slog.DiscardHandler))
	l.changed = k.mark
	text := strings.Repeat("x", maxMessage)
	for i := range 300 {
		n, err := l.connect(nodeKey{"id", fmt.Sprint(i)}, "canary", TLS, Delta, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		r := l.subscribe(n, "a")
		for v := range maxNACKs {
			n.noteNACK("a", r, NACK{Secret: "a", Version: secret.Version(fmt.Sprint(v)), Message: text})
		}
	}
	if err := k.flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := f.stored(t); got != 300 {
		t.Errorf("%d records are stored, want 300", got)
	}
	if counter.commits < 10 || counter.commits > 40 { // 300 x 32 KiB in pieces of 512 KiB
		t.Errorf("%d commits, want about 20", counter.commits)
	}
	reloaded := newLedger(1000)
	if err := newKeeper(f.store, f.cache, reloaded, slog.New(slog.DiscardHandler)).load(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(reloaded.nodes) != 300 {
		t.Errorf("%d nodes were loaded, want 300", len(reloaded.nodes))
	}
}

// counted counts the commits of a store.
type counted struct {
	*disk
	commits int
}

// Commit implements store.Store.
func (c *counted) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	c.commits++
	return c.disk.Commit(ctx, conditions, operations)
}
