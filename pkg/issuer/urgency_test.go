package issuer_test

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// log notes the order in which certificates are ordered; block holds the one that is given as first until it is closed.
func (w *world) log(block <-chan struct{}) *[]string {
	var order []string
	w.ca.setHook(func(_ context.Context, r issuer.Request) error {
		order = append(order, r.Secret) // one worker
		if len(order) == 1 && block != nil {
			<-block
		}
		return nil
	})
	return &order
}

// TestMostUrgentIsOrderedFirst has one worker, and all become due at once.
func TestMostUrgentIsOrderedFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("new"))
		w.give("90 d, 22 d to lose", 90*day, 0.3)
		w.give("6 d, 2 d to lose", 6*day, 0.4)
		w.give("1 h, 26 min to lose", time.Hour, 0.49)
		w.give("90 d, ends in a day", 90*day, 1.0/90)
		w.give("6 d, ends in an hour", 6*day, 1.0/(6*24))
		w.give("expired", 90*day, -0.1)
		w.give("not due", 90*day, 0.9)
		names := w.certs[len(w.certs)-2]
		names.DNSNames = append(names.DNSNames, "more.example")
		w.certs[len(w.certs)-1].DNSNames = []string{"changed.example"}
		w.workers = 1
		order := w.log(nil)
		var planned []string
		w.startPaused(func() {
			for _, p := range w.loop.Plan(issuer.Selection{}) {
				planned = append(planned, p.Name)
			}
		})
		want := []string{
			"expired", "6 d, ends in an hour", "90 d, ends in a day", // urgent: who ends first
			"new", "not due", // "not due" has another name now
			"1 h, 26 min to lose", "6 d, 2 d to lose", "90 d, 22 d to lose",
		}
		if diff := cmp.Diff(want, *order); diff != "" {
			t.Errorf("orders (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(want, planned); diff != "" {
			t.Errorf("plan (-want +got):\n%s", diff)
		}
	})
}

// startPaused starts the world, calls do while all that is due waits for the end of a pause, and ends the pause.
func (w *world) startPaused(do func()) {
	w.Helper()
	var over atomic.Bool
	w.hold = func(string, time.Time) (string, time.Time) {
		if !over.Load() {
			return "a test", time.Now().Add(time.Hour)
		}
		return "", time.Time{}
	}
	begin := make(chan struct{})
	hook := w.ca.hook
	w.ca.setHook(func(ctx context.Context, r issuer.Request) error {
		<-begin // what is urgent does not wait for the pause
		return hook(ctx, r)
	})
	w.start()
	do()
	over.Store(true)
	close(begin)
	pass(time.Minute)
}

func TestUrgentMaySpendTheReserve(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("new"))
		w.give("last part", 90*day, 0.049)
		w.give("before it", 90*day, 0.051)
		w.give("expired", 90*day, -1)
		w.give("asked for", 90*day, 0.9)
		w.give("forced", 90*day, 0.9)
		urgent := make(map[string]bool)
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			w.ca.mu.Lock()
			defer w.ca.mu.Unlock()
			urgent[r.Secret] = r.Urgent
			return nil
		})
		w.start()
		for name, urgent := range map[string]bool{"asked for": true, "forced": false} {
			if _, err := w.loop.Renew(t.Context(), name, issuer.Renewal{Force: true, Urgent: urgent}); err != nil {
				t.Fatal(err)
			}
		}
		want := map[string]bool{"new": false, "last part": true, "before it": false, "expired": true, "asked for": true, "forced": false}
		if diff := cmp.Diff(want, urgent); diff != "" {
			t.Errorf("urgent (-want +got):\n%s", diff)
		}
	})
}

// TestHungIssuerBlocksNoOther has one CA that answers nobody, and another one.
func TestHungIssuerBlocksNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.ca.setHook(func(ctx context.Context, _ issuer.Request) error {
			<-ctx.Done()
			return context.Cause(ctx)
		})
		for n := range 20 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("h%d", n)))
		}
		w.start()
		second := newWorld(t).ca
		w.loop.SetIssuers(map[string]issuer.Issuer{"ca": w.ca, "second": second})
		for n := range 20 {
			c := certificate(fmt.Sprintf("c%d", n))
			c.Issuer = "second"
			w.certs = append(w.certs, c)
		}
		w.loop.SetCertificates(w.certs)
		synctest.Wait()
		for n := range 20 {
			if got := second.count(fmt.Sprintf("c%d", n)); got != 1 {
				t.Errorf("c%d: got %d orders, want 1", n, got)
			}
		}
		if w.ca.most != 4 || second.most > 4 {
			t.Errorf("got %d and %d orders at once, want 4 at most", w.ca.most, second.most)
		}
		due := []int{}
		for _, a := range w.loop.Issuers() {
			due = append(due, a.Due)
		}
		if !slices.Equal(due, []int{16, 0}) {
			t.Errorf("got %v due, want 16 at the CA that hangs", due)
		}
	})
}

