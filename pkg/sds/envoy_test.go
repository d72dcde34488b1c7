package sds

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/pkg/secret"
)

// answer is one response as an Envoy sees it.
type answer struct {
	snapshot, nonce, replica, typeURL string
	name                              string         // of the secret
	version                           secret.Version // delta
	chain, raw                        string         // without and with the white space at its end
	removed                           string
}

// envoy is a scripted Envoy with one stream.
type envoy struct {
	t        testing.TB
	protocol Protocol
	node     *corev3.Node
	sotw     grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	delta    grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	cancel   context.CancelFunc

	names   []string // SotW: subscribed
	started bool
	empty   bool // delta: the next response may say nothing
	answers chan answer
	ended   chan error
}

// envoy opens a stream of a node with the given id.
func (f *fleet) envoy(t testing.TB, protocol Protocol, id string) *envoy {
	t.Helper()
	return newEnvoy(t, dial(t, f.buffer, nil), protocol, &corev3.Node{Id: id, Cluster: "edge"})
}

func newEnvoy(t testing.TB, conn *grpc.ClientConn, protocol Protocol, node *corev3.Node) *envoy {
	t.Helper()
	e := openEnvoy(t, conn, protocol, node)
	done := make(chan struct{})
	go func() {
		defer close(done)
		e.read()
	}()
	t.Cleanup(func() {
		e.cancel()
		<-done
	})
	return e
}

// openEnvoy opens a stream that nobody reads.
func openEnvoy(t testing.TB, conn *grpc.ClientConn, protocol Protocol, node *corev3.Node) *envoy {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	e := &envoy{t: t, protocol: protocol, node: node, cancel: cancel, answers: make(chan answer, 1000), ended: make(chan error, 1)}
	var err error
	switch protocol {
	case SotW:
		e.sotw, err = secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(ctx)
	case Delta:
		e.delta, err = secretv3.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(ctx)
	case ADSSotW:
		e.sotw, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	case ADSDelta:
		e.delta, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	return e
}

func (e *envoy) read() {
	for {
		a, err := e.receive()
		if err != nil {
			e.ended <- err
			return
		}
		e.answers <- a
	}
}

func (e *envoy) receive() (answer, error) {
	if e.protocol.delta() {
		m, err := e.delta.Recv()
		if err != nil {
			return answer{}, err
		}
		a := answer{snapshot: m.GetSystemVersionInfo(), nonce: m.GetNonce(), replica: m.GetControlPlane().GetIdentifier(), typeURL: m.GetTypeUrl()}
		if len(m.GetResources())+len(m.GetRemovedResources()) != 1 && !e.empty {
			e.t.Errorf("delta response with %d resources and %d removals, want one in all", len(m.GetResources()), len(m.GetRemovedResources()))
		}
		for _, r := range m.GetResources() {
			a.version = secret.Version(r.GetVersion())
			a.name, a.chain, a.raw = e.open(r.GetResource())
			if r.GetName() != a.name {
				e.t.Errorf("resource %q holds secret %q", r.GetName(), a.name)
			}
		}
		for _, name := range m.GetRemovedResources() {
			a.removed = name
		}
		return a, nil
	}
	m, err := e.sotw.Recv()
	if err != nil {
		return answer{}, err
	}
	if len(m.GetResources()) != 1 {
		e.t.Errorf("SotW response with %d resources, want 1", len(m.GetResources()))
	}
	a := answer{snapshot: m.GetVersionInfo(), nonce: m.GetNonce(), replica: m.GetControlPlane().GetIdentifier(), typeURL: m.GetTypeUrl()}
	for _, r := range m.GetResources() {
		a.name, a.chain, a.raw = e.open(r)
	}
	return a, nil
}

func (e *envoy) open(packed *anypb.Any) (name, chain, raw string) {
	var s tlsv3.Secret
	if err := packed.UnmarshalTo(&s); err != nil {
		e.t.Error(err)
	}
	raw = string(s.GetTlsCertificate().GetCertificateChain().GetInlineBytes())
	// What is judged anew has white space behind its PEM blocks: other bytes of the same meaning.
	return s.GetName(), strings.TrimRight(raw, " \t\n") + "\n", raw
}

// send sends a request as it is.
func (e *envoy) send(m proto.Message) {
	e.t.Helper()
	var err error
	if e.protocol.delta() {
		err = e.delta.SendMsg(m)
	} else {
		err = e.sotw.SendMsg(m)
	}
	if err != nil {
		e.t.Fatalf("send: %v", err)
	}
}

// request sends a request with the node, if it is the first one.
func (e *envoy) request(sotw *discoveryv3.DiscoveryRequest, delta *discoveryv3.DeltaDiscoveryRequest) {
	e.t.Helper()
	node := e.node
	if e.started {
		node = nil
	}
	e.started = true
	if e.protocol.delta() {
		delta.Node, delta.TypeUrl = node, typeURL
		e.send(delta)
		return
	}
	sotw.Node, sotw.TypeUrl = node, typeURL
	e.send(sotw)
}

func (e *envoy) subscribe(names ...string) {
	e.t.Helper()
	e.names = append(e.names, names...)
	e.request(&discoveryv3.DiscoveryRequest{ResourceNames: e.names}, &discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names})
}

