package sds

import (
	"cmp"
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	nodePrefix    = "node"       // node/IDENTITY/NODE
	nameSetPrefix = "node-names" // node-names/DIGEST
	// keptAbsent is how long a node stays in the store after it was last seen.
	keptAbsent = 24 * time.Hour
	// maxSetsBytes bounds all sets of names in the store. Nodes of which the names would not fit count for every secret of their group while
	// they are away.
	maxSetsBytes = 64 << 20
	// comeBack is how long after a start it is noted who has not come back.
	comeBack = time.Minute
	// sweepEvery is how often it is looked for nodes that have been away for too long.
	sweepEvery = time.Hour
	// longestDelay bounds how often something new puts off the look at a node.
	longestDelay = 10 * time.Second
	// restBetween is the shortest time between two looks at what has changed.
	restBetween = 200 * time.Millisecond
)

// storedNode is where a node is, and what it has there. Its identity and id are in the key.
type storedNode struct {
	Group     string    `json:"group"`
	Transport Transport `json:"transport"`
	Protocol  Protocol  `json:"protocol"`
	Names     string    `json:"names,omitempty"` // digest of the secrets that it has; absent: any may be one
	Left      int64     `json:"left,omitempty"`  // Unix seconds when it was last seen; absent: it is connected, as far as is known
}

// registered is what the store says of a node, or is to say.
type registered struct {
	group string
	names *nameSet
	left  int64
}

// registrar writes to the store which nodes there are, which secrets they have, and when they were last seen, so that a rollout knows
// after a restart whom it waits for. It works beside the streams, which only mark what may have changed: what is equal in the end is not
// written, and so a node that comes back to what it had costs nothing. A crash may lose the last moments: a node that came then is not
// known, and one that left then counts as seen at the next start.
type registrar struct {
	store  store.Store
	ledger *ledger
	log    *slog.Logger
	rights func() *Policy
	// secretOf returns the secret that a node of a group is given under a name; empty for none.
	secretOf func(policy *Policy, group, name string) string

	wake chan struct{} // capacity 1

	mu       sync.Mutex
	due      map[nodeKey]due // guarded by mu; to be looked at
	next     time.Time       // guarded by mu; when run looks again by itself; zero while it is at work
	reviewed bool            // guarded by mu; every node's right has been checked

	// Used by the one goroutine that loads and writes.
	perGroup  int // nodes
	setsLimit int // bytes
	stored    map[nodeKey]registered
	groups    map[string]int        // how many of stored are in each
	sets      map[string]*storedSet // what the store holds, by digest
	setsBytes int
	unused    []string // digests of sets that no node has any more
	crowded   bool     // it was logged that a group has too many nodes
	sweepAt   time.Time
}

// due is when a node is to be looked at, at the latest so.
type due struct{ at, latest time.Time }

type storedSet struct {
	names *nameSet
	nodes int
}

func newRegistrar(s store.Store, l *ledger, log *slog.Logger) *registrar {
	return &registrar{
		store: s, ledger: l, log: log, wake: make(chan struct{}, 1), due: map[nodeKey]due{}, perGroup: maxNodes, setsLimit: maxSetsBytes,
		reviewed: true, stored: map[nodeKey]registered{}, groups: map[string]int{}, sets: map[string]*storedSet{},
	}
}

// mark says that something of a node may have changed, which is looked at after a while. It never blocks on the store.
func (r *registrar) mark(key nodeKey, delay time.Duration) {
	now := time.Now()
	r.mu.Lock()
	d, marked := r.due[key]
	at := now.Add(delay)
	switch {
	case !marked:
		d = due{at: at, latest: now.Add(max(delay, longestDelay))}
	case delay > comeDelay || d.at.After(at):
		d = due{at: sooner(d.at, at), latest: sooner(d.latest, now.Add(max(delay, longestDelay)))}
	default: // it is not quiet yet
		d.at = sooner(at, d.latest)
	}
	r.due[key] = d
	ring := !r.next.IsZero() && d.at.Before(r.next)
	r.mu.Unlock()
	if ring {
		r.ring()
	}
}

func sooner(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

// review says that rights may have ended.
func (r *registrar) review() {
	r.mu.Lock()
	r.reviewed = false
	r.mu.Unlock()
	r.ring()
}

func (r *registrar) ring() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends, and then what is left.
func (r *registrar) run(ctx context.Context) {
	retry := retryFirst
	for ctx.Err() == nil {
		err := r.flush(ctx, time.Now())
		wait, wake := r.rest(), r.wake
		switch {
		case err == nil:
			retry = retryFirst
		case ctx.Err() == nil:
			if retry == retryFirst {
				r.log.WarnContext(ctx, "which nodes there are cannot be stored; trying again", "err", err)
			}
			wait, wake = retry, nil // nothing new makes the store work again
			retry = min(2*retry, retryMost)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-wake:
		case <-t.C:
		}
		t.Stop()
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	if err := r.flush(last, time.Time{}); err != nil {
		r.log.ErrorContext(last, "which nodes there are was not stored: rollouts may not wait for some of them after the restart", "err", err)
	}
}

// rest returns how long there is nothing to do.
func (r *registrar) rest() time.Duration {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = r.sweepAt
	for _, d := range r.due {
		r.next = sooner(r.next, d.at)
	}
	if soonest := now.Add(restBetween); r.next.Before(soonest) {
		r.next = soonest
	}
	return r.next.Sub(now)
}

// flush writes what is due at a time; everything that is marked if that is zero. On an error what was not written stays marked.
func (r *registrar) flush(ctx context.Context, now time.Time) error {
	r.sweep(time.Now())
	keys := r.take(now)
	slices.SortFunc(keys, func(a, b nodeKey) int { return cmp.Compare(r.rank(a), r.rank(b)) })
	for len(keys) > 0 {
		n, err := r.commit(ctx, keys)
		if err != nil {
			r.mu.Lock()
			for _, key := range keys {
				if _, marked := r.due[key]; !marked {
					r.due[key] = due{at: now, latest: now}
				}
			}
			r.mu.Unlock()
			return err
		}
		keys = keys[n:]
	}
	return r.dropSets(ctx)
}

// rank puts the nodes first that are stored already, and so may make room.
func (r *registrar) rank(key nodeKey) int {
	if _, ok := r.stored[key]; ok {
		return 0
	}
	return 1
}

func (r *registrar) take(now time.Time) []nodeKey {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = time.Time{}
	var keys []nodeKey
	for key, d := range r.due {
		if now.IsZero() || !d.at.After(now) {
			keys = append(keys, key)
			delete(r.due, key)
		}
	}
	return keys
}

// sweep marks the nodes that are gone for too long, that did not come back after the start, or that lost their right.
func (r *registrar) sweep(now time.Time) {
	r.mu.Lock()
	reviewed := r.reviewed
	r.reviewed = true
	r.mu.Unlock()
	var keys []nodeKey
	if !reviewed {
		policy := r.rights()
		for key, at := range r.stored {
			if policy.byName[at.group] == nil {
				keys = append(keys, key)
			}
		}
		keys = append(keys, r.ledger.unwelcome(policy)...)
	}
	if !now.Before(r.sweepAt) {
		r.sweepAt = now.Add(sweepEvery)
		keys = append(keys, r.ledger.absent(func(key nodeKey, since time.Time) bool {
			at, ok := r.stored[key]
			return ok && (at.left == 0 || now.Sub(since) >= keptAbsent)
		})...)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range keys {
		r.due[key] = due{at: now, latest: now}
	}
}
