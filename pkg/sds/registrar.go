package sds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
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

// batch is one commit, and what it makes of the nodes.
type batch struct {
	policy     *Policy
	operations []store.Operation
	bytes      int
	nodes      map[nodeKey]registered // without a set: not any more
	added      map[string]int         // how many of nodes are new in each group, less those that are not there any more
	sets       map[string]*nameSet    // that are new
	setsBytes  int
}

// commit writes the first of the nodes, as they are now, and returns how many these were.
func (r *registrar) commit(ctx context.Context, keys []nodeKey) (int, error) {
	b := batch{policy: r.rights(), nodes: map[nodeKey]registered{}, added: map[string]int{}, sets: map[string]*nameSet{}}
	taken := 0
	for _, key := range keys {
		if len(b.operations)+2 > commitRecords || b.bytes > commitBytes {
			break
		}
		if err := r.add(ctx, &b, key); err != nil {
			return 0, err
		}
		taken++
	}
	if len(b.operations) > 0 {
		if _, err := r.store.Commit(ctx, nil, b.operations); err != nil {
			return 0, fmt.Errorf("store which nodes there are: %w", err)
		}
	}
	r.settle(b)
	return taken, nil
}

// add puts into a batch what makes the store say what the ledger says of a node, if anything has to be done.
func (r *registrar) add(ctx context.Context, b *batch, key nodeKey) error {
	p, ok := r.ledger.presence(key, b.policy, time.Now())
	if !p.again.IsZero() {
		r.mark(key, time.Until(p.again))
	}
	at, known := r.stored[key]
	path := store.Key(nodePrefix, key.identity, key.id)
	names := r.intern(b, p)
	if !ok || names == nil { // nothing waits for it
		if known {
			b.put(store.Delete(path))
			b.added[at.group]--
		}
		b.nodes[key] = registered{group: p.group}
		return nil
	}
	next := registered{group: p.group, names: names, left: p.left}
	switch {
	case known && at == next:
		r.ledger.enlist(key, p.group, names)
		return nil
	case !known && r.groups[p.group]+b.added[p.group] >= r.perGroup || len(path) > store.MaxKeyBytes:
		if !r.crowded {
			r.crowded = true
			r.log.WarnContext(ctx, "a group has more nodes than are remembered over a restart", "group", p.group, "nodes", r.perGroup)
		}
		return nil
	}
	value, err := json.Marshal(storedNode{Group: p.group, Transport: p.transport, Protocol: p.protocol, Names: names.digest, Left: p.left})
	if err != nil {
		return fmt.Errorf("encode node %q: %w", key.id, err)
	}
	if names != everyName && r.sets[names.digest] == nil && b.sets[names.digest] == nil {
		encoded, err := names.encode()
		if err != nil {
			return err
		}
		b.put(store.Put(store.Key(nameSetPrefix, names.digest), encoded))
		b.sets[names.digest], b.setsBytes = names, b.setsBytes+names.bytes
	}
	b.put(store.Put(path, value))
	b.nodes[key] = next
	if !known {
		b.added[p.group]++
	}
	return nil
}

func (b *batch) put(o store.Operation) {
	b.operations, b.bytes = append(b.operations, o), b.bytes+len(o.Key)+len(o.Value)
}

