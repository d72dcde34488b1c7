package rollout

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestNodeThatReconnectsAtTheMoveIsWaitedFor(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(_ *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.node("p1", "production", "www")
		v1 := r.serve("www")
		r.edit(c, (*node).disconnect)
		v2 := r.accept("www")
		r.pass(time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.edit(c, (*node).connect)
		r.settle()
		r.want("www", r.all(v2))
	})
}

func TestWaveAfterARestartWaitsForTheNodesThatAreNotBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, waves("auto", "canary", "production"))
		r.node("c1", "canary", "a")
		c2 := r.node("c2", "canary", "a")
		r.node("p1", "production", "a")
		v1 := r.serve("a")
		r.edit(c2, func(n *node) { n.refuses = func(string, secret.Version) bool { return true } })
		r.fleet.forget(true)
		r.edit(c2, (*node).disconnect)
		r.crash()
		r.reconfigure(r.policy)
		v2 := r.accept("a")
		r.settle()
		r.want("a", versions{"canary": v2, "production": v1})
		r.edit(c2, (*node).connect)
		r.pass(20 * time.Second)
		r.want("a", versions{"canary": v1, "production": v1})
		if r.held("a", v2) != Hard {
			t.Errorf("held %q, want hard", r.held("a", v2))
		}
	})
}

func TestNodeThatComesAndGoesAfterARestartIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, waves("auto", "canary", "production"))
		r.node("c1", "canary", "a")
		c2 := r.node("c2", "canary", "a")
		v1 := r.serve("a")
		r.fleet.forget(true)
		r.edit(c2, (*node).disconnect)
		r.crash()
		r.reconfigure(r.policy)
		v2 := r.accept("a")
		r.edit(c2, func(n *node) { n.connect(); n.deaf = true })
		r.pass(20 * time.Second)
		r.edit(c2, (*node).disconnect)
		r.pass(5 * time.Minute)
		r.want("a", versions{"canary": v2, "production": v1})
	})
}

func TestWaveWhoseMembersHaveAllACKedPassesAtOnceAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, waves("auto", "canary", "production"))
		c := r.node("c1", "canary", "a")
		r.node("p1", "production", "a")
		r.serve("a")
		c.silent = true
		v2 := r.accept("a")
		r.restart()
		c.silent = false
		r.fleet.deliver(r.cache)
		r.step()
		r.want("a", r.all(v2))
	})
}

func TestWaveWithoutOneACKWaitsForANodeOrAnOperator(t *testing.T) {
	for _, who := range []string{"node", "canary", "production"} {
		t.Run(who, func(t *testing.T) {
			run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
				c := r.node("c1", "canary", "www", "other")
				v1, o1 := r.serve("www"), r.serve("other")
				c.silent = true
				v2 := r.accept("www")
				r.edit(c, (*node).disconnect)
				r.pass(time.Hour)
				r.want("www", versions{"canary": v2, "production": v1})
				a := r.c.Active()
				if len(a) != 1 || a[0].State != Moving || !strings.Contains(a[0].Reason, "no node of canary has ACKed") {
					t.Fatalf("got %+v, want one that moves and says why it does not go on", a)
				}
				o2 := r.accept("other") // it holds up no other change of its groups
				r.want("other", versions{"canary": o2, "production": o1})
				r.restart()
				r.pass(time.Hour)
				r.want("www", versions{"canary": v2, "production": v1})
				if who == "node" {
					r.edit(c, func(n *node) { n.silent = false; n.connect() })
					r.settle()
				} else {
					r.promote(who)
				}
				r.want("www", r.all(v2))
			})
		})
	}
}

func TestGroupWithoutANodeFromTheBeginningIsPassed(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.serve("www")
	v2 := r.serve("www")
	r.want("www", r.all(v2))
}

func TestVersionThatWasSupersededAndRefusedIsNotGoneBackTo(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	r.node("p1", "production", "www")
	v1 := r.serve("www")
	c.refuses = func(_ string, v secret.Version) bool { return v != v1 }
	r.accept("www")
	v3 := r.accept("www")
	r.settle()
	for range 2 {
		r.want("www", r.all(v1))
		if r.held("www", v3) != Hard {
			t.Errorf("held %q, want hard", r.held("www", v3))
		}
		r.reconfigure(r.policy)
		r.settle()
	}
}

func TestVersionThatIsSupersededAfterItsNACKIsHeld(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	v1 := r.serve("www")
	c.refuses = func(_ string, v secret.Version) bool { return v != v1 }
	v2 := r.accept("www")
	r.fleet.deliver(r.cache) // refused, and nobody has looked yet
	v3 := r.serve("www")
	r.want("www", r.all(v1))
	if r.held("www", v2) != Hard || r.held("www", v3) != Hard {
		t.Errorf("held %q and %q, want both hard", r.held("www", v2), r.held("www", v3))
	}
}

