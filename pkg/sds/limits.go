package sds

import (
	"cmp"
	"container/list"
	"sync"
	"time"
)

const (
	maxMessageBytes = 1 << 20 // of one request
	maxNodeID       = 1 << 10 // bytes
	maxName         = 1 << 10 // bytes; a host name has at most 255
	maxNodes        = 10_000  // that are remembered for one group
	maxRefused      = 1_000   // names of one stream that wait for the answer that they are not subscribed to
	// maxPeers is how many idle peers are remembered, so that reconnecting does not refill their allowance.
	maxPeers = 10_000
	// refusalsPerSecond is how many refused streams are logged; all of them are counted.
	refusalsPerSecond = 5
)

// Limits bound what one peer can cost. Zero means the default. A peer is an authenticated identity.
type Limits struct {
	// StreamsPerPeer is how many streams one identity may have open. Default 20,000: an Envoy opens one for each secret. At the limit, one
	// without any secret ends for a new one.
	StreamsPerPeer int
	// NamesPerStream is how many names one stream may subscribe to. Default 20,000.
	NamesPerStream int
	// NewStreamsPerSecond is how fast one identity may open streams for long. Default 2,000. StreamsPerPeer of them may come at once: after
	// a start an Envoy opens all of its streams, and one that is refused is tried again only after seconds.
	NewStreamsPerSecond int
	// RequestsPerStreamPerSecond only slows the reading of a stream. Answers to our nonces do not count. Default 20,000.
	RequestsPerStreamPerSecond int
	// NodesPerIdentity is how many node ids one identity may use. Default 1,000; those that are offline make room.
	NodesPerIdentity int
	// AliasesPerNode is how many names that are no secret's own one node may be given a certificate under. Default 1,000; the one that was
	// asked for the longest time ago makes room.
	AliasesPerNode int
}

func (l Limits) withDefaults() Limits {
	return Limits{
		StreamsPerPeer:             cmp.Or(l.StreamsPerPeer, 20_000),
		NamesPerStream:             cmp.Or(l.NamesPerStream, 20_000),
		NewStreamsPerSecond:        cmp.Or(l.NewStreamsPerSecond, 2_000),
		RequestsPerStreamPerSecond: cmp.Or(l.RequestsPerStreamPerSecond, 20_000),
		NodesPerIdentity:           cmp.Or(l.NodesPerIdentity, 1_000),
		AliasesPerNode:             cmp.Or(l.AliasesPerNode, 1_000),
	}
}

// bucket is a token bucket. It begins full.
type bucket struct {
	rate   float64 // tokens for each second
	burst  float64 // the most that it holds
	tokens float64
	filled time.Time
}

// newBucket makes one that holds a second's allowance, or burst where that is more.
func newBucket(rate, burst int) bucket {
	most := float64(max(rate, burst))
	return bucket{rate: float64(rate), burst: most, tokens: most}
}

func (b *bucket) fill(now time.Time) {
	if !b.filled.IsZero() {
		b.tokens = min(b.burst, b.tokens+b.rate*now.Sub(b.filled).Seconds())
	}
	b.filled = now
}

// full reports whether nothing of the allowance is missing.
func (b *bucket) full(now time.Time) bool {
	b.fill(now)
	return b.tokens >= b.burst
}

// take uses one token; false if there is none.
func (b *bucket) take(now time.Time) bool {
	b.fill(now)
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// spend uses one token that may not be there yet.
func (b *bucket) spend(now time.Time) {
	b.fill(now)
	b.tokens--
}

// charge uses a part of one second's allowance, that may not be there yet.
func (b *bucket) charge(now time.Time, part float64) {
	b.fill(now)
	b.tokens -= part * b.rate
}

// wait returns how long to wait until nothing is owed.
func (b *bucket) wait(now time.Time) time.Duration {
	if b.tokens >= 0 {
		return 0
	}
	b.fill(now)
	return time.Duration(max(0, -b.tokens/b.rate) * float64(time.Second))
}

// lockedBucket is a bucket for several goroutines.
type lockedBucket struct {
	mu sync.Mutex
	b  bucket // guarded by mu
}

func (l *lockedBucket) allow(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.take(now)
}

// admission counts the streams of each peer. Without ADS an on-demand Envoy opens a stream for each name that its clients send as SNI. So at
// the limit a stream without any secret makes room for a new one, the oldest first: names that do not exist cannot lock out real ones.
type admission struct {
	limits Limits

	mu    sync.Mutex
	peers map[string]*admitted // guarded by mu
}

type admitted struct {
	streams int
	rate    bucket
	idle    list.List // of *slot: streams without a secret
}

// slot is the place of one stream.
type slot struct {
	peer    *admitted
	idle    *list.Element // nil: it has a secret, or makes room
	evicted chan struct{} // closed when it has to make room
}

// admit lets one more stream in, which has no secret yet, or says which limit it meets. Each slot needs a release.
func (a *admission) admit(peer string, now time.Time) (*slot, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.peers[peer]
	if p == nil {
		a.sweep(now)
		p = &admitted{rate: newBucket(a.limits.NewStreamsPerSecond, a.limits.StreamsPerPeer)}
		a.peers[peer] = p
	}
	if !p.rate.take(now) {
		return nil, errStreamRate
	}
	if p.streams >= a.limits.StreamsPerPeer {
		oldest := p.idle.Front()
		if oldest == nil {
			return nil, errStreams
		}
		if s, ok := p.idle.Remove(oldest).(*slot); ok {
			s.idle = nil
			p.streams--
			close(s.evicted)
		}
	}
	p.streams++
	s := &slot{peer: p, evicted: make(chan struct{})}
	s.idle = p.idle.PushBack(s)
	return s, nil
}

// setIdle notes whether the stream has no secret.
func (a *admission) setIdle(s *slot, idle bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.isEvicted() || idle == (s.idle != nil) {
		return
	}
	if !idle {
		s.peer.idle.Remove(s.idle)
		s.idle = nil
		return
	}
	s.idle = s.peer.idle.PushBack(s)
}

// release gives the slot back.
func (a *admission) release(s *slot) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if s.isEvicted() { // it has made room already
		return
	}
	if s.idle != nil {
		s.peer.idle.Remove(s.idle)
	}
	s.peer.streams--
}

func (s *slot) isEvicted() bool {
	select {
	case <-s.evicted:
		return true
	default:
		return false
	}
}

// sweep forgets peers whose allowance is full again. The caller holds mu.
func (a *admission) sweep(now time.Time) {
	if len(a.peers) < maxPeers {
		return
	}
	for key, p := range a.peers {
		if p.streams == 0 && p.rate.full(now) {
			delete(a.peers, key)
		}
	}
}
