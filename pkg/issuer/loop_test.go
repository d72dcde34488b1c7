package issuer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
)

func TestCertificatesAreRenewedForever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("long"))
		w.slow = true
		w.start()
		w.wantOrders("long", 1)
		for range 30 {
			pass(day)
			if s := w.status("long"); s.State != issuer.StateOK || time.Until(s.NotAfter) < 3*day {
				t.Fatalf("got state %s with %v left", s.State, time.Until(s.NotAfter))
			}
		}
		w.wantOrders("long", 11) // at the start and then each 2.97 days
		if got := w.sink.count("long"); got != 11 {
			t.Errorf("got %d certificates stored, want 11", got)
		}
	})
}

func TestRestartNeitherOrdersAgainNorMovesTheRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		next := w.status("a").NextRenewal
		for range 20 {
			w.stop()
			pass(time.Hour)
			w.start()
			if got := w.status("a"); !got.NextRenewal.Equal(next) || got.State != issuer.StateOK || got.LastRenewal.IsZero() {
				t.Fatalf("got %+v, want the same renewal at %v", got, next)
			}
		}
		w.wantOrders("a", 1)
		pass(time.Until(next) - time.Second)
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
	})
}

func TestFailureBacksOffAcrossRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(errCA)
		w.start()
		s := w.status("a")
		if s.State != issuer.StateFailing || s.Failure.Attempts != 1 || s.Failure.Kind != issuer.KindTemporary {
			t.Fatalf("got %+v, want one temporary failure", s)
		}
		w.stop()
		pass(9 * time.Second)
		w.start()
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
		w.stop()
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Attempts != 2 {
			t.Errorf("got %+v, want two failures", s.Failure)
		}
		pass(time.Minute)
		w.wantOrders("a", 3)
		w.ca.fail(nil)
		pass(10 * time.Minute)
		w.wantOrders("a", 4)
		if s := w.status("a"); s.State != issuer.StateOK || s.Failure != nil {
			t.Errorf("got %+v, want ok without a failure", s)
		}
	})
}

func TestRetryAfterIsNeverUndercut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(&issuer.Error{Kind: issuer.KindRateLimited, Issuer: "ca", Message: "too many", RetryAfter: 5 * time.Hour})
		w.start()
		pass(5*time.Hour - time.Second)
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
	})
}

func TestFailingRenewalLeavesTheValidCertificateAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		notAfter := w.status("a").NotAfter
		w.ca.fail(errCA)
		pass(6*day - time.Hour)
		s := w.status("a")
		if s.State != issuer.StateFailing || !s.NotAfter.Equal(notAfter) {
			t.Errorf("got %+v, want failing with the old certificate", s)
		}
		if n := w.ca.count("a"); n < 20 || n > 60 {
			t.Errorf("got %d tries in the second half, want each a tenth of what is left", n)
		}
		pass(2 * time.Hour)
		if s := w.status("a"); s.State != issuer.StateExpired || s.Failure == nil {
			t.Errorf("got %+v, want expired", s)
		}
		w.ca.fail(nil)
		pass(7 * time.Hour)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok again", s.State)
		}
	})
}

func TestOrderThatWasCutOffIsTakenUpAtTheStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		w.wantOrders("a", 1)
		w.stop()
		// A forced renewal was killed half way: its order is in the store, though the certificate is not due for days.
		order := []store.Operation{store.Put(issuer.OrderKey("a"), []byte("half way"))}
		if _, err := w.store.Commit(t.Context(), nil, order); err != nil {
			t.Fatal(err)
		}
		w.ca.fail(&issuer.Error{Kind: issuer.KindTemporary, Issuer: "ca", Message: "down"})
		w.start()
		w.wantOrders("a", 2)
		pass(time.Second)
		w.wantOrders("a", 2) // the back-off holds
		w.ca.fail(nil)
		pass(time.Hour)
		w.wantOrders("a", 3)
		pass(time.Hour)
		w.wantOrders("a", 3) // its end took the order with it
	})
}

func TestFailedForcedRenewalIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		w.ca.fail(&issuer.Error{Kind: issuer.KindRejected, Issuer: "ca", Message: "the chain was refused"})
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); err == nil {
			t.Fatal("a renewal at a CA that refuses succeeded")
		}
		w.ca.fail(nil)
		pass(2 * time.Hour)
		w.wantOrders("a", 3) // the first one, the failed one, and its retry
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %+v, want ok", s)
		}
	})
}

func TestHungCertificateDelaysNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("hung"))
		w.ca.setHook(func(ctx context.Context, r issuer.Request) error {
			if r.Secret == "hung" {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return nil
		})
		for n := range 20 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("c%d", n)))
		}
		w.workers = 2
		w.start()
		for n := range 20 {
			w.wantOrders(fmt.Sprintf("c%d", n), 1)
		}
		if got := w.status("hung"); got.State != issuer.StatePending || got.Step != issuer.StepOrdering {
			t.Errorf("got %+v, want pending at ordering", got)
		}
		before, _ := w.value("sds_issuance_loop_last_run_timestamp_seconds")
		pass(time.Minute)
		after, _ := w.value("sds_issuance_loop_last_run_timestamp_seconds")
		if after-before < 30 {
			t.Errorf("the heartbeat moved by %v s in a minute, want at least 30", after-before)
		}
		w.stop()
		if w.status("hung").Failure != nil {
			t.Error("an order that was cut by the end counts as a failure")
		}
	})
}

func TestNoMoreOrdersAtOnceThanWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.ca.setHook(func(ctx context.Context, _ issuer.Request) error {
			select {
			case <-time.After(time.Minute):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		for n := range 10 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("c%d", n)))
		}
		w.workers = 3
		w.start()
		pass(4 * time.Minute)
		if w.ca.most != 3 {
			t.Errorf("got %d orders at once, want 3", w.ca.most)
		}
		for n := range 10 {
			if got := w.sink.count(fmt.Sprintf("c%d", n)); got != 1 {
				t.Errorf("c%d: got %d certificates, want 1", n, got)
			}
		}
	})
}

func TestPanicCostsOneOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.workers = 1
		w.ca.setHook(func(context.Context, issuer.Request) error { panic("out of range") })
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindInternal {
			t.Fatalf("got %+v, want an internal failure", s)
		}
		w.ca.setHook(nil)
		pass(10 * time.Second)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok", s.State)
		}
	})
}

func TestMissingIssuerIsAFailureUntilItIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := certificate("a")
		c.Issuer = "other"
		w := newWorld(t, c)
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindInternal || s.Failure.Hint == "" {
			t.Fatalf("got %+v, want an internal failure with a hint", s)
		}
		w.loop.SetIssuers(map[string]issuer.Issuer{"other": w.ca})
		synctest.Wait()
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok as soon as the issuer is there", s.State)
		}
	})
}

func TestStoreMustBeReadableAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.store.HookRead(func(string) error { return issuertest.ErrFault })
		loop, err := issuer.New(issuer.Options{
			Store: w.store, Sink: w.sink, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		loop.SetCertificates(w.certs)
		if err := loop.Run(t.Context()); !errors.Is(err, issuertest.ErrFault) {
			t.Errorf("got %v, want the store's error", err)
		}
		w.wantOrders("a", 0)
	})
}

func TestDamagedStateIsOrderedAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		if _, err := w.store.Commit(t.Context(), nil, []store.Operation{store.Put(issuer.StateKey("a"), []byte("{"))}); err != nil {
			t.Fatal(err)
		}
		w.start()
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %+v, want ok", s)
		}
	})
}

// TestCertificateThatIsDueAtOnceIsNotRenewedInALoop has a CA that dates its certificates far back, so that less than the usual part
// of their life is left when they come.
func TestCertificateThatIsDueAtOnceIsNotRenewedInALoop(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.age = 5 * day // of a life of 6
		w.start()
		pass(6 * time.Hour)
		w.wantOrders("a", 1)
		pass(10 * time.Hour)
		w.wantOrders("a", 2)
	})
}

func TestStateOfAnotherWriterCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.setHook(func(ctx context.Context, _ issuer.Request) error {
			_, err := w.store.Commit(ctx, nil, []store.Operation{store.Put(issuer.StateKey("a"), []byte("{}"))})
			return err
		})
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindInternal {
			t.Fatalf("got %+v, want a conflict", s)
		}
		w.ca.setHook(nil)
		pass(10 * time.Second)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %+v, want ok", s)
		}
	})
}
