package issuer_test

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
)

func TestRenewLeavesWhatIsNotDueAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		_, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{})
		notDue, ok := errors.AsType[*issuer.NotDueError](err)
		if !ok || !notDue.Until.Equal(w.status("a").NextRenewal) {
			t.Errorf("got %v, want not due until %v", err, w.status("a").NextRenewal)
		}
		w.wantOrders("a", 1)
		if _, err := w.loop.Renew(t.Context(), "b", issuer.Renewal{Force: true}); !errors.Is(err, issuer.ErrUnknown) {
			t.Errorf("got %v, want ErrUnknown", err)
		}
		w.stop()
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); !errors.Is(err, issuer.ErrStopped) {
			t.Errorf("got %v, want ErrStopped", err)
		}
	})
}

func TestUnforcedRenewBeforeTheStateIsKnownOrdersNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		w.certs = append(w.certs, certificate("b"))
		w.loop.SetCertificates(w.certs)
		if _, err := w.loop.Renew(t.Context(), "b", issuer.Renewal{}); err != nil {
			t.Errorf("got %v, want the first certificate", err)
		}
		w.loop.SetCertificates(w.certs[:1])
		w.loop.SetCertificates(w.certs)
		_, err := w.loop.Renew(t.Context(), "b", issuer.Renewal{})
		if _, ok := errors.AsType[*issuer.NotDueError](err); !ok {
			t.Errorf("got %v, want not due", err)
		}
		w.wantOrders("b", 1)
	})
}

func TestForcedRenewSkipsTheBackoffAndTellsSteps(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(errCA)
		w.start()
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			for _, step := range []issuer.Step{issuer.StepChallenges, issuer.StepFinalizing, issuer.StepDownloading} {
				time.Sleep(time.Second) //nolint:forbidigo // fake time of a synctest bubble
				r.Progress(step)
			}
			time.Sleep(time.Second) //nolint:forbidigo // fake time of a synctest bubble
			return nil
		})
		var steps []issuer.Step
		accepted, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true, Progress: func(s issuer.Step) { steps = append(steps, s) }})
		if err != nil || accepted.Snapshot != 1 || accepted.Rollout != 7 || accepted.Version == "" {
			t.Errorf("got %+v, %v", accepted, err)
		}
		want := []issuer.Step{issuer.StepQueued, issuer.StepOrdering, issuer.StepChallenges, issuer.StepFinalizing, issuer.StepDownloading}
		if len(steps) > 0 && steps[0] == issuer.StepOrdering {
			want = want[1:] // the worker was faster than the first look
		}
		if len(steps) > 0 && steps[len(steps)-1] == issuer.StepStoring {
			want = append(want, issuer.StepStoring)
		}
		if diff := cmp.Diff(want, steps); diff != "" {
			t.Errorf("steps (-want +got):\n%s", diff)
		}
		w.wantOrders("a", 2)
	})
}

func TestEverybodyWhoAsksAtOnceSharesOneOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		w.ca.setHook(func(context.Context, issuer.Request) error {
			time.Sleep(time.Minute) //nolint:forbidigo // fake time of a synctest bubble
			return nil
		})
		var wg sync.WaitGroup
		answers := make([]issuer.Accepted, 10)
		for n := range answers {
			wg.Go(func() {
				var err error
				if answers[n], err = w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); err != nil {
					t.Error(err)
				}
			})
		}
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.loop.Renew(short, "a", issuer.Renewal{Force: true}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the end of the wait", err)
		}
		if s := w.status("a"); s.State != issuer.StateRenewing {
			t.Errorf("got %s, want renewing: the end of one wait is not the end of the order", s.State)
		}
		wg.Wait()
		w.wantOrders("a", 2)
		for _, a := range answers {
			if a != answers[0] || a.Snapshot != 2 {
				t.Errorf("got %+v, want snapshot 2 for all", a)
			}
		}
	})
}

func TestFailedRenewTellsWhy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		w.ca.fail(errCA)
		_, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true})
		if e, ok := errors.AsType[*issuer.Error](err); !ok || e.Kind != issuer.KindTemporary {
			t.Errorf("got %v, want the issuer's error", err)
		}
	})
}

