package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
)

// ledger is a budget that writes down what it is told.
type ledger struct {
	mu      sync.Mutex
	lines   []string                 // guarded by mu
	refusal func(issuer.Use) error   // guarded by mu; nil refuses nothing
	seen    func(what string, u any) // guarded by mu; nil tells nobody
}

func (l *ledger) write(what string, u issuer.Use, rest ...string) {
	names := slices.Clone(u.DNSNames)
	for _, a := range u.IPAddresses {
		names = append(names, a.String())
	}
	line := fmt.Sprintf("%s %s", what, u.Kind)
	if len(names) > 0 {
		line += " " + strings.Join(names, "+")
	}
	if u.Replaces {
		line += " replaces"
	}
	if u.Urgent {
		line += " urgent"
	}
	l.lines = append(l.lines, strings.Join(append([]string{line}, rest...), " "))
	if l.seen != nil {
		l.seen(what, u)
	}
}

func (l *ledger) Spend(_ context.Context, u issuer.Use) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.refusal != nil {
		if err := l.refusal(u); err != nil {
			return err
		}
	}
	l.write("spend", u)
	return nil
}

func (l *ledger) Return(_ context.Context, u issuer.Use) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write("return", u)
	return nil
}

func (l *ledger) Refused(_ context.Context, u issuer.Use, after time.Duration, message string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.write("refused", u, after.String(), message)
	return nil
}

// take returns what was written since the last call.
func (l *ledger) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := l.lines
	l.lines = nil
	return lines
}

func (l *ledger) refuse(refusal func(issuer.Use) error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refusal = refusal
}

// want compares what was written since the last call.
func (l *ledger) want(t testing.TB, when string, lines ...string) {
	t.Helper()
	if got := l.take(); !slices.Equal(got, lines) {
		t.Errorf("%s: got\n%s\nwant\n%s", when, strings.Join(got, "\n"), strings.Join(lines, "\n"))
	}
}

// counted makes an issuer whose budget is l.
func (f *fixture) counted(l *ledger, change func(*Options)) *Issuer {
	f.Helper()
	return f.issuer(func(o *Options) {
		o.Budget = l
		if change != nil {
			change(o)
		}
	})
}

func TestOrderIsCountedBeforeItIsAskedFor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	l.seen = func(_ string, u any) {
		use, _ := u.(issuer.Use)
		kind := testenv.KindNewOrder
		if use.Kind == issuer.UseAccount {
			kind = testenv.KindNewAccount
		}
		if n := f.proxy.Count(kind).Received; n != 0 {
			t.Errorf("%s was counted after %d requests", use.Kind, n)
		}
	}
	i := f.counted(l, nil)
	r := request("b.example", "a.example", "127.0.0.1")
	r.Urgent = true
	f.obtain(i, r)
	l.want(t, "the first order", "spend account", "spend order a.example+b.example+127.0.0.1 urgent")
	l.seen = nil
	f.obtain(i, r)
	f.obtain(f.counted(l, nil), r)
	l.want(t, "taken up again")
	f.accept(r)
	f.obtain(i, request("a.example"))
	l.want(t, "the second order", "spend order a.example")
}

func TestNothingIsAskedThatTheBudgetForbids(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	i := f.counted(l, nil)
	empty := &issuer.Error{Kind: issuer.KindBudget, Issuer: "pebble", Message: "10 of 10 accounts are used", RetryAfter: time.Hour}
	for _, kind := range []issuer.UseKind{issuer.UseAccount, issuer.UseOrder} {
		l.refuse(func(u issuer.Use) error {
			if u.Kind == kind {
				return empty
			}
			return nil
		})
		_, err := i.Obtain(f.Ready(), request("a.example"))
		if e := wantKind(t, err, issuer.KindBudget, empty.Message); e.RetryAfter != time.Hour {
			t.Errorf("got Retry-After %v, want 1 h", e.RetryAfter)
		}
		f.wantNoOrder("after a refusal of the budget")
	}
	if n := f.proxy.Count(testenv.KindNewOrder).Received; n != 0 {
		t.Errorf("%d orders were asked for", n)
	}
	l.refuse(func(issuer.Use) error { return errors.New("disk full") })
	_, err := i.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindInternal, "budget", "disk full")
	l.refuse(nil)
	f.obtain(i, request("a.example"))
}

// TestKeyIsMadeAfterTheBudgetWasAsked has a key that cannot be made, so that it shows when that is tried.
func TestKeyIsMadeAfterTheBudgetWasAsked(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	i := f.counted(l, nil)
	r := request("a.example")
	r.KeyType = "none"
	l.refuse(func(u issuer.Use) error {
		if u.Kind == issuer.UseOrder {
			return &issuer.Error{Kind: issuer.KindBudget, Issuer: "pebble", Message: "5 of 5 are used", RetryAfter: time.Hour}
		}
		return nil
	})
	_, err := i.Obtain(f.Ready(), r)
	wantKind(t, err, issuer.KindBudget, "5 of 5")
	l.want(t, "no room", "spend account")
	l.refuse(nil)
	_, err = i.Obtain(f.Ready(), r)
	wantKind(t, err, issuer.KindInternal, "certificate key")
	l.want(t, "no key", "spend order a.example", "return order a.example")
	f.wantNoOrder("without a key")
	if n := f.proxy.Count(testenv.KindNewOrder).Received; n != 0 {
		t.Errorf("%d orders were asked for", n)
	}
}

