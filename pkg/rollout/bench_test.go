package rollout

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// BenchmarkTransition rotates one secret of many, in many groups, and reports what one stored transition costs this process:
//
//	go test -run '^$' -bench Transition -benchtime 20x ./pkg/rollout
func BenchmarkTransition(b *testing.B) {
	for _, size := range []struct{ secrets, groups int }{{100, 10}, {1000, 100}, {10000, 1000}} {
		b.Run(fmt.Sprintf("secrets=%d/groups=%d", size.secrets, size.groups), func(b *testing.B) {
			r := newRig(b, Policy{Watch: 0, AckTimeout: time.Minute, NodeGrace: time.Minute, RetryAfter: time.Hour, UndoWindow: time.Minute, Waves: spread(size.groups)})
			one := newSecret(b, "s0", 90*24*time.Hour)
			fill(b, r, one, size.secrets)
			secrets := make([]*secret.Secret, b.N)
			for i := range secrets {
				secrets[i] = newSecret(b, "s0", 90*24*time.Hour)
			}
			commits, cpu := r.disk.count(), processorTime()
			b.ReportAllocs()
			b.ResetTimer()
			for _, s := range secrets {
				if _, err := r.c.Accept(b.Context(), Proposal{Secret: s, Source: cache.SourceACME, Issuer: "le", Reason: "issued"}); err != nil {
					b.Fatal(err)
				}
				for len(r.c.Active()) > 0 {
					r.step()
				}
			}
			b.StopTimer()
			n := r.disk.count() - commits
			b.ReportMetric(float64((processorTime()-cpu).Microseconds())/1000/float64(n), "cpu-ms/transition")
			b.ReportMetric(float64(n)/float64(b.N), "transitions/op")
		})
	}
}

// spread makes three waves of so many groups.
func spread(groups int) [][]string {
	waves := make([][]string, 3)
	for i := range groups {
		w := min(i, 2)
		if i > 0 && i < groups/10 {
			w = 1
		}
		waves[w] = append(waves[w], fmt.Sprintf("g%d", i))
	}
	return waves
}

// fill gives every group so many secrets: the same pair under other names.
func fill(b *testing.B, r *rig, one *secret.Secret, n int) {
	b.Helper()
	plan := r.cache.Plan()
	for i := range n {
		s, err := secret.ParseCertificate(fmt.Sprintf("s%d", i), one.ChainPEM(), one.KeyPEM())
		if err != nil {
			b.Fatal(err)
		}
		if _, _, err := plan.PutSecret(b.Context(), s, cache.Origin{Source: cache.SourceImport}); err != nil {
			b.Fatal(err)
		}
		if i%50 == 49 || i == n-1 {
			if err := plan.Commit(b.Context()); err != nil {
				b.Fatal(err)
			}
			plan = r.cache.Plan()
		}
	}
	set := map[string]secret.Version{}
	for i := range n {
		set[fmt.Sprintf("s%d", i)] = r.cache.Version(one)
	}
	for _, g := range r.policy.Groups() {
		plan = r.cache.Plan()
		if _, err := plan.Move(b.Context(), g, set, whyTest); err != nil {
			b.Fatal(err)
		}
		if err := plan.Commit(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

func processorTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
