package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

type versions = map[string]secret.Version

func TestAdditionGoesToAllGroupsAtOnce(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "eu us"))
	r.node("c1", "canary", "www").silent = true
	commits := r.disk.count()
	v := r.accept("www")
	r.want("www", r.all(v))
	if got := r.disk.count() - commits; got != 1 {
		t.Errorf("%d commits, want 1", got)
	}
	other := r.serve("other") // an addition holds no slot
	r.want("other", r.all(other))
	r.wantStates("1 moving", "2 done")
	if len(r.cache.Moves("canary")) != 0 {
		t.Error("an addition can be taken back")
	}
}

func TestAutoMovesWaveByWaveAsSoonAsACKed(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "eu us", "rest"))
	r.node("c1", "canary", "www")
	r.node("u1", "us", "www")
	r.node("r1", "rest", "other") // does not subscribe: does not count
	v1 := r.serve("www")
	v2 := r.accept("www")
	r.step()
	r.want("www", versions{"canary": v2, "eu": v1, "us": v1, "rest": v1})
	r.fleet.deliver(r.cache)
	r.step()
	r.want("www", versions{"canary": v2, "eu": v2, "us": v2, "rest": v1})
	a := r.c.Active()
	if len(a) != 1 || a[0].Wave != 1 || a[0].Waves[0].State != Done || a[0].Waves[1].State != Moving || a[0].Waves[2].State != Pending {
		t.Errorf("got %+v, want wave 1 to be moving", a)
	}
	r.settle()
	r.want("www", r.all(v2))
	r.wantStates("1 done", "2 done")
	log := r.get(2).Log
	if len(log) != 5 || log[0].Reason != "issued by le" || log[4].State != Done {
		t.Errorf("its log is %v, want every transition with its reason", log)
	}
}

func TestRotationCostsThreeCommits(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	r.node("p1", "production", "www")
	for range 6 { // also with versions to prune
		r.serve("www")
	}
	count := r.disk.count()
	spent := func(what string) {
		t.Helper()
		now := r.disk.count()
		if now-count != 1 {
			t.Errorf("%s: %d commits, want 1", what, now-count)
		}
		count = now
	}
	v := r.accept("www")
	r.step()
	spent("accepted, and the first wave moved")
	r.fleet.deliver(r.cache)
	r.step()
	r.step()
	spent("the first wave ACKed, and the second moved")
	r.fleet.deliver(r.cache)
	r.step()
	r.step()
	spent("the second wave ACKed, and done")
	r.want("www", r.all(v))
	if metas, err := r.cache.Versions(r.ctx(), "www"); err != nil || len(metas) != 3 {
		t.Errorf("%d versions are stored, %v; want 3", len(metas), err)
	}
}

func TestManualWaitsAfterTheFirstWave(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "eu", "us"))
	r.node("c1", "canary", "www")
	v1 := r.serve("www")
	v2 := r.serve("www")
	r.want("www", versions{"canary": v2, "eu": v1, "us": v1})
	a := r.c.Active()
	if len(a) != 1 || a[0].State != Waiting || !strings.Contains(a[0].Reason, "promotion of eu") {
		t.Errorf("got %+v, want a rollout that waits for a promotion of eu", a)
	}
	r.promote("eu")
	r.want("www", versions{"canary": v2, "eu": v2, "us": v1})
	r.promote("us")
	r.want("www", r.all(v2))
	r.wantStates("1 done", "2 done")
}

func TestManualWaitsAlsoWhereOnlyALaterWaveIsBehind(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	v1 := r.serve("www")
	v2 := r.serve("www")
	if _, err := r.c.Rollback(r.ctx(), "canary", Operator{}); err != nil {
		t.Fatal(err)
	}
	number := r.get(2).Waves[0].Snapshot
	if _, err := r.c.PromoteTo(r.ctx(), "canary", number, Operator{}); err != nil {
		t.Fatal(err)
	}
	r.restart() // heals: nothing brings v2 to production
	r.settle()
	r.want("www", versions{"canary": v2, "production": v1})
	r.promote("production")
	r.want("www", r.all(v2))
}

func TestNewerVersionSupersedes(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	v1 := r.serve("www")
	c.silent = true
	v2 := r.accept("www")
	r.settle()
	r.want("www", versions{"canary": v2, "production": v1})
	c.silent = false
	v3 := r.serve("www")
	r.want("www", r.all(v3))
	r.wantStates("1 done", "2 superseded", "3 done")
	if got := r.c.Ended(); got[Superseded] != 1 || got[Done] != 2 {
		t.Errorf("ended: %v, want 2 done and 1 superseded", got)
	}
}

func TestGoingBackToAnOldVersionByImportEndsTheNewerRollout(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	old := newSecret(t, "www", 1<<40)
	importOld := func() {
		if _, err := r.c.Accept(r.ctx(), Proposal{Secret: old, Source: cache.SourceImport, Reason: "import"}); err != nil {
			t.Fatal(err)
		}
		r.settle()
	}
	importOld()
	v1 := r.at("canary", "www")
	r.serve("www")
	importOld()
	r.restart()
	r.settle()
	r.want("www", r.all(v1))
	if len(r.c.Active()) != 0 {
		t.Errorf("still under way: %+v", r.c.Active())
	}
}

