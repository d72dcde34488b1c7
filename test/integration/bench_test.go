package integration

import (
	"context"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// BenchmarkRotation measures, for each rotation, from the store's commit (the version's creation time, taken just before it) to the end of the first
// full handshake with the new leaf, on an Envoy over a Unix socket (canary) and, after canary's ACK, on one over mTLS (production); and the time
// of one HTTP-01 certificate from the command to the stored version. `make bench-rotation` runs 200.
func BenchmarkRotation(b *testing.B) {
	e := testenv.NewT(b)
	f := startFleet(e, one(false))
	ctx, cancel := context.WithTimeout(b.Context(), 8*time.Minute)
	defer cancel()
	loads := map[string]*testenv.Load{}
	for group := range f.Envoys {
		load, err := f.Load(ctx, group, site, 1)
		must(b, err)
		loads[group] = load
	}
	figures := map[string][]float64{}
	b.ResetTimer()
	for range b.N {
		r := renew(ctx, b, f, "issued")
		first := map[string]time.Time{}
		for group, load := range loads {
			var err error
			first[group], err = load.WaitSerial(ctx, *r.Serial)
			must(b, err)
		}
		s, err := f.Secret(ctx, site) // asked last: the answer takes processor time that is being measured
		must(b, err)
		if s.Versions[0].Version != *r.Version {
			b.Fatalf("newest version is %s, want %s", s.Versions[0].Version, *r.Version)
		}
		for group, at := range first {
			figures[group] = append(figures[group], float64(at.Sub(s.Versions[0].Created).Microseconds())/1000)
		}
		figures["issued"] = append(figures["issued"], *r.IssuedSeconds*1000)
	}
	b.StopTimer()
	failed := 0
	for _, load := range loads {
		load.Stop()
		failed += load.Failed()
	}
	if failed > 0 {
		b.Errorf("%d handshakes failed", failed)
	}
	for name, unit := range map[string]string{fleet.Canary: "canary", fleet.Production: "production", "issued": "issued"} {
		b.ReportMetric(quantile(figures[name], 0.50), unit+"-p50-ms")
		b.ReportMetric(quantile(figures[name], 0.99), unit+"-p99-ms")
	}
	b.ReportMetric(0, "ns/op") // the loop also waits for commands: its own time says nothing
}

// quantile is by nearest rank.
func quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[int(math.Ceil(q*float64(len(sorted))))-1]
}
