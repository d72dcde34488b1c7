package sds

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// stream is one stream of SDS or ADS, SotW or delta. Only its own goroutine touches it; the reader beside it hands over requests.
type stream struct {
	server   *Server
	out      grpc.ServerStream
	protocol Protocol
	peer     Peer
	draining <-chan struct{}
	log      *slog.Logger
	slot     *slot
	idle     bool // as the slot knows it

	rights  *rights
	cluster string // of the node
	envoy   bool   // the node says that it is an Envoy
	group   string
	node    *node // nil until the first request
	meters  meters

	subscriber *cache.Subscriber
	names      map[string]*subscription
	listed     []string          // SotW: the names of the last request
	queue      []string          // names that may have something to send
	refused    []string          // delta: names that are not subscribed to because a limit was met; to be answered
	found      []*cache.Resource // reused by push
	window     window
	nonce      uint64
	pace       bucket // of requests
}

// subscription is one name of a stream.
type subscription struct {
	record *record
	sent   secret.Version // that the Envoy has from this stream, as far as it did not reject it; empty: none
	held   secret.Version // that the Envoy acknowledged on this stream, and goes on with if it rejects what was sent; empty: none is known
	gone   bool           // the last answer was removed_resources
	keeps  bool           // the Envoy said that it has a version of before our time, which it goes on with
	alias  bool           // it was given another secret's certificate
	queued bool
	force  bool // answer even if nothing is new
}

// serve runs one stream until it ends, and returns what the Envoy is told.
func (s *service) serve(out grpc.ServerStream, protocol Protocol) error {
	ctx := out.Context()
	peer, err := peerOf(ctx, s.groups)
	if err == nil {
		err = s.admit(ctx, out, peer, protocol)
	}
	return s.server.status(ctx, peer, err)
}

// admit refuses a peer that has no right to any group or is at a limit, before anything is read from it.
func (s *service) admit(ctx context.Context, out grpc.ServerStream, peer Peer, protocol Protocol) error {
	server := s.server
	rights := server.rights.Load()
	if _, err := rights.policy.grants(peer); err != nil {
		return err
	}
	slot, err := server.admission.admit(peer.key(), time.Now())
	if err != nil {
		return err
	}
	defer server.admission.release(slot)
	st := &stream{
		server: server, slot: slot, idle: true, out: out, protocol: protocol, peer: peer, draining: s.draining, rights: rights, log: server.log,
		names: map[string]*subscription{}, window: window{limit: windowResponses}, pace: newBucket(server.limits.RequestsPerStreamPerSecond, 0),
	}
	defer st.close()
	return st.run(ctx, server.read(ctx, out, protocol.delta()))
}

// read hands over the requests of a stream one by one. The goroutine ends with the stream; Shutdown waits for it.
func (s *Server) read(ctx context.Context, in grpc.ServerStream, delta bool) <-chan incoming {
	requests := make(chan incoming)
	s.readers.Go(func() {
		for {
			m := incoming{delta: delta}
			err := in.RecvMsg(&m)
			switch {
			case err != nil:
				m.err = err
				if status.Code(err) == codes.ResourceExhausted {
					s.metrics.denied.WithLabelValues(reasonMessageSize).Inc()
				}
			case m.err != nil:
				m.err = errMalformed
			}
			select {
			case requests <- m:
			case <-ctx.Done():
				return
			}
			if m.err != nil {
				return
			}
		}
	})
	return requests
}

// run is the loop of a stream. It never blocks in a send (see windowBytes), so that it always sees the end of its rights.
func (st *stream) run(ctx context.Context, requests <-chan incoming) error {
	expiry, stopExpiry := st.expiry()
	defer stopExpiry()
	for {
		if err := st.flush(ctx); err != nil {
			return err
		}
		st.noteIdle()
		in, resume, stop := requests, (<-chan time.Time)(nil), func() bool { return false }
		if wait := st.pace.wait(time.Now()); wait > 0 { // leaves the request where it is: the Envoy is slowed down by flow control
			t := time.NewTimer(wait)
			in, resume, stop = nil, t.C, t.Stop
		}
		var err error
		select {
		case <-ctx.Done():
			err = ctx.Err()
		case <-st.draining:
			err = errDraining
		case <-st.slot.evicted:
			err = errStreams
		case <-st.rights.replaced:
			err = st.recheck()
		case <-expiry:
			err = errExpired
		case <-st.ready():
			for _, name := range st.subscriber.Take() {
				st.enqueue(name, false)
			}
		case <-resume:
		case m := <-in:
			err = st.receive(ctx, m)
		}
		stop()
		if err != nil {
			return err
		}
	}
}

// noteIdle tells whether the stream has no secret. A stream with several names is one for all of a node, and counts as if it had.
func (st *stream) noteIdle() {
	idle := len(st.names) <= 1
	if idle {
		for _, sub := range st.names {
			idle = sub.sent == "" && !sub.keeps
		}
	}
	if idle != st.idle {
		st.idle = idle
		st.server.admission.setIdle(st.slot, idle)
	}
}

// ready receives when a subscribed name has changed.
func (st *stream) ready() <-chan struct{} {
	if st.subscriber == nil {
		return nil
	}
	return st.subscriber.Ready()
}

// expiry returns a channel that receives when the peer's certificate ends; nil for a peer without one.
func (st *stream) expiry() (<-chan time.Time, func() bool) {
	if st.peer.Expires.IsZero() {
		return nil, func() bool { return false }
	}
	t := time.NewTimer(time.Until(st.peer.Expires))
	return t.C, t.Stop
}

