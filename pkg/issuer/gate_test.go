package issuer_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// ledger is a budget of one limit for a whole issuer, as its CA asks it.
type ledger struct {
	mu      sync.Mutex
	tokens  int           // guarded by mu
	reserve int           // guarded by mu; of the tokens, for what is urgent
	refill  time.Duration // for one token
	last    time.Time     // guarded by mu
	issued  []string      // guarded by mu
	refused int           // guarded by mu
	exempt  string        // prefix of names that the CA does not count
}

func (b *ledger) hook(_ context.Context, r issuer.Request) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n := int(time.Since(b.last) / b.refill); n > 0 {
		b.tokens += n
		b.last = b.last.Add(time.Duration(n) * b.refill)
	}
	least := b.reserve
	if r.Urgent {
		least = 0
	}
	switch {
	case b.exempt != "" && strings.HasPrefix(r.Secret, b.exempt):
	case b.tokens > least:
		b.tokens--
	default:
		b.refused++
		return &issuer.Error{
			Kind: issuer.KindBudget, Issuer: "ca", Limit: "orders", Message: "no room",
			RetryAfter: time.Until(b.last.Add(time.Duration(least+1-b.tokens) * b.refill)),
		}
	}
	b.issued = append(b.issued, r.Secret)
	return nil
}

// TestBudgetIsSpentByUrgencyWithFewQuestions has many certificates and few tokens: each certificate is refused once, and from then on
// each token costs a question or two, however many wait.
func TestBudgetIsSpentByUrgencyWithFewQuestions(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const certificates, tokens = 300, 10
		w := newWorld(t)
		b := &ledger{tokens: tokens, refill: 36 * time.Second, last: time.Now()}
		w.ca.life = 90 * day
		w.ca.setHook(b.hook)
		var names []string
		for n := range certificates {
			name := fmt.Sprintf("c%03d", n)
			names = append(names, name)
			w.give(name, 90*day, 0.1+0.2*float64((n*7)%certificates)/certificates)
		}
		slices.SortFunc(names, func(x, y string) int { return w.end(x).Compare(w.end(y)) })
		w.workers = 1 // so that there is one order
		w.start()
		if len(b.issued) != tokens || b.refused != certificates-tokens {
			t.Fatalf("got %d issued and %d refused, want %d, and each of the others refused once", len(b.issued), b.refused, tokens)
		}
		for _, s := range w.loop.Status() {
			if s.Failure != nil || s.State == issuer.StateFailing {
				t.Fatalf("got %+v, want no failure", s)
			}
		}
		if up := w.loop.Issuers()[0]; !up.Up || up.OverBudget != certificates-tokens || up.Budget == nil || time.Until(up.Budget.Until) > 36*time.Second {
			t.Errorf("got %+v, want %d that wait for 36 s", up, certificates-tokens)
		}
		if n, found := w.value("sds_issuance_total", "result", "failure"); found {
			t.Errorf("got %v failures, want none", n)
		}
		pass(time.Duration(certificates-tokens+1) * 36 * time.Second)
		if len(b.issued) != certificates {
			t.Fatalf("got %d issued, want each token used", len(b.issued))
		}
		if !slices.Equal(b.issued, names) {
			t.Errorf("got %v, want the most urgent first", b.issued)
		}
		if most := certificates + 2*certificates; b.refused > most {
			t.Errorf("got %d refusals, want at most %d", b.refused, most)
		}
		if up := w.loop.Issuers()[0]; up.Due != 0 || up.Budget != nil {
			t.Errorf("got %+v, want nothing that waits", up)
		}
	})
}

// end returns when the certificate of a name ends.
func (w *world) end(name string) time.Time {
	w.Helper()
	for _, c := range w.certs {
		if c.Name == name {
			return w.stateOf(c).NotAfter
		}
	}
	w.Fatalf("no certificate %q", name)
	return time.Time{}
}

func TestReserveIsForWhatIsUrgent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("new"))
		b := &ledger{tokens: 3, reserve: 3, refill: 100 * day, last: time.Now()}
		w.ca.setHook(b.hook)
		w.give("soon urgent", 90*day, 0.05+1.0/24/90) // in an hour
		w.give("urgent", 90*day, 0.04)
		w.start()
		w.wantIssued(b, "urgent")
		pass(59 * time.Minute)
		w.wantIssued(b, "urgent")
		pass(2 * time.Minute)
		w.wantIssued(b, "urgent", "soon urgent")
		_, err := w.loop.Renew(t.Context(), "new", issuer.Renewal{Force: true})
		if e, ok := err.(*issuer.Error); !ok || e.Kind != issuer.KindBudget || e.RetryAfter < day { //nolint:errorlint // Renew promises it
			t.Errorf("got %v, want that the budget has no room for months", err)
		}
		if n := w.ca.count("new"); n != 1 {
			t.Errorf("got %d tries, want no other one: nothing has changed", n)
		}
		if _, err := w.loop.Renew(t.Context(), "new", issuer.Renewal{Urgent: true}); err != nil {
			t.Errorf("got %v, want the reserve for an emergency", err)
		}
		w.wantIssued(b, "urgent", "soon urgent", "new")
	})
}

func (w *world) wantIssued(b *ledger, want ...string) {
	w.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if !slices.Equal(b.issued, want) {
		w.Errorf("got %v issued, want %v", b.issued, want)
	}
}

