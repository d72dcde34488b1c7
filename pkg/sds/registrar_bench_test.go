package sds

import (
	"fmt"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// BenchmarkNodesInTheStore measures the work beside the streams when 3,000 nodes of one group come at once, with 1,000 secrets each: for the first
// time (same: all have the same secrets; own: each has 20 of its own), and after a restart, with the same secrets as before. Load is what a
// start reads of 10,000 nodes.
func BenchmarkNodesInTheStore(b *testing.B) {
	const nodes = 3000
	f := newFleet(b, Limits{})
	f.stopRun()
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("www-%04d.example.com", i)
	}
	f.rotate(b, "canary", names...)
	own := func(i int) []string { // of names that the group has, so that they count
		out := make([]string, 20)
		for k := range out {
			out[k] = names[(i*31+k*k*7)%len(names)]
		}
		return out
	}
	bodies := map[string]secret.Version{}
	for _, name := range names {
		res, _ := f.cache.Resource("canary", name)
		bodies[name] = res.Version
	}
	come := func(l *ledger, count int, of func(int) []string) {
		for i := range count {
			n, err := l.connect(nodeKey{"id", fmt.Sprintf("edge-%05d", i)}, "canary", TLS, Delta, time.Now())
			if err != nil {
				b.Fatal(err)
			}
			for _, name := range of(i) {
				n.noteKnown(name, l.subscribe(n, name), name, bodies[name], time.Now())
			}
		}
	}
	same := func(int) []string { return names }
	flush := func(r *registrar) {
		if err := r.flush(b.Context(), time.Time{}); err != nil {
			b.Fatal(err)
		}
	}
	empty := func() {
		l, r := f.offstage(f.store)
		if err := r.load(b.Context()); err != nil {
			b.Fatal(err)
		}
		for key := range l.nodes {
			l.mu.Lock()
			l.forget(l.nodes[key])
			l.mu.Unlock()
		}
		flush(r)
	}
	measure := func(name string, count int, of func(int) []string, known bool) {
		b.Run(name, func(b *testing.B) {
			commits, cpu := int64(0), time.Duration(0)
			for b.Loop() {
				b.StopTimer()
				if !known {
					empty()
				}
				l, r := f.offstage(f.store)
				if err := r.load(b.Context()); err != nil {
					b.Fatal(err)
				}
				come(l, count, of)
				before, used := f.store.commits.Load(), cpuTime(b)
				b.StartTimer()
				flush(r)
				commits, cpu = commits+f.store.commits.Load()-before, cpu+cpuTime(b)-used
			}
			b.ReportMetric(float64(commits)/float64(b.N), "commits/op")
			b.ReportMetric(cpu.Seconds()*1000/float64(b.N), "cpu-ms/op")
		})
	}
	measure("own", nodes, own, false)
	measure("same", nodes, same, false)
	measure("again", nodes, same, true)
	b.Run("load", func(b *testing.B) {
		empty()
		l, r := f.offstage(f.store)
		come(l, maxNodes, own)
		flush(r)
		for b.Loop() {
			_, r := f.offstage(f.store)
			if err := r.load(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}
