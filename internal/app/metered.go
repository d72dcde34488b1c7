package app

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/store"
)

var _ store.Store = (*metered)(nil)

// metered measures the operations of a store; Watch and Close are passed through.
type metered struct {
	store.Store
	seconds *prometheus.HistogramVec
}

func newMetered(s store.Store, r prometheus.Registerer) (store.Store, error) {
	m := &metered{Store: s, seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "sds_store_operation_seconds", Help: "Time of store operations.", Buckets: prometheus.ExponentialBuckets(0.0001, 4, 8),
	}, []string{"op"})}
	if err := r.Register(m.seconds); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

func (m *metered) observe(op string, begin time.Time) {
	m.seconds.WithLabelValues(op).Observe(time.Since(begin).Seconds())
}

// Get implements store.Store.
func (m *metered) Get(ctx context.Context, key string) (store.Entry, error) {
	defer m.observe("get", time.Now())
	return m.Store.Get(ctx, key)
}

// List implements store.Store.
func (m *metered) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	defer m.observe("list", time.Now())
	return m.Store.List(ctx, prefix)
}

// Commit implements store.Store.
func (m *metered) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	defer m.observe("commit", time.Now())
	return m.Store.Commit(ctx, conditions, operations)
}