func (st *stream) expired() error {
	if !st.peer.Expires.IsZero() && !time.Now().Before(st.peer.Expires) {
		return errExpired
	}
	return nil
}

// recheck takes over the policy in force. It fails when the right to the group has ended, or when another group is the node's now:
// it finds that when it reconnects.
func (st *stream) recheck() error {
	st.rights = st.server.rights.Load()
	if st.node == nil {
		_, err := st.rights.policy.grants(st.peer)
		return err
	}
	_, group, err := st.rights.policy.Decide(st.peer, st.cluster)
	if err == nil && group != st.group || err != nil && !st.rights.policy.permits(st.peer, st.group) {
		return errGroupLost
	}
	for name := range st.names {
		st.enqueue(name, false)
	}
	return nil
}

// authorize checks the stream's right to go on.
func (st *stream) authorize() error {
	if err := st.expired(); err != nil {
		return err
	}
	if st.rights == st.server.rights.Load() {
		return nil
	}
	return st.recheck()
}

// receive handles one request.
func (st *stream) receive(ctx context.Context, m incoming) error {
	if m.err != nil {
		return m.err
	}
	r := &m.request
	if err := st.authorize(); err != nil {
		return err
	}
	if r.typeURL != typeURL && (r.typeURL != "" || st.protocol.aggregated()) {
		return errTypeURL
	}
	first := st.node == nil
	if first {
		if err := st.open(ctx, r.node); err != nil {
			return err
		}
	} else if r.node != nil && r.node.id != st.node.key.id {
		return errNodeChanged
	}
	answer, err := st.acknowledge(ctx, r)
	if err != nil {
		return err
	}
	if !answer {
		st.pace.spend(time.Now())
		if !first && st.stale(r.nonce) { // a nonce of the first request is that of an earlier stream
			st.server.metrics.denied.WithLabelValues(reasonNonce).Inc()
			if !st.protocol.delta() { // the Envoy will answer a newer response, with its names
				return nil
			}
		}
	}
	changed, err := st.subscriptions(ctx, r, first)
	if answer && changed { // or a node could have endless answers by rejecting each one and asking again at once
		st.pace.spend(time.Now())
	}
	if err == nil && (first || changed) {
		st.server.changed(st.group)
	}
	return err
}

// stale reports whether a nonce that acknowledges nothing has no other meaning either.
func (st *stream) stale(nonce string) bool {
	return nonce != "" && (st.protocol.delta() || !st.window.repeats(nonce))
}

// open makes the stream that of a node, by its first request.
func (st *stream) open(ctx context.Context, node *nodeID) error {
	switch {
	case node == nil || node.id == "":
		return errNoNode
	case len(node.id) > maxNodeID:
		return errNodeID
	}
	identity, group, err := st.rights.policy.Decide(st.peer, node.cluster)
	if err != nil {
		return err
	}
	subscriber, ok := st.server.cache.Subscribe(group)
	if !ok {
		return errNoGroup
	}
	n, err := st.server.ledger.connect(nodeKey{identity, node.id}, group, st.peer.Transport, st.protocol, time.Now())
	if err != nil {
		return err
	}
	n.noteAddress(st.peer.Address)
	st.cluster, st.envoy, st.group, st.node, st.subscriber = node.cluster, node.agent == envoyAgent, group, n, subscriber
	st.meters = st.server.metrics.of(group, st.protocol)
	st.meters.streams.Inc()
	st.log = st.log.With("group", group, "node_id", node.id)
	st.log.DebugContext(ctx, "stream opened", "identity", identity, "protocol", string(st.protocol))
	return nil
}

// close ends what open began.
func (st *stream) close() {
	if st.node == nil {
		return
	}
	names := make([]string, 0, len(st.names))
	for name := range st.names {
		names = append(names, name)
	}
	st.subscriber.Close(names)
	dismissed := false
	select {
	case <-st.draining:
		dismissed = true
	default:
	}
	st.server.ledger.disconnect(st.node, st.names, st.subscriber, time.Now(), dismissed)
	st.meters.streams.Dec()
	st.server.changed(st.group)
}

// flush sends what is queued, as far as the window allows. What waits is sent later, at the version that is the newest then.
func (st *stream) flush(ctx context.Context) error {
	sent := 0
	for ; sent < len(st.queue) && st.window.open(); sent++ {
		if err := st.authorize(); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		name := st.queue[sent]
		sub := st.names[name]
		if sub == nil || !sub.queued { // unsubscribed meanwhile, and possibly subscribed again and answered
			continue
		}
		sub.queued = false
		if err := st.push(name, sub); err != nil {
			return err
		}
	}
	if st.queue = st.queue[sent:]; len(st.queue) == 0 {
		st.queue = nil
	}
	if len(st.refused) == 0 {
		return nil
	}
	return st.sendRefusals()
}

func (st *stream) enqueue(name string, force bool) {
	sub := st.names[name]
	if sub == nil {
		return
	}
	sub.force = sub.force || force
	if sub.queued {
		return
	}
	sub.queued = true
	if len(st.queue) > 2*len(st.names)+windowResponses { // full of names that came and went
		st.queue = st.queue[:0]
		for name, sub := range st.names {
			if sub.queued {
				st.queue = append(st.queue, name)
			}
		}
		return
	}
	st.queue = append(st.queue, name)
}
