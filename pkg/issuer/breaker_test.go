package issuer_test

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// outage is a CA that is down, and counts who asks.
type outage struct {
	mu    sync.Mutex
	times []time.Time // guarded by mu
	names []string    // guarded by mu
}

// seen returns when it was asked, and about whom.
func (o *outage) seen() ([]time.Time, []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.times), slices.Clone(o.names)
}

func (w *world) breakDown() *outage {
	o := &outage{}
	w.ca.setHook(func(_ context.Context, r issuer.Request) error {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.times, o.names = append(o.times, time.Now()), append(o.names, r.Secret)
		return errCA
	})
	return o
}

func TestBreakerLeavesADeadCAAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow, w.workers, w.ca.life = true, 1, 90*day
		for n := range 100 {
			w.give(fmt.Sprintf("c%02d", n), 90*day, 0.3)
		}
		o := w.breakDown()
		w.start()
		if times, _ := o.seen(); len(times) != 3 {
			t.Fatalf("got %d orders, want 3 until it is open", len(times))
		}
		failed := 0
		for _, s := range w.loop.Status() {
			switch {
			case s.Failure != nil:
				failed++
			case s.Waiting == nil || s.Waiting.Kind != issuer.KindTemporary:
				t.Fatalf("%s: got %+v, want it to wait for its CA", s.Name, s.Waiting)
			}
		}
		if failed != 3 {
			t.Errorf("got %d failures, want only those that were sent", failed)
		}
		if up, _ := w.value("sds_issuer_up", "issuer", "ca"); up != 0 {
			t.Error("issuer_up is 1 while its breaker is open")
		}
		pass(3 * day)
		times, _ := o.seen()
		for n, at := range times[3:] {
			wait := at.Sub(times[n+2])
			want := min(15*time.Second<<min(n, 10), 15*time.Minute)
			if wait < want || wait > want+time.Minute {
				t.Fatalf("probe %d: after %v, want %v", n, wait, want)
			}
		}
		if n := len(times); n < 3*24*4 || n > 3*24*4+10 {
			t.Errorf("got %d orders in 3 days, want one each 15 minutes", n)
		}
		w.ca.setHook(nil)
		pass(15*time.Minute + time.Second)
		if up, _ := w.value("sds_issuer_up", "issuer", "ca"); up != 1 {
			t.Error("issuer_up is 0 after the outage")
		}
		for n := range 100 {
			if s := w.status(fmt.Sprintf("c%02d", n)); s.Failure == nil && s.State != issuer.StateOK {
				t.Errorf("%s: got %s, want all that have not failed themselves at once", s.Name, s.State)
			}
		}
		pass(2 * day)
		for n := range 100 {
			if s := w.status(fmt.Sprintf("c%02d", n)); s.State != issuer.StateOK || time.Until(s.NotAfter) < 80*day {
				t.Errorf("%s: got %s, want all renewed", s.Name, s.State)
			}
		}
	})
}

// TestRestartDoesNotHammerADeadCA restarts while the breaker is open.
func TestRestartDoesNotHammerADeadCA(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow, w.workers, w.ca.life = true, 1, 90*day
		for n := range 100 {
			w.give(fmt.Sprintf("c%02d", n), 90*day, 0.3)
		}
		o := w.breakDown()
		w.start()
		pass(2 * time.Hour)
		before, _ := o.seen()
		for range 20 {
			w.stop()
			pass(time.Second)
			w.start()
			pass(time.Second)
		}
		if after, _ := o.seen(); len(after)-len(before) > 1 {
			t.Errorf("got %d orders in 40 s and 20 restarts, want a probe at most", len(after)-len(before))
		}
		w.ca.setHook(nil)
		pass(15 * time.Minute)
		if up, _ := w.value("sds_issuer_up", "issuer", "ca"); up != 1 {
			t.Error("issuer_up is 0 after the outage")
		}
	})
}

func TestOneCertificateDoesNotOpenTheBreaker(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.give("bad", 6*day, 0.3)
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			if r.Secret == "bad" {
				return errCA
			}
			return nil
		})
		w.start()
		pass(day)
		w.loop.SetCertificates(append(w.certs, certificate("good")))
		synctest.Wait()
		w.wantOrders("good", 1)
		if n := w.ca.count("bad"); n < 4 {
			t.Errorf("got %d tries, want its own back-off", n)
		}
	})
}

