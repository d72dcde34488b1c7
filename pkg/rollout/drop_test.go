package rollout

import (
	"strings"
	"testing"
	"time"
)

func TestVersionThatExpiresWhileItWaitsGoesNoFurther(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(t *testing.T, r *rig) {
		r.node("p1", "production", "www")
		a1 := r.serve("a")
		v1 := r.serve("www")
		v2 := r.acceptFor("www", 3*time.Hour)
		r.settle()
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(4 * time.Hour)
		a2 := r.serve("a")
		r.want("a", versions{"canary": a2, "production": a1})
		r.promote("production")
		r.want("www", versions{"canary": v2, "production": v1})
		r.want("a", r.all(a2))
		r.wantStates("1 done", "2 done", "3 rolled_back", "4 done")
		if reason := r.get(3).Reason; !strings.Contains(reason, "expired at") || !strings.Contains(reason, v2.Short()) {
			t.Errorf("the reason is %q, want the version and when it expired", reason)
		}
	})
}

// A train goes on without the one that has expired.
func TestTrainLeavesBehindWhatHasExpired(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "a", "www")
		a1, v1 := r.serve("a"), r.serve("www")
		a2, v2 := r.accept("a"), r.acceptFor("www", 3*time.Hour)
		r.settle()
		r.want("a", versions{"canary": a2, "production": a1})
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(4 * time.Hour)
		r.promote("production")
		r.want("a", r.all(a2))
		r.want("www", versions{"canary": v2, "production": v1})
	})
}
