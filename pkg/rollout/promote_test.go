package rollout

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

var alice = Operator{By: "alice", Reason: "because"}

func TestPromoteWithNothingNewerIsAlreadyThere(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	r.serve("www")
	for range 2 {
		p, err := r.c.Promote(r.ctx(), "production", 0, alice)
		if err != nil || !p.Already || p.Snapshot != r.mustAt("production").Number || len(p.Rollouts) != 0 {
			t.Errorf("got %+v, %v; want already there", p, err)
		}
		r.serve("www")
		r.promote("production")
	}
	if _, err := r.c.Promote(r.ctx(), "nowhere", 0, alice); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("got %v, want an error that names the group", err)
	}
	if _, err := r.c.Promote(r.ctx(), "production", 99, alice); !errors.Is(err, ErrNoRollout) {
		t.Errorf("got %v, want %v", err, ErrNoRollout)
	}
}

func TestPromoteOfAGroupThatIsBehindSaysWhy(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	c := r.node("c1", "canary", "www")
	r.serve("www")
	c.refuses = func(string, secret.Version) bool { return true }
	v2 := r.serve("www")
	for _, g := range []string{"canary", "production"} {
		p, err := r.c.Promote(r.ctx(), g, 0, alice)
		if !errors.Is(err, ErrBehind) || p.Already {
			t.Fatalf("got %+v, %v; want %v", p, err, ErrBehind)
		}
		for _, want := range []string{"www", v2.Short(), "hard", "c1", "Failed to load certificate chain"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error %q does not name %q", err, want)
			}
		}
	}
}

func TestPromoteNamesWhatItLetsGoEarlierWavesFirst(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "eu", "us"))
	eu := r.node("e1", "eu", "a", "b")
	a1, b1 := r.serve("a"), r.serve("b")
	a2, b2 := r.serve("a"), r.serve("b")
	eu.silent = true
	p, err := r.c.Promote(r.ctx(), "us", 0, alice)
	if err != nil {
		t.Fatal(err)
	}
	want := Promotion{
		Group: "us", Rollouts: []uint64{3, 4}, Groups: []string{"eu", "us"}, Snapshot: r.mustAt("us").Number,
		Changes: []string{
			fmt.Sprintf("renewal of a: %s -> %s", a1.Short(), a2.Short()), fmt.Sprintf("renewal of b: %s -> %s", b1.Short(), b2.Short()),
		},
	}
	if diff := cmp.Diff(want, p); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	r.want("a", versions{"eu": a2, "us": a1})
	r.want("b", versions{"eu": b1, "us": b1})
	again, err := r.c.Promote(r.ctx(), "us", 0, alice) // still on its way: said again, and not "already there"
	if err != nil || again.Already || !slices.Equal(again.Rollouts, want.Rollouts) {
		t.Errorf("promoted again: %+v, %v", again, err)
	}
	eu.silent = false
	r.settle()
	r.want("a", r.all(a2))
	r.want("b", r.all(b2))
	if log := r.get(3).Log; !slices.ContainsFunc(log, func(e Event) bool { return e.By == "alice" && strings.Contains(e.Reason, "because") }) {
		t.Errorf("its log %v does not name who promoted it, and why", log)
	}
}

func TestPromoteOfOneRolloutLeavesTheOthersWaiting(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	a1 := r.serve("a")
	r.serve("b")
	r.serve("a")
	b2 := r.serve("b")
	if _, err := r.c.Promote(r.ctx(), "production", 4, alice); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want("b", r.all(b2))
	r.want("a", versions{"production": a1})
	if p, err := r.c.Promote(r.ctx(), "canary", 3, alice); err != nil || !p.Already {
		t.Errorf("of a group that it has moved: %+v, %v; want already there", p, err)
	}
	if _, err := r.c.Promote(r.ctx(), "canary", 4, alice); err == nil || !strings.Contains(err.Error(), "done") {
		t.Errorf("of a rollout that is done: %v", err)
	}
}

func TestPromoteOfManyRollouts(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	const n = 120 // more than the operations of one commit
	want := map[string]secret.Version{}
	for i := range n {
		r.accept(fmt.Sprintf("s%d", i))
	}
	r.settle()
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		want[name] = r.accept(name)
	}
	r.settle()
	p, err := r.c.Promote(r.ctx(), "production", 0, alice)
	if err != nil || len(p.Changes) != n {
		t.Fatalf("%d changes were let go, %v; want %d", len(p.Changes), err, n)
	}
	r.settle()
	for name, v := range want {
		r.want(name, r.all(v))
	}
}

func TestPromoteRevivesARolledBackRollout(t *testing.T) {
	for _, group := range []string{"canary", "production"} {
		t.Run(group, func(t *testing.T) {
			r := newRig(t, waves("manual", "canary", "production"))
			v1 := r.serve("www")
			v2 := r.serve("www")
			if _, err := r.c.Rollback(r.ctx(), "canary", alice); err != nil {
				t.Fatal(err)
			}
			r.settle()
			r.want("www", r.all(v1))
			p, err := r.c.Promote(r.ctx(), group, 2, alice)
			if err != nil || !slices.Equal(p.Rollouts, []uint64{3}) || p.Groups[0] != "canary" {
				t.Fatalf("got %+v, %v; want rollout 3 to move canary", p, err)
			}
			r.settle()
			want := r.all(v2)
			if group == "canary" {
				want["production"] = v1
			}
			r.want("www", want)
			if r.held("www", v2) != "" {
				t.Errorf("it is still held: %v", r.c.Holds())
			}
		})
	}
}