// intern returns the one set of the secrets that a node has; nil for none.
func (r *registrar) intern(b *batch, p presence) *nameSet {
	if p.returning == everyName {
		return everyName
	}
	var names []string
	for _, name := range p.asked {
		if secretName := r.secretOf(b.policy, p.group, name); secretName != "" {
			names = append(names, secretName)
		}
	}
	if p.returning != nil {
		names = append(names, p.returning.names...)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	s := newNameSet(slices.Compact(names))
	if known := r.sets[s.digest]; known != nil {
		return known.names
	}
	if known := b.sets[s.digest]; known != nil {
		return known
	}
	if s.bytes > maxSetBytes || r.setsBytes+b.setsBytes+s.bytes > r.setsLimit {
		return everyName
	}
	return s
}

// settle takes over what was committed.
func (r *registrar) settle(b batch) {
	for _, s := range b.sets {
		r.sets[s.digest] = &storedSet{names: s}
		r.setsBytes += s.bytes
	}
	for key, next := range b.nodes {
		r.note(key, next)
		r.ledger.enlist(key, next.group, next.names)
	}
}

// note takes over what the store says of a node; nothing if next has no set.
func (r *registrar) note(key nodeKey, next registered) {
	if next.names != nil {
		r.groups[next.group]++
		if s := r.sets[next.names.digest]; s != nil {
			s.nodes++
		}
	}
	if at, known := r.stored[key]; known {
		if r.groups[at.group]--; r.groups[at.group] == 0 {
			delete(r.groups, at.group)
		}
		if s := r.sets[at.names.digest]; s != nil {
			if s.nodes--; s.nodes == 0 {
				r.unused = append(r.unused, at.names.digest)
			}
		}
	}
	delete(r.stored, key)
	if next.names != nil {
		r.stored[key] = next
	}
}

// dropSets deletes the sets that no node has any more.
func (r *registrar) dropSets(ctx context.Context) error {
	unused := slices.DeleteFunc(r.unused, func(digest string) bool { return r.sets[digest] == nil || r.sets[digest].nodes > 0 })
	slices.Sort(unused)
	r.unused = slices.Compact(unused)
	for len(r.unused) > 0 {
		n := min(len(r.unused), commitRecords)
		operations := make([]store.Operation, 0, n)
		for _, digest := range r.unused[:n] {
			operations = append(operations, store.Delete(store.Key(nameSetPrefix, digest)))
		}
		if _, err := r.store.Commit(ctx, nil, operations); err != nil {
			return fmt.Errorf("delete names of nodes that are gone: %w", err)
		}
		for _, digest := range r.unused[:n] {
			r.setsBytes -= r.sets[digest].names.bytes
			delete(r.sets, digest)
		}
		r.unused = r.unused[n:]
	}
	return nil
}

// load fills the ledger with what the store holds. It comes before any stream. Nobody saw those leave that were connected at the end: they count as
// seen now.
func (r *registrar) load(ctx context.Context) error {
	now := time.Now()
	r.sweepAt = now.Add(comeBack)
	if err := r.loadSets(ctx); err != nil {
		return err
	}
	entries, _, err := r.store.List(ctx, nodePrefix+"/")
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	nodes := make([]loaded, 0, len(entries))
	for _, e := range entries {
		n, err := r.decode(e, now)
		if err != nil {
			return fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		r.note(n.key, registered{group: n.group, names: n.returning, left: n.left})
		nodes = append(nodes, n)
	}
	for digest, s := range r.sets {
		if s.nodes == 0 {
			r.unused = append(r.unused, digest)
		}
	}
	slices.SortStableFunc(nodes, func(a, b loaded) int { return a.seen.Compare(b.seen) }) // the oldest make room
	policy := r.rights()
	for _, n := range nodes {
		if now.Sub(n.seen) >= keptAbsent || !policy.keeps(n.transport, n.key.identity, n.group) {
			r.mark(n.key, comeBack) // to be deleted
			continue
		}
		r.ledger.readmit(n.key, n.presence, n.seen)
	}
	return nil
}

// loaded is one node of the store.
type loaded struct {
	key nodeKey
	presence
	seen time.Time
}

func (r *registrar) loadSets(ctx context.Context) error {
	entries, _, err := r.store.List(ctx, nameSetPrefix+"/")
	if err != nil {
		return fmt.Errorf("list names of nodes: %w", err)
	}
	for _, e := range entries {
		s, err := decodeNameSet(e.Value)
		if err != nil {
			return fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		if parts := store.Parts(e.Key); parts[len(parts)-1] != s.digest {
			return fmt.Errorf("stored value at %s: other names", e.Key)
		}
		r.sets[s.digest] = &storedSet{names: s}
		r.setsBytes += s.bytes
	}
	return nil
}

func (r *registrar) decode(e store.Entry, now time.Time) (loaded, error) {
	var v storedNode
	if err := json.Unmarshal(e.Value, &v); err != nil {
		return loaded{}, err
	}
	parts := store.Parts(e.Key)
	if len(parts) != 3 {
		return loaded{}, errors.New("not the key of a node")
	}
	n := loaded{
		key: nodeKey{parts[1], parts[2]}, seen: now,
		presence: presence{group: v.Group, transport: v.Transport, protocol: v.Protocol, left: v.Left, returning: everyName},
	}
	if v.Left != 0 {
		n.seen = sooner(time.Unix(v.Left, 0), now)
	}
	if s := r.sets[v.Names]; s != nil && v.Names != "" {
		n.returning = s.names
	}
	return n, nil
}
