package issuer_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
)

// window answers with a window around an instant.
func window(around time.Time, half time.Duration) func(string) (issuer.RenewalInfo, error) {
	return func(string) (issuer.RenewalInfo, error) {
		return issuer.RenewalInfo{Start: around.Add(-half), End: around.Add(half), RetryAfter: 6 * time.Hour}, nil
	}
}

func TestRenewalIsDrawnInTheSuggestedWindowOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.life, w.slow = 90*day, true
		middle := time.Now().Add(40 * day)
		ca := w.advise(window(middle, day))
		w.start()
		if got := w.status("a").NextRenewal; !got.Equal(middle) { // random is 0.5
			t.Errorf("got %v, want the middle of the window", got)
		}
		for range 20 {
			pass(day)
			w.stop()
			w.start()
			if got := w.status("a").NextRenewal; !got.Equal(middle) {
				t.Fatalf("got %v, want what was drawn first", got)
			}
		}
		moved := middle.Add(-5 * day)
		ca.set(window(moved, time.Hour))
		pass(12 * time.Hour)
		if got := w.status("a"); !got.NextRenewal.Equal(moved) || !got.Advice.At.Equal(moved) {
			t.Errorf("got %v, want that of the window that was moved", got.NextRenewal)
		}
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			if r.Replaces == "" || !r.InWindow || r.Urgent {
				t.Errorf("got %+v, want a request that replaces, in its window", r)
			}
			return nil
		})
		pass(time.Until(moved) - time.Second)
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
	})
}

func TestCAIsAskedAtLeastTwiceADayAndNeverAfterTheEnd(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		life       time.Duration
		retryAfter time.Duration
		failure    error
		within     time.Duration // the longest time between two questions
		apart      time.Duration // the shortest
	}{
		{name: "90 d", life: 90 * day, retryAfter: 6 * time.Hour, within: 7 * time.Hour, apart: 6 * time.Hour},
		{name: "90 d, the CA wants a day", life: 90 * day, retryAfter: day, within: 12 * time.Hour, apart: 10 * time.Hour},
		{name: "2 d, the CA wants a second", life: 2 * day, retryAfter: time.Second, within: 70 * time.Second, apart: time.Minute},
		{name: "90 d, errors", life: 90 * day, failure: errCA, within: 7 * time.Hour, apart: 6 * time.Hour},
		{name: "90 d, no window", life: 90 * day, failure: errors.New("none"), within: 7 * time.Hour, apart: 6 * time.Hour},
		{name: "6 d", life: 6 * day, retryAfter: day, within: 12 * time.Hour, apart: 10 * time.Hour},
		{name: "60 s", life: time.Minute, retryAfter: 6 * time.Hour, within: 6 * time.Second, apart: 5 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, certificate("a"))
				w.ca.life, w.slow = tt.life, true
				begin := time.Now()
				ca := w.advise(func(string) (issuer.RenewalInfo, error) {
					return issuer.RenewalInfo{Start: begin.Add(tt.life / 2), End: begin.Add(tt.life), RetryAfter: tt.retryAfter}, tt.failure
				})
				w.start()
				w.ca.fail(&issuer.Error{Kind: issuer.KindRejected, Message: "no"})
				pass(min(tt.life/2, 4*day))
				times := ca.times()
				if len(times) < 3 || !times[0].Equal(begin) {
					t.Fatalf("got %v, want the first question at once, and more", times)
				}
				for n, at := range times[1:] {
					if apart := at.Sub(times[n]); apart > tt.within || apart < tt.apart {
						t.Fatalf("got %v between two questions, want %v to %v", apart, tt.apart, tt.within)
					}
				}
				pass(tt.life)
				times = ca.times()
				pass(min(2*day, tt.life))
				if last := ca.times(); len(last) != len(times) || last[len(last)-1].After(begin.Add(tt.life)) {
					t.Errorf("the CA was asked after the end: %v", last[len(last)-1].Sub(begin))
				}
			})
		})
	}
}

