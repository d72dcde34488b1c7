package issuer_test

import (
	"encoding/json"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
)

// TestClockThatWasAheadIsForgottenAtTheStart has states that were written in 2030 by a machine whose clock was set right afterwards.
func TestClockThatWasAheadIsForgottenAtTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.ca.life, w.slow = 90*day, true
		ahead := time.Now().Add(4 * 365 * day)
		for n := range 6 { // enough for an open breaker
			c := certificate(fmt.Sprintf("c%d", n))
			end := time.Now().Add(20 * day)
			s := issuer.State{
				NotBefore: end.Add(-90 * day), NotAfter: end, NextRenewal: end.Add(-30 * day),
				Failure: &issuer.Failure{Kind: issuer.KindTemporary, At: ahead, Attempts: 5, NotBeforeTry: ahead.Add(day), Tried: issuer.Wanted(c)},
			}
			w.setState(c, s)
			w.certs = append(w.certs, c)
		}
		w.start()
		for _, c := range w.certs {
			w.wantOrders(c.Name, 1)
			if s := w.status(c.Name); s.State != issuer.StateOK || s.Failure != nil {
				t.Errorf("%s: got %+v, want it renewed at once", c.Name, s)
			}
		}
	})
}

func TestAdviceOfAClockThatWasAheadIsAskedForAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.life, w.slow = 90*day, true
		middle := time.Now().Add(50 * day)
		ca := w.advise(window(middle, day))
		w.start()
		w.stop()
		s := w.stateOf(w.certs[0])
		s.Advice.Asked = time.Now().Add(60 * day)
		s.Advice.Next, s.Advice.At = s.Advice.Asked.Add(time.Hour), s.Advice.Asked
		value, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.store.Commit(t.Context(), nil, []store.Operation{store.Put(issuer.StateKey("a"), value)}); err != nil {
			t.Fatal(err)
		}
		w.start()
		if got := w.status("a"); len(ca.times()) != 2 || !got.NextRenewal.Equal(middle) {
			t.Errorf("got %d questions and %v, want one more and %v", len(ca.times()), got.NextRenewal, middle)
		}
	})
}

// TestClockThatGoesBackWhileTheLoopRuns sets the clock right while something waits for what was put off: a back-off, a breaker, a gate.
func TestClockThatGoesBackWhileTheLoopRuns(t *testing.T) {
	t.Parallel()
	for name, failure := range map[string]*issuer.Error{
		"back-off": {Kind: issuer.KindRateLimited, Issuer: "ca", Limit: "orders", Message: "too many", RetryAfter: 30 * time.Hour},
		"breaker":  {Kind: issuer.KindTemporary, Issuer: "ca", Message: "down", RetryAfter: 20 * time.Hour},
		"gate":     {Kind: issuer.KindBudget, Issuer: "ca", Limit: "orders", Message: "no room", RetryAfter: 30 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.workers, w.slow, w.ca.life = 1, true, 90*day
				for n := range 6 {
					w.give(fmt.Sprintf("c%d", n), 90*day, 0.3)
				}
				w.ca.fail(failure)
				w.start()
				pass(time.Hour)
				w.ca.fail(nil)
				at := time.Now()
				w.loop.Look(t.Context(), at.Add(-30*time.Second)) // too little
				synctest.Wait()
				if got := w.sink.count("c0"); got != 0 {
					t.Fatalf("got %d certificates, want it to wait", got)
				}
				w.loop.Look(t.Context(), at.Add(-2*time.Hour))
				synctest.Wait()
				for _, c := range w.certs {
					if got := w.sink.count(c.Name); got != 1 {
						t.Errorf("%s: got %d certificates, want one at once", c.Name, got)
					}
				}
			})
		})
	}
}
