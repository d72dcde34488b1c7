package budget

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// collector reads the ledgers when it is scraped.
type collector struct {
	book      *Book
	available *prometheus.Desc
}

// Collector returns the metrics of all ledgers. A limit has one series, that of its lowest scope.
func (b *Book) Collector() prometheus.Collector {
	return &collector{book: b, available: prometheus.NewDesc("sds_budget_available_ratio",
		"How much of a limit of a CA is left, from 0 to 1, with the reserve: of the domain or name that has least.", []string{"issuer", "limit"}, nil)}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) { ch <- c.available }

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	now := time.Now()
	c.book.mu.Lock()
	ledgers := slices.Collect(maps.Values(c.book.ledgers))
	c.book.mu.Unlock()
	for _, l := range ledgers {
		for _, level := range l.Scarcest(now) {
			ch <- prometheus.MustNewConstMetric(c.available, prometheus.GaugeValue, level.ratio(), l.rules.Issuer, level.Limit)
		}
	}
}