func TestChangedConfigurationIsOrderedAtOnce(t *testing.T) {
	t.Parallel()
	changes := []struct {
		name   string
		change func(*issuer.Certificate)
		orders int
	}{
		{"names", func(c *issuer.Certificate) { c.DNSNames = []string{"a", "b"} }, 2},
		{"key type", func(c *issuer.Certificate) { c.KeyType = "ecdsa-p384" }, 2},
		{"issuer", func(c *issuer.Certificate) { c.Issuer = "second" }, 2},
		{"nothing", func(*issuer.Certificate) {}, 1},
		{"order of names", func(c *issuer.Certificate) { c.DNSNames = []string{"a", "a"} }, 1},
		{"profile waits for the renewal", func(c *issuer.Certificate) { c.Profile = "short" }, 1},
		{"later renew_before", func(c *issuer.Certificate) { c.RenewBefore.Duration = time.Hour }, 1},
		{"renew_before that has come", func(c *issuer.Certificate) { c.RenewBefore.Duration = 4*day + time.Hour }, 2},
	}
	for _, tt := range changes {
		for _, restart := range []bool{false, true} {
			name := tt.name
			if restart {
				name += ", with a restart"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t, certificate("a"))
					w.start()
					pass(2 * day)
					tt.change(&w.certs[0])
					if restart {
						w.stop()
						w.start()
					}
					w.loop.SetIssuers(map[string]issuer.Issuer{"ca": w.ca, "second": w.ca})
					w.loop.SetCertificates(w.certs)
					synctest.Wait()
					w.wantOrders("a", tt.orders)
					if s := w.status("a"); s.State != issuer.StateOK {
						t.Errorf("got %s, want ok", s.State)
					}
				})
			})
		}
	}
}

func TestChangedConfigurationSkipsTheBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(errCA)
		w.start()
		pass(2 * time.Hour)
		w.ca.fail(nil)
		before := w.ca.count("a")
		w.certs = []issuer.Certificate{certificate("a")}
		w.certs[0].DNSNames = []string{"a", "b"}
		w.loop.SetCertificates(w.certs)
		synctest.Wait()
		w.wantOrders("a", before+1)
	})
}

func TestChangeCutsTheOrderUnderWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.setHook(func(ctx context.Context, r issuer.Request) error {
			if len(r.DNSNames) > 1 {
				return nil
			}
			<-ctx.Done()
			time.Sleep(time.Second) //nolint:forbidigo // fake time of a synctest bubble: slow to end
			return context.Cause(ctx)
		})
		w.start()
		w.certs[0].DNSNames = []string{"a", "b"}
		w.loop.SetCertificates(w.certs)
		w.loop.SetCertificates(nil)
		if n := len(w.loop.Status()); n != 0 {
			t.Errorf("got %d certificates, want none", n)
		}
		w.loop.SetCertificates(w.certs) // back before the order has ended
		pass(2 * time.Second)
		if s := w.status("a"); s.State != issuer.StateOK || s.Failure != nil {
			t.Errorf("got %+v, want ok", s)
		}
		w.wantOrders("a", 2)
		if w.ca.twice {
			t.Error("two orders for one certificate were under way at once")
		}
	})
}

func TestSeriesGoWithCertificateAndIssuer(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"), certificate("b"))
		w.start()
		w.ca.fail(errCA)
		pass(4 * day)
		for metric, want := range map[string]bool{
			"sds_certificate_renewal_timestamp_seconds":      true,
			"sds_certificate_last_renewal_timestamp_seconds": true,
			"sds_certificate_renewal_failing":                true,
		} {
			if _, got := w.value(metric, "secret", "a"); got != want {
				t.Errorf("%s: present %t, want %t", metric, got, want)
			}
		}
		if up, ok := w.value("sds_issuer_up", "issuer", "ca"); !ok || up != 0 {
			t.Errorf("issuer_up: got %v, want 0", up)
		}
		if n, _ := w.value("sds_issuance_total", "result", "success"); n != 2 {
			t.Errorf("issuance_total: got %v successes, want 2", n)
		}
		if n, _ := w.value("sds_issuance_total", "result", "failure", "kind", "temporary"); n < 2 {
			t.Errorf("issuance_total: got %v failures, want 2 or more", n)
		}
		if n, _ := w.value("sds_issuance_duration_seconds", "issuer", "ca"); n != 2 {
			t.Errorf("issuance_duration_seconds: got %v, want 2", n)
		}
		if diff := cmp.Diff([]issuer.Availability{{Issuer: "ca"}}, w.loop.Issuers()); diff != "" {
			t.Errorf("issuers (-want +got):\n%s", diff)
		}
		w.ca.fail(nil)
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); err != nil {
			t.Fatal(err)
		}
		if up, _ := w.value("sds_issuer_up", "issuer", "ca"); up != 1 || !w.loop.Issuers()[0].Up {
			t.Errorf("issuer_up: got %v, want 1", up)
		}
		if _, failing := w.value("sds_certificate_renewal_failing", "secret", "a"); failing {
			t.Error("renewal_failing is still there after a success")
		}
		w.ca.setHook(func(context.Context, issuer.Request) error {
			time.Sleep(time.Minute) //nolint:forbidigo // fake time of a synctest bubble
			return nil
		})
		go func() { _, _ = w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}) }() // ends after its issuer has gone
		synctest.Wait()
		w.loop.SetIssuers(nil)
		pass(2 * time.Minute)
		w.loop.SetCertificates(nil)
		for _, metric := range []string{
			"sds_certificate_renewal_timestamp_seconds", "sds_certificate_last_renewal_timestamp_seconds",
			"sds_certificate_renewal_failing", "sds_issuance_total", "sds_issuance_duration_seconds", "sds_issuer_up",
		} {
			if _, there := w.value(metric); there {
				t.Errorf("%s: a series is left", metric)
			}
		}
	})
}

func TestRefusedBySinkIsTriedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.sink.set(func(issuer.Issued) error { return issuertest.ErrFault }, nil)
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindInternal {
			t.Fatalf("got %+v, want an internal failure", s)
		}
		w.sink.set(nil, nil)
		pass(10 * time.Second)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok", s.State)
		}
	})
}

func TestAcceptedWhoseAnswerGotLostIsNotOrderedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.sink.set(nil, errors.New("connection lost"))
		w.start()
		pass(day)
		w.wantOrders("a", 1)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %+v, want ok", s)
		}
	})
}

// TestAcceptedWhoseAnswerAndStateGotLostIsNotOrderedAgain has a sink that commits, and a store that then is silent for a while.
func TestAcceptedWhoseAnswerAndStateGotLostIsNotOrderedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.sink.set(nil, errors.New("connection lost"))
		fault := func([]store.Operation) error { return issuertest.ErrFault }
		w.store.Hook(nil, func([]store.Operation) error {
			w.store.HookRead(func(string) error { return issuertest.ErrFault })
			w.store.Hook(fault, nil)
			return nil
		})
		w.start()
		pass(time.Hour)
		w.wantOrders("a", 1)
		w.store.Hook(nil, nil)
		w.store.HookRead(nil)
		pass(time.Minute)
		w.wantOrders("a", 1)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %+v, want ok", s)
		}
	})
}

func TestIssuedCarriesOrderAndStateIntoOneCommit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		i := w.sink.last
		keys := make(map[string]bool)
		for _, o := range i.Operations {
			keys[o.Key] = o.Delete
		}
		want := map[string]bool{issuer.StateKey("a"): false, issuer.OrderKey("a"): true}
		if diff := cmp.Diff(want, keys); diff != "" {
			t.Errorf("operations (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff([]store.Condition{{Key: issuer.StateKey("a")}}, i.Conditions); diff != "" {
			t.Errorf("conditions (-want +got):\n%s", diff)
		}
	})
}

func TestUnwritableStoreStillBacksOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.store.Hook(func([]store.Operation) error { return issuertest.ErrFault }, nil)
		w.start()
		pass(time.Hour)
		if n := w.ca.count("a"); n < 3 || n > 10 {
			t.Errorf("got %d orders in an hour, want a handful", n)
		}
		w.store.Hook(nil, nil)
		pass(20 * time.Minute)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok", s.State)
		}
	})
}

// TestFailingShowsTheLastKindAlone has a certificate that fails for one reason and then for another.
func TestFailingShowsTheLastKindAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(errCA)
		w.start()
		want := func(kinds ...issuer.Kind) {
			t.Helper()
			for _, kind := range []issuer.Kind{issuer.KindTemporary, issuer.KindRejected} {
				_, shown := w.value("sds_certificate_renewal_failing", "secret", "a", "kind", string(kind))
				if shown != slices.Contains(kinds, kind) {
					t.Errorf("%s: got %t, want %v alone", kind, shown, kinds)
				}
			}
		}
		want(issuer.KindTemporary)
		w.ca.fail(&issuer.Error{Kind: issuer.KindRejected, Issuer: "ca", Message: "no"})
		pass(10 * time.Second)
		want(issuer.KindRejected)
		w.loop.SetCertificates(nil)
		want()
		w.loop.SetCertificates(w.certs)
		synctest.Wait()
		want(issuer.KindRejected)
		w.ca.fail(nil)
		pass(time.Hour)
		want()
	})
}
