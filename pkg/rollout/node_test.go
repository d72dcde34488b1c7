package rollout

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// run runs a test in a bubble.
func run(t *testing.T, policy Policy, test func(t *testing.T, r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, policy)
		test(t, r)
	})
}

// pass lets time pass, while nodes and controller go on.
func (r *rig) pass(d time.Duration) {
	r.t.Helper()
	var next time.Time
	for end := time.Now().Add(d); time.Now().Before(end); {
		until := sooner(next, time.Now().Add(max(time.Second, d/100)))
		time.Sleep(max(time.Millisecond, time.Until(until))) //nolint:forbidigo // the clock of the bubble
		r.fleet.deliver(r.cache)
		next = must(r.c.step(r.ctx()))
	}
}

func TestNACKTakesTheWaveBackAndHoldsHard(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "eu us"))
	r.node("c1", "canary", "www")
	r.node("e1", "eu", "www")
	bad := r.node("u1", "us", "www")
	v1 := r.serve("www")
	bad.refuses = func(string, secret.Version) bool { return true }
	v2 := r.serve("www")
	r.want("www", versions{"canary": v2, "eu": v1, "us": v1}) // the wave's groups, and no other
	r.wantStates("1 done", "2 rolled_back")
	if r.held("www", v2) != Hard {
		t.Errorf("held %q, want hard", r.held("www", v2))
	}
	for _, want := range []string{"u1", "spiffe://u1", "www", v2.Short(), "Failed to load certificate chain"} {
		if !strings.Contains(r.get(2).Reason, want) {
			t.Errorf("the reason %q does not name %q", r.get(2).Reason, want)
		}
	}
	bad.refuses = nil
	for range 3 {
		r.restart()
		r.settle()
		r.want("www", versions{"canary": v2, "eu": v1, "us": v1})
	}
	v3 := r.serve("www")
	r.want("www", r.all(v3))
}

func TestNACKDoesNotBringBackAnExpiredVersion(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		v1 := r.acceptFor("www", 3*time.Hour)
		r.settle()
		r.pass(4 * time.Hour)
		r.node("good", "canary", "www")
		r.node("bad", "canary", "www").refuses = func(_ string, v secret.Version) bool { return v != v1 }
		v2 := r.serve("www")
		r.want("www", versions{"canary": v2, "production": v2}) // an emergency, which helps all others
		if r.held("www", v2) != Hard {
			t.Errorf("held %q, want hard", r.held("www", v2))
		}
		r.wantStates("1 done", "2 done")
	})
}

func TestNACKTakesBackAlsoWhatAnOperatorMovedOnFrom(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	c := r.node("c1", "canary", "www")
	v1 := r.serve("www")
	a1 := r.serve("a")
	old := r.mustAt("canary").Number
	a2 := r.serve("a")
	if _, err := r.c.RollbackTo(r.ctx(), "canary", old, alice); err != nil {
		t.Fatal(err)
	}
	c.silent = true
	v2 := r.accept("www")
	plan := r.cache.Plan() // as PromoteTo does, for a alone
	if _, err := plan.Move(r.ctx(), "canary", versions{"a": a2}, cache.Why{Reason: "promotion"}); err != nil {
		t.Fatal(err)
	}
	if err := plan.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	c.silent, c.refuses = false, func(_ string, v secret.Version) bool { return v == v2 }
	r.settle()
	r.want("www", versions{"canary": v1})
	r.want("a", versions{"canary": a2})
	r.rollback("canary")
	r.want("a", versions{"canary": a1})
}

func TestNACKOfAnAdditionIsReportedAndNotUndone(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www").refuses = func(string, secret.Version) bool { return true }
	v1 := r.serve("www")
	r.want("www", r.all(v1))
	if r.held("www", v1) != Hard || !strings.Contains(r.get(1).Reason, "refused") {
		t.Errorf("held %q, reason %q; want a hard hold and the refusal", r.held("www", v1), r.get(1).Reason)
	}
}

func TestHeldVersionGoesNoFurther(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	p := r.node("p1", "production", "www")
	v1 := r.serve("www")
	r.reconfigure(waves("auto", "canary", "production", "late"))
	c := r.node("c1", "canary", "www")
	c.silent = true
	plan := r.cache.Plan()
	if _, err := plan.Move(r.ctx(), "production", versions{"www": ""}, whyTest); err != nil {
		t.Fatal(err)
	}
	if err := plan.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	p.refuses = func(string, secret.Version) bool { return true }
	v2 := r.accept("www") // production lacks it and gets it at once; canary and late go by waves
	r.settle()
	if r.held("www", v2) != Hard {
		t.Fatalf("held %q, want hard", r.held("www", v2))
	}
	c.silent = false
	r.settle()
	r.want("www", versions{"canary": v2, "late": v1})
	r.wantStates("1 done", "2 done", "3 rolled_back")
}