func TestOneChangeMovesForAGroupAndTheOthersWaitTheirTurn(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "a", "b", "d")
	p := r.node("p1", "production", "a", "b", "d")
	first := versions{"a": r.serve("a"), "b": r.serve("b"), "d": r.serve("d")}
	c.silent = true
	a2, b2, d2 := r.accept("a"), r.accept("b"), r.accept("d")
	r.settle()
	r.want("a", versions{"canary": a2, "production": first["a"]})
	r.want("b", versions{"canary": first["b"]})
	commits := r.disk.count()
	r.settle()
	if got := r.disk.count(); got != commits {
		t.Errorf("%d commits while nothing happens, want none", got-commits)
	}
	p.silent = true
	c.silent = false
	r.settle() // a has left canary: the slot there is b's, then d's; production's is a's
	r.want("a", r.all(a2))
	r.want("b", versions{"canary": b2, "production": first["b"]})
	r.want("d", versions{"canary": d2, "production": first["d"]})
	p.silent = false
	r.settle()
	r.want("b", r.all(b2))
	r.want("d", r.all(d2))
}

func TestWaitingRolloutHoldsNoSlot(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	r.serve("a")
	b1 := r.serve("b")
	a2 := r.serve("a") // waits for a promotion
	b2 := r.serve("b")
	r.want("b", versions{"canary": b2, "production": b1})
	p := r.node("p1", "production", "a", "b")
	p.silent = true
	if _, err := r.c.Promote(r.ctx(), "production", 4, Operator{}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Promote(r.ctx(), "production", 3, Operator{}); err != nil {
		t.Fatal(err)
	}
	r.settle() // the older one waits for the newer one
	r.want("b", r.all(b2))
	r.wantStates("1 done", "2 done", "3 waiting", "4 moving")
	p.silent = false
	r.fleet.deliver(r.cache)
	r.step() // one look is enough: nobody wakes the older one
	r.want("a", r.all(a2))
	r.settle()
	r.wantStates("1 done", "2 done", "3 done", "4 done")
}

func TestSupersededRolloutFreesItsSlot(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "a")
	r.serve("a")
	r.serve("b")
	c.silent = true
	r.accept("a")
	b2 := r.serve("b") // waits for a
	c.names = nil
	r.accept("a")
	r.settle()
	r.want("b", r.all(b2))
	r.wantStates("1 done", "2 done", "3 superseded", "4 superseded", "5 done") // 4 goes with 5
}

