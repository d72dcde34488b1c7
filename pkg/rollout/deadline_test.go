package rollout

import (
	"strings"
	"testing"
	"time"
)

// served rolls a certificate out that lives for 10 days: it is due at 9.5 days less what has passed.
func (r *rig) short(name string) version {
	r.t.Helper()
	v := r.acceptFor(name, 10*day)
	r.settle()
	return v
}

const day = 24 * time.Hour

func TestDeadlineOverrulesWhatKeepsAChangeBack(t *testing.T) {
	keep := map[string]func(r *rig, p Policy){
		"promotion": func(r *rig, p Policy) { p.Manual = true; r.reconfigure(p) },
		"freeze":    func(r *rig, p Policy) { p.Calendar = closed(time.Now().Add(1000 * time.Hour)); r.reconfigure(p) },
		"no node": func(r *rig, p Policy) {
			p.EmptyWait = true
			r.reconfigure(p)
			r.fleet.edit(func() { r.fleet.nodes = nil })
		},
		"gate": func(r *rig, p Policy) {
			p.Gates = []Gate{{Name: "errors", Max: new(float64(0)), Timeout: 10 * time.Second}}
			r.meters.values = map[string]string{"errors": "1"}
			r.reconfigure(p)
		},
	}
	for name, how := range keep {
		t.Run(name, func(t *testing.T) {
			run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
				r.node("c1", "canary", "www")
				v1 := r.short("www")
				how(r, r.policy)
				v2 := r.serve("www")
				r.pass(9 * day)
				r.want("www", versions{"production": v1})
				r.pass(day / 2)
				r.want("www", r.all(v2))
				if r.c.Overrides() != 1 {
					t.Errorf("%d overrides, want 1", r.c.Overrides())
				}
				if !strings.Contains(r.log.String(), "overruled") {
					t.Error("nothing is said in the log")
				}
			})
		})
	}
}

func TestDeadlineOverrulesAPause(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.short("www")
		v2 := r.serve("www")
		if _, err := r.c.Pause(r.ctx(), 2, alice); err != nil {
			t.Fatal(err)
		}
		r.pass(9 * day)
		r.want("www", versions{"production": v1})
		r.pass(day / 2)
		r.want("www", r.all(v2))
		r.wantStates("1 done", "2 superseded", "3 done")
	})
}

func TestDeadlineOverrulesHoldsButNotThatOfAHandshakeBeforeTheEnd(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.prober.blinded = false
		c := r.node("c1", "canary", "nacked", "shown", "soft")
		p := r.node("p1", "production", "nacked", "shown", "soft")
		old, now := versions{}, versions{}
		names := []string{"nacked", "shown", "soft", "manual"}
		for _, n := range names {
			old[n] = r.short(n)
		}
		c.refuses = func(name string, v version) bool { return name == "nacked" && v != old["nacked"] }
		r.prober.bad = map[version]string{}
		for _, n := range names {
			now[n] = r.accept(n)
			r.prober.bad[now[n]] = map[string]string{"shown": "unknown root"}[n]
			c.silent, p.silent = n == "soft", n == "soft"
			r.pass(2 * time.Minute)
			c.silent, p.silent = false, false
			if n == "soft" { // for good
				r.reconfigure(func() Policy { p := r.policy; p.RetryAfter = 1000 * time.Hour; return p }())
			}
		}
		r.pass(3 * time.Minute)
		if _, err := r.c.Rollback(r.ctx(), "canary", alice); err != nil {
			t.Fatal(err)
		}
		if _, err := r.c.Rollback(r.ctx(), "production", alice); err != nil {
			t.Fatal(err)
		}
		want := map[string]HoldKind{"nacked": Hard, "shown": Hard, "soft": Soft, "manual": Manual}
		for n, kind := range want {
			if r.held(n, now[n]) != kind {
				t.Fatalf("%s is held %q, want %s: %+v", n, r.held(n, now[n]), kind, r.c.Holds())
			}
			r.want(n, r.all(old[n]))
		}
		r.pass(9*day + day/2)
		r.want("nacked", r.all(now["nacked"]))
		r.want("soft", r.all(now["soft"]))
		r.want("manual", r.all(now["manual"]))
		r.want("shown", r.all(old["shown"]))
		r.pass(day)
		r.want("shown", r.all(now["shown"])) // better than one that has expired
		if c.serves["nacked"] != old["nacked"] {
			t.Error("the node that refused does not serve its old certificate")
		}
	})
}

