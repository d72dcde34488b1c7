package budget

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/issuer"
)

func TestLimitsShowsWhatIsLeftLowestFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // it is 2000-01-01
		b := openBook(t, openStore(t), Options{Issuer: "le", Directory: production}, Options{Issuer: "other", Directory: production}, Options{Issuer: "free", Directory: private})
		l := b.Of("le")
		for range 4 {
			mustSpend(t, l, order("www.example.com"))
		}
		mustSpend(t, l, order("www.example.org"))
		now := time.Now()
		at := func(d time.Duration) time.Time { return now.Add(d).UTC() }
		got := l.Limits(now)
		want := []Level{
			{ExactSet, "www.example.com", 1, 0, 5, 1, 34 * time.Hour, at(8*time.Hour + 42*time.Hour + 30*time.Minute), at(8*time.Hour + 4*34*time.Hour)},
			{ExactSet, "www.example.org", 4, 3, 5, 1, 34 * time.Hour, time.Time{}, at(8*time.Hour + 34*time.Hour)},
			{RegisteredDomain, "example.com", 46, 36, 50, 10, 202 * time.Minute, time.Time{}, at(8*time.Hour + 4*202*time.Minute)},
			{RegisteredDomain, "example.org", 49, 39, 50, 10, 202 * time.Minute, time.Time{}, at(8*time.Hour + 202*time.Minute)},
			{NewOrders, "", 295, 235, 300, 60, 36 * time.Second, time.Time{}, at(5*time.Minute + 5*36*time.Second)},
			{FailedAuthorizations, "", 5, 4, 5, 1, 12 * time.Minute, time.Time{}, time.Time{}},
			{ConsecutiveFailures, "", 1152, 921, 1152, 231, 24 * time.Hour, time.Time{}, time.Time{}},
			{NewAccounts, "", 10, 8, 10, 2, 18 * time.Minute, time.Time{}, time.Time{}},
		}
		near := cmp.Comparer(func(a, b time.Time) bool { return a.IsZero() == b.IsZero() && a.Sub(b).Abs() <= time.Hour }) // the grace is rounded up
		if diff := cmp.Diff(want, got, near); diff != "" {
			t.Errorf("limits (-want +got):\n%s", diff)
		}
		var limits []string
		for _, s := range l.Scarcest(now) {
			limits = append(limits, s.Limit+" "+s.Scope)
		}
		if got, want := strings.Join(limits, ","), "new_orders ,registered_domain example.com,exact_set www.example.com,failed_authorizations ,consecutive_failures ,new_accounts "; got != want {
			t.Errorf("scarcest %s, want %s", got, want)
		}
		if got := b.Of("other").Limits(now); len(got) != 8 || got[4].Limit != NewOrders || got[4].Available != 300 {
			t.Errorf("the other account sees %+v, want the shared limits and its own orders", got)
		}
		if got := b.Of("free").Limits(now); len(got) != 0 {
			t.Errorf("a CA that is not known has limits: %+v", got)
		}
	})
}

// TestForecastComesTrue orders everything for real, the most urgent first whenever time has come for one, and compares.
func TestForecastComesTrue(t *testing.T) {
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 5))
			options := Options{Issuer: "le", Directory: production, Limits: []Limit{
				{NewOrders, 12, 10 * time.Minute}, {RegisteredDomain, 6, time.Hour}, {ExactSet, 2, 34 * time.Hour},
			}}
			l := openBook(t, openStore(t), options).Of("le")
			var wanted []Wanted
			for i := range 60 {
				w := Wanted{Name: fmt.Sprint("c", i), DNSNames: []string{fmt.Sprintf("n%d.example%d.com", r.IntN(40), r.IntN(5))}}
				if r.IntN(4) == 0 {
					w.DNSNames = append(w.DNSNames, fmt.Sprintf("www.example%d.com", r.IntN(5)))
				}
				if r.IntN(4) == 0 {
					if err := l.Recall(t.Context(), w.DNSNames, nil, time.Now().Add(-time.Hour)); err != nil {
						t.Fatal(err)
					}
				}
				if r.IntN(8) == 0 {
					mustSpend(t, l, issuer.Use{Kind: issuer.UseFailedAuthorization, DNSNames: w.DNSNames})
				}
				wanted = append(wanted, w)
			}
			for range 5 {
				_ = l.Spend(t.Context(), urgent(order(wanted[r.IntN(60)].DNSNames...))) // as it comes
			}
			start := time.Now()
			fits := l.Forecast(start, wanted)
			open := map[int]bool{}
			for i := range wanted {
				open[i] = true
			}
			now := 0
			for len(open) > 0 {
				next := time.Duration(1 << 62)
				for i, w := range wanted {
					if !open[i] {
						continue
					}
					e := spend(t, l, urgent(order(w.DNSNames...)))
					if e != nil {
						next = min(next, e.RetryAfter)
						continue
					}
					delete(open, i)
					if got, want := time.Since(start), fits[i].At.Sub(start); got != want {
						t.Fatalf("seed %d: %s fits after %v, the forecast was %v for %s %s", seed, w.Name, got, want, fits[i].Limit, fits[i].Scope)
					}
					if (fits[i].Limit == "") != (time.Since(start) == 0) {
						t.Errorf("seed %d: %s fits after %v, because of %q", seed, w.Name, time.Since(start), fits[i].Limit)
					}
					if time.Since(start) == 0 {
						now++
					}
				}
				if len(open) > 0 {
					time.Sleep(next) //nolint:forbidigo // the time of the bubble
				}
			}
			if now == 0 || now == len(wanted) {
				t.Errorf("seed %d: %d of %d fit at once, want some", seed, now, len(wanted))
			}
		})
	}
}