func TestWaveOfMoreGroupsThanOneCommitTakes(t *testing.T) {
	var groups []string
	for i := range 2*cache.MaxMoves + 7 {
		groups = append(groups, fmt.Sprintf("g%02d", i))
	}
	r := newRig(t, waves("auto", "canary", strings.Join(groups, " ")))
	for i := range groups {
		r.serve(fmt.Sprintf("own-%d", i))
	}
	for i, g := range groups { // every group in a set of its own
		p := r.cache.Plan()
		if _, err := p.Move(r.ctx(), g, versions{fmt.Sprintf("own-%d", i): ""}, cache.Why{Direction: cache.Beside}); err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(r.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	v1 := r.serve("www")
	r.want("www", r.all(v1))
	v2 := r.serve("www")
	r.want("www", r.all(v2))
	bad := r.node("n", groups[40], "www")
	bad.refuses = func(string, secret.Version) bool { return true }
	r.edit(bad, func(n *node) { n.acked["www"] = v2 })
	v3 := r.serve("www")
	want := r.all(v2)
	want["canary"] = v3
	r.want("www", want) // all of them are taken back, too
	if r.held("www", v3) != Hard || len(r.c.Active()) != 0 {
		t.Errorf("held %q, active %v; want a hard hold and nothing under way", r.held("www", v3), r.c.Active())
	}
	for _, g := range groups {
		if n := len(r.cache.Moves(g)); n != 1 {
			t.Errorf("group %s has %d moves, want the 1 that was not taken back", g, n)
		}
	}
}

func (r *rig) mustAt(group string) *cache.Snapshot {
	at, _ := r.cache.At(group)
	return at
}

func TestAcceptIsOneCommitWithTheCallersOperations(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	p := Proposal{
		Secret: newSecret(t, "www", 1<<50), Source: cache.SourceACME, Issuer: "le", Reason: "issued",
		Conditions: []store.Condition{{Key: "order/www", Revision: 99}}, Operations: []store.Operation{store.Put("certificate/www", []byte("state"))},
	}
	before := r.picture()
	if _, err := r.c.Accept(r.ctx(), p); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("got %v, want %v", err, store.ErrConflict)
	}
	if metas, _ := r.cache.Versions(r.ctx(), "www"); r.picture() != before || len(metas) != 0 {
		t.Errorf("a refused Accept left %d versions and %s", len(metas), r.picture())
	}
	p.Conditions = []store.Condition{{Key: "order/www"}}
	a, err := r.c.Accept(r.ctx(), p)
	if err != nil {
		t.Fatal(err)
	}
	e, err := r.disk.Get(r.ctx(), "certificate/www")
	if err != nil || string(e.Value) != "state" || a.Rollout != 1 || a.Snapshot != r.mustAt("canary").Number || a.Meta.Issuer != "le" {
		t.Errorf("got %+v, state %q, %v; want rollout 1 and the caller's operation", a, e.Value, err)
	}
	p.Operations = nil
	again, err := r.c.Accept(r.ctx(), p)
	if err != nil || again.Meta.Version != a.Meta.Version || again.Snapshot != a.Snapshot {
		t.Errorf("accepted again: %+v, %v; want the same", again, err)
	}
	r.settle()
	if again, err = r.c.Accept(r.ctx(), p); err != nil || again.Rollout != 0 {
		t.Errorf("accepted when every group serves it: rollout %d, %v; want none", again.Rollout, err)
	}
}

func TestAcceptBeforeTheFirstReconfigure(t *testing.T) {
	r := newRig(t, Policy{Managed: func(string) bool { return true }})
	r.policy = waves("auto", "canary", "production")
	r.crash()
	v := r.accept("www")
	r.want("www", r.all(v))
}

func TestFullDiskMovesNothingAndIsTriedAgain(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	v1 := r.serve("www")
	v2 := r.accept("www")
	r.fleet.deliver(r.cache)
	before := r.picture()
	r.disk.full(true)
	for range 3 {
		if _, err := r.c.step(r.ctx()); !errors.Is(err, errDisk) {
			t.Fatalf("got %v, want %v", err, errDisk)
		}
	}
	if _, err := r.c.Accept(r.ctx(), Proposal{Secret: newSecret(t, "www", 1<<50), Source: cache.SourceACME}); !errors.Is(err, errDisk) {
		t.Errorf("got %v, want %v", err, errDisk)
	}
	if got := r.picture(); got != before {
		t.Errorf("with a full disk %s, want %s", got, before)
	}
	r.want("www", versions{"canary": v2, "production": v1})
	r.disk.full(false)
	r.settle()
	r.want("www", r.all(v2))
	r.wantStates("1 done", "2 done")
}

func TestLostAnswerOfTheStoreIsFoundOut(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	r.serve("www")
	r.disk.hooks(nil, func(int) bool { return true })
	s := newSecret(t, "www", 1<<50)
	_, err := r.c.Accept(r.ctx(), Proposal{Secret: s, Source: cache.SourceACME, Reason: "issued"})
	if !errors.Is(err, errDisk) {
		t.Fatalf("got %v, want %v", err, errDisk)
	}
	r.disk.hooks(nil, nil)
	r.settle()
	r.want("www", r.all(r.cache.Version(s)))
	r.wantStates("1 done", "2 done")
	r.disk.hooks(nil, func(int) bool { return true })
	if _, err := r.c.Rollback(r.ctx(), "canary", alice); !errors.Is(err, errDisk) {
		t.Fatalf("got %v, want %v", err, errDisk)
	}
	r.disk.hooks(nil, nil)
	if _, err := r.c.Rollback(r.ctx(), "canary", alice); !errors.Is(err, ErrNothingToUndo) { // it was done
		t.Errorf("got %v, want %v", err, ErrNothingToUndo)
	}
}

func TestNothingIsReadTwiceOnTheHotPath(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	r.serve("www")
	lists := &lister{Store: r.disk.Store}
	r.disk.Store = lists
	r.serve("www")
	if slices.ContainsFunc(lists.prefixes, func(p string) bool { return p != "secret/www/" }) || len(lists.prefixes) > 1 {
		t.Errorf("a rotation lists %q, want the versions of its secret, once", lists.prefixes)
	}
}

// lister notes what is listed.
type lister struct {
	store.Store
	prefixes []string
}

func (l *lister) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	l.prefixes = append(l.prefixes, prefix)
	return l.Store.List(ctx, prefix)
}

func TestNewSecretThatTakesNamesFromAnotherGoesByWaves(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "new")
	r.node("p1", "production", "new")
	r.fleet.displaced = "canary"
	c.refuses = func(string, secret.Version) bool { return true }
	v1 := r.serve("new")
	r.want("new", versions{"canary": "", "production": v1}) // production loses nothing by it
	if r.held("new", v1) != Hard {
		t.Errorf("held %q, want hard", r.held("new", v1))
	}
	r.fleet.displaced = "production"
	c.refuses = nil
	v2 := r.serve("other")
	r.want("other", r.all(v2)) // canary gets it at once, then production
	if got := r.get(r.c.last); got.Change[0].Kind != Chain || got.Waves[0].Groups[0] != "canary" {
		t.Errorf("got %+v, want production to wait for canary's nodes", got)
	}
}
