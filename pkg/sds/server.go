// Package sds serves secrets to Envoys by the Secret Discovery Service over gRPC, and by ADS, SotW and delta.
//
// It stands at the end of the data flow: pkg/cache says what each node group is at, this package sends it to the nodes of the
// group, and hears what they say about it. pkg/rollout reads the answers (Progress) and moves the groups.
//
// Invariants (DESIGN 4 and 5): a node is sent only names that its group may have, and the group comes from a proven identity;
// bytes that a node rejected are not sent to it again; a response holds one secret, so that a NACK has one culprit; the first
// request of every stream is answered; a slow node delays nobody.
package sds

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

const (
	connectTimeout = 20 * time.Second // for the handshakes of a new connection
	stopTimeout    = 5 * time.Second  // for streams to end after the context of Serve
	streamWindow   = 64 << 10         // bytes that an Envoy may send ahead on one stream: one request with a whole node
	connWindow     = 1 << 20          // and on one connection
)

// Options configure a Server. Cache, Policy, Log and Registerer are required.
type Options struct {
	// Cache holds what is sent.
	Cache *cache.Cache
	// Policy says who may have what; SetPolicy replaces it.
	Policy *Policy
	// Limits bound what one peer can cost.
	Limits Limits
	// Replica is control_plane.identifier, which an Envoy shows in its statistics.
	Replica string
	// Log gets a line for each NACK, and for refused streams.
	Log *slog.Logger
	// Registerer gets the metrics. One Server for each Registerer.
	Registerer prometheus.Registerer
	// Store is where it is kept what nodes rejected, and which nodes there are, for as long as Run runs. Values must be sealed by it. Default: a
	// restart forgets that.
	Store store.Store
	// Pushes records which nodes are sent which version, before the first of a group is sent it. Default: nobody does.
	Pushes Pushes
	// OnChange is called after a node of the group connected, left, subscribed, acknowledged or rejected something. It is called
	// from the streams' own goroutines, often, and must not block. Default: nothing.
	OnChange func(group string)
}

// Server is the SDS edge for any number of listeners. All methods are safe for concurrent use.
type Server struct {
	cache        *cache.Cache
	limits       Limits
	log          *slog.Logger
	changed      func(group string)
	controlPlane []byte

	rights    atomic.Pointer[rights]
	ledger    *ledger
	keeper    *keeper    // nil without a store
	registrar *registrar // likewise
	gate      *gate      // nil without Pushes
	admission *admission
	metrics   *metrics
	refusals  lockedBucket
	readers   sync.WaitGroup

	mu       sync.Mutex
	services map[*service]struct{} // guarded by mu
	closed   bool                  // guarded by mu
}

// rights is a policy in force. The channel is closed when another one takes its place.
type rights struct {
	policy   *Policy
	replaced chan struct{}
}

// New returns a Server that listens nowhere yet, and knows what nodes there were before the restart, and what they rejected. The error is that of the store, or of a
// metric that cannot be registered.
func New(ctx context.Context, opts Options) (*Server, error) {
	m, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	limits := opts.Limits.withDefaults()
	s := &Server{
		cache: opts.Cache, limits: limits, log: opts.Log, changed: opts.OnChange, controlPlane: encodeControlPlane(opts.Replica),
		ledger: newLedger(limits.NodesPerIdentity), admission: &admission{limits: limits, peers: map[string]*admitted{}}, metrics: m,
		refusals: lockedBucket{b: newBucket(refusalsPerSecond, 0)}, services: map[*service]struct{}{},
	}
	if s.changed == nil {
		s.changed = func(string) {}
	}
	s.rights.Store(&rights{policy: opts.Policy, replaced: make(chan struct{})})
	if opts.Pushes != nil {
		s.gate = newGate(opts.Pushes, s.ledger)
	}
	if opts.Store != nil {
		if err := s.remember(ctx, opts.Store); err != nil {
			return nil, err
		}
	}
	if err := opts.Registerer.Register(nodeCounter{s}); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return s, nil
}

// remember takes over what the store holds, and makes what writes to it.
func (s *Server) remember(ctx context.Context, db store.Store) error {
	s.keeper = newKeeper(db, s.cache, s.ledger, s.log)
	s.registrar = newRegistrar(db, s.ledger, s.log)
	s.registrar.rights = func() *Policy { return s.rights.Load().policy }
	s.registrar.secretOf = func(policy *Policy, group, name string) string {
		if res := s.wanted(policy, group, name); res != nil {
			return res.Name
		}
		return ""
	}
	s.ledger.changed, s.ledger.marked = s.keeper.mark, s.registrar.mark
	if err := s.keeper.load(ctx); err != nil {
		return err
	}
	return s.registrar.load(ctx)
}

// SetPolicy replaces the policy. Streams that lost the right to their group end with PERMISSION_DENIED; a name that may no longer be
// had is removed (delta), one that may be had now is sent.
func (s *Server) SetPolicy(p *Policy) {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.replace(p)
	var gone []string
	for name := range old.byName {
		if p.byName[name] == nil {
			gone = append(gone, name)
		}
	}
	s.metrics.forget(gone)
	s.gate.keep(p)
}

// replace puts a policy in force and wakes every stream. The caller holds mu.
func (s *Server) replace(p *Policy) *Policy {
	old := s.rights.Swap(&rights{policy: p, replaced: make(chan struct{})})
	close(old.replaced)
	if s.registrar != nil {
		s.registrar.review()
	}
	return old.policy
}

// Announce begins the record of a push (see Options.Pushes) of a version that a group is about to move to, so that it is durable when the streams come to send
// it, or soon after, and reports whether it did. It is no must: a stream begins it where it is not begun.
func (s *Server) Announce(group, name string, version secret.Version, snapshot uint64) bool {
	if s.gate == nil || version == "" || !s.rights.Load().policy.Allowed(group, name) {
		return false
	}
	return s.gate.announce(pushKey{group, name}, version, snapshot)
}