// TestUrgentIsTheProbe has a CA that comes back while many wait for it.
func TestUrgentIsTheProbe(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow, w.workers, w.ca.life = true, 1, 90*day
		for n := range 10 {
			w.give(fmt.Sprintf("c%d", n), 90*day, 0.3)
		}
		w.give("soon urgent", 90*day, 0.0505) // in about an hour
		w.give("short", time.Hour, 0.6)       // due in 6 minutes, then half an hour to live
		o := w.breakDown()
		w.start()
		pass(10 * time.Minute)
		times, names := o.seen()
		if n := len(names); names[n-1] != "short" && names[n-2] != "short" {
			t.Errorf("got %v, want the short one among the last probes", names)
		}
		for n := range times[1:] {
			if apart := times[n+1].Sub(times[n]); apart > 4*time.Minute {
				t.Errorf("got %v between two probes, want less for what has half an hour to live", apart)
			}
		}
		pass(80 * time.Minute)
		through := make(chan string, 100)
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			through <- r.Secret
			return nil
		})
		pass(15 * time.Minute)
		if first := <-through; first != "short" && first != "soon urgent" {
			t.Errorf("got %q as the first one through, want one that is urgent", first)
		}
	})
}

// TestOperatorProbesADeadCA forces a renewal while the breaker is open for long.
func TestOperatorProbesADeadCA(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow, w.workers, w.ca.life = true, 1, 90*day
		for n := range 10 {
			w.give(fmt.Sprintf("c%d", n), 90*day, 0.3)
		}
		w.breakDown()
		w.start()
		pass(5 * time.Hour)
		w.ca.setHook(nil)
		begin := time.Now()
		if _, err := w.loop.Renew(t.Context(), "c9", issuer.Renewal{Force: true}); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took > 5*time.Second {
			t.Errorf("took %v, want a probe within 5 s", took)
		}
		synctest.Wait()
		if n := w.loop.Issuers()[0].Due; n != 0 {
			t.Errorf("%d are still due after the probe has closed the breaker", n)
		}
	})
}

// TestPausedStopsUntilSomebodyActs has a CA that wants a person to act.
func TestPausedStopsUntilSomebodyActs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow = true
		w.give("a", 6*day, 0.06) // soon urgent
		w.ca.fail(&issuer.Error{Kind: issuer.KindPaused, Issuer: "ca", Message: "paused, see https://ca.example/unpause", Hint: "open the link"})
		w.start()
		pass(3 * day)
		if n := w.ca.count("a"); n < 3 || n > 4 {
			t.Errorf("got %d tries in 3 days, want one a day", n)
		}
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindPaused || s.Failure.Hint == "" {
			t.Errorf("got %+v, want the link and what to do", s.Failure)
		}
		w.ca.fail(nil)
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); err != nil {
			t.Error(err)
		}
	})
}

// TestRetryAfterOfACAHoldsOnlyWhatIsOrdinary has a dead CA that asks to be left alone for a week.
func TestRetryAfterOfACAHoldsOnlyWhatIsOrdinary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.slow, w.workers, w.ca.life = true, 1, 90*day
		for n := range 10 {
			w.give(fmt.Sprintf("c%d", n), 90*day, 0.3)
		}
		w.give("soon urgent", 6*day, 0.06) // in 86 minutes
		w.ca.fail(&issuer.Error{Kind: issuer.KindTemporary, Issuer: "ca", Message: "maintenance", RetryAfter: 7 * day})
		w.start()
		pass(time.Hour)
		if n := w.loop.Issuers()[0]; n.Stopped == nil || time.Until(n.Stopped.Until) != 23*time.Hour {
			t.Fatalf("got %+v, want nothing ordinary for a day", n.Stopped)
		}
		w.ca.fail(nil)
		pass(time.Hour)
		for _, c := range w.certs {
			if s := w.status(c.Name); c.Name == "soon urgent" && s.State != issuer.StateOK {
				t.Errorf("%s: got %+v, want it renewed", c.Name, s)
			}
		}
	})
}

// TestForcedAndExpiredDoNotWaitForRetryAfter asks a CA again that wanted a day.
func TestForcedAndExpiredDoNotWaitForRetryAfter(t *testing.T) {
	t.Parallel()
	for name, patience := range map[string]time.Duration{"forced": 5 * time.Second, "expired": time.Minute} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.slow, w.workers, w.ca.life = true, 1, 90*day
				for n := range 10 {
					w.give(fmt.Sprintf("c%d", n), 90*day, 0.3)
				}
				w.ca.fail(&issuer.Error{Kind: issuer.KindTemporary, Issuer: "ca", Message: "maintenance", RetryAfter: 7 * day})
				w.start()
				pass(time.Minute)
				w.ca.fail(nil)
				begin := time.Now()
				if name == "expired" {
					w.give("late", 6*day, -0.01)
					w.loop.SetCertificates(w.certs)
				} else {
					w.certs = append(w.certs, w.certs[9])
					ctx, cancel := context.WithTimeout(t.Context(), patience)
					defer cancel()
					if _, err := w.loop.Renew(ctx, "c9", issuer.Renewal{Force: true}); err != nil {
						t.Error(err)
					}
				}
				pass(patience)
				last := w.certs[len(w.certs)-1].Name
				if s := w.status(last); s.State != issuer.StateOK || s.LastRenewal.Before(begin) {
					t.Errorf("got %+v, want it within %v", s, patience)
				}
			})
		})
	}
}
