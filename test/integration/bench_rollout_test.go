package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// unwatched is the policy of the benchmarks.
const unwatched = "watch: 0s, ack_timeout: 20s, empty_group: skip"

// BenchmarkRollbackOfAGroup measures, for each rollback of a group with one Envoy, from the start of the command `rollback` (the process) and from its
// request at the admin socket, in turns, to the end of the first full handshake that shows the version before. `make bench-rollout` runs 50 of each.
func BenchmarkRollbackOfAGroup(b *testing.B) {
	s := startStage(testenv.NewT(b), stageOptions{groups: []stageGroup{{name: "canary", nodes: 1}, {name: "production", nodes: 1}}, secrets: []string{site}, policy: unwatched})
	request := func() {
		var r admin.Step
		must(b, s.admin.Post(b.Context(), "/v1/rollback", admin.GroupRequest{Group: "canary"}, &r))
	}
	command := func() { s.run("rollback", "--group", "canary", "-c", s.config) }
	figures := map[string][]float64{}
	b.ResetTimer()
	for range b.N {
		for name, rollback := range map[string]func(){"command": command, "request": request} {
			base := s.brings(s.ca, site)
			s.reaches(base, rollout.Done)
			next := s.brings(s.ca, site)
			s.reaches(next, rollout.Done)
			s.serves("canary-1", site, next.Serial)
			began := time.Now()
			seen := make(chan time.Time, 1)
			go func() { seen <- s.showsAgain(b.Context(), "canary-1", base.Serial) }()
			rollback()
			figures[name] = append(figures[name], float64((<-seen).Sub(began).Microseconds())/1000)
		}
	}
	b.StopTimer()
	for name, values := range figures {
		b.ReportMetric(quantile(values, 0.50), name+"-p50-ms")
		b.ReportMetric(quantile(values, 0.99), name+"-p99-ms")
	}
	b.ReportMetric(0, "ns/op") // the loop also brings what is taken back
}

// showsAgain makes one handshake after the other until one shows a certificate, and returns when that ended.
func (s *stage) showsAgain(ctx context.Context, node, serial string) time.Time {
	for ctx.Err() == nil {
		leaf, _, err := testenv.Handshake(ctx, s.https[node], site, s.ca.Pool)
		if err != nil {
			s.Errorf("a handshake failed: %v", err)
			break
		}
		if testenv.Serial(leaf) == serial {
			break
		}
	}
	return time.Now()
}

// BenchmarkRolloutOverThreeWaves measures a rollout over three groups with one Envoy each, without a watch: from the command (its request at the admin
// socket) to the end of the rollout, and to the first full handshake with the last group that shows the new version; with waves that wait for ACKs alone,
// and with waves that are proven by handshakes. `make bench-rollout` runs 10 of each.
func BenchmarkRolloutOverThreeWaves(b *testing.B) {
	for _, verify := range []bool{false, true} {
		b.Run(fmt.Sprintf("verify=%t", verify), func(b *testing.B) {
			groups := []stageGroup{{name: "canary", nodes: 1}, {name: "staging", nodes: 1}, {name: "production", nodes: 1}}
			s := startStage(testenv.NewT(b), stageOptions{groups: groups, secrets: []string{site}, policy: unwatched, verify: verify})
			s.load()
			var ended, served []float64
			b.ResetTimer()
			for range b.N {
				began := time.Now()
				a := s.brings(s.ca, site)
				last, err := s.loads["production-1"].WaitSerial(b.Context(), a.Serial)
				must(b, err)
				r := s.reaches(a, rollout.Done)
				served = append(served, float64(last.Sub(began).Microseconds())/1000)
				ended = append(ended, float64(r.Finished.Sub(began).Microseconds())/1000)
			}
			b.StopTimer()
			s.good(s.nodes()...)
			b.ReportMetric(quantile(ended, 0.50), "done-p50-ms")
			b.ReportMetric(quantile(ended, 1), "done-max-ms")
			b.ReportMetric(quantile(served, 1), "served-max-ms")
			b.ReportMetric(0, "ns/op")
		})
	}
}
