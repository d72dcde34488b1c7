package sds

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

const benchAliases = 1000

// BenchmarkAliases measures from a change to the last of 1,000 names that one Envoy has it under, with its ACK, and what each name costs in memory:
// 1,000 aliases of one wildcard certificate, and 1,000 secrets of their own. CPU and allocations are those of the process, the client and the
// durable commits included.
func BenchmarkAliases(b *testing.B) {
	names := make([]string, benchAliases)
	for i := range names {
		names[i] = fmt.Sprintf("www-%03d.a.example", i)
	}
	b.Run("aliases", func(b *testing.B) {
		before := heap()
		f := newFleet(b, Limits{})
		one := f.certify(b, "canary", "wild", "*.a.example")
		two := f.certify(b, "canary", "wild", "*.a.example")
		versions, turn := []secret.Version{one, two}, 0
		benchNode(b, f, before, names, func() {
			f.move(b, "canary", "wild", versions[turn%2])
			turn++
		})
	})
	b.Run("own", func(b *testing.B) {
		before := heap()
		f := newFleet(b, Limits{})
		f.rotate(b, "canary", names...)
		one, _ := f.cache.At("canary")
		f.rotate(b, "canary", names...)
		two, _ := f.cache.At("canary")
		changes := []map[string]secret.Version{two.Secrets.Diff(one.Secrets), one.Secrets.Diff(two.Secrets)}
		turn := 0
		benchNode(b, f, before, names, func() {
			p := f.cache.Plan()
			if _, err := p.Move(context.Background(), "canary", changes[turn%2], cache.Why{Reason: "test"}); err != nil {
				b.Fatal(err)
			}
			commit(b, p)
			turn++
		})
	})
}

// benchNode has one Envoy subscribe to the names and measures changes of all of them.
func benchNode(b *testing.B, f *fleet, before uint64, names []string, change func()) {
	b.Helper()
	arrived := newArrivals()
	ctx, cancel := context.WithCancel(context.Background())
	var client sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		client.Wait()
	})
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	stream, err := dial(b, f.buffer, nil).NewStream(ctx, desc, deltaMethod, grpc.ForceCodecV2(rawCodec{}))
	if err != nil {
		b.Fatal(err)
	}
	arrived.expect(int64(len(names)))
	first := marshal(b, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "edge-1"}, TypeUrl: typeURL, ResourceNamesSubscribe: names})
	if err := stream.SendMsg(first); err != nil {
		b.Fatal(err)
	}
	client.Go(func() { acknowledgeAll(stream, arrived) })
	arrived.wait(b)
	perName := (float64(heap()) - float64(before)) / float64(len(names))
	var start, end runtime.MemStats
	runtime.ReadMemStats(&start)
	cpu := cpuTime(b)
	for b.Loop() {
		arrived.expect(int64(len(names)))
		change()
		arrived.wait(b)
	}
	pushes := float64(b.N * len(names))
	runtime.ReadMemStats(&end)
	b.ReportMetric(float64(cpuTime(b)-cpu)/1e3/pushes, "cpu-us/push")
	b.ReportMetric(float64(end.TotalAlloc-start.TotalAlloc)/pushes, "B/push")
	b.ReportMetric(perName, "heapB/name")
}
