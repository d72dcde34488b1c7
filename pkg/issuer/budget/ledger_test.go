package budget

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

const (
	production = "https://acme-v02.api.letsencrypt.org/directory"
	private    = "https://ca.corp.example/directory"
)

func openStore(t testing.TB) store.Store {
	t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func openBook(t testing.TB, s store.Store, all ...Options) *Book {
	t.Helper()
	b, err := Open(t.Context(), s, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ledgers := make([]*Ledger, len(all))
	for i, o := range all {
		if ledgers[i], err = b.Ledger(o); err != nil {
			t.Fatal(err)
		}
	}
	b.Set(ledgers)
	return b
}

// letsEncrypt is a ledger of an issuer at Let's Encrypt.
func letsEncrypt(t testing.TB, s store.Store) *Ledger {
	t.Helper()
	return openBook(t, s, Options{Issuer: "le", Directory: production}).Of("le")
}

func order(names ...string) issuer.Use { return issuer.Use{Kind: issuer.UseOrder, DNSNames: names} }

func urgent(use issuer.Use) issuer.Use {
	use.Urgent = true
	return use
}

// spend spends and returns the limit that did not allow it, or "".
func spend(t testing.TB, l *Ledger, use issuer.Use) *issuer.Error {
	t.Helper()
	err := l.Spend(t.Context(), use)
	if err == nil {
		return nil
	}
	e, ok := errors.AsType[*issuer.Error](err)
	if !ok || e.Kind != issuer.KindBudget {
		t.Fatalf("spend: %v", err)
	}
	return e
}

func mustSpend(t testing.TB, l *Ledger, use issuer.Use) {
	t.Helper()
	if err := spend(t, l, use); err != nil {
		t.Fatal(err)
	}
}

// left is how much of a limit is there, by the lowest scope.
func left(l *Ledger, limit, scope string) int64 {
	now := time.Now().UnixNano()
	r := l.rules
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	one := r.limits[limit]
	e := l.book.look(r.touch(one, scope, "", false, false), now)
	return e.left(one, now, true)
}

func TestSpendStoresWhatItUsesUp(t *testing.T) {
	s := openStore(t)
	l := letsEncrypt(t, s)
	mustSpend(t, l, order("www.example.com", "api.example.com", "www.example.co.uk"))
	for range 2 { // in memory, and then as the next process reads it
		set := setID([]string{"api.example.com", "www.example.co.uk", "www.example.com"})
		for _, tt := range []struct {
			limit, scope string
			want         int64
		}{{NewOrders, "", 299}, {RegisteredDomain, "example.com", 49}, {RegisteredDomain, "example.co.uk", 49}, {ExactSet, set, 4}, {RegisteredDomain, "example.net", 50}} {
			if got := left(l, tt.limit, tt.scope); got != tt.want {
				t.Errorf("%s %s: %d left, want %d", tt.limit, tt.scope, got, tt.want)
			}
		}
		l = letsEncrypt(t, s)
	}
}

func TestUseThatDoesNotFitSpendsNothing(t *testing.T) {
	l := letsEncrypt(t, openStore(t))
	for range 4 {
		mustSpend(t, l, order("b.example.com"))
	}
	e := spend(t, l, order("b.example.com"))
	if e == nil {
		t.Fatal("a fifth certificate for the same names is allowed to ordinary work")
	}
	for _, want := range []string{"another certificate for exactly b.example.com: exact_set of Let's Encrypt has 1 of 5 left, for emergencies", "room again at 20"} {
		if !strings.Contains(e.Message, want) {
			t.Errorf("message %q, want %q in it", e.Message, want)
		}
	}
	// The token comes back when the first order can no longer be counted later, and ordinary work has had its share of the refill.
	if low, high := 42*time.Hour+30*time.Minute, 42*time.Hour+30*time.Minute+9*time.Hour; e.RetryAfter < low || e.RetryAfter > high || e.Hint == "" {
		t.Errorf("retry after %v, want %v to %v; hint %q", e.RetryAfter, low, high, e.Hint)
	}
	if e.Limit != ExactSet || e.Identifier != "b.example.com" || e.Issuer != "le" {
		t.Errorf("limit %q, identifier %q, issuer %q", e.Limit, e.Identifier, e.Issuer)
	}
	if got := left(l, NewOrders, ""); got != 296 {
		t.Errorf("%d orders left, want 296: the refused one was spent", got)
	}
	if e := spend(t, l, urgent(order("b.example.com"))); e != nil {
		t.Errorf("the reserve is closed to urgent work: %v", e)
	}
	if e := spend(t, l, urgent(order("b.example.com"))); e == nil || !strings.Contains(e.Message, "has none of 5 left; ") {
		t.Errorf("a sixth certificate: %v, want a refusal", e)
	}
}

// TestSetsThatBeginAlikeWaitApart: what is refused for one identifier waits together, also where the label was stored before it was unique.
func TestSetsThatBeginAlikeWaitApart(t *testing.T) {
	l := letsEncrypt(t, openStore(t))
	var names []string
	for i := range 10 {
		names = append(names, fmt.Sprintf("a-rather-long-name-%d.example.com", i))
	}
	first, second := order(names...), order(append(names[:9:9], "z.example.com")...)
	for range 4 {
		mustSpend(t, l, first)
		mustSpend(t, l, second)
	}
	for _, stored := range []string{"", "a-rather-long-name-0.example.com and 9 more"} {
		for _, e := range l.book.entries {
			if stored != "" && e.of == ExactSet {
				e.label = stored
			}
		}
		a, b := spend(t, l, first), spend(t, l, second)
		if a == nil || b == nil || a.Limit != ExactSet || b.Limit != ExactSet {
			t.Fatalf("got %v and %v, want two refusals of exact_set", a, b)
		}
		if a.Identifier == b.Identifier || len(a.Identifier) > longestLabel+30 {
			t.Errorf("label %q: got identifiers %q and %q, want two short ones", stored, a.Identifier, b.Identifier)
		}
	}
}

func TestReturnGivesOrdersAndCertificatesBack(t *testing.T) {
	s := openStore(t)
	l := letsEncrypt(t, s)
	set := setID([]string{"www.example.com"})
	check := func(what string, orders, domain, exact int64) {
		t.Helper()
		if a, b, c := left(l, NewOrders, ""), left(l, RegisteredDomain, "example.com"), left(l, ExactSet, set); a != orders || b != domain || c != exact {
			t.Errorf("%s: %d orders, %d for the domain, %d for the set, want %d, %d, %d", what, a, b, c, orders, domain, exact)
		}
	}
	use := order("www.example.com")
	mustSpend(t, l, use)
	mustSpend(t, l, use)
	check("spent twice", 298, 48, 3)
	use.Kind = issuer.UseCertificate
	if err := l.Return(t.Context(), use); err != nil {
		t.Fatal(err)
	}
	check("one certificate back", 298, 49, 4)
	use.Kind = issuer.UseOrder
	if err := l.Return(t.Context(), use); err != nil {
		t.Fatal(err)
	}
	check("one order back", 299, 50, 5)
	l = letsEncrypt(t, s)
	check("as stored", 299, 50, 5)
	if err := l.Return(t.Context(), use); err != nil { // more than was spent
		t.Fatal(err)
	}
	check("nothing left to give back", 300, 50, 5)
}

func TestFailedValidationsStopNewOrdersForTheName(t *testing.T) {
	l := letsEncrypt(t, openStore(t))
	failed := issuer.Use{Kind: issuer.UseFailedAuthorization, DNSNames: []string{"bad.example.com"}}
	for range 7 { // it always fits
		mustSpend(t, l, failed)
	}
	e := spend(t, l, urgent(order("good.example.com", "bad.example.com")))
	if e == nil || e.Identifier != "bad.example.com" || e.Limit != FailedAuthorizations || !strings.Contains(e.Message, FailedAuthorizations) {
		t.Fatalf("order with a name that has failed 7 times: %v, want a refusal that names it", e)
	}
	if e.RetryAfter > 12*time.Minute || e.RetryAfter < 11*time.Minute {
		t.Errorf("retry after %v, want 12m: the CA counts no more than 5", e.RetryAfter)
	}
	mustSpend(t, l, order("good.example.com"))
	if got := left(l, ConsecutiveFailures, "bad.example.com"); got != 1152-7 {
		t.Errorf("%d failures left before the name is paused, want 1145", got)
	}
	if err := l.Issued(t.Context(), []string{"bad.example.com"}, nil); err != nil {
		t.Fatal(err)
	}
	if got := left(l, ConsecutiveFailures, "bad.example.com"); got != 1152 {
		t.Errorf("%d failures left after a success, want 1152", got)
	}
	if got := left(l, FailedAuthorizations, "bad.example.com"); got != 0 {
		t.Errorf("%d failed validations left after a success, want 0: the CA does not forget them", got)
	}
}

func TestRenewalsAreExemptAsAtLetsEncrypt(t *testing.T) {
	type spent struct{ orders, domain, set int64 }
	tests := []struct {
		name      string
		directory string
		issued    time.Duration // ago; 0: never
		replaces  bool
		want      spent
	}{
		{"new", production, 0, false, spent{1, 1, 1}},
		{"same identifiers 60 days ago", production, 60 * 24 * time.Hour, false, spent{0, 0, 1}},
		{"same identifiers 121 days ago", production, 121 * 24 * time.Hour, false, spent{1, 1, 1}},
		{"in its window, same identifiers", production, 60 * 24 * time.Hour, true, spent{0, 0, 1}},
		{"in its window, other identifiers", production, 0, true, spent{0, 1, 1}},
		{"a CA that is not known", private, 60 * 24 * time.Hour, true, spent{1, 1, 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			limits := []Limit{{NewOrders, 100, time.Hour}, {RegisteredDomain, 100, time.Hour}, {ExactSet, 100, time.Hour}}
			l := openBook(t, openStore(t), Options{Issuer: "le", Directory: tt.directory, Limits: limits}).Of("le")
			if tt.issued > 0 {
				if err := l.Recall(t.Context(), []string{"www.example.com"}, nil, time.Now().Add(-tt.issued)); err != nil {
					t.Fatal(err)
				}
			}
			use := order("www.example.com")
			use.Replaces = tt.replaces
			mustSpend(t, l, use)
			got := spent{100 - left(l, NewOrders, ""), 100 - left(l, RegisteredDomain, "example.com"), 100 - left(l, ExactSet, setID([]string{"www.example.com"}))}
			if got != tt.want {
				t.Errorf("spent %+v, want %+v", got, tt.want)
			}
			if err := l.Return(t.Context(), use); err != nil {
				t.Fatal(err)
			}
			got = spent{100 - left(l, NewOrders, ""), 100 - left(l, RegisteredDomain, "example.com"), 100 - left(l, ExactSet, setID([]string{"www.example.com"}))}
			if got != (spent{}) {
				t.Errorf("after the return, spent %+v, want nothing", got)
			}
		})
	}
}

func TestRenewalIsExemptForNearly120Days(t *testing.T) {
	for _, tt := range []struct {
		after time.Duration
		want  int64
	}{{118 * 24 * time.Hour, 300}, {119*24*time.Hour + 12*time.Hour, 299}, {121 * 24 * time.Hour, 299}} {
		synctest.Test(t, func(t *testing.T) {
			l := letsEncrypt(t, openStore(t))
			if err := l.Issued(t.Context(), []string{"www.example.com"}, nil); err != nil {
				t.Fatal(err)
			}
			time.Sleep(tt.after) //nolint:forbidigo // the time of the bubble
			mustSpend(t, l, order("www.example.com"))
			if got := left(l, NewOrders, ""); got != tt.want {
				t.Errorf("after %v: %d orders left, want %d", tt.after, got, tt.want)
			}
		})
	}
}

func TestReplacementInItsWindowIsNotHeldUp(t *testing.T) {
	l := letsEncrypt(t, openStore(t))
	for range 5 {
		mustSpend(t, l, urgent(order("www.example.com")))
	}
	for range 5 {
		mustSpend(t, l, issuer.Use{Kind: issuer.UseFailedAuthorization, DNSNames: []string{"www.example.com"}})
	}
	use := order("www.example.com")
	use.Replaces = true
	mustSpend(t, l, use)
}

func TestIssuersAtOneCAShareWhatTheCASharesAmongAccounts(t *testing.T) {
	b := openBook(t, openStore(t), Options{Issuer: "a", Directory: production}, Options{Issuer: "b", Directory: production}, Options{Issuer: "c", Directory: private})
	mustSpend(t, b.Of("a"), order("www.example.com"))
	if got := left(b.Of("b"), RegisteredDomain, "example.com"); got != 49 {
		t.Errorf("%d certificates for the domain left to the other account, want 49", got)
	}
	if got := left(b.Of("b"), NewOrders, ""); got != 300 {
		t.Errorf("%d orders left to the other account, want 300", got)
	}
	for range 10 {
		mustSpend(t, b.Of("c"), order("www.example.com")) // nothing is known of it
	}
}

func TestTwoProcessesDoNotSpendTheSameToken(t *testing.T) {
	s := openStore(t)
	var g errgroup.Group
	var spent atomic.Int64
	for range 2 {
		l := letsEncrypt(t, s) // a book of its own
		for range 4 {
			g.Go(func() error {
				for range 3 {
					err := l.Spend(t.Context(), urgent(order("www.example.com")))
					if e, ok := errors.AsType[*issuer.Error](err); ok && e.Kind == issuer.KindBudget {
						continue
					}
					if err != nil {
						return err
					}
					spent.Add(1)
				}
				return nil
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if n := spent.Load(); n != 5 {
		t.Errorf("%d certificates for the same names were allowed, want 5", n)
	}
}

// failing fails one Commit before or after it has been made.
type failing struct {
	store.Store
	countdown int
	after     bool
}

var errMedium = errors.New("the medium failed")

func (f *failing) Commit(ctx context.Context, c []store.Condition, o []store.Operation) (int64, error) {
	f.countdown--
	if f.countdown == 0 && !f.after {
		return 0, errMedium
	}
	revision, err := f.Store.Commit(ctx, c, o)
	if f.countdown == 0 && err == nil {
		return 0, errMedium
	}
	return revision, err
}

// TestFailureOfTheStoreLosesOneTokenAtMost: an order for 100 domains takes several commits; each of them fails in turn, before and after it.
func TestFailureOfTheStoreLosesOneTokenAtMost(t *testing.T) {
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprintf("www.example%02d.com", i)
	}
	for at := 1; at <= 4; at++ {
		for _, after := range []bool{false, true} {
			db := openStore(t)
			medium := &failing{Store: db, countdown: at, after: after}
			l := letsEncrypt(t, medium)
			err := l.Spend(t.Context(), order(names...))
			if (err != nil) != (at <= 3) { // 102 buckets
				t.Fatalf("commit %d fails: error %v", at, err)
			}
			if err != nil && !errors.Is(err, errMedium) {
				t.Fatalf("commit %d fails: error %v", at, err)
			}
			again := letsEncrypt(t, db) // as after a crash
			missing := 0
			for i := range names {
				lost := 50 - left(again, RegisteredDomain, fmt.Sprintf("example%02d.com", i))
				if missing += int(lost); lost < 0 || lost > 1 {
					t.Fatalf("commit %d fails, after %v: %d tokens lost of one domain", at, after, lost)
				}
			}
			if !after && at <= 3 && missing > 0 {
				t.Errorf("commit %d fails: %d domains lost a token that was not spent", at, missing)
			}
			if at == 4 && missing != 100 {
				t.Errorf("%d domains are counted, want 100", missing)
			}
			medium.countdown = 0
			mustSpend(t, l, order(names...)) // what the ledger knows in memory does not stand in the way
			want := 50 - int64(1)
			if at == 4 {
				want--
			}
			if got := left(letsEncrypt(t, db), RegisteredDomain, "example99.com"); got > want {
				t.Errorf("commit %d fails: %d left of the last domain, want %d at most", at, got, want)
			}
		}
	}
}

func TestFullBucketsAreNotStored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := openStore(t)
		l := letsEncrypt(t, s)
		count := func() int {
			all, _, err := s.List(t.Context(), "")
			if err != nil {
				t.Fatal(err)
			}
			return len(all)
		}
		for i := range 40 {
			mustSpend(t, l, order(fmt.Sprintf("www.example%d.com", i)))
		}
		if err := l.Issued(t.Context(), []string{"www.example0.com"}, nil); err != nil {
			t.Fatal(err)
		}
		if got := count(); got != 81 {
			t.Errorf("%d keys, want 40 domains, 40 sets, and the orders", got)
		}
		time.Sleep(7 * 24 * time.Hour) //nolint:forbidigo // the time of the bubble
		mustSpend(t, l, order("www.example.org"))
		if got := count(); got != 4 {
			t.Errorf("%d keys a week later, want the orders, a domain, its set, and the set that was issued", got)
		}
		time.Sleep(130 * 24 * time.Hour) //nolint:forbidigo // the time of the bubble
		mustSpend(t, l, order("www.example.org"))
		if got := count(); got != 3 {
			t.Errorf("%d keys after 130 days, want the orders, a domain and its set", got)
		}
	})
}

func TestEntryThatCannotBeReadCountsAsUsedUp(t *testing.T) {
	s := openStore(t)
	r, err := newRules(Options{Issuer: "le", Directory: production})
	if err != nil {
		t.Fatal(err)
	}
	set := r.setTouch([]string{"www.example.com"}, nil)
	if _, err := s.Commit(t.Context(), nil, []store.Operation{store.Put(set.key, []byte(`{"held":[[5,-1]]}`))}); err != nil {
		t.Fatal(err)
	}
	l := letsEncrypt(t, s)
	e := spend(t, l, urgent(order("www.example.com")))
	if e == nil || e.RetryAfter > 34*time.Hour || e.RetryAfter < 33*time.Hour {
		t.Fatalf("spend: %v, want a refusal for 34h", e)
	}
	mustSpend(t, l, order("other.example.com"))
}

// boulder is Let's Encrypt's side, by its own rules, with buckets of package test.
type boulder struct {
	buckets map[string]*authority
	issued  map[string]int64
}

func (b *boulder) bucket(limit, scope string) *authority {
	key := limit + " " + scope
	if b.buckets[key] == nil {
		for _, l := range presetFor(production).limits {
			if l.Name == limit {
				b.buckets[key] = &authority{burst: int64(l.Burst), refill: int64(l.Refill)}
			}
		}
	}
	return b.buckets[key]
}

// newOrder answers with the limit that the order crosses, or "".
func (b *boulder) newOrder(now int64, names []string, domains []string, inWindow bool) string {
	renewal := b.renewal(now, names)
	if inWindow {
		return ""
	}
	for _, name := range names {
		if !b.bucket(FailedAuthorizations, name).fits(now) {
			return FailedAuthorizations
		}
	}
	if !b.bucket(ExactSet, strings.Join(names, " ")).fits(now) {
		return ExactSet
	}
	if renewal {
		return ""
	}
	for _, d := range domains {
		if !b.bucket(RegisteredDomain, d).fits(now) {
			return RegisteredDomain
		}
	}
	orders := b.bucket(NewOrders, "")
	if !orders.fits(now) {
		return NewOrders
	}
	orders.counted = append(orders.counted, now)
	return ""
}

func (b *boulder) renewal(now int64, names []string) bool {
	at, ok := b.issued[strings.Join(names, " ")]
	return ok && now-at < int64(120*24*time.Hour)
}

func (b *boulder) finalize(now int64, names, domains []string) {
	count := func(a *authority) {
		if a.fits(now) {
			a.counted = append(a.counted, now)
		}
	}
	if !b.renewal(now, names) {
		for _, d := range domains {
			count(b.bucket(RegisteredDomain, d))
		}
	}
	count(b.bucket(ExactSet, strings.Join(names, " ")))
	b.issued[strings.Join(names, " ")] = now
}

// TestRandomYearsCrossNoLimitOfLetsEncrypt issues, renews and fails at random for a year, with crashes between what is stored and what is
// sent, and asks an independent ledger of the CA about each order that is placed.
func TestRandomYearsCrossNoLimitOfLetsEncrypt(t *testing.T) {
	for seed := range uint64(4) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 11))
			s := openStore(t)
			l := letsEncrypt(t, s)
			ca := &boulder{buckets: map[string]*authority{}, issued: map[string]int64{}}
			sets := [][2][]string{}
			for i := range 70 {
				names := []string{fmt.Sprintf("n%02d.example.com", i)}
				domains := []string{"example.com"}
				if i%3 == 0 {
					names, domains = append(names, "www.example.org"), append(domains, "example.org")
				}
				sets = append(sets, [2][]string{names, domains})
			}
			counts := map[string]int{}
			for range 700 {
				time.Sleep(time.Duration(r.Int64N(int64(2 * time.Hour)))) //nolint:forbidigo // the time of the bubble
				if r.IntN(60) == 0 {
					time.Sleep(time.Duration(r.Int64N(int64(60 * 24 * time.Hour)))) //nolint:forbidigo // the time of the bubble
				}
				set := sets[r.IntN(len(sets))]
				if r.IntN(3) == 0 {
					set = sets[r.IntN(3)]
				}
				names, domains := set[0], set[1]
				use := order(names...)
				use.Urgent = r.IntN(3) == 0
				use.Replaces = r.IntN(8) == 0 && ca.issued[strings.Join(names, " ")] != 0
				if e := spend(t, l, use); e != nil {
					counts["refused here"]++
					continue
				}
				if r.IntN(20) == 0 { // a crash
					l = letsEncrypt(t, s)
					counts["crashed"]++
					continue
				}
				if limit := ca.newOrder(time.Now().UnixNano(), names, domains, use.Replaces); limit != "" {
					t.Fatalf("seed %d, after %v: an order for %v crosses %s", seed, counts, names, limit)
				}
				counts["ordered"]++
				if r.IntN(5) == 0 {
					failed := issuer.Use{Kind: issuer.UseFailedAuthorization, DNSNames: names[:1]}
					a := ca.bucket(FailedAuthorizations, names[0])
					if now := time.Now().UnixNano(); a.fits(now) {
						a.counted = append(a.counted, now)
					}
					use.Kind = issuer.UseCertificate
					if err := errors.Join(l.Spend(t.Context(), failed), l.Return(t.Context(), use)); err != nil {
						t.Fatal(err)
					}
					counts["failed"]++
					continue
				}
				time.Sleep(time.Duration(r.Int64N(int64(10 * time.Minute)))) //nolint:forbidigo // the time of the bubble
				ca.finalize(time.Now().UnixNano(), names, domains)
				if err := l.Issued(t.Context(), names, nil); err != nil {
					t.Fatal(err)
				}
				counts["issued"]++
			}
			t.Logf("seed %d: %v", seed, counts)
			if counts["refused here"] < 20 || counts["issued"] < 100 {
				t.Errorf("seed %d: %v, want some of each", seed, counts)
			}
		})
	}
}

