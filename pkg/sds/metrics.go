package sds

import (
	"github.com/prometheus/client_golang/prometheus"
)

// metrics are those of the SDS edge (INTERFACES 5).
type metrics struct {
	streams   *prometheus.GaugeVec
	pushes    *prometheus.CounterVec
	acks      *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	pushToACK *prometheus.HistogramVec
	denied    *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "sds_streams", Help: "Open SDS streams.",
		}, []string{"group", "protocol"}),
		pushes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sds_pushes_total", Help: "Secrets sent to nodes.",
		}, []string{"group"}),
		acks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sds_acks_total", Help: "Secrets that nodes acknowledged.",
		}, []string{"group"}),
		nacks: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sds_nacks_total", Help: "Secrets that nodes rejected.",
		}, []string{"group", "secret"}),
		pushToACK: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "sds_push_to_ack_seconds", Help: "Time from sending a secret to its acknowledgement.",
			Buckets: []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30},
		}, []string{"group"}),
		denied: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "sds_denied_total", Help: "Streams, names and acknowledgements that were refused.",
		}, []string{"reason"}),
	}
	for _, c := range []prometheus.Collector{m.streams, m.pushes, m.acks, m.nacks, m.pushToACK, m.denied} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// forget drops the series of groups that are no more.
func (m *metrics) forget(gone []string) {
	for _, group := range gone {
		label := prometheus.Labels{"group": group}
		m.streams.DeletePartialMatch(label) // its streams are ending
		m.pushes.DeletePartialMatch(label)
		m.acks.DeletePartialMatch(label)
		m.nacks.DeletePartialMatch(label)
		m.pushToACK.DeletePartialMatch(label)
	}
}

// meters are the series of one stream's group, looked up once.
type meters struct {
	streams   prometheus.Gauge
	pushes    prometheus.Counter
	acks      prometheus.Counter
	pushToACK prometheus.Observer
}

func (m *metrics) of(group string, protocol Protocol) meters {
	return meters{
		streams:   m.streams.WithLabelValues(group, string(protocol)),
		pushes:    m.pushes.WithLabelValues(group),
		acks:      m.acks.WithLabelValues(group),
		pushToACK: m.pushToACK.WithLabelValues(group),
	}
}

// nodesDesc is the metric of nodes by state, which is counted when it is asked for.
var nodesDesc = prometheus.NewDesc("sds_nodes", "Nodes by state: SYNCED, STALE, NACKED or OFFLINE.", []string{"group", "state"}, nil)

// nodeCounter counts nodes for Prometheus.
type nodeCounter struct{ server *Server }

var _ prometheus.Collector = nodeCounter{}

// Describe sends the one description.
func (c nodeCounter) Describe(ch chan<- *prometheus.Desc) { ch <- nodesDesc }

// Collect counts the nodes of each group of the policy.
func (c nodeCounter) Collect(ch chan<- prometheus.Metric) {
	for group, counts := range c.server.count() {
		for _, state := range []State{Synced, Stale, Nacked, Offline} {
			ch <- prometheus.MustNewConstMetric(nodesDesc, prometheus.GaugeValue, float64(counts[state]), group, string(state))
		}
	}
}
