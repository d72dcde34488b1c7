package sds

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	stockcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	stockserver "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	benchStreams     = 1000
	benchConnections = 10
	benchSecrets     = 20
	deltaMethod      = "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets"
)

// BenchmarkFanOut measures from a change of one of 20 secrets to the last of 1,000 delta streams that has it, with its ACK: our server
// (its time includes the durable commit), go-control-plane's LinearCache and server (stock), and a handler that only sends bytes
// (floor). CPU and allocations are those of the process: the clients, which are the same in all three, are included.
func BenchmarkFanOut(b *testing.B) {
	b.Run("ours", func(b *testing.B) {
		f := newFleet(b, Limits{})
		names := benchNames()
		f.rotate(b, "canary", names...)
		versions := []secret.Version{f.rotate(b, "canary", names[0]), f.rotate(b, "canary", names[0])}
		turn := 0
		fanOut(b, f.buffer, func() {
			f.move(b, "canary", names[0], versions[turn%2])
			turn++
		})
	})
	b.Run("stock", func(b *testing.B) { fanOutStock(b) })
	b.Run("floor", func(b *testing.B) { fanOutFloor(b) })
}

func benchNames() []string {
	names := make([]string, benchSecrets)
	for i := range names {
		names[i] = fmt.Sprintf("www-%02d.example.com", i)
	}
	return names
}

// benchMessages returns two versions of each secret as protobuf.
func benchMessages(b *testing.B) (messages [2]map[string]*tlsv3.Secret) {
	b.Helper()
	f := newFleet(b, Limits{})
	for i := range messages {
		messages[i] = map[string]*tlsv3.Secret{}
		f.rotate(b, "canary", benchNames()...)
		for _, name := range benchNames() {
			res, _ := f.cache.Resource("canary", name)
			m := &tlsv3.Secret{}
			if err := proto.Unmarshal(append(cache.Prefix(name), res.Body()...), m); err != nil {
				b.Fatal(err)
			}
			messages[i][name] = m
		}
	}
	return messages
}

func fanOutStock(b *testing.B) {
	b.Helper()
	messages := benchMessages(b)
	linear := stockcache.NewLinearCache(typeURL)
	for name, m := range messages[0] {
		if err := linear.UpdateResource(name, m); err != nil {
			b.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	b.Cleanup(cancel)
	server := benchServer()
	secretv3.RegisterSecretDiscoveryServiceServer(server, stockService{delta: stockserver.NewServer(ctx, linear, nil)})
	name, turn := benchNames()[0], 0
	fanOut(b, benchListen(b, server), func() {
		turn++
		if err := linear.UpdateResources(map[string]types.Resource{name: messages[turn%2][name]}, nil); err != nil {
			b.Fatal(err)
		}
	})
}

// stockService is go-control-plane's delta server.
type stockService struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	delta stockserver.Server
}

func (s stockService) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return s.delta.DeltaStreamHandler(stream, typeURL)
}

func benchServer(opts ...grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append(opts, grpc.MaxConcurrentStreams(1<<31-1), grpc.WriteBufferSize(4<<10),
		grpc.ReadBufferSize(4<<10))...)
}

func benchListen(b *testing.B, server *grpc.Server) *bufconn.Listener {
	b.Helper()
	buffer := bufconn.Listen(256 << 10)
	served := make(chan error, 1)
	go func() { served <- server.Serve(buffer) }()
	b.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			b.Error(err)
		}
	})
	return buffer
}

// fanOutFloor sends encoded bytes from eight goroutines and looks at nothing.
func fanOutFloor(b *testing.B) {
	b.Helper()
	messages := benchMessages(b)
	encode := func(names []string) []byte {
		m := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, Nonce: "1"}
		for _, name := range names {
			r := &response{delta: true, name: name, resource: &cache.Resource{Version: "v"}}
			one, ok := r.want(b, messages[0][name]).(*discoveryv3.DeltaDiscoveryResponse)
			if !ok {
				b.Fatal("no delta response")
			}
			m.Resources = append(m.Resources, one.GetResources()...)
		}
		return marshal(b, m)
	}
	all, one := encode(benchNames()), encode(benchNames()[:1])
	var mu sync.Mutex
	var streams []grpc.ServerStream
	server := benchServer(grpc.ForceServerCodecV2(rawCodec{}), grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		for first := true; ; first = false {
			if err := stream.RecvMsg(&rawResponse{}); err != nil {
				return err
			}
			if first {
				if err := stream.SendMsg(all); err != nil {
					return err
				}
				mu.Lock()
				streams = append(streams, stream)
				mu.Unlock()
			}
		}
	}))
	fanOut(b, benchListen(b, server), func() {
		var senders sync.WaitGroup
		for i := range 8 {
			senders.Go(func() {
				for j := i; j < len(streams); j += 8 {
					if err := streams[j].SendMsg(one); err != nil {
						b.Error(err)
					}
				}
			})
		}
		senders.Wait()
	})
}