func TestRenewalInTheLastPartOfTheLifeGoesToAllGroupsAtOnce(t *testing.T) {
	run(t, waves("manual", "canary", "eu us", "rest").watched(time.Hour), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.short("www")
		r.pass(9*day + 20*time.Hour)
		v2 := r.accept("www")
		r.want("www", r.all(v2))
		r.settle()
		r.wantStates("1 done", "2 done")
		if r.get(2).Change[0].Kind != Emergency {
			t.Errorf("its kind is %s", r.get(2).Change[0].Kind)
		}
	})
}

func TestWatchesShrinkBeforeTheDeadline(t *testing.T) {
	run(t, waves("auto", "canary", "eu us", "rest").watched(6*time.Hour), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.short("www")
		r.pass(9*day + 6*time.Hour) // six hours to the deadline; three watches
		v2 := r.serve("www")
		r.pass(6 * time.Hour)
		r.want("www", r.all(v2))
		if r.c.Overrides() != 0 {
			t.Errorf("%d overrides, want none: the watches were shortened", r.c.Overrides())
		}
		shortened := false
		for _, e := range r.get(2).Log {
			shortened = shortened || strings.Contains(e.Reason, "not for 6h0m0s")
		}
		if !shortened {
			t.Errorf("its log does not say that watches are shorter: %v", r.get(2).Log)
		}
	})
}

func TestEmergencyIsVerifiedAndTakenBackOnlyByWhatClientsReject(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Hour), func(_ *testing.T, r *rig) {
		r.prober.blinded = false
		r.node("c1", "canary", "www")
		v1 := r.short("www")
		r.pass(9*day + 20*time.Hour)
		r.prober.hung = true
		v2 := r.serve("www")
		r.prober.hung, r.prober.bad = false, map[version]string{v2: "unknown root"}
		r.settle()
		r.want("www", r.all(v1))
		r.pass(5 * time.Hour) // v1 has expired
		r.want("www", r.all(v2))
	})
}

func TestEmergencyPassesARolloutThatMovesTheGroup(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Hour), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www", "other")
		o1 := r.serve("other")
		r.short("www")
		r.pass(9*day + 20*time.Hour)
		o2 := r.serve("other")
		v2 := r.serve("www")
		r.want("www", r.all(v2))
		if _, err := r.c.Abort(r.ctx(), r.c.Active()[0].ID, alice); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.want("www", r.all(v2))
		r.want("other", r.all(o1))
		if r.held("other", o2) != Manual {
			t.Errorf("held %q", r.held("other", o2))
		}
	})
}

func TestStartOfAnOlderVersionHoldsTheNewerOnesUntilTheDeadline(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.short("www")
		v2 := r.serve("www")
		if _, err := r.c.Start(r.ctx(), "www", v1, alice); err != nil {
			t.Fatal(err)
		}
		r.settle()
		r.restart()
		r.settle()
		r.want("www", r.all(v1))
		if r.held("www", v2) != Manual {
			t.Errorf("held %q, want by hand", r.held("www", v2))
		}
		r.pass(9*day + day/2)
		r.want("www", r.all(v2))
	})
}

func TestVersionThatOneNodeHasRefusedIsTriedWhereTheNewestIsBad(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.prober.blinded = false
		c := r.node("c1", "canary", "www")
		r.node("p1", "production", "www")
		v1 := r.short("www")
		c.refuses = func(_ string, v version) bool { return v != v1 }
		v2 := r.serve("www")
		r.want("www", r.all(v1))
		r.pass(9*day + 11*time.Hour)
		c.refuses = nil
		v3 := newSecret(t, "www", 90*day)
		r.prober.bad = map[version]string{r.cache.Version(v3): "unknown root"}
		if _, err := r.c.Accept(r.ctx(), Proposal{Secret: v3, Source: "acme", Issuer: "le", Reason: "issued by le"}); err != nil {
			t.Fatal(err)
		}
		r.pass(2 * time.Hour)
		r.want("www", versions{"production": v2})
	})
}