func TestWhatTheCADoesNotCountIsReturned(t *testing.T) {
	t.Parallel()
	says := func(status int, problemType string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { problem(w, status, problemType, "no") }
	}
	limited := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", "7200")
		says(429, "rateLimited")(w, r)
	}
	const spend, back, cert = "spend order a.example", "return order a.example", "return certificate a.example"
	tests := []struct {
		name   string
		kind   testenv.Kind
		answer http.HandlerFunc
		first  []string // of the order that meets the answer
		second []string // of the next one
	}{
		{"rejected", testenv.KindNewOrder, says(400, "rejectedIdentifier"), []string{spend, back}, []string{spend}},
		{"limit with a time", testenv.KindNewOrder, limited, []string{spend, back, "refused order a.example 2h0m0s no"}, []string{spend}},
		{"limit without a time", testenv.KindNewOrder, says(429, "rateLimited"), []string{spend, back, "refused order a.example 0s no"}, []string{spend}},
		{"paused", testenv.KindNewOrder, func(w http.ResponseWriter, _ *http.Request) { problem(w, 429, "rateLimited", pausedText) }, []string{spend, back}, []string{spend}},
		{"trouble", testenv.KindNewOrder, says(500, "serverInternal"), []string{spend, back}, []string{spend}},
		{"page", testenv.KindNewOrder, page(502, "text/html", html), []string{spend}, []string{cert, spend}},
		{"reset", testenv.KindNewOrder, reset, []string{spend}, []string{cert, spend}},
		{"no nonce", testenv.KindNonce, page(503, "text/html", html), []string{spend, back}, []string{spend}},
		{"badNonce", testenv.KindNewOrder, says(400, "badNonce"), []string{spend, back}, []string{spend}},
		{"order gone", testenv.KindOrder, says(404, "malformed"), []string{spend, cert}, []string{spend}},
		{"CAA at finalize", testenv.KindFinalize, says(403, "caa"), []string{spend, cert}, []string{spend}},
		{"limit at finalize", testenv.KindFinalize, limited, []string{spend, "refused certificate a.example 2h0m0s no"}, nil},
		{"trouble at finalize", testenv.KindFinalize, says(500, "serverInternal"), []string{spend}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			l := &ledger{}
			i := f.counted(l, nil)
			if _, err := i.ensureAccount(f.Ready(), ""); err != nil {
				t.Fatal(err)
			}
			i = f.counted(l, func(o *Options) { o.OrderTimeout = 20 * time.Second }) // without nonces
			l.want(t, "account", "spend account")
			f.respond(tt.kind, every, tt.answer)
			if _, err := i.Obtain(f.Ready(), request("a.example")); err == nil {
				t.Error("got a certificate")
			}
			l.want(t, "the order that fails", tt.first...)
			f.proxy.SetRespond(nil)
			f.obtain(f.counted(l, nil), request("a.example"))
			l.want(t, "the next one", tt.second...)
		})
	}
}

func TestRefusedAccountIsReturned(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	i := f.counted(l, nil)
	f.respond(testenv.KindNewAccount, 1, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "60")
		problem(w, 429, "rateLimited", "too many accounts")
	})
	_, err := i.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindRateLimited, "too many accounts")
	l.want(t, "429", "spend account", "return account", "refused account 1m0s too many accounts")
	f.respond(testenv.KindDirectory, 1, page(503, "text/html", html))
	_, err = f.counted(l, nil).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary, "503")
	l.want(t, "no directory", "spend account", "return account")
	f.respond(testenv.KindNewAccount, 1, reset)
	_, err = i.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary)
	l.want(t, "reset", "spend account")
}

func TestFailedValidationIsCountedOnceForEachName(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	deaf := func(o *Options) { o.Responder = &Responder{} }
	_, err := f.counted(l, deaf).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindValidation)
	l.want(t, "one name", "spend account", "spend order a.example", "spend failed_authorization a.example", "return certificate a.example")

	// It is found out by the next process only.
	hold := f.proxy.Hold(testenv.KindOrder, testenv.Before)
	defer hold.Release()
	ctx, crash := context.WithCancel(t.Context())
	defer crash()
	done := make(chan struct{})
	i := f.counted(l, deaf)
	go func() {
		defer close(done)
		_, _ = i.Obtain(ctx, request("a.example")) // it is cut
	}()
	<-hold.Reached()
	crash()
	<-done
	l.want(t, "crash", "spend order a.example")
	f.obtain(f.counted(l, nil), request("a.example"))
	l.want(t, "after the crash", "spend failed_authorization a.example", "return certificate a.example", "spend order a.example")
}