func TestSilentNodeTakesTheWaveBackSoftlyAndItIsTriedAgain(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		c.silent = true
		v2 := r.accept("www")
		r.pass(50 * time.Second)
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(20 * time.Second)
		r.want("www", r.all(v1))
		r.wantStates("1 done", "2 rolled_back")
		if r.held("www", v2) != Soft || !strings.Contains(r.get(2).Reason, "c1") {
			t.Errorf("held %q because %q; want a soft hold that names the node", r.held("www", v2), r.get(2).Reason)
		}
		c.silent = false
		r.pass(55 * time.Minute)
		r.want("www", r.all(v1))
		r.restart()
		r.pass(10 * time.Minute)
		r.want("www", r.all(v2))
		if len(r.c.Holds()) != 0 {
			t.Errorf("still held: %v", r.c.Holds())
		}
	})
}

func TestSoftHoldThatEndsDoesNotBringBackAnOlderVersion(t *testing.T) {
	run(t, waves("auto", "canary"), func(_ *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.serve("www")
		c.silent = true
		r.accept("www")
		r.pass(2 * time.Minute)
		c.silent = false
		v3 := r.serve("www")
		r.pass(2 * time.Hour)
		r.want("www", r.all(v3))
		r.wantStates("1 done", "2 rolled_back", "3 done")
	})
}

func TestSoftHoldIsRetriedForTheGroupsThatWereTakenBack(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(_ *testing.T, r *rig) {
		p := r.node("p1", "production", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		p.silent = true
		r.promote("production")
		r.pass(2 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		p.silent = false
		r.pass(2 * time.Hour)
		r.want("www", versions{"canary": v2, "production": v1}) // a promotion is for one try
		r.promote("production")
		r.want("www", r.all(v2))
	})
}

func TestNodeWhoseStreamDoesNotMoveIsLate(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		c.deaf = true
		v2 := r.accept("www")
		r.pass(70 * time.Second)
		r.want("www", r.all(v1))
		if r.held("www", v2) != Soft {
			t.Errorf("held %q, want soft", r.held("www", v2))
		}
	})
}

func TestDisconnectedNodeHoldsItsWaveForItsGrace(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(_ *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.node("c2", "canary", "www")
		gone := r.node("gone", "canary", "www")
		v1 := r.serve("www")
		r.edit(gone, (*node).disconnect) // before the move
		c.silent = true
		v2 := r.accept("www")
		r.edit(c, (*node).disconnect)
		r.pass(9 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(2 * time.Minute)
		r.want("www", r.all(v2))
		r.wantStates("1 done", "2 done")
	})
}

func TestNodeThatWentLongBeforeTheMoveIsNotWaitedFor(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(_ *testing.T, r *rig) {
		gone := r.node("gone", "canary", "www")
		r.serve("www")
		r.edit(gone, (*node).disconnect)
		r.pass(11 * time.Minute)
		v2 := r.serve("www")
		r.want("www", r.all(v2))
	})
}

func TestHoldIsNotWeakened(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(t *testing.T, r *rig) {
		p := r.node("p1", "production", "www")
		r.serve("www")
		p.silent = true
		plan := r.cache.Plan()
		if _, err := plan.Move(r.ctx(), "production", versions{"www": ""}, whyTest); err != nil {
			t.Fatal(err)
		}
		if err := plan.Commit(r.ctx()); err != nil {
			t.Fatal(err)
		}
		v2 := r.accept("www") // production lacks it and gets it at once
		r.rollback("canary")
		r.pass(2 * time.Minute) // now the node of production is late
		if got := r.held("www", v2); got != Manual || len(r.c.Active()) != 0 {
			t.Errorf("held %q, want manual; under way %v", got, r.c.Active())
		}
	})
}

func TestGraceOfADisconnectedNodeRunsAcrossRestarts(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(_ *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.node("c2", "canary", "www")
		v1 := r.serve("www")
		c.silent = true
		v2 := r.accept("www")
		r.edit(c, (*node).disconnect)
		for range 3 { // never up for as long as the grace
			r.pass(170 * time.Second)
			r.want("www", versions{"canary": v2, "production": v1})
			r.restart()
		}
		r.pass(2 * time.Minute)
		r.want("www", r.all(v2))
		r.wantStates("1 done", "2 done")
	})
}