// TestUnreadableAdviceIsNoReasonToRenew has what lego would take for "renew now" (facts: ARI errors during an outage).
func TestUnreadableAdviceIsNoReasonToRenew(t *testing.T) {
	t.Parallel()
	answers := map[string]func(string) (issuer.RenewalInfo, error){
		"error":         func(string) (issuer.RenewalInfo, error) { return issuer.RenewalInfo{}, errCA },
		"no advice":     func(string) (issuer.RenewalInfo, error) { return issuer.RenewalInfo{}, issuer.ErrNoAdvice },
		"empty window":  func(string) (issuer.RenewalInfo, error) { return issuer.RenewalInfo{}, nil },
		"turned window": window(time.Now(), -time.Hour),
		"year 10000": func(string) (issuer.RenewalInfo, error) {
			return issuer.RenewalInfo{Start: time.Now(), End: time.Date(9999, 12, 31, 23, 59, 59, 0, time.FixedZone("", -3600))}, nil
		},
		"panic": func(string) (issuer.RenewalInfo, error) { panic("out of range") },
	}
	for name, answer := range answers {
		for _, before := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, certificate("a"))
					w.ca.life, w.slow = 90*day, true
					want := time.Now().Add(90*day - 30*day - 90*day/200) // a third, and half of the spread
					ca := w.advise(answer)
					if before {
						want = time.Now().Add(50 * day)
						ca.set(window(want, day))
					}
					w.start()
					ca.set(answer)
					pass(40 * day)
					if got := w.status("a"); !got.NextRenewal.Equal(want) || got.Failure != nil {
						t.Errorf("got %+v, want %v and no failure", got, want)
					}
					w.wantOrders("a", 1)
				})
			})
		}
	}
}

// TestRevokedIsReplacedWithinMinutes has the window that Let's Encrypt gives for what it has revoked, and one that ended long ago.
func TestRevokedIsReplacedWithinMinutes(t *testing.T) {
	t.Parallel()
	for _, ended := range []time.Duration{30 * time.Minute, 3 * day} {
		t.Run(ended.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, certificate("a"))
				w.ca.life, w.slow = 90*day, true
				var revoked atomic.Bool
				ca := w.advise(nil)
				ca.set(func(string) (issuer.RenewalInfo, error) {
					if revoked.Load() { // moves along with the clock
						end := time.Now().Add(-ended)
						return issuer.RenewalInfo{Start: end.Add(-30 * time.Minute), End: end, RetryAfter: time.Minute}, nil
					}
					return window(time.Now().Add(60*day), day)("")
				})
				w.start()
				pass(10 * day)
				revoked.Store(true)
				w.ca.setHook(func(_ context.Context, r issuer.Request) error {
					if r.Replaces == "" || r.InWindow {
						t.Errorf("got %+v, want a request that replaces, outside of its window", r)
					}
					revoked.Store(false) // what is new is not
					return nil
				})
				asked := len(ca.times())
				for len(ca.times()) == asked {
					pass(time.Minute)
				}
				pass(5 * time.Minute)
				w.wantOrders("a", 2)
				pass(20 * day)
				w.wantOrders("a", 2)
			})
		})
	}
}

// TestCAThatAlwaysWantsARenewalIsNotObeyedInALoop has a CA that gives each new version a window that is over.
func TestCAThatAlwaysWantsARenewalIsNotObeyedInALoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.life, w.slow = 90*day, true
		w.advise(func(string) (issuer.RenewalInfo, error) {
			return window(time.Now().Add(-time.Hour), 30*time.Minute)("")
		})
		w.start()
		pass(30 * day)
		if n := w.ca.count("a"); n < 3 || n > 35 {
			t.Errorf("got %d orders in 30 days, want one a day at most", n)
		}
	})
}

func TestRenewBeforeOnlyMakesAdviceEarlier(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		before issuer.RenewBefore
		want   time.Duration // after the begin
	}{
		"earlier than the window":       {issuer.RenewBefore{Duration: 60 * day}, 30*day - 90*day/200},
		"later than the window":         {issuer.RenewBefore{Duration: 10 * day}, 50 * day},
		"later than the rule, in front": {issuer.RenewBefore{Fraction: 0.5}, 45*day - 90*day/200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				c := certificate("a")
				c.RenewBefore = tt.before
				w := newWorld(t, c)
				w.ca.life, w.slow = 90*day, true
				begin := time.Now()
				w.advise(window(begin.Add(50*day), day))
				w.start()
				if got := w.status("a").NextRenewal.Sub(begin); got != tt.want {
					t.Errorf("got %v, want %v", got, tt.want)
				}
			})
		})
	}
}

