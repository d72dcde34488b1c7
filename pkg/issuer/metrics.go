package issuer

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the loop's; a series goes with its certificate or issuer.
type metrics struct {
	next      *prometheus.GaugeVec
	last      *prometheus.GaugeVec
	failing   *prometheus.GaugeVec
	issuance  *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	up        *prometheus.GaugeVec
	heartbeat prometheus.Gauge
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	gauge := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "sds_" + name, Help: help}, labels)
	}
	m := &metrics{
		next:    gauge("certificate_renewal_timestamp_seconds", "When the certificate is ordered next.", "secret"),
		last:    gauge("certificate_last_renewal_timestamp_seconds", "When the certificate was issued last.", "secret"),
		failing: gauge("certificate_renewal_failing", "1 while the last try failed, with the kind of the failure; absent otherwise.", "secret", "kind"),
		up:      gauge("issuer_up", "0 while the last order at the issuer failed because the CA did not answer or was in trouble, otherwise 1.", "issuer"),
		issuance: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sds_issuance_total", Help: "Orders by result (success, failure) and kind of the failure.",
		}, []string{"issuer", "result", "kind"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sds_issuance_duration_seconds", Help: "Time from the start of an order until its certificate is stored.",
			Buckets: []float64{.05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 180},
		}, []string{"issuer"}),
		heartbeat: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "sds_issuance_loop_last_run_timestamp_seconds", Help: "When the issuance loop last looked for due certificates; at least every 30 s.",
		}),
	}
	for _, c := range []prometheus.Collector{m.next, m.last, m.failing, m.issuance, m.duration, m.up, m.heartbeat} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("issuance metrics: %w", err)
		}
	}
	return m, nil
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// certificate shows the state of one certificate.
func (m *metrics) certificate(e *entry) {
	name := e.cert.Name
	var kind Kind
	if f := e.state.Failure; f != nil {
		kind = f.Kind
	}
	if kind != e.shown { // by its labels: to look for them costs as much as there are certificates that fail
		if e.shown != "" {
			m.failing.DeleteLabelValues(name, string(e.shown))
		}
		if kind != "" {
			m.failing.WithLabelValues(name, string(kind)).Set(1)
		}
		e.shown = kind
	}
	if !e.state.LastRenewal.IsZero() {
		m.last.WithLabelValues(name).Set(seconds(e.state.LastRenewal))
	}
	m.next.WithLabelValues(name).Set(seconds(e.due))
}

func (m *metrics) forgetCertificate(e *entry) {
	name := e.cert.Name
	m.next.DeleteLabelValues(name)
	m.last.DeleteLabelValues(name)
	if e.shown != "" {
		m.failing.DeleteLabelValues(name, string(e.shown))
		e.shown = ""
	}
}

// result counts one order; err is nil for a success.
func (m *metrics) result(issuer string, took time.Duration, err *Error) {
	if err != nil {
		m.issuance.WithLabelValues(issuer, "failure", string(err.Kind)).Inc()
		return
	}
	m.issuance.WithLabelValues(issuer, "success", "").Inc()
	m.duration.WithLabelValues(issuer).Observe(took.Seconds())
}

// setUp shows whether a CA works.
func (m *metrics) setUp(issuer string, up bool) {
	value := 0.0
	if up {
		value = 1
	}
	m.up.WithLabelValues(issuer).Set(value)
}

func (m *metrics) forgetIssuer(name string) {
	labels := prometheus.Labels{"issuer": name}
	m.issuance.DeletePartialMatch(labels)
	m.duration.DeletePartialMatch(labels)
	m.up.DeletePartialMatch(labels)
}