func TestNodeThatComesBackAfterARestartIsWaitedFor(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(_ *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		c.silent = true
		v2 := r.accept("www")
		r.fleet.forget(false)
		r.crash()
		r.reconfigure(r.policy)
		r.pass(5 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.edit(c, func(n *node) { n.silent = false; n.connect() })
		r.pass(2 * time.Second)
		r.want("www", r.all(v2))
	})
}

func TestActiveCountsTheNodesAsTheyAreNow(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	slow := r.node("slow", "canary", "www")
	r.node("fast", "canary", "www")
	r.serve("www")
	slow.silent = true
	r.accept("www")
	nodes := func() Nodes { return r.c.Active()[0].Waves[0].Nodes }
	if got := nodes(); got != (Nodes{Expected: 2}) {
		t.Errorf("before anybody answered: %+v, want 2 expected", got)
	}
	r.fleet.deliver(r.cache)
	if got := nodes(); got != (Nodes{Expected: 2, Acked: 1}) {
		t.Errorf("when one has ACKed: %+v, want 1 of 2", got)
	}
	r.edit(r.node("new", "canary", "www"), func(n *node) { n.silent = true })
	if got := nodes(); got != (Nodes{Expected: 3, Acked: 1}) {
		t.Errorf("with a new node: %+v, want 1 of 3", got)
	}
	r.edit(slow, func(n *node) { n.silent = false; n.refuses = func(string, secret.Version) bool { return true } })
	r.fleet.deliver(r.cache)
	if got := nodes(); got != (Nodes{Expected: 3, Acked: 1, Nacked: 1}) {
		t.Errorf("when one has refused: %+v, want 1 ACKed and 1 NACKed of 3", got)
	}
}

func TestRunFollowsNodesAndTimers(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		ctx, stop := contextOf(t)
		ended := make(chan error, 1)
		go func() { ended <- r.c.Run(ctx) }()
		v2 := r.accept("www")
		synctest.Wait()
		r.fleet.deliver(r.cache)
		r.c.Wake()
		synctest.Wait()
		r.want("www", r.all(v2))
		r.edit(c, func(n *node) { n.silent = true })
		r.accept("www")
		synctest.Wait()
		r.fleet.deliver(r.cache)
		r.c.Wake()
		time.Sleep(61 * time.Second) //nolint:forbidigo // the clock of the bubble
		synctest.Wait()
		r.want("www", r.all(v2)) // by its timer alone
		r.edit(c, func(n *node) { n.silent = false })
		r.disk.full(true)
		time.Sleep(2 * time.Hour) //nolint:forbidigo // the clock of the bubble
		synctest.Wait()
		r.want("www", r.all(v2))
		if n := strings.Count(r.log.String(), "rollout step"); n != 1 {
			t.Errorf("a disk that is full for an hour is logged %d times, want once", n)
		}
		r.disk.full(false)
		time.Sleep(lastPause) //nolint:forbidigo // the clock of the bubble
		synctest.Wait()
		r.fleet.deliver(r.cache)
		r.c.Wake()
		synctest.Wait()
		if got := r.at("canary", "www"); got == v1 || got == v2 {
			t.Errorf("the retry was lost: %s", got.Short())
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run ended with %v, want nil", err)
		}
	})
}

func TestNoKeyIsLogged(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	r.node("c1", "canary", "www").refuses = func(string, secret.Version) bool { return true }
	r.serve("www")
	r.serve("www")
	history, err := r.c.History(r.ctx())
	if err != nil || !strings.Contains(r.log.String(), "version held") {
		t.Fatalf("%v; a held version is not logged", err)
	}
	if text := r.log.String() + fmt.Sprintf("%+v", history); strings.Contains(text, "PRIVATE KEY") {
		t.Error("a private key is shown")
	}
}

func TestGroupThatSeemsEmptyAfterARestartIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, waves("auto", "canary", "production"))
		c, p := r.node("c1", "canary", "a"), r.node("p1", "production", "a")
		old := r.serve("a")
		r.fleet.forget(false) // nobody is back yet
		r.crash()
		r.reconfigure(r.policy)
		next := r.accept("a")
		r.pass(5 * time.Minute)
		r.want("a", map[string]secret.Version{"canary": next, "production": old})
		r.edit(c, (*node).connect)
		r.edit(p, (*node).connect)
		r.pass(2 * time.Second)
		r.want("a", r.all(next))
	})
}
