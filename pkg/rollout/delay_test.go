package rollout

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// TestNothingDelaysAnotherSecret is invariant 10 of DESIGN 4: whatever is paused, held, refused, offline or taken back of other secrets, a healthy
// one is everywhere within the time of its waves, and one wave time-out for each of them.
func TestNothingDelaysAnotherSecret(t *testing.T) {
	var sum claimed
	sum.in(t, 10)
	histories(t, 10, func(t *testing.T, seed uint64) { sum.add(delayed(t, seed)) })
}

func delayed(t *testing.T, seed uint64) claims {
	random := rand.New(rand.NewPCG(seed, 0))
	p := waves("auto", "canary", "eu us", "rest").watched(20 * time.Second)
	p.NodeGrace, p.RetryAfter = 2*time.Minute, 10*time.Minute
	r := newRigOn(t, p, seededStore(seed))
	others, bad := []string{"a", "b", "d"}, map[version]bool{}
	for _, g := range p.Groups() {
		r.node("well-"+g, g, "healthy")
		r.node("other-"+g, g, others[:1+random.IntN(3)]...).refuses = func(_ string, v version) bool { return bad[v] }
	}
	r.serve("healthy")
	looked := claims{}
	limit := time.Duration(len(p.Waves)) * (p.Watch + p.AckTimeout + p.NodeGrace)
	for range 8 {
		for range random.IntN(12) {
			disturb(r, random, others, bad)
			r.fleet.deliver(r.cache)
			r.step()
		}
		v, began := r.accept("healthy"), time.Now()
		for !everywhere(r, "healthy", v) {
			if r.pass(5 * time.Second); looked.broken(10, time.Since(began) > limit) {
				t.Fatalf("%s: after %s it is in %v\n%s", invariant(10), limit, r.states(), r.picture())
			}
			if random.IntN(5) == 0 {
				disturb(r, random, others, bad)
			}
		}
	}
	return looked
}

func everywhere(r *rig, name string, v version) bool {
	return !slices.ContainsFunc(r.policy.Groups(), func(g string) bool { return r.at(g, name) != v })
}

// disturb does something to the other secrets, or their nodes. A node that is there answers: one that does not takes its whole train back.
func disturb(r *rig, random *rand.Rand, others []string, bad map[version]bool) {
	r.t.Helper()
	name := others[random.IntN(len(others))]
	switch random.IntN(8) {
	case 0, 1, 2:
		s := r.newSecret(name, 90*day)
		bad[r.cache.Version(s)] = random.IntN(3) == 0
		if _, err := r.c.Accept(r.ctx(), Proposal{Secret: s, Source: cache.SourceACME, Issuer: "le", Reason: "issued"}); err != nil {
			r.t.Fatal(err)
		}
	case 3:
		n := r.fleet.nodes[1+2*random.IntN(4)]
		r.edit(n, func(n *node) {
			if n.connected {
				n.disconnect()
			} else {
				n.connect()
			}
		})
	case 4, 5:
		for _, one := range r.c.Active() {
			if _, healthy := one.brings("healthy"); !healthy {
				_, _ = r.c.Pause(r.ctx(), one.ID, alice) // an emergency is not paused
			}
		}
	case 6:
		_, _ = r.c.Hold(r.ctx(), name, "", alice) // there may be none
	default:
		_, _ = r.c.Release(r.ctx(), name, "") // likewise
	}
}