func TestScopes(t *testing.T) {
	addr := func(s ...string) (out []netip.Addr) {
		for _, a := range s {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	tests := []struct {
		name      string
		names     []string
		addresses []netip.Addr
		want      string
	}{
		{"one", []string{"a.b.Example.com", "example.com", "*.example.com"}, nil, "example.com"},
		{"suffix of two labels", []string{"www.example.co.uk"}, nil, "example.co.uk"},
		{"private suffix", []string{"a.user.github.io", "b.other.github.io"}, nil, "other.github.io user.github.io"},
		{"a suffix itself", []string{"github.io"}, nil, "github.io"},
		{"unknown top level", []string{"a.b.c.internal"}, nil, "c.internal"},
		{"one label", []string{"localhost"}, nil, "localhost"},
		{"addresses", nil, addr("192.0.2.7", "::ffff:192.0.2.7", "192.0.2.8", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"), "192.0.2.7 192.0.2.8 2001:db8:0:1::/64 2001:db8::/64"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := strings.Join(registeredDomains(tt.names, tt.addresses), " "); got != tt.want {
				t.Errorf("registered domains %q, want %q", got, tt.want)
			}
		})
	}
	a := setID(identifiers([]string{"B.example.com", "a.example.com", "a.example.com"}, addr("::ffff:192.0.2.7")))
	b := setID(identifiers([]string{"a.example.com", "b.example.com"}, addr("192.0.2.7")))
	if a != b {
		t.Errorf("the same identifiers are two sets: %s and %s", a, b)
	}
}