// TestMaintenanceStopsWhatIsOrdinary has a pause that ends, and one that ends early.
func TestMaintenanceStopsWhatIsOrdinary(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("new"))
		w.give("due", 90*day, 0.3)
		w.give("soon urgent", 90*day, 0.05+0.5/24/90) // in half an hour
		w.give("urgent", 90*day, 0.04)
		w.give("forced", 90*day, 0.9)
		end := time.Now().Add(time.Hour)
		w.hold = func(name string, at time.Time) (string, time.Time) {
			if name == "ca" && at.Before(end) {
				return "maintenance", end
			}
			return "", time.Time{}
		}
		w.start()
		w.wantOrders("urgent", 1)
		if _, err := w.loop.Renew(t.Context(), "forced", issuer.Renewal{Force: true}); err != nil {
			t.Fatal(err)
		}
		pass(29 * time.Minute)
		w.wantOrders("soon urgent", 0)
		for _, name := range []string{"new", "due"} {
			w.wantOrders(name, 0)
			want := &issuer.Waiting{Message: "maintenance", Until: end}
			if got := w.status(name); !cmp.Equal(got.Waiting, want) || !got.NextRenewal.Equal(end) || got.Failure != nil {
				t.Errorf("%s: got %+v, want it to wait for the end of the maintenance", name, got)
			}
		}
		if got := w.loop.Issuers()[0]; got.Stopped == nil || got.Stopped.Message != "maintenance" || got.Due != 3 || !got.Up {
			t.Errorf("got %+v, want an issuer in maintenance", got)
		}
		pass(time.Minute + time.Second)
		w.wantOrders("soon urgent", 1)
		pass(30 * time.Minute)
		w.wantOrders("new", 1)
		w.wantOrders("due", 1)
		if got := w.loop.Issuers()[0]; got.Stopped != nil || got.Due != 0 {
			t.Errorf("got %+v, want an issuer that works", got)
		}
	})
}

func TestPlanSelects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.give("b", 90*day, 0.9)
		w.give("a", 90*day, 0.8)
		w.give("c", 90*day, 0.04)
		w.ca.fail(errCA)
		w.start()
		w.loop.SetCertificates(append(w.certs, certificate("new")))
		synctest.Wait()
		names := func(s issuer.Selection) (out []string) {
			for _, p := range w.loop.Plan(s) {
				out = append(out, p.Name)
			}
			return out
		}
		for name, tt := range map[string]struct {
			selection issuer.Selection
			want      []string
		}{
			"all":          {issuer.Selection{}, []string{"c", "new", "a", "b"}},
			"names":        {issuer.Selection{Names: []string{"b", "c", "unknown"}}, []string{"c", "b"}},
			"an issuer":    {issuer.Selection{IssuedBy: "ca"}, []string{"c", "a", "b"}},
			"another":      {issuer.Selection{IssuedBy: "second"}, nil},
			"issued later": {issuer.Selection{IssuedBy: "ca", Before: time.Now().Add(-day * 10)}, []string{"c", "a"}},
		} {
			if diff := cmp.Diff(tt.want, names(tt.selection)); diff != "" {
				t.Errorf("%s (-want +got):\n%s", name, diff)
			}
		}
		p := w.loop.Plan(issuer.Selection{Names: []string{"b"}})[0]
		want := issuer.Planned{
			Name: "b", Issuer: "ca", IssuedBy: "ca", DNSNames: []string{"b"}, NotAfter: w.status("b").NotAfter,
			LastRenewal: w.status("b").LastRenewal, Due: w.status("b").NextRenewal,
		}
		if diff := cmp.Diff(want, p); diff != "" {
			t.Errorf("planned (-want +got):\n%s", diff)
		}
	})
}
