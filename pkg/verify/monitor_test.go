package verify

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/pkg/secret"
)

func newMonitor(t *testing.T, w *wants, random func() float64) (*Monitor, *prometheus.Registry, *bytes.Buffer) {
	t.Helper()
	registry, log := prometheus.NewRegistry(), &bytes.Buffer{}
	m, err := New(Options{Source: w, Log: slog.New(slog.NewTextHandler(log, nil)), Registerer: registry, Random: random})
	if err != nil {
		t.Fatal(err)
	}
	return m, registry, log
}

// The pause is a minute, give or take a tenth.
func TestBackgroundLooksEachMinuteWithJitter(t *testing.T) {
	for random, want := range map[float64]time.Duration{0: 54 * time.Second, 0.5: time.Minute, 1: 66 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			w := &wants{}
			m, _, _ := newMonitor(t, w, func() float64 { return random })
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			begin := time.Now()
			go func() { done <- m.Run(ctx) }()
			<-time.After(10*want + time.Second)
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run: %v", err)
			}
			if len(w.asked) != 10 {
				t.Fatalf("%d rounds in %v, want 10", len(w.asked), 10*want)
			}
			for i, at := range w.asked {
				if got := at.Sub(begin); got != time.Duration(i+1)*want {
					t.Errorf("round %d after %v, want %v", i, got, time.Duration(i+1)*want)
				}
			}
		})
	}
}

// "Renewed, but the old one is still served" alarms without a rollout, once, and ends when it ends.
func TestBackgroundFindsAnOldLeafAndItsEnd(t *testing.T) {
	p := newPKI(t)
	first, second := p.pair(t, ecKey(t), site), p.pair(t, ecKey(t), site)
	old, next := p.leaf(first, "www", "v1"), p.leaf(second, "www", "v2")
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{first}})
	w := &wants{known: map[string]secret.Version{old.SHA256: "v1"}}
	m, registry, log := newMonitor(t, w, nil)
	round := func(leaf Leaf) {
		t.Helper()
		w.groups = []Group{{Name: "g", Timeout: 500 * time.Millisecond, Targets: []Target{target(l.address, leaf)}}}
		m.round(t.Context(), w.Groups(t.Context()))
	}
	expect := func(mismatch int, version secret.Version, notAfter time.Time) {
		t.Helper()
		text := fmt.Sprintf(`
# HELP sds_served_mismatch Whether the last handshakes showed something else than the group is at, or a chain that clients refuse.
# TYPE sds_served_mismatch gauge
sds_served_mismatch{group="g",secret="www"} %d
# HELP sds_served_not_after_timestamp_seconds Earliest end of the certificates that the last handshakes showed.
# TYPE sds_served_not_after_timestamp_seconds gauge
sds_served_not_after_timestamp_seconds{group="g",secret="www"} %d
`, mismatch, notAfter.Unix())
		if err := testutil.GatherAndCompare(registry, strings.NewReader(text), "sds_served_mismatch", "sds_served_not_after_timestamp_seconds"); err != nil {
			t.Error(err)
		}
		if s := m.Served("g", NodeKey{"id", "n"}, "www"); s == nil || s.Version != version || s.Serial == "" || s.At.IsZero() {
			t.Errorf("served: %+v, want %s", s, version)
		}
	}
	round(old)
	expect(0, "v1", old.NotAfter)
	round(next)
	round(next)
	expect(1, "v1", old.NotAfter)
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "kind=old_leaf") {
		t.Errorf("%d warnings, want one about the old leaf: %s", n, log)
	}
	l.after(0, nil)
	l.mu.Lock()
	l.config = &tls.Config{Certificates: []tls.Certificate{second}}
	l.mu.Unlock()
	round(next)
	expect(0, "v2", next.NotAfter)
	if !strings.Contains(log.String(), "again") {
		t.Errorf("the end of the mismatch is not logged: %s", log)
	}
	if n, err := testutil.GatherAndCount(registry, "sds_verify_handshake_seconds", "sds_verify_failures_total"); err != nil || n != 2 {
		t.Errorf("%d series of handshakes, %v; want 2", n, err)
	}

	// A series goes with its group.
	w.groups = nil
	m.forget(nil)
	if n, err := testutil.GatherAndCount(registry); err != nil || n != 0 {
		t.Errorf("%d series are left, %v", n, err)
	}
	if s := m.Served("g", NodeKey{"id", "n"}, "www"); s != nil {
		t.Errorf("served is %+v, want nothing", s)
	}
}

