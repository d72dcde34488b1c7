package issuer_test

import (
	"context"
	"fmt"
	"log/slog"
	"math"
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
		if s.ledger, err = book.Ledger(budget.Options{Issuer: "ca", Directory: "https://acme-v02.api.letsencrypt.org/directory"}); err != nil {
			t.Fatal(err)
		}
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

// before leaves out the times from an instant on.
func before(times []time.Time, end time.Time) []time.Time {
	n, _ := slices.BinarySearchFunc(times, end, time.Time.Compare)
	return times[:n]
}

func (s *simulation) figures(what string, times []time.Time) {
	hour, hourly := busiest(times, time.Hour)
	most, daily := busiest(times, day)
	s.Logf("%s: %d certificates, busiest hour %d (mean %.1f), busiest day %d (mean %.0f)", what, len(times), hour, hourly, most, daily)
}

// TestYearsAtLetsEncrypt lets time pass with 1,000 certificates of all three lives. In each year there are an outage of three days, when
// most of them are to be renewed, and a mass revocation. SDS_SIMULATED_YEARS is how many years; default the first three months of one, with
// the race detector for 100 certificates.
func TestYearsAtLetsEncrypt(t *testing.T) {
	years, length := 1, 90*day
	if text := os.Getenv("SDS_SIMULATED_YEARS"); text != "" {
		var err error
		if years, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
		length = 365 * day
	}
	certificates := 1000
	if raceDetector {
		certificates = 100
	}
	synctest.Test(t, func(t *testing.T) {
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
			start := begin.Add(time.Duration(year) * length)
			pass(time.Until(start.Add(58*day + 12*time.Hour)))
			s.ca.SetDown(true)
			pass(3 * day)
			s.ca.SetDown(false)
			pass(day)
			all, _ := s.ca.Issued()
			s.figures("the day after the outage", from(all, start.Add(61*day+12*time.Hour)))
			s.wantNothingExpired(certificates)
			pass(time.Until(start.Add(75 * day)))
			s.ca.RevokeAll()
			pass(day)
			all, _ = s.ca.Issued()
			s.figures("between first installation and revocation", before(from(all, start.Add(2*day)), start.Add(75*day)))
			revoked := from(all, start.Add(75*day))
			s.figures("the day after the revocation", revoked)
			if len(revoked) < certificates {
				t.Errorf("got %d replaced within a day of their revocation, want all %d", len(revoked), certificates)
			}
			pass(time.Until(start.Add(length)))
		}
		stop()
		s.wantNothingExpired(certificates)
		if bad := s.ca.Limits.Violations(); len(bad) > 0 {
			t.Errorf("%d limits of the CA were crossed, among them %v", len(bad), bad[:min(len(bad), 3)])
		}
		all, asked := s.ca.Issued()
		s.figures("all", all)
		t.Logf("%d renewals, %d questions for renewal information (%.1f a day for a certificate)", s.renewals, asked,
			float64(asked)/float64(certificates)/(length.Hours()/24)/float64(years))
	})
}

// TestThousandsOfOneHourRenewSmoothly lets 10,000 certificates that were issued in one hour renew twice, with and without the advice
// of the CA.
func TestThousandsOfOneHourRenewSmoothly(t *testing.T) {
	certificates := 10000
	if raceDetector {
		certificates = 1000
	}
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
				for n, c := range certs { // 58 days ago; asked about for the first time within the next half a day
					at := begin.Add(-58*day - time.Duration(n)*time.Hour/time.Duration(certificates))
					end := at.Add(90 * day)
					w.setState(c, issuer.State{
						NotBefore: at, NotAfter: end,
						NextRenewal: issuer.NextRenewal(at, at, end, issuer.RenewBefore{}, rand.New(rand.NewPCG(1, uint64(n))).Float64),
						Advice:      issuer.Advice{ID: s.ca.Adopt(c.Name, c.DNSNames, at, end), Next: begin.Add(12 * time.Hour * time.Duration(n) / time.Duration(certificates))},
					})
				}
				stop := s.run()
				pass(3*day + time.Hour)
				all, asked := s.ca.Issued()
				s.figures("first renewal", all)
				hour, _ := busiest(all, time.Hour)
				most, _ := busiest(all, day)
				// The spread is 1/100 of 90 days without advice, 2/100 with it; each hour and day takes its share, and a little more by chance.
				wide := 21.6
				if advice {
					wide = 43.2
				}
				bound := func(hours float64) int {
					share := float64(certificates) * min(hours/wide, 1)
					return min(int(share+5*math.Sqrt(share)), certificates)
				}
				if hour > bound(1) || most > bound(24) || len(all) != certificates {
					t.Errorf("got %d of %d, at most %d in an hour and %d in a day, want all, %d and %d", len(all), certificates, hour, most, bound(1), bound(24))
				}
				if advice && asked < 2*certificates*2 {
					t.Errorf("got %d questions, want two a day for each", asked)
				}
				stop()
			})
		})
	}
}

// silent is a CA that gives no advice.
type silent struct{ issuer.Issuer }
