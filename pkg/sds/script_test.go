package sds

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// A script is what one peer says on one stream, and what happens meanwhile, as bytes that a fuzzer can change:
//
//	0, 1, 2, 3      the next request: its length in two bytes, and as many bytes, which need not be a request
//	4 NAME VERSION  the group moves to one of the versions of a name; 0 removes it
//	5 POLICY        another policy comes into force
//
// A nonce "@N" in a request stands for that of the last response but N, which a script cannot know.
const (
	opMove   = 4
	opPolicy = 5
	opCount  = 6
	// scriptVersions is how many versions of each name are stored.
	scriptVersions = 2
)

// scriptNames are stored, and all of them are in the group's snapshot; the group may not have the last one, by any policy.
var scriptNames = []string{"a", "b", "private"}

// scriptPolicies may be in force.
var scriptPolicies = [][]Group{
	{{Name: "canary", Secrets: []string{"a", "b", "x*"}}},
	{{Name: "canary", Secrets: []string{"b"}}},
	{{Name: "canary", Secrets: []string{"a*"}, Deny: []string{"plaintext"}}}, // nobody may be in it
}

// scriptRequest appends a request to a script.
func scriptRequest(script, request []byte) []byte {
	script = binary.BigEndian.AppendUint16(append(script, 0), uint16(len(request)))
	return append(script, request...)
}

// stage is what every run of a script begins with: a store in memory.
type stage struct {
	entries  map[string]store.Entry
	versions map[string][]secret.Version // by name
	chains   map[string]secret.Version   // by chain
}