// A target that does not answer says nothing about what is served: what was seen before stays known, and no series claims anything.
func TestNoAnswerIsNoMismatch(t *testing.T) {
	p := newPKI(t)
	pair := p.pair(t, ecKey(t), site)
	w := &wants{groups: []Group{{Name: "g", Timeout: time.Second, Targets: []Target{target(nobody, p.leaf(pair, "www", "v1"))}}}}
	m, registry, _ := newMonitor(t, w, nil)
	m.served[servedKey{"g", "www", NodeKey{"id", "n"}}] = &Served{Version: "v0"}
	report, err := m.Verify(t.Context(), "g", func(Result) {})
	if err != nil || report.OK != 0 || report.Failed != 2 {
		t.Fatalf("got %+v, %v; want two failures", report, err)
	}
	if n, err := testutil.GatherAndCount(registry, "sds_served_mismatch", "sds_served_not_after_timestamp_seconds"); err != nil || n != 0 {
		t.Errorf("%d series, %v; want none", n, err)
	}
	if s := m.Served("g", NodeKey{"id", "n"}, "www"); s == nil || s.Version != "v0" {
		t.Errorf("served is %+v, want what was seen before", s)
	}
	if _, err := m.Verify(t.Context(), "other", func(Result) {}); !errors.Is(err, ErrNotConfigured) {
		t.Errorf("a group without verify: got %v, want ErrNotConfigured", err)
	}
}

// Of many pairs those that end first are looked at.
func TestBackgroundIsBounded(t *testing.T) {
	now := time.Now()
	var secrets []Wanted
	for i := range maxPairs + 10 {
		name := fmt.Sprintf("s%05d", i)
		secrets = append(secrets, Wanted{Asked: name, Leaf: Leaf{
			Secret: name, KeyType: "ecdsa-p256", DNSNames: []string{name + ".example"}, NotAfter: now.Add(-time.Duration(i) * time.Second),
		}})
	}
	groups := []Group{{Name: "g", Targets: []Target{{Address: "x:1", Secrets: secrets}}}}
	all := soonest(groups)
	if len(all) != 1 || len(all[0]) != 2*maxPairs {
		t.Fatalf("%d checks, want %d", len(all[0]), 2*maxPairs)
	}
	for _, c := range all[0] {
		if c.Wanted[0].Secret < "s00010" {
			t.Fatalf("%s is looked at, though others end before", c.Wanted[0].Secret)
		}
	}
}

func TestSeriesAreBounded(t *testing.T) {
	m, registry, _ := newMonitor(t, &wants{}, nil)
	begin := time.Unix(1e9, 0)
	for i := range maxPairs + 10 {
		m.pairs[pair{"g", fmt.Sprintf("s%05d", i)}] = state{notAfter: begin.Add(-time.Duration(i) * time.Second)}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if n := len(f.GetMetric()); n != maxPairs {
			t.Errorf("%s: %d series, want %d", f.GetName(), n, maxPairs)
		}
		for _, series := range f.GetMetric() {
			for _, l := range series.GetLabel() {
				if l.GetName() == "secret" && l.GetValue() < "s00010" {
					t.Fatalf("%s: %s has a series, though others end before", f.GetName(), l.GetValue())
				}
			}
		}
	}
	if len(families) != 2 {
		t.Errorf("%d metrics, want 2", len(families))
	}
}