func TestNACKAfterTheWaveIsDoneStopsTheNextOne(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	r.node("c1", "canary", "www")
	r.node("p1", "production", "www")
	v1 := r.serve("www")
	v2 := r.serve("www")
	c2 := r.node("c2", "canary", "www")
	c2.refuses = func(_ string, v secret.Version) bool { return v == v2 }
	r.settle()
	r.want("www", r.all(v1))
	if r.held("www", v2) != Hard {
		t.Errorf("held %q, want hard", r.held("www", v2))
	}
	r.wantStates("1 done", "2 rolled_back")
}

func TestNodeThatCameAfterTheWaveWasDoneIsWaitedForAtThePromotion(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		late := r.node("c2", "canary", "www")
		late.silent = true
		r.promote("production")
		r.want("www", versions{"canary": v2, "production": v1})
		if a := r.c.Active(); len(a) != 1 || a[0].State != Waiting || !strings.Contains(a[0].Reason, "canary has ACKed") {
			t.Errorf("got %+v, want one that waits for canary", a)
		}
		late.silent = false
		r.settle()
		r.want("www", r.all(v2))
		v3 := r.serve("www")
		late.deaf = true
		r.edit(late, (*node).connect)
		r.promote("production")
		r.want("www", versions{"canary": v3, "production": v2})
		r.pass(2 * time.Minute)
		r.want("www", r.all(v2))
		if r.held("www", v3) != Soft {
			t.Errorf("held %q, want soft", r.held("www", v3))
		}
	})
}

func TestGroupThatLacksTheSecretGetsItBeforeALaterWaveMoves(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	r.node("p1", "production", "www")
	v1 := r.serve("www")
	plan := r.cache.Plan()
	if _, err := plan.Move(r.ctx(), "canary", versions{"www": ""}, whyTest); err != nil {
		t.Fatal(err)
	}
	if err := plan.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	c.silent = true
	v2 := r.accept("www")
	r.settle()
	r.want("www", versions{"canary": v2, "production": v1})
	c.silent, c.refuses = false, func(string, secret.Version) bool { return true }
	r.settle()
	r.want("www", versions{"canary": v2, "production": v1}) // an addition stays
	if r.held("www", v2) != Hard {
		t.Errorf("held %q, want hard", r.held("www", v2))
	}
}

func TestUndoSkipsHeldVersionsAndSaysWhereItStays(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	c := r.node("c1", "canary", "www")
	v1, v2 := r.serve("www"), r.serve("www")
	hold := r.c.begin()
	hold.hold("www", v2, Hard, "a handshake failed")
	if err := hold.commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	c.refuses = func(_ string, v secret.Version) bool { return v != v1 }
	r.serve("www")
	r.want("www", r.all(v1))
	hold = r.c.begin()
	hold.hold("www", v1, Hard, "a handshake failed")
	if err := hold.commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	v4 := r.serve("www")
	r.want("www", versions{"canary": v4, "production": v1})
	if reason := r.get(4).Reason; !strings.Contains(reason, "www of canary stays") {
		t.Errorf("the reason is %q, want that it stays", reason)
	}
}

func TestACKOfBytesThatWereRefusedReleasesNothing(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	c.refuses = func(string, secret.Version) bool { return true }
	v1 := r.serve("www") // an addition: it stays
	r.want("www", r.all(v1))
	r.restart() // the node is sent the same bytes, and ACKs them
	r.settle()
	if c.acked["www"] != v1 || c.serves["www"] != "" {
		t.Fatalf("the node ACKed %q and serves %q, want an ACK of what it does not serve", c.acked["www"], c.serves["www"])
	}
	if r.held("www", v1) != Hard {
		t.Errorf("held %q, want hard", r.held("www", v1))
	}
}

func TestRolloutForALaterWaveAloneWaitsForAnACKOfTheEarlierOne(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		plan := r.cache.Plan()
		if _, err := plan.Move(r.ctx(), "production", versions{"www": v1}, whyTest); err != nil {
			t.Fatal(err)
		}
		if err := plan.Commit(r.ctx()); err != nil {
			t.Fatal(err)
		}
		r.edit(c, (*node).connect) // a new stream: nothing is ACKed yet
		r.edit(c, (*node).disconnect)
		r.reconfigure(r.policy) // brings v2 to production
		r.pass(5 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.edit(c, (*node).connect)
		r.settle()
		r.want("www", r.all(v2))
	})
}
