package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	stockcache "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	stockserver "github.com/envoyproxy/go-control-plane/pkg/server/delta/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// What our server is measured beside. Each is a process of its own, so that its memory and processor time can be told from those of the
// benchmark: the test binary runs itself with these in its environment.
const (
	yardstickKind   = "SDS_YARDSTICK"        // floor or stock
	yardstickSocket = "SDS_YARDSTICK_SOCKET" // to listen on
	yardstickFile   = "SDS_YARDSTICK_FILE"   // what to serve: a JSON list of sample
)

// The servers that are measured.
const (
	ours  = "ours"  // sds-server
	floor = "floor" // sends fixed bytes, and looks at nothing
	stock = "stock" // go-control-plane's snapshot cache and server, as its documentation has it
)

// sample is a secret that a yardstick serves.
type sample struct{ Name, Chain, Key string }

// runYardstick serves until it is told to end, and returns the exit code.
func runYardstick(kind string) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := serveYardstick(ctx, kind); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveYardstick(ctx context.Context, kind string) error {
	data, err := os.ReadFile(os.Getenv(yardstickFile))
	if err != nil {
		return err
	}
	var pairs []sample
	if err := json.Unmarshal(data, &pairs); err != nil {
		return err
	}
	var server *grpc.Server
	switch kind {
	case floor:
		server, err = newFloor(pairs)
	case stock:
		server, err = newStock(ctx, pairs)
	default:
		err = fmt.Errorf("no yardstick %q", kind)
	}
	if err != nil {
		return err
	}
	var config net.ListenConfig
	listener, err := config.Listen(ctx, "unix", os.Getenv(yardstickSocket))
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, server.Stop)
	fmt.Println("listening")
	return server.Serve(listener)
}

// yardstickOptions are what any server for Envoy has to set: it opens a stream for each secret.
func yardstickOptions(more ...grpc.ServerOption) []grpc.ServerOption {
	return append(more, grpc.MaxConcurrentStreams(1<<31-1))
}

// message is a secret as Envoy wants it.
func (p sample) message() *tlsv3.Secret { return pair{[]byte(p.Chain), []byte(p.Key)}.message(p.Name) }

// newStock makes a snapshot of the secrets for the one node that will ask.
func newStock(ctx context.Context, pairs []sample) (*grpc.Server, error) {
	resources := make([]types.Resource, len(pairs))
	for i, p := range pairs {
		resources[i] = p.message()
	}
	snapshot, err := stockcache.NewSnapshot("1", map[resource.Type][]types.Resource{resource.SecretType: resources})
	if err != nil {
		return nil, err
	}
	snapshots := stockcache.NewSnapshotCache(false, stockcache.IDHash{}, nil)
	if err := snapshots.SetSnapshot(ctx, scaleNode, snapshot); err != nil {
		return nil, err
	}
	service := &stockService{delta: stockserver.NewServer(ctx, snapshots, nil)}
	server := grpc.NewServer(yardstickOptions()...)
	secretv3.RegisterSecretDiscoveryServiceServer(server, service)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, service)
	return server, nil
}

// stockService is go-control-plane's delta server, as its pkg/server/v3 registers it.
type stockService struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	delta stockserver.Server
	first firstRequest
}

// DeltaSecrets implements secretv3.SecretDiscoveryServiceServer.
func (s *stockService) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return s.delta.DeltaStreamHandler(notingStream{stream, &s.first}, resource.SecretType)
}

// DeltaAggregatedResources implements discoveryv3.AggregatedDiscoveryServiceServer.
func (s *stockService) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.delta.DeltaStreamHandler(notingStream{stream, &s.first}, resource.AnyType)
}

// notingStream notes the first request.
type notingStream struct {
	secretv3.SecretDiscoveryService_DeltaSecretsServer
	first *firstRequest
}

// Recv waits for a request.
func (s notingStream) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	m, err := s.SecretDiscoveryService_DeltaSecretsServer.Recv()
	s.first.note()
	return m, err
}

// firstRequest prints when the first request came.
type firstRequest struct{ once sync.Once }

func (f *firstRequest) note() {
	f.once.Do(func() { fmt.Println("first", time.Now().UnixNano()) })
}

// newFloor answers each subscribed name with bytes that were made before, and reads nothing else of a request.
func newFloor(pairs []sample) (*grpc.Server, error) {
	answers := make(map[string][]byte, len(pairs))
	for _, p := range pairs {
		packed, err := anypb.New(p.message())
		if err != nil {
			return nil, err
		}
		answers[p.Name], err = proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: resource.SecretType, Nonce: "1", SystemVersionInfo: "1",
			Resources: []*discoveryv3.Resource{{Name: p.Name, Version: "1", Resource: packed}},
		})
		if err != nil {
			return nil, err
		}
	}
	first := &firstRequest{}
	handler := func(_ any, stream grpc.ServerStream) error {
		for {
			var names subscribed
			if err := stream.RecvMsg(&names); err != nil {
				return nil //nolint:nilerr // the Envoy has gone
			}
			first.note()
			for _, name := range names {
				if err := stream.SendMsg(answers[name]); err != nil {
					return err
				}
			}
		}
	}
	return grpc.NewServer(yardstickOptions(grpc.ForceServerCodecV2(floorCodec{}), grpc.UnknownServiceHandler(handler))...), nil
}

// subscribed is resource_names_subscribe of a delta request.
type subscribed []string

// floorCodec sends bytes, and receives nothing but subscribed names.
type floorCodec struct{}

func (floorCodec) Name() string { return "proto" }

func (floorCodec) Marshal(v any) (mem.BufferSlice, error) {
	data, ok := v.([]byte)
	if !ok {
		return nil, fmt.Errorf("cannot send a %T", v)
	}
	return mem.BufferSlice{mem.SliceBuffer(data)}, nil
}

func (floorCodec) Unmarshal(data mem.BufferSlice, v any) error {
	names, ok := v.(*subscribed)
	if !ok {
		return fmt.Errorf("cannot receive into a %T", v)
	}
	const fieldSubscribe = 3
	buf := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer buf.Free()
	for rest := buf.ReadOnlyData(); len(rest) > 0; {
		number, _, size := protowire.ConsumeField(rest)
		if size < 0 {
			return errors.New("broken request")
		}
		if number == fieldSubscribe {
			_, _, tag := protowire.ConsumeTag(rest)
			name, _ := protowire.ConsumeBytes(rest[tag:])
			*names = append(*names, string(name))
		}
		rest = rest[size:]
	}
	return nil
}
