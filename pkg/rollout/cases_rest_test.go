package rollout

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// A node refuses an emergency while another one has not answered: the hold is stored once, and the look ends.
func TestRefusedEmergencyThatWaitsComesToRest(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		odd := r.node("c1", "canary", "www")
		slow := r.node("p1", "production", "www")
		v1 := r.short("www")
		r.pass(9*day + 20*time.Hour)
		odd.refuses = func(_ string, v version) bool { return v != v1 }
		slow.silent = true
		r.accept("www")
		r.fleet.deliver(r.cache)
		before := r.disk.count()
		r.disk.hooks(func(n int) bool { return n > before+100 }, nil)
		done := make(chan struct{})
		go func() { defer close(done); _, _ = r.c.step(r.ctx()) }()
		select {
		case <-done:
		case <-time.After(time.Second):
			t.Fatal("the step does not end")
		}
		if n := r.disk.count() - before; n > 5 {
			t.Errorf("%d commits", n)
		}
	})
}

// An operator who aborts a removal means it: it is not begun again at once.
func TestAbortedRemovalStaysAborted(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		p := r.policy
		p.Managed = func(string) bool { return false }
		r.reconfigure(p)
		r.settle()
		if _, err := r.c.Abort(r.ctx(), 2, alice); err != nil {
			t.Fatal(err)
		}
		r.pass(2 * time.Minute)
		r.want("www", r.all(v1))
		r.wantStates("1 done", "2 aborted")
	})
}

// A gate that fails takes a removal back: it must not begin again and again.
func TestRemovalThatFailsIsNotRepeatedForEver(t *testing.T) {
	p := waves("auto", "canary", "production").watched(time.Minute)
	p.Hook = true
	run(t, p, func(t *testing.T, r *rig) {
		r.hook.result = HookResult{Done: true, Failed: "connections fail"}
		r.node("c1", "canary", "www")
		r.serve("www")
		p := r.policy
		p.Managed = func(string) bool { return false }
		r.reconfigure(p)
		r.pass(30 * time.Minute)
		if n := len(r.states()); n > 3 {
			t.Errorf("%d rollouts within 30 minutes: %v", n-1, r.states())
		}
	})
}

// deaf is a store that reads no rollout.
type deaf struct {
	store.Store
	fails bool
}

func (d *deaf) Get(ctx context.Context, key string) (store.Entry, error) {
	if d.fails && strings.HasPrefix(key, rolloutPrefix+"/") {
		return store.Entry{}, errDisk
	}
	return d.Store.Get(ctx, key)
}

// A store that cannot be read for a moment is no reason to leave a group at a refused version.
func TestWayBackIsTriedAgainWhereTheStoreFails(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.serve("www")
		v2 := r.serve("www")
		r.want("www", r.all(v2))
		d := &deaf{Store: r.c.store, fails: true}
		r.c.store = d
		c.refuses = func(_ string, v version) bool { return v != v2 }
		r.accept("www")
		r.fleet.deliver(r.cache)
		if _, err := r.c.step(r.ctx()); err == nil {
			t.Error("no error although the store cannot be read")
		}
		d.fails = false
		r.settle()
		r.want("www", r.all(v2))
	})
}

// Nor does the log of a stalled rollout grow with what passes it.
func TestLogOfAStalledRolloutHasABound(t *testing.T) {
	run(t, waves("auto", "canary", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "idle")
		other := r.node("c2", "canary", "www")
		_ = other
		r.serve("www")
		r.serve("idle")
		c.silent = true
		r.accept("idle")
		r.step()
		c.disconnect()
		r.pass(15 * time.Minute)
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
