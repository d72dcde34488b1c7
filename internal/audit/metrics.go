package audit

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	failing prometheus.Gauge
	broken  prometheus.Gauge
	entries prometheus.Counter
	lost    prometheus.Counter
	seconds prometheus.Histogram
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		failing: prometheus.NewGauge(prometheus.GaugeOpts{Name: "sds_audit_failing", Help: "1 while the audit file cannot be written."}),
		broken:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "sds_audit_broken", Help: "1 after a check found that the audit file was changed."}),
		entries: prometheus.NewCounter(prometheus.CounterOpts{Name: "sds_audit_entries_total", Help: "Audit entries written."}),
		lost:    prometheus.NewCounter(prometheus.CounterOpts{Name: "sds_audit_lost_total", Help: "Audit entries that were lost because the file could not be written."}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "sds_audit_commit_seconds", Help: "Time of one commit to the audit file: any number of entries, one fdatasync.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
		}),
	}
	for _, c := range []prometheus.Collector{m.failing, m.broken, m.entries, m.lost, m.seconds} {
		if err := r.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics: %w", err)
		}
	}
	return m, nil
}
