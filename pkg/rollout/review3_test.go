package rollout

import (
	"testing"
	"time"
)

// A node refuses an emergency while another one has not answered: the hold is stored once, and the look ends.
func TestReviewRefusedEmergencyThatWaitsComesToRest(t *testing.T) {
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
