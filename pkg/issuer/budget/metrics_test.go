package budget

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetricIsTheLowestScopeOfALimit(t *testing.T) {
	b := openBook(t, openStore(t), Options{Issuer: "le", Directory: production}, Options{Issuer: "free", Directory: private})
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(b.Collector()); err != nil {
		t.Fatal(err)
	}
	gather := func() map[string]float64 {
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if f.GetName() != "sds_budget_available_ratio" || m.GetLabel()[0].GetValue() != "le" {
					t.Errorf("series %s %v", f.GetName(), m)
				}
				out[m.GetLabel()[1].GetValue()] = m.GetGauge().GetValue()
			}
		}
		return out
	}
	mustSpend(t, b.Of("le"), order("a.example.com"))
	for range 2 {
		mustSpend(t, b.Of("le"), order("b.example.com"))
	}
	got := gather()
	for limit, want := range map[string]float64{NewOrders: 297.0 / 300, RegisteredDomain: 47.0 / 50, ExactSet: 3.0 / 5, FailedAuthorizations: 1, ConsecutiveFailures: 1, NewAccounts: 1} {
		if got[limit] != want {
			t.Errorf("%s: %v, want %v", limit, got[limit], want)
		}
	}
	b.Set(nil)
	if got := gather(); len(got) != 0 {
		t.Errorf("an issuer that is not configured any more has series: %v", got)
	}
}
