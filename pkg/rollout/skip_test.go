package rollout

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// ahead promotes a group without the waves before it, and settles.
func (r *rig) ahead(group string) Promotion {
	r.t.Helper()
	p, err := r.c.PromoteAhead(r.ctx(), group, 0, alice)
	if err != nil {
		r.t.Fatal(err)
	}
	r.settle()
	return p
}

// order lists the groups of a rollout's waves.
func (r *rig) order(id uint64) string {
	r.t.Helper()
	one, err := r.c.Rollout(r.ctx(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	var groups []string
	for _, w := range one.Waves {
		groups = append(groups, w.Groups...)
	}
	return strings.Join(groups, " ")
}

// A node that does not answer keeps the next group back; an operator need not wait for it, and its wave is not taken back for that.
func TestWaveUnderWayIsSkipped(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	c := r.node("c1", "canary", "www")
	r.node("p1", "production", "www")
	v1 := r.serve("www")
	c.silent = true
	v2 := r.serve("www")
	r.want("www", versions{"canary": v2, "production": v1})
	p := r.ahead("production")
	if want := []string{"production"}; !slices.Equal(p.Groups, want) || len(p.Changes) != 1 {
		t.Errorf("got %+v, want that %v moves", p, want)
	}
	r.want("www", r.all(v2))
	if got := r.states(); !slices.Equal(got, []string{"1 done", "2 done"}) {
		t.Errorf("rollouts: %v", got)
	}
	if one, err := r.c.Rollout(r.ctx(), 2); err != nil || one.Waves[0].State != Done || !slices.ContainsFunc(one.Log, func(e Event) bool {
		return e.By == "alice" && strings.Contains(e.Reason, "wave 1 (canary) was left as it stands: because")
	}) {
		t.Errorf("wave 1 is not shown as done, or the log says nothing of it: %+v, %v", one, err)
	}
}

// Waves that have not begun come after, by the usual rules, also across a restart and a new policy.
func TestWavesThatHaveNotBegunFollowTheOneThatSkippedThem(t *testing.T) {
	policy := waves("manual", "canary", "us", "eu", "rest")
	r := newRig(t, policy)
	for _, g := range policy.Groups() {
		r.node(g+"-1", g, "www")
	}
	v1 := r.serve("www")
	for _, g := range []string{"us", "eu", "rest"} {
		r.promote(g)
	}
	v2 := r.serve("www")
	frozen := policy
	frozen.Calendar = closed(time.Now().Add(time.Hour))
	r.reconfigure(frozen)
	r.ahead("eu")
	r.want("www", versions{"canary": v2, "us": v1, "eu": v1, "rest": v1}) // a freeze is not skipped
	if got, want := r.order(2), "canary eu us rest"; got != want {
		t.Errorf("the waves are %s, want %s", got, want)
	}
	r.restart()
	r.reconfigure(policy)
	r.settle()
	r.want("www", versions{"canary": v2, "us": v1, "eu": v2, "rest": v1})
	if got, want := r.order(2), "canary eu us rest"; got != want {
		t.Errorf("after a restart and a new policy the waves are %s, want %s", got, want)
	}
	r.promote("rest") // with us before it
	r.want("www", r.all(v2))
}

// What a node has refused goes nowhere.
func TestRefusedVersionIsNotSkippedOn(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "us", "eu"))
	c, other := r.node("c1", "canary", "www"), r.node("c2", "canary", "www")
	r.node("e1", "eu", "www")
	v1 := r.serve("www")
	other.silent = true
	v2 := r.accept("www")
	c.refuses = func(_ string, v secret.Version) bool { return v == v2 }
	r.step()
	r.fleet.deliver(r.cache) // c1 has refused, and nobody has looked yet
	if _, err := r.c.PromoteAhead(r.ctx(), "eu", 0, alice); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want("www", r.all(v1))
	if h, ok := r.c.begin().held("www", v2); !ok || h.Kind != Hard {
		t.Errorf("it is held: %v, %+v; want hard", ok, h)
	}
}