// TestWhatTheCADoesNotCountIsNotHeldBack has renewals that a CA exempts from the limit that new names have used up.
func TestWhatTheCADoesNotCountIsNotHeldBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		b := &ledger{refill: day, last: time.Now(), exempt: "renewal"}
		w.ca.setHook(b.hook)
		for n := range 10 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("new%d", n)))
			w.give(fmt.Sprintf("renewal%d", n), 90*day, 0.3)
		}
		w.start()
		if len(b.issued) != 10 || b.refused != 10 {
			t.Errorf("got %d issued and %d refused, want 10 and 10", len(b.issued), b.refused)
		}
	})
}

// TestCertificatesOfAnotherLimitGoOn has one registered domain that is used up.
func TestCertificatesOfAnotherLimitGoOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var rooms [2]atomic.Bool
		room := map[string]*atomic.Bool{"a.example": &rooms[0], "b.example": &rooms[1]}
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			_, domain, _ := strings.Cut(r.Secret, ".")
			if room[domain].Load() {
				return nil
			}
			return &issuer.Error{Kind: issuer.KindBudget, Limit: "domain", Identifier: domain, Message: "no room", RetryAfter: time.Hour}
		})
		for n := range 5 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("%d.a.example", n)), certificate(fmt.Sprintf("%d.b.example", n)))
		}
		w.start()
		room["b.example"].Store(true)
		pass(time.Hour + time.Second)
		for n := range 5 {
			if got := w.status(fmt.Sprintf("%d.b.example", n)).State; got != issuer.StateOK {
				t.Errorf("%d: got %s, want ok", n, got)
			}
		}
		if tries := w.tries("a.example"); tries != 6 {
			t.Errorf("got %d tries of the other domain, want each once and then the first one of them", tries)
		}
		// Its certificates are configured no more, and another one is.
		room["a.example"].Store(true)
		w.certs = []issuer.Certificate{certificate("9.a.example")}
		w.loop.SetCertificates(w.certs)
		synctest.Wait()
		w.wantOrders("9.a.example", 1)
		if got := w.loop.Issuers()[0]; got.OverBudget != 0 || got.Budget != nil {
			t.Errorf("got %+v, want no limit in the way", got)
		}
	})
}

// tries counts the orders of all names below a domain.
func (w *world) tries(domain string) (n int) {
	w.ca.mu.Lock()
	defer w.ca.mu.Unlock()
	for name, orders := range w.ca.orders {
		if strings.HasSuffix(name, "."+domain) {
			n += orders
		}
	}
	return n
}

// TestManyWaitForTheBudget has an operator who renews all, and goes on waiting.
func TestManyWaitForTheBudget(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const certificates = 1000
		w := newWorld(t)
		w.slow = true
		b := &ledger{tokens: 100, refill: time.Minute, last: time.Now()}
		w.ca.life = 90 * day
		w.ca.setHook(b.hook)
		for n := range certificates {
			w.give(fmt.Sprintf("c%03d", n), 90*day, 0.6+0.3*float64(n)/certificates)
		}
		w.start()
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		var mu sync.Mutex
		issued, ended := 0, 0
		for _, p := range w.loop.Plan(issuer.Selection{IssuedBy: "ca"}) {
			wg.Go(func() {
				_, err := w.loop.Renew(ctx, p.Name, issuer.Renewal{Force: true, Wait: true})
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					issued++
				} else {
					ended++
				}
			})
		}
		pass(10*time.Hour + time.Second)
		mu.Lock()
		if issued != 700 || b.refused > 2*700+certificates {
			t.Errorf("got %d issued and %d refused, want 700, and each token asked for about once", issued, b.refused)
		}
		mu.Unlock()
		cancel(fmt.Errorf("that is enough"))
		wg.Wait()
		if ended != certificates-700 {
			t.Errorf("got %d that ended with the context, want the others", ended)
		}
	})
}

// TestUrgentDuringItsOrderGetsTheReserve has an order that is ordinary when it begins, and urgent when the budget refuses it.
func TestUrgentDuringItsOrderGetsTheReserve(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.give("a", 6*day, 0.05+1.0/(6*24*60)) // in a minute
		w.ca.setHook(func(_ context.Context, r issuer.Request) error {
			if r.Urgent {
				return nil
			}
			time.Sleep(2 * time.Minute) //nolint:forbidigo // fake time: the account was being registered, say
			return &issuer.Error{Kind: issuer.KindBudget, Issuer: "ca", Limit: "l", Message: "no", RetryAfter: 30 * time.Hour}
		})
		w.start()
		pass(3 * time.Minute)
		if got := w.sink.count("a"); got != 1 {
			t.Errorf("got %d certificates, want one by the reserve: %+v", got, w.status("a").Waiting)
		}
	})
}

// TestTurnAtAGateLastsAsLongAsItsOrder changes the configuration while one that a gate has let in is being ordered.
func TestTurnAtAGateLastsAsLongAsItsOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var room atomic.Bool
		w.ca.life = 90 * day
		w.ca.setHook(func(context.Context, issuer.Request) error {
			if room.Load() {
				time.Sleep(time.Minute) //nolint:forbidigo // fake time
			}
			return &issuer.Error{Kind: issuer.KindBudget, Issuer: "ca", Limit: "orders", Message: "no room", RetryAfter: time.Hour}
		})
		for n := range 5 {
			w.give(fmt.Sprintf("c%d", n), 90*day, 0.3)
		}
		w.start()
		room.Store(true)
		pass(time.Hour + time.Second)         // the first one has been let in
		w.certs[0].RenewBefore.Fraction = 0.4 // of the one that was let in; it cuts no order
		w.loop.SetCertificates(w.certs)
		pass(time.Second)
		running := 0
		w.ca.mu.Lock()
		for _, n := range w.ca.running {
			running += n
		}
		w.ca.mu.Unlock()
		if running != 1 {
			t.Errorf("got %d orders under way, want the one that was let in", running)
		}
	})
}
