package admin

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
)

// collector reads the state of the server when it is scraped: a series goes when its secret or group goes.
type collector struct {
	server *Server

	notAfter, groupSnapshot, latest, rolloutState, rollouts, overrides, held, reloadOK, reloadAt, leader, build *prometheus.Desc
}

// Collector returns the metrics that describe state rather than events.
func (s *Server) Collector() prometheus.Collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("sds_"+name, help, labels, nil)
	}
	return &collector{
		server:        s,
		notAfter:      desc("certificate_not_after_timestamp_seconds", "Earliest expiry among the versions of a certificate that groups are at.", "secret", "issuer"),
		groupSnapshot: desc("group_snapshot", "Number of the snapshot that a group is at.", "group"),
		latest:        desc("snapshot_latest", "Number of the newest snapshot."),
		rolloutState:  desc("rollout_state", "Rollouts under way, by state.", "state"),
		rollouts:      desc("rollouts_total", "Rollouts that ended since the start, by result.", "result"),
		overrides:     desc("deadline_overrides_total", "How often a version was brought to all groups at once since the start, because what was served would have ended."),
		held:          desc("held_versions", "Versions that are held back, by kind.", "kind"),
		reloadOK:      desc("config_last_reload_successful", "Whether the last load of the configuration succeeded."),
		reloadAt:      desc("config_last_reload_success_timestamp_seconds", "When the configuration in force was loaded."),
		leader:        desc("leader", "Whether this replica issues and rolls out."),
		build:         desc("build_info", "Always 1; the version is a label.", "version"),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{
		c.notAfter, c.groupSnapshot, c.latest, c.rolloutState, c.rollouts, c.overrides, c.held, c.reloadOK, c.reloadAt, c.leader, c.build,
	} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	live := c.server.Live()
	for name, m := range c.soonest(live) {
		gauge(c.notAfter, float64(m.NotAfter.Unix()), name, m.Issuer)
	}
	for _, g := range live.Groups {
		if at, ok := c.server.Cache.At(g.Name); ok {
			gauge(c.groupSnapshot, float64(at.Number), g.Name)
		}
	}
	gauge(c.latest, float64(c.server.Cache.Latest()))
	states := map[rollout.State]float64{}
	for _, state := range rollout.States() {
		states[state] = 0
	}
	for _, r := range c.server.Rollout.Active() {
		states[r.State]++
	}
	for state, n := range states {
		gauge(c.rolloutState, n, string(state))
	}
	ended := c.server.Rollout.Ended()
	for _, state := range rollout.Results() {
		ch <- prometheus.MustNewConstMetric(c.rollouts, prometheus.CounterValue, float64(ended[state]), string(state))
	}
	ch <- prometheus.MustNewConstMetric(c.overrides, prometheus.CounterValue, float64(c.server.Rollout.Overrides()))
	held := map[rollout.HoldKind]float64{rollout.Hard: 0, rollout.Soft: 0, rollout.Manual: 0}
	for _, h := range c.server.Rollout.Holds() {
		held[h.Kind]++
	}
	for kind, n := range held {
		gauge(c.held, n, string(kind))
	}
	ok := 0.0
	if live.Config.OK {
		ok = 1
	}
	gauge(c.reloadOK, ok)
	gauge(c.reloadAt, float64(live.Config.LoadedAt.Unix()))
	gauge(c.leader, 1)
	gauge(c.build, 1, c.server.Version)
}

// soonest returns, for each certificate, the version that ends first among those that groups are at: a renewal that waits for its promotion must not
// hide the end of what the others serve.
func (c *collector) soonest(live Live) map[string]cache.Meta {
	soonest := map[string]cache.Meta{}
	seen := map[uint64]bool{}
	for _, g := range live.Groups {
		at, ok := c.server.Cache.At(g.Name)
		if !ok || seen[at.Number] {
			continue
		}
		seen[at.Number] = true
		for name, version := range at.Secrets.All() {
			m, ok := c.server.Cache.Meta(name, version)
			if ok && m.Kind != secret.KindTLSCertificate {
				continue
			}
			if first, known := soonest[name]; ok && (!known || m.NotAfter.Before(first.NotAfter)) {
				soonest[name] = m
			}
		}
	}
	return soonest
}