func newStage(t testing.TB) *stage {
	t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	f := &fleet{ca: newIssuer(t), log: &recorder{}, store: &disk{Store: db}, groups: everything("canary")}
	f.start(t)
	s := &stage{entries: map[string]store.Entry{}, versions: map[string][]secret.Version{}, chains: map[string]secret.Version{}}
	for _, name := range scriptNames {
		for range scriptVersions {
			v := f.rotate(t, "canary", name)
			meta, _ := f.cache.Meta(name, v)
			s.versions[name], s.chains[meta.ChainPEM] = append(s.versions[name], v), v
		}
	}
	entries, _, err := db.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		s.entries[e.Key] = e
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

// memory is a store that keeps nothing.
type memory struct {
	mu       sync.Mutex
	entries  map[string]store.Entry // guarded by mu
	revision int64                  // guarded by mu
}

// Get implements store.Store.
func (m *memory) Get(_ context.Context, key string) (store.Entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[key]
	if !ok {
		return e, store.ErrNotFound
	}
	return e, nil
}

// List implements store.Store.
func (m *memory) List(_ context.Context, prefix string) ([]store.Entry, int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []store.Entry
	for _, key := range slices.Sorted(maps.Keys(m.entries)) {
		if strings.HasPrefix(key, prefix) {
			out = append(out, m.entries[key])
		}
	}
	return out, m.revision, nil
}

// Commit implements store.Store.
func (m *memory) Commit(_ context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range conditions {
		if m.entries[c.Key].Revision != c.Revision {
			return 0, store.ErrConflict
		}
	}
	m.revision++
	for _, o := range operations {
		if o.Delete {
			delete(m.entries, o.Key)
			continue
		}
		m.entries[o.Key] = store.Entry{Key: o.Key, Value: o.Value, Revision: m.revision}
	}
	return m.revision, nil
}

// Watch implements store.Store.
func (m *memory) Watch(context.Context, string, int64) (<-chan []store.Event, error) {
	return nil, errors.New("nobody watches")
}

// Close implements store.Store.
func (m *memory) Close() error { return nil }

// scripted is the server's end of a stream whose other end is a script.
type scripted struct {
	ctx      context.Context //nolint:containedctx // grpc.ServerStream has one
	requests chan []byte
	codec    codec

	mu        sync.Mutex
	responses []proto.Message // guarded by mu
	delta     bool
}

func (s *scripted) SetHeader(metadata.MD) error  { return nil }
func (s *scripted) SendHeader(metadata.MD) error { return nil }
func (s *scripted) SetTrailer(metadata.MD)       {}
func (s *scripted) Context() context.Context     { return s.ctx }

// SendMsg keeps what would be on the wire.
func (s *scripted) SendMsg(m any) error {
	buffers, err := s.codec.Marshal(m)
	if err != nil {
		return err
	}
	var response proto.Message = &discoveryv3.DiscoveryResponse{}
	if s.delta {
		response = &discoveryv3.DeltaDiscoveryResponse{}
	}
	if err := proto.Unmarshal(buffers.Materialize(), response); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.responses = append(s.responses, response)
	return nil
}

// RecvMsg waits for the script.
func (s *scripted) RecvMsg(m any) error {
	select {
	case data, ok := <-s.requests:
		if !ok {
			return io.EOF
		}
		return s.codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(data)}, m)
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// take returns the responses that came since the last call.
func (s *scripted) take() []proto.Message {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.responses
	s.responses = nil
	return out
}

// play runs a script against a server of its own, and checks after each step what must never be. It needs a bubble.
func (st *stage) play(t *testing.T, protocol Protocol, script []byte) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c, err := cache.Open(ctx, cache.Options{Store: &memory{entries: maps.Clone(st.entries), revision: 1 << 20}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	log := &recorder{}
	server, err := New(ctx, Options{
		Cache: c, Policy: NewPolicy(scriptPolicies[0]), Limits: Limits{NamesPerStream: 50}, Replica: "replica-1", Registerer: prometheus.NewRegistry(),
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		t.Fatal(err)
	}
	out := &scripted{ctx: peer.NewContext(ctx, &peer.Peer{}), requests: make(chan []byte), codec: newCodec(), delta: protocol.delta()}
	svc := &service{server: server, groups: []string{"canary"}, draining: make(chan struct{})}
	ended := make(chan error, 1)
	go func() { ended <- svc.serve(out, protocol) }()
	p := &player{t: t, stage: st, protocol: protocol, cache: c, server: server, out: out, ended: ended, allowed: scriptPolicies[0]}
	p.init()
	p.run(script)
	cancel()
	if !p.over {
		if err := <-ended; status.Code(err) != codes.Canceled {
			t.Errorf("stream ended: %v, want it open until the peer left", err)
		}
	}
	server.readers.Wait()
	for _, n := range server.Nodes() {
		if n.Connected {
			t.Errorf("node %q is connected after the end of its stream", n.ID)
		}
	}
	if strings.Contains(log.String(), "PRIVATE KEY") {
		t.Error("the log holds a private key")
	}
}

// player is the naive model of one stream: it knows what was asked, and how often something may be sent at most.
type player struct {
	t        *testing.T
	stage    *stage
	protocol Protocol
	cache    *cache.Cache
	server   *Server
	out      *scripted
	ended    chan error
	over     bool
	allowed  []Group

	nonces  []string
	names   []string                           // by response
	sent    []secret.Version                   // by response; empty: a removal
	open    map[string]int                     // nonces that were not answered: index of the response
	budget  map[string]int                     // responses that may still come, by name
	dropped map[string]bool                    // names that were unsubscribed at some time
	nacked  map[string]map[secret.Version]bool // by name
	first   bool                               // no request was accepted yet
}

func (p *player) init() {
	p.open, p.budget, p.dropped, p.first = map[string]int{}, map[string]int{}, map[string]bool{}, true
	p.nacked = map[string]map[secret.Version]bool{}
	synctest.Wait()
	p.collect()
}

func (p *player) run(script []byte) {
	for len(script) > 0 && !p.over {
		op := script[0] % opCount
		script = script[1:]
		switch op {
		case opMove:
			if len(script) < 2 {
				return
			}
			p.move(scriptNames[int(script[0])%len(scriptNames)], int(script[1])%(scriptVersions+1))
			script = script[2:]
		case opPolicy:
			if len(script) < 1 {
				return
			}
			before, after := NewPolicy(p.allowed), scriptPolicies[int(script[0])%len(scriptPolicies)]
			p.allowed = after
			for name := range p.budget {
				if before.Allowed("canary", name) != NewPolicy(after).Allowed("canary", name) {
					p.budget[name]++
				}
			}
			p.server.SetPolicy(NewPolicy(after))
			script = script[1:]
		default:
			if len(script) < 2 {
				return
			}
			n := min(int(binary.BigEndian.Uint16(script)), len(script)-2)
			p.request(script[2 : 2+n])
			script = script[2+n:]
		}
		synctest.Wait()
		p.collect()
	}
}

// move changes what the group is at.
func (p *player) move(name string, version int) {
	changes := map[string]secret.Version{name: ""}
	if version > 0 {
		changes[name] = p.stage.versions[name][version-1]
	}
	if at, _ := p.cache.At("canary"); at != nil {
		if v, _ := at.Secrets.Version(name); v == changes[name] {
			return
		}
	}
	plan := p.cache.Plan()
	if _, err := plan.Move(context.Background(), "canary", changes, cache.Why{Reason: "test"}); err != nil {
		p.t.Fatal(err)
	}
	commit(p.t, plan)
	p.budget[name]++
}

// request sends bytes, with the nonces that they stand for.
func (p *player) request(data []byte) {
	data = p.bind(data)
	decode := decodeSotw
	if p.protocol.delta() {
		decode = decodeDelta
	}
	if r, err := decode(data); err == nil {
		p.expect(&r)
	}
	select {
	case p.out.requests <- data:
	case err := <-p.ended:
		p.end(err)
	}
}

// bind replaces a nonce "@N".
func (p *player) bind(data []byte) []byte {
	nonce := func(s string) string {
		text, ok := strings.CutPrefix(s, "@")
		n, err := strconv.Atoi(text)
		if !ok || err != nil || n < 0 || n >= len(p.nonces) {
			return s
		}
		return p.nonces[len(p.nonces)-1-n]
	}
	if p.protocol.delta() {
		var m discoveryv3.DeltaDiscoveryRequest
		if proto.Unmarshal(data, &m) == nil && strings.HasPrefix(m.GetResponseNonce(), "@") {
			m.ResponseNonce = nonce(m.GetResponseNonce())
			return marshal(p.t, &m)
		}
		return data
	}
	var m discoveryv3.DiscoveryRequest
	if proto.Unmarshal(data, &m) == nil && strings.HasPrefix(m.GetResponseNonce(), "@") {
		m.ResponseNonce = nonce(m.GetResponseNonce())
		return marshal(p.t, &m)
	}
	return data
}

// expect says what a request may lead to, if it is accepted.
func (p *player) expect(r *request) {
	if i, ok := p.open[r.nonce]; ok {
		name := p.names[i]
		if r.nack {
			p.budget[name]++                                         // what it acknowledged on an earlier stream
			misled := strings.Contains(r.message, wildcardRejection) // says nothing of the secret
			if v := p.sent[i]; v != "" && !p.dropped[name] && !misled {
				if p.nacked[name] == nil {
					p.nacked[name] = map[secret.Version]bool{}
				}
				p.nacked[name][v] = true
			}
		}
		delete(p.open, r.nonce)
		if !p.protocol.delta() { // it has seen all before it, too
			for nonce, j := range p.open {
				if j < i {
					delete(p.open, nonce)
				}
			}
		}
	}
	if p.protocol.delta() {
		p.budget[wildcard]++ // what an Envoy made of a client's SNI is ended, by a response without a secret
	}
	for _, name := range r.unsubscribe {
		p.dropped[name] = true
	}
	for _, name := range slices.Concat(r.subscribe, r.names) {
		p.budget[name]++
	}
	if !p.protocol.delta() {
		for name := range p.budget {
			p.dropped[name] = p.dropped[name] || !slices.Contains(r.names, name)
		}
	}
}

// collect checks the responses.
func (p *player) collect() {
	select {
	case err := <-p.ended:
		p.end(err)
	default:
	}
	for _, m := range p.out.take() {
		switch m := m.(type) {
		case *discoveryv3.DiscoveryResponse:
			if m.GetTypeUrl() != typeURL || len(m.GetResources()) != 1 {
				p.t.Fatalf("response %v, want one secret", m.GetTypeUrl())
			}
			e := envoy{t: p.t}
			name, chain, _ := e.open(m.GetResources()[0])
			p.secret(m.GetNonce(), name, p.stage.chains[chain])
		case *discoveryv3.DeltaDiscoveryResponse:
			if m.GetTypeUrl() != typeURL || len(m.GetResources())+len(m.GetRemovedResources()) != 1 {
				p.t.Fatalf("response %v, want one secret or one removal", m.GetTypeUrl())
			}
			if len(m.GetRemovedResources()) == 1 {
				p.response(m.GetNonce(), m.GetRemovedResources()[0], "")
				continue
			}
			r := m.GetResources()[0]
			e := envoy{t: p.t}
			name, chain, _ := e.open(r.GetResource())
			if v := p.stage.chains[chain]; name != r.GetName() || string(v) != r.GetVersion() {
				p.t.Fatalf("resource %q at %q holds secret %q at %q", r.GetName(), r.GetVersion(), name, v)
			}
			p.secret(m.GetNonce(), name, p.stage.chains[chain])
		}
	}
}

// secret checks one secret that was sent.
func (p *player) secret(nonce, name string, version secret.Version) {
	if !slices.Contains(p.stage.versions[name], version) {
		p.t.Fatalf("secret %q was sent with the content of another one", name)
	}
	// The policy in force is the newest: what is sent after it came is by it.
	if !NewPolicy(p.allowed).Allowed("canary", name) {
		p.t.Fatalf("secret %q was sent, which the group may not have", name)
	}
	if p.nacked[name][version] {
		p.t.Fatalf("%s of %q was sent again after its NACK", version.Short(), name)
	}
	p.response(nonce, name, version)
}

func (p *player) response(nonce, name string, version secret.Version) {
	if slices.Contains(p.nonces, nonce) {
		p.t.Fatalf("nonce %q was given twice", nonce)
	}
	if p.budget[name]--; p.budget[name] < 0 {
		p.t.Fatalf("one response too many for %q: there was neither a subscription nor a change nor a NACK for it", name)
	}
	p.open[nonce] = len(p.nonces)
	p.nonces, p.names, p.sent = append(p.nonces, nonce), append(p.names, name), append(p.sent, version)
}

// end checks why the server ended the stream.
func (p *player) end(err error) {
	p.over = true
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.ResourceExhausted:
	default:
		p.t.Fatalf("stream ended: %v", err)
	}
}
