package rollout

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// The reason names a group out of a map: each look may name another one, which is a transition to store.
func TestGroupsWithoutANodeAreNamedInOneOrder(t *testing.T) {
	run(t, waves("auto", "canary", "a b c d e f g h"), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.serve("www")
		p := r.policy
		p.EmptyWait = true
		r.reconfigure(p)
		r.accept("www")
		r.step()
		r.fleet.deliver(r.cache)
		r.step()
		commits, log := r.disk.count(), len(r.get(2).Log)
		for range 20 {
			r.step()
		}
		if n := r.disk.count() - commits; n > 0 {
			t.Errorf("20 looks at a rollout that waits made %d commits and %d log entries, want none", n, len(r.get(2).Log)-log)
		}
	})
}

// A node that is stuck keeps its old certificate: an emergency passes it, and what the background sees of it later must not take the emergency back.
func TestEmergencyIsNotTakenBackAfterItsEndByAStuckNode(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.prober.blinded = false
		r.node("c1", "canary", "www")
		stuck := r.node("p1", "production", "www")
		r.node("p2", "production", "www")
		r.short("www")
		r.pass(9*day + 13*time.Hour)
		stuck.silent = true
		v2 := r.accept("www")
		r.pass(10 * time.Minute)
		r.want("www", r.all(v2))
		if r.held("www", v2) != "" {
			t.Errorf("held %q: %+v", r.held("www", v2), r.c.Holds())
		}
		if got := r.get(2); got.State != Done {
			t.Errorf("it is %s: %s", got.State, got.Reason)
		}
	})
}

// Of two changes that travel together each has its own deadline.
func TestEachChangeOfATrainHasItsDeadline(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "a", "b", "x")
		r.serve("x")
		r.acceptFor("a", 10*day)
		b1 := r.acceptFor("b", 20*day)
		r.settle()
		c.silent = true
		r.accept("x")
		r.step()
		a2, b2 := r.accept("a"), r.accept("b")
		c.silent = false
		r.settle()
		train := false
		for _, one := range r.c.Active() {
			train = train || len(one.Change) == 2
		}
		if !train {
			t.Fatal("a and b do not travel together")
		}
		r.pass(9*day + 15*time.Hour)
		r.want("a", r.all(a2))
		r.want("b", versions{"canary": b2, "production": b1})
		r.pass(9*day + 15*time.Hour) // b1 has 20 days, less a 20th
		r.want("b", r.all(b2))
	})
}

// A hold on what every group serves has no deadline; when an undo takes the groups away from it, it has to get one.
func TestHoldGetsADeadlineWhenGroupsLeaveTheVersion(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Second), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.short("www")
		v2 := r.accept("www")
		r.pass(time.Minute)
		r.want("www", r.all(v2))
		if _, err := r.c.Hold(r.ctx(), "www", v2, alice); err != nil {
			t.Fatal(err)
		}
		if _, err := r.c.Undo(r.ctx(), 2, alice); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.want("www", r.all(v1))
		r.pass(9*day + 15*time.Hour)
		r.want("www", r.all(v2))
	})
}

// A new group may start with an older version than any other group serves: the rollout that takes it along has its deadline then.
func TestGroupThatJoinsARolloutBringsItsDeadline(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.short("www") // 10 days
		v2 := r.acceptFor("www", 60*day)
		r.settle()
		r.promote("production")
		r.want("www", r.all(v2))
		v3 := r.serve("www")
		r.want("www", versions{"canary": v3, "production": v2})
		r.reconfigure(waves("manual", "canary", "production", "late"))
		r.settle()
		r.want("www", versions{"canary": v3, "production": v2, "late": v1})
		r.pass(9*day + 15*time.Hour)
		if got := r.at("late", "www"); got == v1 {
			t.Errorf("late serves version %s in the last part of its life, and a valid one waits (deadline %s)", short(got), r.c.Active()[0].Deadline)
		}
	})
}