// TestLastPartOfTheLifeOverrulesAdvice has a CA that wants the renewal at the very end, and one whose window is the whole life.
func TestLastPartOfTheLifeOverrulesAdvice(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.life, w.slow = 100*day, true
		begin := time.Now()
		ca := w.advise(window(begin.Add(99*day), time.Hour))
		w.start()
		if got := w.status("a").NextRenewal.Sub(begin); got != 95*day {
			t.Errorf("got %v, want the begin of the last twentieth", got)
		}
		ca.set(window(begin.Add(50*day), 50*day))
		pass(day)
		if got, want := w.status("a").NextRenewal.Sub(begin), (50*day+100*day*5/6)/2; got != want {
			t.Errorf("got %v, want %v: between half of the life and its last sixth", got, want)
		}
	})
}

func TestOnlyTheIssuerOfTheVersionIsAskedAndTold(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		first := w.advise(window(time.Now().Add(3*day), time.Hour))
		w.start()
		other := newWorld(t)
		second := other.advise(window(time.Now().Add(3*day), time.Hour))
		w.loop.SetIssuers(map[string]issuer.Issuer{"ca": first, "second": second})
		replaces := make(chan string, 1)
		other.ca.setHook(func(_ context.Context, r issuer.Request) error {
			replaces <- r.Replaces
			return nil
		})
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true, Issuer: "second"}); err != nil {
			t.Fatal(err)
		}
		if id := <-replaces; id != "" {
			t.Errorf("got %q, want no identifier at a CA that has not issued it", id)
		}
		synctest.Wait()
		asked := len(first.times())
		pass(2 * day)
		if len(first.times()) != asked || len(second.times()) < 3 {
			t.Errorf("got %d and %d questions, want the second CA asked alone", len(first.times())-asked, len(second.times()))
		}
		if got := w.status("a"); got.Issuer != "second" || got.State != issuer.StateOK {
			t.Errorf("got %+v, want what the second has issued", got)
		}
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			if r.Replaces != "" {
				t.Errorf("got %q, want no identifier at a CA that has not issued it", r.Replaces)
			}
			return nil
		})
		first.set(window(time.Now().Add(30*day), time.Hour))
		pass(2 * day)
		w.wantOrders("a", 2)
		if got := w.status("a").Issuer; got != "ca" {
			t.Errorf("got %q, want its own issuer again", got)
		}
	})
}

// TestOrderWaitsForTheAnswerThatIsBeingStored forces a renewal while advice is on its way into the store.
func TestOrderWaitsForTheAnswerThatIsBeingStored(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.advise(window(time.Now().Add(3*day), time.Hour))
		w.store.Hook(func(operations []store.Operation) error {
			if len(operations) == 1 && operations[0].Key == issuer.StateKey("a") { // the advice
				w.store.Hook(nil, nil)
				time.Sleep(2 * time.Second) //nolint:forbidigo // fake time of a synctest bubble: a slow store
			}
			return nil
		}, nil)
		w.start()
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); err != nil {
			t.Errorf("got %v, want a certificate", err)
		}
		w.wantOrders("a", 2)
	})
}

func TestAdviceThatCannotBeStoredCountsInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		middle := time.Now().Add(4 * day)
		ca := w.advise(window(middle, time.Hour))
		w.store.Hook(nil, func([]store.Operation) error { // after the certificate
			w.store.Hook(func([]store.Operation) error { return issuertest.ErrFault }, nil)
			return nil
		})
		w.start()
		if got := w.status("a").NextRenewal; !got.Equal(middle) || len(ca.times()) != 1 {
			t.Errorf("got %v after %d questions, want %v after one", got, len(ca.times()), middle)
		}
		w.stop()
		w.store.Hook(nil, nil)
		w.start()
		if got := w.status("a").NextRenewal; !got.Equal(middle) || len(ca.times()) != 2 {
			t.Errorf("got %v after %d questions, want %v after two", got, len(ca.times()), middle)
		}
	})
}

func TestNobodyIsAskedWhileTheCAIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"), certificate("b"), certificate("c"), certificate("d"))
		w.ca.life, w.slow = 90*day, true
		ca := w.advise(window(time.Now().Add(60*day), time.Hour))
		w.start()
		w.ca.fail(errCA)
		for _, name := range []string{"a", "b", "c"} {
			if _, err := w.loop.Renew(t.Context(), name, issuer.Renewal{Force: true}); err == nil {
				t.Fatal("got a certificate of a dead CA")
			}
		}
		asked := len(ca.times())
		pass(5 * day)
		if n := len(ca.times()) - asked; n != 0 {
			t.Errorf("a CA that is down was asked %d times", n)
		}
		w.ca.fail(nil)
		pass(day)
		if n := len(ca.times()) - asked; n < 4 {
			t.Errorf("got %d questions after the outage, want all asked", n)
		}
	})
}