func TestPromoteRevivesOnlyWhatMayBeServed(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	c := r.node("c1", "canary", "www")
	r.serve("www")
	c.refuses = func(string, secret.Version) bool { return true }
	r.serve("www") // rollout 2: held hard
	c.refuses = nil
	if _, err := r.c.Promote(r.ctx(), "canary", 2, alice); !errors.Is(err, ErrHeld) {
		t.Errorf("held hard: got %v, want %v", err, ErrHeld)
	}
	r.serve("www") // rollout 3
	if _, err := r.c.Rollback(r.ctx(), "canary", alice); err != nil {
		t.Fatal(err)
	}
	newer := r.serve("www") // rollout 4
	if _, err := r.c.Promote(r.ctx(), "canary", 3, alice); err == nil || !strings.Contains(err.Error(), newer.Short()) {
		t.Errorf("an older version: got %v, want an error that names the newer one", err)
	}
	r.want("www", versions{"canary": newer})
}

func TestPromoteToAppliesTheDifferenceAndRemovesNothing(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	a1 := r.serve("a")
	a2 := r.serve("a")
	number := r.mustAt("canary").Number
	b := r.serve("b") // the snapshot does not know it
	step, err := r.c.PromoteTo(r.ctx(), "production", number, alice)
	if err != nil || !cmp.Equal(step.Changes, []cache.Entry{{Secret: "a", From: a1, To: a2}}) || step.Snapshot != r.mustAt("production").Number {
		t.Fatalf("got %+v, %v", step, err)
	}
	r.settle()
	r.want("a", r.all(a2))
	r.want("b", r.all(b))
	r.wantStates("1 done", "2 done", "3 done")
	if step, err := r.c.PromoteTo(r.ctx(), "production", number, alice); err != nil || len(step.Changes) != 0 {
		t.Errorf("again: %+v, %v; want no change", step, err)
	}
	if _, err := r.c.Rollback(r.ctx(), "production", alice); err != nil {
		t.Fatal(err)
	}
	r.want("a", versions{"production": a1})
	if r.held("a", a2) != Manual {
		t.Errorf("the version taken back is held %q, want manual", r.held("a", a2))
	}
	if _, err := r.c.PromoteTo(r.ctx(), "production", number, alice); err != nil || r.held("a", a2) != "" {
		t.Errorf("promoted again: %v, held %q; want the hold to be released", err, r.held("a", a2))
	}
	if _, err := r.c.PromoteTo(r.ctx(), "production", 99, alice); !errors.Is(err, cache.ErrNoSnapshot) {
		t.Errorf("got %v, want %v", err, cache.ErrNoSnapshot)
	}
}

func TestPromoteToRefusesAHardHold(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	p := r.node("p1", "production", "www")
	v1 := r.serve("www")
	p.refuses = func(string, secret.Version) bool { return true }
	v2 := r.serve("www")
	r.want("www", versions{"canary": v2, "production": v1})
	if _, err := r.c.PromoteTo(r.ctx(), "production", r.mustAt("canary").Number, alice); !errors.Is(err, ErrHeld) {
		t.Errorf("got %v, want %v", err, ErrHeld)
	}
	r.want("www", versions{"production": v1})
}

func TestReleaseRollsOutWhatWasHeld(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	v1 := r.serve("www")
	c.refuses = func(string, secret.Version) bool { return true }
	v2 := r.serve("www")
	r.want("www", r.all(v1))
	if n, err := r.c.Release(r.ctx(), "www", "0000"); err != nil || n != 0 {
		t.Errorf("of another version: %d, %v; want none", n, err)
	}
	c.refuses = nil
	r.settle()
	r.want("www", r.all(v1)) // not before an operator says so
	if n, err := r.c.Release(r.ctx(), "www", v2[:12]); err != nil || n != 1 {
		t.Fatalf("%d holds were released, %v; want 1", n, err)
	}
	r.settle()
	r.want("www", r.all(v2))
	if want := []string{"www " + v2.Short()}; !slices.Equal(r.events, want) {
		t.Errorf("the fleet was told to forget %q, want %q", r.events, want)
	}
	r.restart()
	if len(r.c.Holds()) != 0 {
		t.Errorf("after a restart: %v, want no holds", r.c.Holds())
	}
}

func TestHeldVersionIsNotAccepted(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	r.serve("www")
	s := newSecret(t, "www", 90*24*time.Hour)
	proposal := Proposal{Secret: s, Source: cache.SourceImport, Operations: []store.Operation{store.Put("x", nil)}}
	if _, err := r.c.Accept(r.ctx(), proposal); err != nil {
		t.Fatal(err)
	}
	r.settle()
	if _, err := r.c.Rollback(r.ctx(), "canary", alice); err != nil {
		t.Fatal(err)
	}
	before := r.picture()
	proposal.Operations = []store.Operation{store.Put("y", nil)}
	_, err := r.c.Accept(r.ctx(), proposal)
	if !errors.Is(err, ErrHeld) || !strings.Contains(err.Error(), "manual") || r.picture() != before {
		t.Errorf("got %v, %s; want %v and nothing changed", err, r.picture(), ErrHeld)
	}
	if _, err := r.disk.Get(r.ctx(), "y"); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("the caller's operation: %v, want %v", err, store.ErrNotFound)
	}
}
