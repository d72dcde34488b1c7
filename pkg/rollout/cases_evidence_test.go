package rollout

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// A NACK on canary after its wave stops the promotion; so must a handshake there.
func TestMismatchAfterTheWaveStopsTheNextOne(t *testing.T) {
	run(t, waves("manual", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.prober.blinded = false
		r.node("c1", "canary", "www")
		r.node("p1", "production", "www")
		v1 := r.serve("www")
		v2 := r.accept("www")
		r.pass(5 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.prober.bad = map[version]string{v2: "unknown root"} // the background sees it on canary
		r.pass(10 * time.Minute)
		if _, err := r.c.Promote(r.ctx(), "production", 0, alice); err == nil {
			t.Error("it can be promoted, though canary's handshakes fail")
		}
		r.want("www", r.all(v1))
		for _, e := range r.get(2).Log {
			if strings.Contains(e.Reason, "wave 2 (production) was switched") {
				t.Errorf("production was switched while canary's handshakes fail: %v", r.get(2).Log)
			}
		}
	})
}

// min_acked lets a wave pass without a node that does not answer; its old leaf is no proof against the version.
func TestLateNodeThatMinAckedPassesIsNoCulprit(t *testing.T) {
	p := waves("auto", "canary", "production").watched(time.Minute)
	p.MinAcked = 50
	run(t, p, func(t *testing.T, r *rig) {
		r.prober.blinded = false
		r.node("c1", "canary", "www")
		stuck := r.node("c2", "canary", "www")
		r.serve("www")
		stuck.silent = true
		v2 := r.accept("www")
		r.pass(10 * time.Minute)
		if r.held("www", v2) == Hard {
			t.Errorf("held %+v", r.c.Holds())
		}
		r.want("www", r.all(v2))
	})
}

// An old leaf shows that a node has not taken a version, not that the version is bad: the deadline overrules it before the end.
func TestOldLeafIsOverruledAtTheDeadline(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.prober.blinded = false
		c := r.node("c1", "canary", "www")
		r.node("p1", "production", "www")
		v1 := r.short("www")
		v2 := r.accept("www")
		r.step()
		r.fleet.deliver(r.cache)
		r.fleet.edit(func() { c.serves["www"] = v1 }) // verify looks at the wrong machine, say
		r.step()
		r.pass(time.Minute)
		if r.held("www", v2) != Hard {
			t.Fatalf("held %+v, %v", r.c.Holds(), r.states())
		}
		r.pass(9*day + 20*time.Hour)
		r.want("www", r.all(v2))
	})
}

// A wave that has stalled has lost its slot: where it goes on it has to wait for it.
func TestStalledWaveWaitsForItsSlot(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(10*time.Minute), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		r.serve("www")
		r.serve("other")
		r.accept("www")
		r.step()
		c.disconnect()
		r.pass(15 * time.Minute)
		if w := r.c.Active()[0].current(); !w.Stalled {
			t.Fatalf("%+v", w)
		}
		r.accept("other")
		r.pass(time.Minute)
		c.connect()
		r.pass(time.Minute)
		var under []uint64
		for _, one := range r.c.Active() {
			if w := one.current(); w.State == Verifying || w.State == Watching {
				if w.Groups[0] == "canary" {
					under = append(under, one.ID)
				}
			}
		}
		if len(under) > 1 {
			t.Errorf("rollouts %v are watched in canary at once", under)
		}
	})
}

func (r *rig) rewrite(id uint64, change func(m map[string]any)) {
	r.t.Helper()
	e, err := r.disk.Get(r.ctx(), rolloutKey(id))
	if err != nil {
		r.t.Fatal(err)
	}
	m := map[string]any{}
	if err := json.Unmarshal(e.Value, &m); err != nil {
		r.t.Fatal(err)
	}
	change(m)
	if _, err := r.disk.Commit(r.ctx(), nil, []store.Operation{store.Put(rolloutKey(id), must(json.Marshal(m)))}); err != nil {
		r.t.Fatal(err)
	}
}

// The version before this one stored no deadlines.
func TestStoredRolloutWithoutADeadlineGetsOne(t *testing.T) {
	run(t, waves("manual", "canary", "production"), func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.short("www")
		v2 := r.serve("www")
		r.rewrite(2, func(m map[string]any) { delete(m, "deadline") })
		r.restart()
		r.pass(9*day + 15*time.Hour)
		r.want("www", r.all(v2))
	})
}

// The version before this one noted a way back in the wave: state rolled_back, and the groups that are left in moved.
func TestStoredWayBackOfTheOldVersionGoesOn(t *testing.T) {
	run(t, waves("auto", "canary us", "production"), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		c.silent = true
		v2 := r.accept("www")
		r.step()
		r.rewrite(2, func(m map[string]any) {
			w := m["waves"].([]any)[0].(map[string]any)
			w["state"], w["back"], w["moved"] = "rolled_back", "c1 refused it", []string{"canary", "us"}
		})
		h := must(json.Marshal(Hold{Secret: "www", Version: v2, Kind: Hard, Reason: "c1 refused it", Since: time.Now()}))
		if _, err := r.disk.Commit(r.ctx(), nil, []store.Operation{store.Put(store.Key(holdPrefix, "www", string(v2)), h)}); err != nil {
			t.Fatal(err)
		}
		r.restart()
		r.settle()
		r.want("www", r.all(v1))
	})
}

// A hold of one change must not end the way back of another.
func TestHoldDoesNotEndAWayBack(t *testing.T) {
	run(t, waves("auto", "canary", groupsOf(70)), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "a", "b", "x")
		n := r.node("n", "g00", "a")
		r.serve("x")
		a1 := r.accept("a")
		r.accept("b")
		r.settle()
		c.silent = true
		r.accept("x")
		r.step()
		a2, b2 := r.accept("a"), r.accept("b")
		n.refuses = func(_ string, v version) bool { return v == a2 }
		c.silent = false
		for range 20 { // until the refusal is there
			r.fleet.deliver(r.cache)
			if n.nacked["a"][a2] {
				break
			}
			r.step()
		}
		first := r.disk.count() + 1 // the first commit of the way back; the disk is full at the second one
		r.disk.hooks(func(k int) bool { return k > first }, nil)
		if _, err := r.c.step(r.ctx()); err == nil {
			t.Fatal("it does not take two commits")
		}
		r.disk.hooks(nil, nil)
		left := 0
		for _, one := range r.c.Active() {
			if one.Unwind != nil {
				left = len(one.Unwind.Groups)
			}
		}
		if left == 0 {
			t.Fatal("no way back under way", r.states(), r.held("a", a2))
		}
		if _, err := r.c.Hold(r.ctx(), "b", b2, alice); err != nil {
			t.Fatal(err)
		}
		r.settle()
		bad := 0
		for _, g := range r.policy.Groups()[1:] {
			if r.at(g, "a") != a1 {
				bad++
			}
		}
		if bad > 0 {
			t.Errorf("%d groups stay at the refused version: %v", bad, r.states())
		}
	})
}

func groupsOf(n int) string {
	var b []byte
	for i := range n {
		b = append(b, []byte(" g")...)
		b = append(b, []byte(string(rune('0'+i/10%10)))...)
		b = append(b, []byte(string(rune('0'+i%10)))...)
	}
	return string(b)
}
