package issuer_test

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
)

// simulation is a loop with the real budget at a simulated CA, under a fake clock.
type simulation struct {
	*testing.T
	ca     *issuertest.CA
	store  *issuertest.Store
	ledger *budget.Ledger // nil: none
	loop   *issuer.Loop

	mu       sync.Mutex
	ends     map[string]time.Time // guarded by mu; end of the version that is served
	expired  []string             // guarded by mu
	renewals int                  // guarded by mu
}

// simulate starts a loop. limited gives the CA the limits of Let's Encrypt, and the loop the budget for them.
func simulate(t *testing.T, limited bool, certificates []issuer.Certificate) *simulation {
	t.Helper()
	ca, err := issuertest.NewCA()
	if err != nil {
		t.Fatal(err)
	}
	s := &simulation{T: t, ca: ca, store: issuertest.NewStore(), ends: make(map[string]time.Time)}
	s.store.Forget()
	if limited {
		book, err := budget.Open(t.Context(), s.store, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		if err := book.Set([]budget.Options{{Issuer: "ca", Directory: "https://acme-v02.api.letsencrypt.org/directory"}}); err != nil {
			t.Fatal(err)
		}
		s.ledger = book.Ledger("ca")
		ca.Budget, ca.Limits = s.ledger, issuertest.NewLimits()
	}
	random := rand.New(rand.NewPCG(1, 2))
	var mu sync.Mutex
	s.loop, err = issuer.New(issuer.Options{
		Store: s.store, Sink: s, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		Random: func() float64 {
			mu.Lock()
			defer mu.Unlock()
			return random.Float64()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	s.loop.SetHeartbeat(time.Hour)
	s.loop.SetIssuers(map[string]issuer.Issuer{"ca": ca})
	s.loop.SetCertificates(certificates)
	return s
}

// run runs the loop until stop is called.
func (s *simulation) run() (stop func()) {
	ctx, cancel := context.WithCancel(s.Context())
	done := make(chan error, 1)
	go func() { done <- s.loop.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			s.Error(err)
		}
	}
}

// Accept implements issuer.Sink.
func (s *simulation) Accept(ctx context.Context, i issuer.Issued) (issuer.Accepted, error) {
	if _, err := s.store.Commit(ctx, i.Conditions, i.Operations); err != nil {
		return issuer.Accepted{}, err
	}
	if s.ledger != nil {
		if err := s.ledger.Issued(ctx, i.Secret.DNSNames(), i.Secret.IPAddresses()); err != nil {
			return issuer.Accepted{}, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	name := i.Secret.Name()
	if end, known := s.ends[name]; known {
		s.renewals++
		if time.Now().After(end) {
			s.expired = append(s.expired, fmt.Sprintf("%s: %v too late at %v", name, time.Since(end), time.Now()))
		}
	}
	s.ends[name] = i.Secret.NotAfter()
	return issuer.Accepted{Version: i.Secret.Version([]byte("key"))}, nil
}

// wantNothingExpired looks at what was late, and at what is.
func (s *simulation) wantNothingExpired(certificates int) {
	s.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, end := range s.ends {
		if time.Now().After(end) {
			s.expired = append(s.expired, name+": "+end.String())
		}
	}
	if len(s.expired) > 0 || len(s.ends) != certificates {
		s.Errorf("got %d of %d certificates, %d expired, among them %v", len(s.ends), certificates, len(s.expired), s.expired[:min(len(s.expired), 5)])
	}
}

// busiest returns the most certificates in any one span, and the mean of the spans that begin at times[0].
func busiest(times []time.Time, span time.Duration) (most int, mean float64) {
	if len(times) == 0 {
		return 0, 0
	}
	first := 0
	for n, at := range times {
		for at.Sub(times[first]) >= span {
			first++
		}
		most = max(most, n-first+1)
	}
	spans := float64(times[len(times)-1].Sub(times[0]))/float64(span) + 1
	return most, float64(len(times)) / spans
}

// from leaves out the times before an instant.
func from(times []time.Time, begin time.Time) []time.Time {
	n, _ := slices.BinarySearchFunc(times, begin, time.Time.Compare)
	return times[n:]
}

func (s *simulation) figures(what string, times []time.Time) {
	hour, hourly := busiest(times, time.Hour)
	most, daily := busiest(times, day)
	s.Logf("%s: %d certificates, busiest hour %d (mean %.1f), busiest day %d (mean %.0f)", what, len(times), hour, hourly, most, daily)
}

// TestYearsAtLetsEncrypt lets years pass with 1,000 certificates of all three lives, with an outage of three days and a mass
// revocation in each year. SDS_SIMULATED_YEARS is how many; default 1.
func TestYearsAtLetsEncrypt(t *testing.T) {
	years := 1
	if text := os.Getenv("SDS_SIMULATED_YEARS"); text != "" {
		var err error
		if years, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		const certificates = 1000
		var certs []issuer.Certificate
		for n := range certificates {
			c := issuer.Certificate{
				Name: fmt.Sprintf("c%03d", n), DNSNames: []string{fmt.Sprintf("www%d.d%d.example", n, n%40)},
				Issuer: "ca", KeyType: "ecdsa-p256", Profile: issuertest.ProfileClassic,
			}
			switch {
			case n%20 == 0:
				c.Profile = issuertest.ProfileShortLived
			case n%2 == 1:
				c.Profile = issuertest.ProfileTLSServer
			}
			certs = append(certs, c)
		}
		s := simulate(t, true, certs)
		s.ca.AskAgain = day // as seldom as may be: the questions are most of the work
		begin := time.Now()
		stop := s.run()
		pass(2 * day)
		s.wantNothingExpired(certificates)
		installed, _ := s.ca.Issued()
		s.figures("first installation", installed)
		for year := range years {
			start := begin.Add(time.Duration(year) * 365 * day)
			pass(time.Until(start.Add(100 * day)))
			s.ca.SetDown(true)
			pass(3 * day)
			s.ca.SetDown(false)
			pass(day)
			all, _ := s.ca.Issued()
			s.figures("the day after the outage", from(all, start.Add(103*day)))
			s.wantNothingExpired(certificates)
			pass(time.Until(start.Add(200 * day)))
			s.ca.RevokeAll()
			pass(day)
			all, _ = s.ca.Issued()
			revoked := from(all, start.Add(200*day))
			s.figures("the day after the revocation", revoked)
			if len(revoked) < certificates {
				t.Errorf("got %d replaced within a day of their revocation, want all %d", len(revoked), certificates)
			}
			pass(time.Until(start.Add(365 * day)))
		}
		stop()
		s.wantNothingExpired(certificates)
		if bad := s.ca.Limits.Violations(); len(bad) > 0 {
			t.Errorf("%d limits of the CA were crossed, among them %v", len(bad), bad[:min(len(bad), 3)])
		}
		all, asked := s.ca.Issued()
		s.figures("all", all)
		s.figures("after the first installation", from(all, begin.Add(2*day)))
		t.Logf("%d renewals, %d questions for renewal information (%.1f a day for a certificate)", s.renewals, asked,
			float64(asked)/certificates/365/float64(years))
	})
}

// TestThousandsOfOneHourRenewSmoothly lets 10,000 certificates that were issued in one hour renew twice, with and without the advice
// of the CA.
func TestThousandsOfOneHourRenewSmoothly(t *testing.T) {
	const certificates = 10000
	for _, advice := range []bool{true, false} {
		t.Run(fmt.Sprintf("advice %t", advice), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				certs := make([]issuer.Certificate, 0, certificates)
				for n := range certificates {
					certs = append(certs, issuer.Certificate{
						Name: fmt.Sprintf("c%04d", n), DNSNames: []string{fmt.Sprintf("www%d.d%d.example", n, n%40)},
						Issuer: "ca", KeyType: "ecdsa-p256", Profile: issuertest.ProfileClassic,
					})
				}
				s := simulate(t, false, certs)
				if !advice {
					s.loop.SetIssuers(map[string]issuer.Issuer{"ca": silent{s.ca}})
				}
				w := &world{T: t, store: s.store}
				begin := time.Now()
				for n, c := range certs { // 57 days ago; asked about for the first time within the next half a day
					at := begin.Add(-57*day + time.Duration(n)*time.Hour/certificates)
					end := at.Add(90 * day)
					w.setState(c, issuer.State{
						NotBefore: at, NotAfter: end,
						NextRenewal: issuer.NextRenewal(at, at, end, issuer.RenewBefore{}, rand.New(rand.NewPCG(1, uint64(n))).Float64),
						Advice:      issuer.Advice{ID: s.ca.Adopt(c.Name, c.DNSNames, at, end), Next: begin.Add(12 * time.Hour * time.Duration(n) / certificates)},
					})
				}
				stop := s.run()
				pass(5 * day)
				all, asked := s.ca.Issued()
				s.figures("first renewal", all)
				hour, _ := busiest(all, time.Hour)
				most, _ := busiest(all, day)
				// The spread is 1/100 of 90 days without advice, 2/100 with it, and each hour takes its share, a quarter more by chance.
				wide := 21.6
				if advice {
					wide = 43.2
				}
				if bound := int(certificates / wide * 1.25); hour > bound {
					t.Errorf("got %d in the busiest hour, want at most %d", hour, bound)
				}
				if bound := int(certificates * min(24/wide*1.1, 1)); most > bound || len(all) != certificates {
					t.Errorf("got %d in the busiest day and %d in all, want at most %d and all", most, len(all), bound)
				}
				if advice && asked < 2*certificates*4 {
					t.Errorf("got %d questions, want two a day for each", asked)
				}
				stop()
			})
		})
	}
}

// silent is a CA that gives no advice.
type silent struct{ issuer.Issuer }
