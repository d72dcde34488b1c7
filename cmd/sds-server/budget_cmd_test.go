package main

import (
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// TestOrderThatWouldCrossTheLineIsNotPlaced counts what reaches the CA: two certificates, of which one may be ordered in an hour.
func TestOrderThatWouldCrossTheLineIsNotPlaced(t *testing.T) {
	t.Parallel()
	proxy, s := pebble(t, settings{Certs: []string{"a.example", "b.example"}, Dead: "dead.example"})
	s.IssuerExtra = `, budget: {limits: [{name: new_orders, burst: 1, refill: 1h}, {name: exact_set, burst: 2, refill: 34h}, {name: registered_domain, burst: 1000, refill: 1s}]}`
	b := newBox(t, s)
	p := b.start()
	var waits admin.CertificateStatus
	b.status(func(st admin.Status) error {
		issued := 0
		for _, c := range st.Certificates {
			if c.Version != nil {
				issued++
			}
			if c.Waiting != nil {
				waits = c
			}
		}
		if issued != 1 || waits.Waiting == nil {
			return fmt.Errorf("%+v", st.Certificates)
		}
		return nil
	})
	if w := waits.Waiting; w.Kind == nil || *w.Kind != "budget" || !strings.Contains(w.Message, "new_orders of 127.0.0.1") || w.Until.Before(time.Now().Add(75*time.Minute)) ||
		w.Until.After(time.Now().Add(85*time.Minute)) || waits.Version != nil || waits.Error != nil {
		t.Errorf("the other one: %+v, %+v", waits, w)
	}
	if out := b.ok("status"); !strings.Contains(out, "no room in the budget for another order of this account") {
		t.Errorf("status does not say what it waits for:\n%s", out)
	}
	// Nobody can force it, and what is forced is not lost.
	b.refused(1, "no room in the budget", "renew", "a.example", "--force", "--wait")
	b.refused(1, "no room in the budget", "renew", "b.example", "--force", "--wait")
	if n := proxy.Count(testenv.KindNewOrder).Succeeded; n != 1 {
		t.Errorf("%d orders were placed, want 1", n)
	}
	b.checkBudget(waits.Name)

	// A restart forgets nothing.
	b.must(p.Stop())
	p = b.start()
	b.refused(1, "no room in the budget", "renew", "a.example", "--force", "--wait")
	if n := proxy.Count(testenv.KindNewOrder).Succeeded; n != 1 {
		t.Errorf("%d orders were placed, want 1", n)
	}

	// The CA allows more: a reload is enough.
	s.IssuerExtra = strings.Replace(s.IssuerExtra, "burst: 1,", "burst: 10,", 1)
	b.reconfigure(s)
	b.eventually(func() error {
		if r := b.run("renew", waits.Name, "--force", "--wait"); r.code != 0 {
			return errors.New(r.errs)
		}
		return nil
	})
	if n := proxy.Count(testenv.KindNewOrder).Succeeded; n != 2 {
		t.Errorf("%d orders were placed, want 2", n)
	}
	b.must(p.Stop())
}

// checkBudget looks at what the command and the metric say of a CA that allows one order, which was placed.
func (b *box) checkBudget(waits string) {
	b.Helper()
	b.shape(budgetShape, "budget")
	b.shape(statusShape, "status")
	var all admin.Budgets
	b.json(&all, "budget")
	if len(all.Issuers) != 2 || len(all.Issuers[1].Limits) != 0 {
		b.Fatalf("%+v, want the limits of one issuer, and none of the other", all)
	}
	levels := map[string]string{}
	for _, l := range all.Issuers[0].Limits {
		levels[l.Name] += fmt.Sprintf("%s %d/%d %d %d;", text(l.Scope), l.Available, l.Capacity, l.Ordinary, l.Reserve)
	}
	for name, want := range map[string]string{"new_orders": "- 0/1 0 0;", "registered_domain": "a.example 999/1000 799 200;"} {
		got := levels[name]
		if waits == "a.example" {
			want = strings.Replace(want, "a.example", "b.example", 1)
		}
		if got != want {
			b.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	// New certificates for the CA: one order in an hour, the most urgent one first.
	f := all.Issuers[0].Forecast
	if f.Certificates != 2 || f.Now != 0 || f.Day != 2 || len(f.Late) != 2 || f.Late[0].Certificate != waits || f.Late[0].Limit != "new_orders" ||
		f.Late[1].At.Sub(f.Late[0].At) < 50*time.Minute {
		b.Errorf("forecast: %+v, want %s first, and the other an hour later", f, waits)
	}
	out := b.ok("budget")
	for _, want := range []string{
		"issuer ca (127.0.0.1:", "new_orders          -", "0 of 1", "999 of 1000", "issuer dead (127.0.0.1:1): no limits are known; issuers[].budget.limits sets them",
		"0 of 2 certificates could be ordered at once, 2 within a day, the last in ", waits,
	} {
		if !strings.Contains(out, want) {
			b.Errorf("no %q in\n%s", want, out)
		}
	}
	if first := strings.Index(out, "new_orders"); first > strings.Index(out, "registered_domain") || strings.Contains(out, "█") {
		b.Errorf("the lowest limit is not the first, or there are bars where nobody looks:\n%s", out)
	}
	_, metrics := b.fetch("/metrics", "127.0.0.1")
	if !strings.Contains(metrics, `sds_budget_available_ratio{issuer="ca",limit="registered_domain"} 0.999`) || strings.Contains(metrics, `sds_budget_available_ratio{issuer="dead"`) {
		b.Error("the metrics do not have the level of the one domain, or limits of the other CA")
	}
}

func TestBars(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name                          string
		available, ordinary, capacity int
		want                          string
	}{
		{"full", 5, 4, 5, "████████████████▒▒▒▒"},
		{"reserve", 1, 0, 5, "▒▒▒▒················"},
		{"empty", 0, 0, 5, "····················"},
		{"almost full", 49, 39, 50, "████████████████▒▒▒▒"},
		{"one of many", 1, 0, 30000, "▒···················"},
	} {
		if got := bar(admin.Limit{Available: tt.available, Ordinary: tt.ordinary, Capacity: tt.capacity}); got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestBudgetHasBarsOnATerminal(t *testing.T) {
	t.Parallel()
	_, s := pebble(t, settings{Certs: []string{"a.example"}})
	s.IssuerExtra = `, budget: {share: 0.5, limits: [{name: exact_set, burst: 4, refill: 34h}]}`
	b := newBox(t, s)
	b.start()
	b.status(func(st admin.Status) error {
		if st.Certificates[0].Version == nil {
			return fmt.Errorf("%+v", st.Certificates)
		}
		return nil
	})
	term := openTerminal(t)
	cmd := exec.CommandContext(t.Context(), b.binary, "budget", "-c", b.Config())
	cmd.Stdout = term.slave
	b.must(cmd.Run())
	term.shows(b, "█████▒▒▒▒▒▒▒▒▒▒·····", 1)
	term.shows(b, "the one certificate could be ordered at once", 1)
}
