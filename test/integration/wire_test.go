package integration

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/internal/testenv"
)

// wire stands between an Envoy and the server, on a socket of its own. It counts what the server really wrote, by name and bytes, and
// can put another resource in the place of what the server wrote, for the rows that no stored record can express. Each stream of the
// Envoy is one stream of the server, and ends with it.
type wire struct {
	socket string
	conn   *grpc.ClientConn
	server *grpc.Server

	mu      sync.Mutex
	written map[string]int        // guarded by mu; by key
	other   map[string]*anypb.Any // guarded by mu; by key
	cut     chan struct{}         // guarded by mu; closed to end all streams
	opened  int                   // guarded by mu; streams of the Envoy so far
	asked   int                   // guarded by mu; requests of the Envoy so far
	nodes   int                   // guarded by mu; requests with a node among them
	refuses bool                  // guarded by mu; streams are ended at once
	held    chan struct{}         // guarded by mu; nil: nothing is kept back; closed when that ends
}

func startWire(t *testenv.T, upstream string) *wire {
	t.Helper()
	w := &wire{
		socket: filepath.Join(filepath.Dir(upstream), "w"), written: map[string]int{}, other: map[string]*anypb.Any{},
		cut: make(chan struct{}),
	}
	must(t, os.MkdirAll(filepath.Dir(w.socket), 0o700))
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", w.socket)
	must(t, err)
	w.conn, err = grpc.NewClient("unix:"+upstream, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(frames{})),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1, MaxDelay: 20 * time.Millisecond}}))
	must(t, err)
	w.server = grpc.NewServer(grpc.ForceServerCodecV2(frames{}), grpc.UnknownServiceHandler(w.stream))
	ended := make(chan error, 1)
	go func() { ended <- w.server.Serve(l) }()
	t.Cleanup(func() {
		w.server.Stop()
		must(t, <-ended)
		must(t, w.conn.Close())
	})
	return w
}

// frames hands messages through as they are.
type frames struct{}

var _ encoding.CodecV2 = frames{}

func (frames) Marshal(v any) (mem.BufferSlice, error) {
	return mem.BufferSlice{mem.SliceBuffer(*v.(*[]byte))}, nil
}

func (frames) Unmarshal(data mem.BufferSlice, v any) error {
	*v.(*[]byte) = data.Materialize()
	return nil
}

func (frames) Name() string { return "frames" }

// stream carries one stream of the Envoy.
func (w *wire) stream(_ any, down grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(down)
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	w.mu.Lock()
	cut, refuses := w.cut, w.refuses
	w.opened++
	w.mu.Unlock()
	if refuses {
		return status.Error(codes.Unavailable, "refused")
	}
	delta := strings.Contains(method, "Delta")
	up, err := w.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go func() { // ends with the stream
		for {
			var frame []byte
			if down.RecvMsg(&frame) != nil || w.request(frame, delta) != nil || up.SendMsg(&frame) != nil {
				cancel()
				return
			}
		}
	}()
	ended := make(chan error, 1)
	go func() { ended <- w.responses(up, down, delta) }()
	select {
	case err = <-ended:
	case <-cut:
		cancel()
		err = errors.Join(status.Error(codes.Unavailable, "cut"), <-ended)
	}
	return err
}

// request counts what the Envoy writes.
func (w *wire) request(frame []byte, delta bool) error {
	var m interface {
		proto.Message
		GetNode() *corev3.Node
	} = &discoveryv3.DiscoveryRequest{}
	if delta {
		m = &discoveryv3.DeltaDiscoveryRequest{}
	}
	if err := proto.Unmarshal(frame, m); err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked++
	if m.GetNode() != nil {
		w.nodes++
	}
	return nil
}

// requests is how many the Envoy has written so far, and how many of them had a node.
func (w *wire) requests() (all, withNode int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked, w.nodes
}

// refuse ends every stream, and every later one at once.
func (w *wire) refuse(on bool) {
	w.mu.Lock()
	w.refuses = on
	w.mu.Unlock()
	w.drop()
}

// responses counts and hands on what the server writes.
func (w *wire) responses(up grpc.ClientStream, down grpc.ServerStream, delta bool) error {
	for {
		var frame []byte
		if err := up.RecvMsg(&frame); err != nil {
			return err
		}
		changed, err := w.response(frame, delta)
		if err != nil {
			return status.Error(codes.Internal, err.Error())
		}
		if err := w.passes(down.Context()); err != nil {
			return err
		}
		if err := down.SendMsg(&changed); err != nil {
			return err
		}
	}
}

// hold keeps back what the server writes from now on, until it is called with false.
func (w *wire) hold(on bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if on {
		w.held = make(chan struct{})
		return
	}
	close(w.held)
	w.held = nil
}

// passes waits while what the server writes is kept back.
func (w *wire) passes(ctx context.Context) error {
	w.mu.Lock()
	held := w.held
	w.mu.Unlock()
	if held == nil {
		return nil
	}
	select {
	case <-held:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (w *wire) response(frame []byte, delta bool) ([]byte, error) {
	if delta {
		m := &discoveryv3.DeltaDiscoveryResponse{}
		if err := proto.Unmarshal(frame, m); err != nil {
			return nil, err
		}
		for _, r := range m.GetResources() {
			var err error
			if r.Resource, err = w.note(r.GetResource()); err != nil {
				return nil, err
			}
		}
		return proto.Marshal(m)
	}
	m := &discoveryv3.DiscoveryResponse{}
	if err := proto.Unmarshal(frame, m); err != nil {
		return nil, err
	}
	for i, r := range m.GetResources() {
		var err error
		if m.Resources[i], err = w.note(r); err != nil {
			return nil, err
		}
	}
	return proto.Marshal(m)
}

// note counts a resource and returns what the Envoy gets.
func (w *wire) note(resource *anypb.Any) (*anypb.Any, error) {
	var s tlsv3.Secret
	if err := resource.UnmarshalTo(&s); err != nil {
		return nil, err
	}
	k := key(s.GetName(), resource.GetValue())
	w.mu.Lock()
	defer w.mu.Unlock()
	w.written[k]++
	if other, ok := w.other[k]; ok {
		return other, nil
	}
	return resource, nil
}

// key is that of an encoded secret.
func key(name string, encoded []byte) string {
	return fmt.Sprintf("%s %x", name, sha256.Sum256(encoded))
}

// replace has the Envoy get another resource in the place of what has this key.
func (w *wire) replace(k string, resource *anypb.Any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.other[k] = resource
}

// count is how often the server wrote what has this key.
func (w *wire) count(k string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.written[k]
}

// streams is how many streams the Envoy has opened so far.
func (w *wire) streams() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.opened
}

// drop ends all streams, so that the Envoy reconnects.
func (w *wire) drop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.cut)
	w.cut = make(chan struct{})
}