// fanOut opens the streams and measures how long each change takes to reach all of them.
func fanOut(b *testing.B, buffer *bufconn.Listener, change func()) {
	b.Helper()
	before := heap()
	arrived := newArrivals()
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	b.Cleanup(func() {
		cancel()
		clients.Wait()
	})
	conns := make([]*grpc.ClientConn, benchConnections)
	for i := range conns {
		conns[i] = dial(b, buffer, nil)
	}
	arrived.expect(benchStreams * benchSecrets)
	for i := range benchStreams {
		desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
		stream, err := conns[i%benchConnections].NewStream(ctx, desc, deltaMethod, grpc.ForceCodecV2(rawCodec{}))
		if err != nil {
			b.Fatal(err)
		}
		first := marshal(b, &discoveryv3.DeltaDiscoveryRequest{
			Node: &corev3.Node{Id: fmt.Sprintf("edge-%d", i%100)}, TypeUrl: typeURL, ResourceNamesSubscribe: benchNames(),
		})
		if err := stream.SendMsg(first); err != nil {
			b.Fatal(err)
		}
		clients.Go(func() { acknowledgeAll(stream, arrived) })
	}
	arrived.wait(b)
	perStream := float64(heap()-before) / benchStreams
	var start, end runtime.MemStats
	runtime.ReadMemStats(&start)
	cpu := cpuTime(b)
	for b.Loop() {
		arrived.expect(benchStreams)
		change()
		arrived.wait(b)
	}
	pushes := float64(b.N * benchStreams)
	runtime.ReadMemStats(&end)
	b.ReportMetric(float64(cpuTime(b)-cpu)/1e3/pushes, "cpu-us/push")
	b.ReportMetric(float64(end.TotalAlloc-start.TotalAlloc)/pushes, "B/push")
	b.ReportMetric(float64(end.Mallocs-start.Mallocs)/pushes, "allocs/push")
	b.ReportMetric(perStream, "heapB/stream")
}

func heap() uint64 {
	runtime.GC()
	runtime.GC() // what was freed from pools
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// arrivals counts resources that came in.
type arrivals struct {
	left atomic.Int64
	done chan struct{}
}

func newArrivals() *arrivals { return &arrivals{done: make(chan struct{}, 1)} }

func (a *arrivals) expect(n int64) { a.left.Store(n) }

func (a *arrivals) add(n int) {
	if n > 0 && a.left.Add(-int64(n)) == 0 {
		a.done <- struct{}{}
	}
}

func (a *arrivals) wait(b *testing.B) {
	b.Helper()
	select {
	case <-a.done:
	case <-time.After(time.Minute):
		b.Fatalf("%d resources are missing", a.left.Load())
	}
}

// acknowledgeAll is a client that ACKs everything.
func acknowledgeAll(stream grpc.ClientStream, arrived *arrivals) {
	for {
		var r rawResponse
		if err := stream.RecvMsg(&r); err != nil {
			return // the benchmark is over
		}
		if err := stream.SendMsg(appendString(nil, 6, r.nonce)); err != nil {
			return
		}
		arrived.add(r.resources)
	}
}

// rawCodec sends bytes, and looks only at what a client needs.
type rawCodec struct{}

// rawResponse is the nonce of a delta response, and how many resources are in it.
type rawResponse struct {
	nonce     string
	resources int
}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("cannot send a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	r, ok := v.(*rawResponse)
	if !ok {
		return fmt.Errorf("cannot receive into a %T", v)
	}
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	for rest := buf.ReadOnlyData(); len(rest) > 0; {
		number, _, size := protowire.ConsumeField(rest)
		if size < 0 {
			return errors.New("broken response")
		}
		switch number {
		case fieldResources:
			r.resources++
		case fieldNonce:
			_, _, tag := protowire.ConsumeTag(rest)
			nonce, _ := protowire.ConsumeBytes(rest[tag:])
			r.nonce = strings.Clone(string(nonce))
		}
		rest = rest[size:]
	}
	return nil
}
