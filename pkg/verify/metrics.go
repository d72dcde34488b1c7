package verify

import (
	"cmp"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of handshakes, and of what they showed.
type metrics struct {
	monitor            *Monitor
	seconds            *prometheus.HistogramVec
	failures           *prometheus.CounterVec
	notAfter, mismatch *prometheus.Desc

	mu     sync.Mutex
	groups map[string]bool // guarded by mu; those with series
}

func newMetrics(r prometheus.Registerer, m *Monitor) (*metrics, error) {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("sds_"+name, help, []string{"secret", "group"}, nil)
	}
	x := &metrics{
		monitor: m, groups: map[string]bool{},
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sds_verify_handshake_seconds", Help: "Time of a verifying handshake that showed a certificate, from the dial on.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}, []string{"group"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sds_verify_failures_total", Help: "Verifying handshakes that did not show what is wanted, by kind.",
		}, []string{"group", "kind"}),
		notAfter: desc("served_not_after_timestamp_seconds", "Earliest end of the certificates that the last handshakes showed."),
		mismatch: desc("served_mismatch", "Whether the last handshakes showed something else than the group is at, or a chain that clients refuse."),
	}
	for _, c := range []prometheus.Collector{x.seconds, x.failures, x} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// note counts a result.
func (x *metrics) note(r Result) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.groups[r.Group] = true
	if r.Shown != nil {
		x.seconds.WithLabelValues(r.Group).Observe(r.Latency.Seconds())
	}
	if r.Failure != nil {
		x.failures.WithLabelValues(r.Group, string(r.Failure.Kind)).Inc()
	}
}

// forget drops the series of groups that are not probed any more.
func (x *metrics) forget(groups []Group) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for name := range x.groups {
		if !slices.ContainsFunc(groups, func(g Group) bool { return g.Name == name }) {
			x.seconds.DeleteLabelValues(name)
			x.failures.DeletePartialMatch(prometheus.Labels{"group": name})
			delete(x.groups, name)
		}
	}
}

// Describe implements prometheus.Collector.
func (x *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- x.notAfter
	ch <- x.mismatch
}

// Collect implements prometheus.Collector.
func (x *metrics) Collect(ch chan<- prometheus.Metric) {
	type sample struct {
		pair
		state
	}
	x.monitor.mu.Lock()
	samples := make([]sample, 0, len(x.monitor.pairs))
	for p, st := range x.monitor.pairs {
		samples = append(samples, sample{p, st})
	}
	x.monitor.mu.Unlock()
	if len(samples) > maxPairs {
		slices.SortFunc(samples, func(a, b sample) int {
			return cmp.Or(a.notAfter.Compare(b.notAfter), strings.Compare(a.group, b.group), strings.Compare(a.secret, b.secret))
		})
		samples = samples[:maxPairs]
	}
	for _, s := range samples {
		bad := 0.0
		if s.mismatch != nil {
			bad = 1
		}
		ch <- prometheus.MustNewConstMetric(x.mismatch, prometheus.GaugeValue, bad, s.secret, s.group)
		if !s.notAfter.IsZero() {
			ch <- prometheus.MustNewConstMetric(x.notAfter, prometheus.GaugeValue, float64(s.notAfter.Unix()), s.secret, s.group)
		}
	}
}