// Retract takes an announcement back of a version that the group has not moved to: it is recorded again when it does. It reports whether nodes are named in
// the record.
func (s *Server) Retract(group, name string, version secret.Version) bool {
	return s.gate != nil && s.gate.retract(pushKey{group, name}, version)
}

// Release forgets that nodes rejected a version of a secret, so that it is sent to them again where their group is at it: as other bytes, which
// they judge anew (see cache.Reencode). Where that fails, what was rejected stays rejected.
func (s *Server) Release(name string, version secret.Version) {
	if err := s.cache.Reencode(context.Background(), name, version); err != nil {
		s.log.Error("release of a rejected version", "secret", name, "version", version.Short(), "err", err)
		return
	}
	s.ledger.forgetNACKs(name, func(v secret.Version) bool { return v == version })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replace(s.rights.Load().policy) // every stream looks at its names again
}

// Run stores what nodes reject, and which nodes there are, until ctx ends, and then what is left of it. It begins before Serve and ends after it; without a store it only
// waits. It always returns nil: what cannot be stored is tried again, and logged.
func (s *Server) Run(ctx context.Context) error {
	if s.keeper == nil {
		<-ctx.Done()
		return nil
	}
	var writing sync.WaitGroup
	writing.Go(func() { s.keeper.run(ctx) })
	writing.Go(func() { s.registrar.run(ctx) })
	writing.Wait()
	return nil
}

// Serve answers on one listener until ctx ends, Shutdown is called, or accepting fails, which alone is an error. It closes the
// listener.
func (s *Server) Serve(ctx context.Context, l Listener) error {
	creds, err := l.credentials()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	svc := &service{server: s, groups: l.Groups, draining: make(chan struct{})}
	svc.grpc = grpc.NewServer(
		grpc.Creds(creds),
		grpc.ForceServerCodecV2(newCodec()),
		grpc.MaxConcurrentStreams(1<<31-1), // an Envoy opens one for each secret: streams are bounded by identity
		grpc.MaxRecvMsgSize(maxMessageBytes),
		grpc.MaxHeaderListSize(16<<10),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connWindow),
		grpc.WriteBufferSize(4<<10),
		grpc.ReadBufferSize(4<<10),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 5 * time.Second, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	secretv3.RegisterSecretDiscoveryServiceServer(svc.grpc, svc)
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(svc.grpc, svc)
	if !s.add(svc) {
		return l.Close() // after Shutdown
	}
	defer s.remove(svc)
	served := make(chan error, 1)
	go func() { served <- svc.grpc.Serve(l) }()
	select {
	case err = <-served:
		svc.drain.Do(func() { close(svc.draining) }) // its nodes do not leave by themselves
		svc.grpc.Stop()                              // a no-op after Shutdown
	case <-ctx.Done():
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		svc.stop(bounded)
		err = <-served
	}
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) { // that one is a Shutdown that came before the first Accept
		return fmt.Errorf("serve SDS on %s: %w", l.Addr(), err)
	}
	return nil
}

func (s *Server) add(svc *service) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.services[svc] = struct{}{}
	return true
}

func (s *Server) remove(svc *service) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.services, svc)
}

// Shutdown ends every stream with UNAVAILABLE, so that Envoys reconnect elsewhere or later, and every Serve. Connections that are
// still there when ctx ends are cut.
func (s *Server) Shutdown(ctx context.Context) {
	s.mu.Lock()
	s.closed = true
	services := make([]*service, 0, len(s.services))
	for svc := range s.services {
		services = append(services, svc)
	}
	s.mu.Unlock()
	var stopping sync.WaitGroup
	for _, svc := range services {
		stopping.Go(func() { svc.stop(ctx) })
	}
	stopping.Wait()
	s.readers.Wait()
}

// service is the gRPC services on one listener: SDS, and ADS for secrets only. FetchSecrets is not implemented: it could not be told of
// anything.
type service struct {
	secretv3.UnimplementedSecretDiscoveryServiceServer
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	server   *Server
	grpc     *grpc.Server
	groups   []string
	drain    sync.Once
	draining chan struct{}
}

// StreamSecrets serves a SotW stream.
func (s *service) StreamSecrets(stream secretv3.SecretDiscoveryService_StreamSecretsServer) error {
	return s.serve(stream, SotW)
}

// DeltaSecrets serves a delta stream.
func (s *service) DeltaSecrets(stream secretv3.SecretDiscoveryService_DeltaSecretsServer) error {
	return s.serve(stream, Delta)
}

// StreamAggregatedResources serves a SotW stream of ADS.
func (s *service) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.serve(stream, ADSSotW)
}

// DeltaAggregatedResources serves a delta stream of ADS.
func (s *service) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	return s.serve(stream, ADSDelta)
}

// stop ends the streams, and cuts what is left when ctx ends.
func (s *service) stop(ctx context.Context) {
	s.drain.Do(func() { close(s.draining) })
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-ctx.Done():
		s.grpc.Stop()
		<-stopped
	}
}

// Listener is where Envoys connect. Without TLS it needs Groups; without TLS and Unix it has to be on loopback.
type Listener struct {
	net.Listener
	// TLS is the server's side of mutual TLS; nil for none. See TLSConfig.
	TLS *tls.Config
	// Channel is TLS that can be replaced while it is in use. Excludes TLS.
	Channel *Channel
	// Unix says that the peer is known by its uid. Excludes TLS and Channel.
	Unix bool
	// Groups are those that a peer of this listener may be in.
	Groups []string
}