// reconnected subscribes on a new stream of an Envoy that has known already.
func (e *envoy) reconnected(known map[string]secret.Version, names ...string) {
	e.t.Helper()
	e.names = names
	versions := map[string]string{}
	for name, v := range known {
		versions[name] = string(v)
	}
	e.request(&discoveryv3.DiscoveryRequest{ResourceNames: names, VersionInfo: "2"},
		&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: names, InitialResourceVersions: versions})
}

// unsubscribe drops a name after the answer a.
func (e *envoy) unsubscribe(a answer, name string) {
	e.t.Helper()
	e.names = slices.DeleteFunc(slices.Clone(e.names), func(n string) bool { return n == name })
	e.request(&discoveryv3.DiscoveryRequest{ResourceNames: e.names, ResponseNonce: a.nonce, VersionInfo: a.snapshot},
		&discoveryv3.DeltaDiscoveryRequest{ResourceNamesUnsubscribe: []string{name}})
}

func (e *envoy) ack(a answer) {
	e.t.Helper()
	e.request(&discoveryv3.DiscoveryRequest{ResourceNames: e.names, ResponseNonce: a.nonce, VersionInfo: a.snapshot},
		&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.nonce})
}

func (e *envoy) nack(a answer, message string) {
	e.t.Helper()
	detail := &rpcstatus.Status{Code: int32(codes.Internal), Message: message}
	e.request(&discoveryv3.DiscoveryRequest{ResourceNames: e.names, ResponseNonce: a.nonce, ErrorDetail: detail},
		&discoveryv3.DeltaDiscoveryRequest{ResponseNonce: a.nonce, ErrorDetail: detail})
}

// next waits for the next answer.
func (e *envoy) next() answer {
	e.t.Helper()
	select {
	case a := <-e.answers:
		return a
	case err := <-e.ended:
		e.t.Fatalf("stream ended: %v", err)
	case <-time.After(10 * time.Second):
		e.t.Fatal("no answer")
	}
	return answer{}
}

// expect waits for an answer with the named secret and acknowledges it.
func (e *envoy) expect(name string) answer {
	e.t.Helper()
	a := e.next()
	if a.name != name {
		e.t.Fatalf("answer for %q (removed %q), want %q", a.name, a.removed, name)
	}
	e.ack(a)
	return a
}

// expectRemoved waits for the removal of a name and acknowledges it; over SotW it expects silence.
func (e *envoy) expectRemoved(name string) {
	e.t.Helper()
	if !e.protocol.delta() {
		e.silent()
		return
	}
	a := e.next()
	if a.removed != name || a.name != "" {
		e.t.Fatalf("answer removes %q (secret %q), want removal of %q", a.removed, a.name, name)
	}
	e.ack(a)
}

// silent checks that no answer is under way, and that the stream is open. It needs a bubble.
func (e *envoy) silent() {
	e.t.Helper()
	synctest.Wait()
	select {
	case a := <-e.answers:
		e.t.Fatalf("answer for %q (removed %q), want none", a.name, a.removed)
	case err := <-e.ended:
		e.t.Fatalf("stream ended: %v", err)
	default:
	}
}

// refused waits for the end of the stream with a code.
func (e *envoy) refused(code codes.Code) {
	e.t.Helper()
	for {
		select {
		case err := <-e.ended:
			if status.Code(err) != code {
				e.t.Fatalf("stream ended: %v, want %v", err, code)
			}
			return
		case <-e.answers:
		case <-time.After(10 * time.Second):
			e.t.Fatalf("stream is open, want it to end with %v", code)
		}
	}
}

// leave ends the stream after everything was said, and waits until the server knows. It needs a bubble.
func (e *envoy) leave() {
	e.t.Helper()
	synctest.Wait()
	e.cancel()
	synctest.Wait()
}
