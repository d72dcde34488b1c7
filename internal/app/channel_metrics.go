package app

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/sds"
)

// channelCollector shows when the certificates of the xDS channel end, on both sides.
type channelCollector struct {
	channels *channels
	edge     *sds.Server

	server, node, reload *prometheus.Desc
}

var _ prometheus.Collector = (*channelCollector)(nil)

func newChannelCollector(c *channels, edge *sds.Server) *channelCollector {
	desc := func(name, help, label string) *prometheus.Desc {
		return prometheus.NewDesc("sds_"+name, help, []string{label}, nil)
	}
	return &channelCollector{
		channels: c, edge: edge,
		server: desc("channel_certificate_not_after_timestamp_seconds", "End of the server's certificate on an SDS listener.", "listener"),
		node:   desc("node_certificate_not_after_timestamp_seconds", "First end of the client certificates of connected nodes.", "group"),
		reload: desc("channel_last_reload_successful", "Whether the TLS files of an SDS listener are in force.", "listener"),
	}
}

// Describe implements prometheus.Collector.
func (c *channelCollector) Describe(ch chan<- *prometheus.Desc) {
	ch <- c.server
	ch <- c.node
	ch <- c.reload
}

// Collect implements prometheus.Collector.
func (c *channelCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, label string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, label)
	}
	var all []*sds.Channel
	for _, one := range c.channels.all {
		all = append(all, one.tls)
		gauge(c.server, float64(one.leaf().NotAfter.Unix()), one.listener)
		ok := 0.0
		if one.ok.Load() {
			ok = 1
		}
		gauge(c.reload, ok, one.listener)
	}
	for group, end := range c.edge.NodeCertificates(all...) {
		gauge(c.node, float64(end.Unix()), group)
	}
}