func TestForecastChangesNothing(t *testing.T) {
	l := letsEncrypt(t, openStore(t))
	mustSpend(t, l, order("www.example.com"))
	before := l.Limits(time.Now())
	l.Forecast(time.Now().Add(1000*time.Hour), []Wanted{{Name: "a", DNSNames: []string{"www.example.com"}}, {Name: "b", DNSNames: []string{"b.example.com"}}})
	if diff := cmp.Diff(before, l.Limits(time.Now()), cmp.Comparer(func(a, b time.Time) bool { return a.Sub(b).Abs() < time.Minute })); diff != "" {
		t.Errorf("limits after a forecast (-want +got):\n%s", diff)
	}
}

func TestForecastThatNeverEndsIsCut(t *testing.T) {
	l := openBook(t, openStore(t), Options{Issuer: "x", Directory: private, Limits: []Limit{{NewOrders, 1, LongestFill}}}).Of("x")
	fits := l.Forecast(time.Now(), []Wanted{{Name: "a", DNSNames: []string{"a.example.com"}}, {Name: "b", DNSNames: []string{"b.example.com"}}})
	if fits[0].Limit != "" || fits[1].Limit != NewOrders || fits[1].At.Year() != 2100 {
		t.Errorf("forecast %+v, want the first now and the second never", fits)
	}
}

func TestWarnings(t *testing.T) {
	const day = 24 * time.Hour
	one := func(name string, life, interval time.Duration, names ...string) Planned {
		return Planned{Wanted: Wanted{Name: name, DNSNames: names}, Life: life, Interval: interval}
	}
	var many, fleet []Planned
	for i := range 45 {
		many = append(many, one(fmt.Sprint("c", i), 90*day, 60*day, fmt.Sprintf("n%d.example.com", i)))
	}
	for i := range 300 {
		fleet = append(fleet, one(fmt.Sprint("c", i), 90*day, 60*day, fmt.Sprintf("www.example%d.com", i)))
	}
	tests := []struct {
		name    string
		options Options
		planned []Planned
		want    []string // part of each, in order
	}{
		{"nothing", Options{Directory: production}, []Planned{one("a", 90*day, 60*day, "a.example.com"), one("b", 160*time.Hour, 80*time.Hour, "b.example.com")}, nil},
		{"duplicates", Options{Directory: production}, []Planned{one("a", 0, 0, "x.example.com", "y.example.com"), one("b", 0, 0, "Y.example.com", "x.example.com")}, []string{"the certificates a, b are for exactly the same names and share the 5 of exact_set"}},
		{"two types of keys", Options{Directory: production}, []Planned{{Wanted: Wanted{Name: "a", DNSNames: []string{"x.example.com"}}, KeyType: "rsa-2048"}, {Wanted: Wanted{Name: "b", DNSNames: []string{"x.example.com"}}, KeyType: "ecdsa-p256"}}, nil},
		{"one domain", Options{Directory: production}, many, []string{"45 certificates for example.com and the names below it are more than the 40 of registered_domain that ordinary work may have at once: the last is issued 21.0 h after the first"}},
		{"many orders", Options{Directory: production}, fleet, []string{"300 certificates are more than the 240 orders of new_orders that ordinary work may place at once: the last is ordered 45 min after"}},
		{"a minute", Options{Directory: production}, []Planned{one("a", time.Minute, 30*time.Second, "a.example.com")}, []string{"certificate a would be ordered every 30 s (they are valid for 60 s) in the long run, and exact_set of Let's Encrypt allows ordinary work one every 42.5 h"}},
		{"short lives twice", Options{Directory: production}, []Planned{one("a", 160*time.Hour, 80*time.Hour, "a.example.com"), one("b", 160*time.Hour, 80*time.Hour, "a.example.com")}, []string{"exactly the same", "ordered every 40.0 h"}},
		{"unknown CA", Options{Directory: private}, append(many, one("a", time.Minute, 30*time.Second, "a.example.com")), nil},
		{"renewals count elsewhere", Options{Directory: private, Limits: []Limit{{NewOrders, 100, 2 * day}, {RegisteredDomain, 100, 2 * day}}}, many, []string{"all certificates together would be ordered every 32.0 h", "the certificates for example.com would be ordered every 32.0 h"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.options.Issuer = "le"
			got := Warnings(tt.options, tt.planned)
			for i, text := range got {
				if i >= len(tt.want) || !strings.Contains(text, tt.want[i]) || !strings.HasPrefix(text, `issuer "le": `) {
					t.Errorf("warning %q is not expected", text)
				}
			}
			if len(got) < len(tt.want) {
				t.Errorf("got %d warnings, want %q", len(got), tt.want)
			}
		})
	}
}
