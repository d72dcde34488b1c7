package rollout

import (
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

type version = secret.Version

func TestLateComplaintTakesARolloutBack(t *testing.T) {
	for _, how := range []string{"nack", "handshake"} {
		t.Run(how, func(t *testing.T) {
			run(t, waves("auto", "canary", "eu us", "rest").watched(time.Minute), func(t *testing.T, r *rig) {
				r.prober.blinded = false
				for _, g := range []string{"canary", "eu", "us", "rest"} {
					r.node(g+"1", g, "www", "other")
				}
				v1 := r.serve("www")
				other := r.serve("other")
				v2 := r.serve("www")
				r.pass(4 * time.Minute)
				r.wantStates("1 done", "2 done", "3 done")
				r.pass(20 * time.Minute)
				if how == "nack" {
					r.node("late", "rest", "www").refuses = func(_ string, v version) bool { return v == v2 }
				} else {
					r.prober.bad = map[version]string{v2: "the root is gone"}
				}
				r.pass(5 * time.Second)
				r.want("www", r.all(v1))
				r.want("other", r.all(other))
				r.wantStates("1 done", "2 done", "3 rolled_back")
				if r.held("www", v2) != Hard || !strings.Contains(r.get(3).Reason, "after its end") {
					t.Errorf("held %q, %q", r.held("www", v2), r.get(3).Reason)
				}
			})
		})
	}
}

func TestComplaintAfterTheUndoWindowTakesNothingBack(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.serve("www")
		v2 := r.serve("www")
		r.pass(33 * time.Minute)
		r.node("late", "production", "www").refuses = func(string, version) bool { return true }
		r.pass(time.Minute)
		r.want("www", r.all(v2))
	})
}

func TestLateComplaintAfterARestartTakesARolloutBack(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.pass(3 * time.Minute)
		r.restart()
		r.node("late", "production", "www").refuses = func(_ string, v version) bool { return v == v2 }
		r.pass(5 * time.Second)
		r.want("www", r.all(v1))
	})
}