// What a deadline brought although one node had refused it is served since, and better than a renewal that nobody can use.
func TestBadRenewalGoesBackToWhatADeadlineBrought(t *testing.T) {
	for _, how := range []string{"nack", "handshake"} {
		t.Run(how, func(t *testing.T) {
			run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
				r.prober.blinded = false
				picky := r.node("c1", "canary", "www")
				r.node("c2", "canary", "www")
				r.node("p1", "production", "www")
				v1 := r.short("www")
				picky.refuses = func(_ string, v version) bool { return v != v1 }
				v2 := r.serve("www")
				r.pass(2 * time.Minute)
				r.want("www", r.all(v1))
				r.pass(11 * day) // v1 has expired
				r.want("www", r.all(v2))
				if r.held("www", v2) != Hard {
					t.Fatalf("held %q, want hard", r.held("www", v2))
				}
				r.edit(picky, (*node).disconnect)
				r.pass(time.Hour)
				s := r.newSecret("www", 90*day)
				v3 := r.cache.Version(s)
				if how == "handshake" {
					r.prober.bad = map[version]string{v3: "unknown root"}
				} else {
					r.edit(picky, (*node).connect)
				}
				r.take(s)
				r.pass(3 * time.Minute)
				r.want("www", r.all(v2))
				if r.held("www", v3) != Hard {
					t.Errorf("held %q, want hard", r.held("www", v3))
				}
			})
		})
	}
}

// A version that handshakes have shown to be bad is no way back, even where a deadline had brought it.
func TestBadRenewalDoesNotGoBackToWhatClientsReject(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(_ *testing.T, r *rig) {
		r.prober.blinded = false
		r.node("c1", "canary", "www")
		v1 := r.short("www")
		s := r.newSecret("www", 20*day)
		v2 := r.cache.Version(s)
		r.prober.bad = map[version]string{v2: "unknown root"}
		r.take(s)
		r.pass(2 * time.Minute)
		r.want("www", r.all(v1))
		r.prober.blinded = true
		r.pass(11 * day) // v1 has expired: v2 is served for that, and nobody looks
		r.want("www", r.all(v2))
		r.prober.blinded = false
		s = r.newSecret("www", 90*day)
		v3 := r.cache.Version(s)
		r.prober.bad[v3] = "unknown root"
		r.take(s)
		r.pass(3 * time.Minute)
		r.want("www", versions{"canary": v3, "production": v2})
	})
}

// After a way back long after the end, what is served and what was never proven may both be nearly over: then the one that a node has refused, and that
// lasts, is better than waiting for the end.
func TestDeadlineDoesNotRescueWithWhatIsNearlyOverItself(t *testing.T) {
	policy := waves("auto", "canary", "production")
	policy.UndoWindow = 20 * day
	run(t, policy, func(t *testing.T, r *rig) {
		c, p := r.node("c1", "canary", "www"), r.node("p1", "production", "www")
		r.short("www")
		r.pass(time.Hour)
		c.silent = true
		r.acceptFor("www", 10*day)
		c.silent = false
		v3 := r.serve("www")
		r.want("www", r.all(v3))
		r.pass(9*day + 20*time.Hour) // of the first two the last part has begun
		r.edit(p, func(n *node) {
			n.refuses = func(_ string, v version) bool { return v == v3 }
			n.connect()
			clear(n.received)
		})
		r.pass(day)
		if r.held("www", v3) != Hard || len(r.states()) < 4 {
			t.Fatalf("held %q, rollouts %v: nothing was taken back", r.held("www", v3), r.states())
		}
		r.want("www", r.all(v3)) // the others have expired, or are about to
	})
}
