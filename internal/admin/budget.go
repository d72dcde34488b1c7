package admin

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
)

// mostLevels bounds how many scopes of the limits of an issuer are shown: the lowest.
const mostLevels = 200

func (s *Server) budgets(*http.Request) (any, error) {
	now, live := time.Now(), s.Live()
	wanted := s.wanted(live)
	out := Budgets{Issuers: []IssuerBudget{}}
	for _, a := range s.Issuer.Issuers() { // sorted
		ledger := s.Budget.Of(a.Issuer)
		one := IssuerBudget{Name: a.Issuer, CA: ledger.CA(), Limits: []BudgetLevel{}}
		for _, level := range ledger.Limits(now) {
			if len(one.Limits) == mostLevels && !level.FullAt.IsZero() {
				one.Omitted++
				continue
			}
			one.Limits = append(one.Limits, BudgetLevel{Limit: limitOf(level), RefillSeconds: level.Refill.Seconds()})
		}
		slices.SortStableFunc(one.Limits, func(a, b BudgetLevel) int { return strings.Compare(a.Name, b.Name) })
		one.Forecast = forecastOf(now, ledger.Forecast(now, wanted[a.Issuer]))
		out.Issuers = append(out.Issuers, one)
	}
	return out, nil
}

// wanted lists the configured certificates by the issuer that they are ordered from, the most urgent first.
func (s *Server) wanted(live Live) map[string][]budget.Wanted {
	configured := make(map[string]Certificate, len(live.Certificates))
	for _, c := range live.Certificates {
		configured[c.Name] = c
	}
	out := map[string][]budget.Wanted{}
	for _, p := range s.Issuer.Plan(issuer.Selection{}) {
		if c, ok := configured[p.Name]; ok {
			out[p.Issuer] = append(out[p.Issuer], budget.Wanted{Name: c.Name, DNSNames: c.DNSNames, IPAddresses: c.IPAddresses})
		}
	}
	return out
}

func forecastOf(now time.Time, fits []budget.Fit) Forecast {
	out := Forecast{Certificates: len(fits), Late: []LateFit{}}
	for _, f := range fits {
		if f.Limit == "" {
			out.Now++
		} else {
			out.Late = append(out.Late, LateFit{Certificate: f.Name, At: f.At.UTC(), Limit: f.Limit, Scope: optional(f.Scope)})
		}
		if !f.At.After(now.Add(24 * time.Hour)) {
			out.Day++
		}
	}
	return out
}

// limits are the lowest levels of an issuer, one for each limit, by name.
func (s *Server) limits(issuer string, now time.Time) []Limit {
	out := []Limit{}
	for _, level := range s.Budget.Of(issuer).Scarcest(now) {
		out = append(out, limitOf(level))
	}
	slices.SortFunc(out, func(a, b Limit) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func limitOf(l budget.Level) Limit {
	return Limit{
		Name: l.Limit, Scope: optional(l.Scope), Available: l.Available, Ordinary: l.Ordinary, Capacity: l.Capacity, Reserve: l.Reserve,
		NextAt: optionalTime(l.NextAt), FullAt: optionalTime(l.FullAt),
	}
}
