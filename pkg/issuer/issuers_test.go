package issuer_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/issuer"
)

func TestOtherIssuersKeepTheirBackoffs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		other := certificate("b")
		other.Issuer = "second"
		w := newWorld(t, certificate("a"), other)
		w.ca.fail(errCA)
		w.start()
		second := newWorld(t).ca
		second.fail(errCA)
		issuers := map[string]issuer.Issuer{"ca": w.ca, "second": second}
		w.loop.SetIssuers(issuers)
		pass(2 * time.Hour)
		first, last := w.ca.count("a"), second.count("b")
		next := w.status("a").NextRenewal
		if next.Before(time.Now()) || last == 0 {
			t.Fatalf("got a at %v after %d tries and b after %d, want both backed off", next, first, last)
		}

		changed := newWorld(t).ca // the configuration of the second issuer was mended
		w.loop.SetIssuers(map[string]issuer.Issuer{"ca": w.ca, "second": changed})
		synctest.Wait()
		w.wantOrders("a", first)
		if got := w.status("a").NextRenewal; !got.Equal(next) {
			t.Errorf("a: got the next try at %v, want %v", got, next)
		}
		if got := changed.count("b"); got != 1 || w.status("b").State != issuer.StateOK {
			t.Errorf("b: got %d orders and %s, want it ordered at once", got, w.status("b").State)
		}
	})
}

func TestRestartRemembersADeadCA(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"), certificate("b"))
		w.start()
		check := func(when string, up bool) {
			t.Helper()
			if diff := cmp.Diff([]issuer.Availability{{Issuer: "ca", Up: up}}, w.loop.Issuers()); diff != "" {
				t.Errorf("%s: issuers (-want +got):\n%s", when, diff)
			}
			if got, there := w.value("sds_issuer_up", "issuer", "ca"); !there || (got == 1) != up {
				t.Errorf("%s: issuer_up: got %v, want %t", when, got, up)
			}
		}
		restart := func() {
			w.stop()
			w.start()
		}
		check("at the start", true)
		pass(time.Second)
		w.ca.fail(errCA)
		if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true}); err == nil {
			t.Fatal("got a certificate of a dead CA")
		}
		restart()
		check("while a waits for its next try", false)
		w.ca.fail(nil)
		pass(time.Second)
		if _, err := w.loop.Renew(t.Context(), "b", issuer.Renewal{Force: true}); err != nil {
			t.Fatal(err)
		}
		check("after b", true)
		restart()
		check("after b, with a restart", true)
		w.ca.fail(&issuer.Error{Kind: issuer.KindInternal, Issuer: "ca", Message: "the store is full"})
		if _, err := w.loop.Renew(t.Context(), "b", issuer.Renewal{Force: true}); err == nil {
			t.Fatal("got a certificate without a store")
		}
		restart()
		check("after a failure of our own", true)
	})
}

// TestOrderElsewhereIsForThisTimeAlone has an issuer that was asked for once, and does not issue.
func TestOrderElsewhereIsForThisTimeAlone(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		kind   issuer.Kind
		remove bool    // the issuer goes
		left   float64 // of the life
	}{
		{"it refuses", issuer.KindRejected, false, 0.9},
		{"it has paused the account", issuer.KindPaused, false, 0.9},
		{"it has gone", issuer.KindTemporary, true, 0.9},
		{"it is down, and the life ends", issuer.KindTemporary, false, 0.04},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				w.give("a", 90*day, tt.left)
				w.hold = func(string, time.Time) (string, time.Time) { return "a test", time.Now().Add(day) }
				block := make(chan struct{})
				w.ca.setHook(func(context.Context, issuer.Request) error {
					<-block
					return errCA
				})
				w.start()
				second := newWorld(t).ca
				second.fail(&issuer.Error{Kind: tt.kind, Issuer: "second", Message: "no"})
				w.loop.SetIssuers(map[string]issuer.Issuer{"ca": w.ca, "second": second})
				close(block)
				synctest.Wait()
				w.ca.fail(nil)
				if _, err := w.loop.Renew(t.Context(), "a", issuer.Renewal{Force: true, Issuer: "second"}); err == nil || second.count("a") != 1 {
					t.Fatalf("got %v after %d orders, want one that fails", err, second.count("a"))
				}
				if tt.remove {
					w.loop.SetIssuers(map[string]issuer.Issuer{"ca": w.ca})
				}
				pass(2 * day)
				if got := w.sink.count("a"); got != 1 {
					t.Errorf("got %d certificates of its own issuer, want one", got)
				}
			})
		})
	}
}