// TestOnlyTheNameThatFailedIsCounted has two names, of which one is answered.
func TestOnlyTheNameThatFailedIsCounted(t *testing.T) {
	t.Parallel()
	port, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t, testenv.PebbleOptions{HTTPPort: port})
	f.serveChallenges(port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.Host, "b.example") {
			http.NotFound(w, r)
			return
		}
		f.responder.ServeHTTP(w, r)
	}))
	valid := make(chan struct{}) // the order is asked for only when both validations have come to an end
	f.proxy.SetRespond(func(kind testenv.Kind, _ http.ResponseWriter, r *http.Request) bool {
		if kind == testenv.KindOrder {
			select {
			case <-valid:
			case <-r.Context().Done():
			}
		}
		return false
	})
	go func() {
		defer close(valid)
		_ = testenv.Eventually(f.Context(), func(context.Context) error { // the test fails by what comes after
			if log := f.pebble.LogTail(1000); !strings.Contains(log, "set VALID") || !strings.Contains(log, "set INVALID") {
				return errors.New("validation is under way")
			}
			return nil
		})
	}()
	l := &ledger{}
	_, err = f.counted(l, nil).Obtain(f.Ready(), request("a.example", "b.example"))
	if e := wantKind(t, err, issuer.KindValidation); e.Identifier != "b.example" {
		t.Errorf("got identifier %q, want b.example", e.Identifier)
	}
	l.want(t, "two names", "spend account", "spend order a.example+b.example", "spend failed_authorization b.example",
		"return certificate a.example+b.example")
}

func TestCertificateThatTheCAIssuedIsNotReturned(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	_, err := f.counted(l, func(o *Options) { o.RootsFile = "" }).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindRejected, "untrusted")
	l.want(t, "a chain that is refused", "spend account", "spend order a.example")
}

func TestDroppedOrderIsReturned(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	budget := func(o *Options) { o.Budget = l }
	defer f.crashAtRequest(testenv.KindAuthz, testenv.Before, budget).Release()
	l.want(t, "placed", "spend account", "spend order a.example")
	f.obtain(f.issuer(budget), request("a.example", "b.example"))
	l.want(t, "other names before finalize", "return certificate a.example", "spend order a.example+b.example")
	f.obtain(f.issuer(budget), request("a.example"))
	l.want(t, "other names after it", "spend order a.example")
}

func TestOrderOfAnotherIssuerIsNotReturnedHere(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	f.respond(testenv.KindNewOrder, 1, reset)
	_, err := f.counted(l, nil).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary)
	l.want(t, "reset", "spend account", "spend order a.example")
	f.obtain(f.counted(l, func(o *Options) { o.Name = "second" }), request("a.example"))
	l.want(t, "at the second issuer", "spend account", "spend order a.example")
}

// TestCrashNeverSpendsTwice ends the process at each write of the store, and compares what the budget was told with what the CA got: every order
// was counted, and at most one certificate stays counted.
func TestCrashNeverSpendsTwice(t *testing.T) {
	t.Parallel()
	for n := range orderWrites {
		for _, durable := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, durable %t", n+1, durable), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, testenv.PebbleOptions{})
				l := &ledger{}
				f.crashAtWrite(n, durable, func(o *Options) { o.Budget = l })
				f.obtain(f.counted(l, nil), request("a.example"))
				spent, returned := 0, 0
				for _, line := range l.take() {
					switch line {
					case "spend order a.example":
						spent++
					case "return certificate a.example", "return order a.example":
						returned++
					}
				}
				if orders := f.proxy.Count(testenv.KindNewOrder).Succeeded; spent < orders || spent-returned < 1 {
					t.Errorf("got %d counted and %d returned for %d orders and one certificate", spent, returned, orders)
				}
			})
		}
	}
}

// orderWrites are the commits of a first order: account key, account URL, order before it is asked for, with its URL, before finalize.
const orderWrites = 5

// crashAtWrite fails the n-th commit before or after it is durable, and all that follow.
func (f *fixture) crashAtWrite(n int, durable bool, change func(*Options)) {
	f.Helper()
	count := 0
	fault := func([]store.Operation) error {
		if count++; count > n { // everything after the crash fails as well
			return issuertest.ErrFault
		}
		return nil
	}
	if durable {
		f.store.Hook(nil, fault)
	} else {
		f.store.Hook(fault, nil)
	}
	_, err := f.issuer(change).Obtain(f.Ready(), request("a.example"))
	if !errors.Is(err, issuertest.ErrFault) {
		f.Errorf("got %v, want the store's error in it", err)
	}
	f.store.Hook(nil, nil)
}

// TestOrderThatIsFoundTooLateReturnsNothing has a server that was down for longer than the budget can tell uses apart.
func TestOrderThatIsFoundTooLateReturnsNothing(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	f.respond(testenv.KindNewOrder, 1, reset)
	_, err := f.counted(l, nil).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary)
	l.want(t, "reset", "spend account", "spend order a.example")
	f.changeOrder(func(o *order) { o.Created = o.Created.Add(-longestCounted) })
	f.obtain(f.counted(l, nil), request("a.example"))
	l.want(t, "late", "spend order a.example")
}