// Where a valid version that nobody holds is there, it saves what is served, and not a newer one that is held.
func TestRescuePrefersWhatIsNotHeld(t *testing.T) {
	for _, how := range []string{"manual", "handshake"} {
		t.Run(how, func(t *testing.T) {
			run(t, waves("auto", "canary", "production").watched(time.Hour), func(t *testing.T, r *rig) {
				r.prober.blinded = false
				r.node("c1", "canary", "www")
				r.node("p1", "production", "www")
				r.acceptFor("www", 10*day)
				r.pass(3 * time.Hour)
				v2 := r.accept("www")
				r.pass(10 * time.Minute) // canary is watched
				v3 := newSecret(t, "www", 90*day)
				id := r.cache.Version(v3)
				if how == "handshake" {
					r.prober.bad = map[version]string{id: "unknown root"}
				}
				if _, err := r.c.Accept(r.ctx(), Proposal{Secret: v3, Source: "acme", Issuer: "le", Reason: "issued by le"}); err != nil {
					t.Fatal(err)
				}
				if how == "manual" {
					if _, err := r.c.Abort(r.ctx(), 3, alice); err != nil {
						t.Fatal(err)
					}
				}
				r.pass(3 * time.Hour)
				if r.held("www", id) == "" {
					t.Fatal("it is not held")
				}
				t.Logf("after the hold: canary %s production %s", short(r.at("canary", "www")), short(r.at("production", "www")))
				r.pass(10*day - 3*time.Hour) // over the end of v1
				r.want("www", r.all(v2))
			})
		})
	}
}

// Undo takes a stored rollout up again: what stood in its log before is in the trail already.
func TestUndoIsRecordedOnce(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Second), func(t *testing.T, r *rig) {
		seen := map[string]int{}
		r.c.audit = func(_ context.Context, records []Record) {
			for _, one := range records {
				if one.Rollout != nil {
					seen[fmt.Sprintf("%d %s %s %s", one.Rollout.ID, one.Event.At.Format(time.RFC3339Nano), one.Event.State, one.Event.Reason)]++
				}
			}
		}
		r.node("c1", "canary", "www")
		r.serve("www")
		r.accept("www")
		r.pass(time.Minute)
		if _, err := r.c.Undo(r.ctx(), 2, alice); err != nil {
			t.Fatal(err)
		}
		r.settle()
		for what, n := range seen {
			if n > 1 {
				t.Errorf("%d times in the trail: %s", n, what)
			}
		}
	})
}

// A rollout that is taken up again is still the oldest of the history.
func TestOldestOfAFullHistoryIsUndone(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Second), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		r.accept("www")
		r.pass(time.Minute)
		r.c.history = []uint64{2}
		for id := range uint64(keptRollouts - 1) {
			r.c.history = append(r.c.history, 1000+id)
		}
		got, err := r.c.Undo(r.ctx(), 2, alice)
		if err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.want("www", r.all(v1))
		if one, err := r.c.Rollout(r.ctx(), 2); err != nil || one.State != RolledBack {
			t.Errorf("undone (%+v), and then %+v, %v", got, one, err)
		}
	})
}

// A rollout that waits says so once, however often others pass.
func TestLogOfAWaitingRolloutHasABound(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www", "idle")
		r.node("p1", "production", "www")
		r.serve("www")
		r.serve("idle")
		p := r.policy
		p.EmptyWait = true
		r.reconfigure(p)
		r.serve("idle") // waits for a node of production
		_ = c
		id := r.c.Active()[0].ID
		before := len(r.get(id).Log)
		for range 50 {
			r.serve("www")
		}
		if n := len(r.get(id).Log); n > before+20 {
			t.Errorf("50 rollouts of another secret made %d entries in its log of %d", n-before, before)
		}
	})
}

// A group that has left the configuration has no nodes any more: nobody waits for it.
func TestGroupThatLeavesInTheMiddleOfItsWaveIsNotWaitedFor(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.node("p1", "production", "www")
		r.serve("www")
		c.silent = true
		v2 := r.accept("www")
		r.step()
		r.reconfigure(waves("auto", "canary2", "production"))
		r.fleet.edit(func() { c.group = "canary2"; c.silent = false })
		r.pass(time.Hour)
		if got := r.at("production", "www"); got != v2 {
			for _, one := range r.c.Active() {
				t.Logf("rollout %d %s: %s", one.ID, one.State, one.Reason)
			}
			t.Errorf("an hour later production serves %s, want %s", short(got), short(v2))
		}
	})
}

var _ secret.Version
