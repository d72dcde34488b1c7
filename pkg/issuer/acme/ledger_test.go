package acme

import (
	"net/http"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
)

// openBudget opens the real budget as a new process does.
func (f *fixture) openBudget() *budget.Ledger {
	f.Helper()
	book, err := budget.Open(f.Context(), f.store, testLogger())
	if err != nil {
		f.Fatal(err)
	}
	ledger, err := book.Ledger(budget.Options{Issuer: "pebble", Directory: f.proxy.Directory, Share: 1, Limits: []budget.Limit{
		{Name: budget.NewOrders, Burst: 5, Refill: 10 * time.Hour},
		{Name: budget.ExactSet, Burst: 2, Refill: 34 * time.Hour},
		{Name: budget.FailedAuthorizations, Burst: 2, Refill: 12 * time.Hour},
		{Name: budget.NewAccounts, Burst: 1, Refill: 10 * time.Hour},
	}})
	if err != nil {
		f.Fatal(err)
	}
	return ledger
}

// TestNoLimitOfTheRealBudgetIsCrossed counts at the proxy what the CA got, across restarts, refusals, lost answers and failed validations.
func TestNoLimitOfTheRealBudgetIsCrossed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	start := func(change func(*Options)) *Issuer { // each time another process
		l := f.openBudget()
		return f.issuer(func(o *Options) {
			o.Budget = l
			if change != nil {
				change(o)
			}
		})
	}
	deaf := func(o *Options) { o.Responder = &Responder{} }
	asked := 0
	wantAsked := func(when string, more int) {
		t.Helper()
		asked += more
		if n := f.proxy.Count(testenv.KindNewOrder).Received; n != asked {
			t.Errorf("%s: %d orders were asked for, want %d", when, n, asked)
			asked = n
		}
	}
	// The longest waits have what the ledger adds for the time between its record and the CA's.
	forbidden := func(when, limit string, longest time.Duration, r issuer.Request) {
		t.Helper()
		_, err := start(nil).Obtain(f.Ready(), r)
		if e := wantKind(t, err, issuer.KindBudget, limit); e.RetryAfter <= 0 || e.RetryAfter > longest {
			t.Errorf("%s: got Retry-After %v, want up to %v", when, e.RetryAfter, longest)
		}
		wantAsked(when, 0)
	}

	// What the CA refuses is not counted.
	f.respond(testenv.KindNewOrder, 3, func(w http.ResponseWriter, _ *http.Request) { problem(w, 400, "rejectedIdentifier", "no") })
	for range 3 {
		_, err := start(nil).Obtain(f.Ready(), request("a.example"))
		wantKind(t, err, issuer.KindRejected)
	}
	wantAsked("refused", 3)

	for range 2 {
		f.obtain(start(nil), request("a.example"))
		f.accept(request("a.example"))
	}
	wantAsked("exact set", 2)
	forbidden("a third for the same names", budget.ExactSet, 43*time.Hour, request("a.example"))

	for range 2 {
		_, err := start(deaf).Obtain(f.Ready(), request("b.example"))
		wantKind(t, err, issuer.KindValidation)
	}
	wantAsked("failed validations", 2)
	forbidden("after two failed validations", budget.FailedAuthorizations, 12*time.Hour, request("b.example", "c.example"))

	// A lost answer costs an order, and no certificate of the set.
	f.respond(testenv.KindNewOrder, 1, reset)
	_, err := start(nil).Obtain(f.Ready(), request("d.example"))
	wantKind(t, err, issuer.KindTemporary)
	wantAsked("lost answer", 1)
	forbidden("after five orders", budget.NewOrders, 11*time.Hour, request("e.example"))
	if n := f.proxy.Count(testenv.KindNewAccount).Received; n != 1 {
		t.Errorf("%d accounts were asked for, want 1", n)
	}
}
