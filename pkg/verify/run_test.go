package verify

import (
	"crypto/tls"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// The time-out of what the group moves to while it is looked at begins with that.
func TestMoveWhileTheGroupIsLookedAtBeginsAnew(t *testing.T) {
	ca := newPKI(t)
	first, second := ca.pair(t, ecKey(t), site), ca.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{first}})
	w := &wants{current: map[string]Leaf{"www": ca.leaf(second, "www", "v2")}, known: map[string]secret.Version{ca.leaf(first, "", "").SHA256: "v1"}}
	checks := Plan(one("g", 20*time.Second, target(l.address, ca.leaf(first, "www", "v1"))))[:1]
	s := series{
		runner: &runner{source: w, slots: slots{make(chan struct{}, 1)}}, checks: checks, attempts: make([]int, 1), pause: firstRetry,
		since: []time.Time{time.Now().Add(-time.Hour)}, // it was looked at for v1 long ago
	}
	again, ok := s.pass(t.Context(), []int{0}, func(r Result) { t.Errorf("got %+v, want that it is looked at again", r) })
	if !ok || len(again) != 1 {
		t.Errorf("got %v %v, want that it is pending", again, ok)
	}

	// It moves between the look at what is wanted and the answer.
	w.current["www"] = ca.leaf(first, "www", "v1")
	l2 := serve(t, &tls.Config{Certificates: []tls.Certificate{second}})
	w.before = func(look int) {
		if look > 2 {
			w.current["www"] = ca.leaf(second, "www", "v2")
		}
	}
	s.checks[0].Address, s.checks[0].Wanted, s.since[0] = l2.address, []Leaf{ca.leaf(first, "www", "v1")}, time.Now().Add(-time.Hour)
	w.looks = 1
	if again, ok = s.pass(t.Context(), []int{0}, func(r Result) { t.Errorf("got %+v, %v; want that it is looked at again", r, r.Failure) }); !ok || len(again) != 1 {
		t.Errorf("got %v %v, want that it is pending", again, ok)
	}
}
