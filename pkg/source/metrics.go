package source

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/secret"
)

// collector reads the status when it is scraped: a series goes when its secret goes.
type collector struct {
	source                  *Source
	loaded, caEnd, switched *prometheus.Desc
}

func newCollector(s *Source) *collector {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("sds_"+name, help, []string{"secret"}, nil)
	}
	return &collector{
		source:   s,
		loaded:   desc("source_last_load_successful", "Whether the files of a secret are what was taken up last."),
		caEnd:    desc("validation_context_not_after_timestamp_seconds", "End of the CA certificate of a validation context that ends next."),
		switched: desc("ticket_key_timestamp_seconds", "When the session ticket key that encrypts was put first."),
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.loaded, c.caEnd, c.switched} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for _, st := range c.source.Status() {
		gauge := func(d *prometheus.Desc, v float64) {
			ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, st.Name)
		}
		if st.Kind == secret.KindSessionTicketKeys {
			if !st.Switched.IsZero() {
				gauge(c.switched, float64(st.Switched.Unix()))
			}
			continue
		}
		ok := 1.0
		if st.Err != nil {
			ok = 0
		}
		gauge(c.loaded, ok)
		if !st.CAEnd.IsZero() {
			gauge(c.caEnd, float64(st.CAEnd.Unix()))
		}
	}
}
