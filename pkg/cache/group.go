package cache

import (
	"sync"
	"sync/atomic"
)

// group is one node group: where it is at, and the streams that listen.
type group struct {
	name     string
	snapshot atomic.Pointer[Snapshot]

	mu          sync.Mutex
	revision    int64                               // guarded by mu; of its stored record
	moves       []Move                              // guarded by mu
	subscribers map[string]map[*Subscriber]struct{} // guarded by mu; by subscribed name
	asked       Hosts                               // guarded by mu; the subscribed names
}

func newGroup(name string, at *Snapshot) *group {
	g := &group{name: name, subscribers: map[string]map[*Subscriber]struct{}{}}
	g.snapshot.Store(at)
	return g
}

func (g *group) at() *Snapshot { return g.snapshot.Load() }

// stored returns the revision of the group's record, and its moves.
func (g *group) stored() (int64, []Move) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.revision, g.moves
}

// set takes over a stored record. The caller holds Cache.mu, so that a reader finds the snapshot and its resources together.
func (g *group) set(r groupRecord, at *Snapshot, revision int64) {
	g.mu.Lock()
	g.revision, g.moves = revision, r.Moves
	g.mu.Unlock()
	g.snapshot.Store(at)
}

// wake tells every subscriber of the changed secrets, and of the names that are covered by a changed DNS name.
func (g *group) wake(changed, dnsNames []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, name := range changed {
		g.markAll(name)
	}
	for _, dnsName := range dnsNames {
		for asked := range g.asked.CoveredBy(dnsName) {
			g.markAll(asked)
		}
	}
}

// markAll tells every subscriber of a name. The caller holds mu.
func (g *group) markAll(name string) {
	for s := range g.subscribers[name] {
		s.mark(name)
	}
}

// Subscriber is one stream's interest in secret names of one group. A stream that does not read is not waited for: it finds the
// names that changed meanwhile when it looks, and reads their latest state (CONVENTIONS 23).
type Subscriber struct {
	group *group
	ready chan struct{}

	mu    sync.Mutex
	dirty map[string]struct{} // guarded by mu
}

// Subscribe returns a subscriber without names; false for an unknown group. Close it when the stream ends.
func (c *Cache) Subscribe(groupName string) (*Subscriber, bool) {
	g, ok := c.group(groupName)
	if !ok {
		return nil, false
	}
	return &Subscriber{group: g, ready: make(chan struct{}, 1), dirty: map[string]struct{}{}}, true
}

// Add listens to a name, whether a secret of that name exists or not: late ones are told of, too.
func (s *Subscriber) Add(name string) {
	s.group.mu.Lock()
	defer s.group.mu.Unlock()
	if s.group.subscribers[name] == nil {
		s.group.subscribers[name] = map[*Subscriber]struct{}{}
		s.group.asked.Add(name)
	}
	s.group.subscribers[name][s] = struct{}{}
}

// Remove stops listening to a name.
func (s *Subscriber) Remove(name string) {
	s.group.mu.Lock()
	defer s.group.mu.Unlock()
	delete(s.group.subscribers[name], s)
	if len(s.group.subscribers[name]) == 0 {
		delete(s.group.subscribers, name)
		s.group.asked.Remove(name)
	}
}

// Wake lets the stream look at a name as if it had changed.
func (s *Subscriber) Wake(name string) { s.mark(name) }

// Close stops listening to the given names, which are all that the stream subscribed to.
func (s *Subscriber) Close(names []string) {
	for _, name := range names {
		s.Remove(name)
	}
}

// Ready receives after one or more names have changed.
func (s *Subscriber) Ready() <-chan struct{} { return s.ready }

// Take returns the names that changed since the last Take.
func (s *Subscriber) Take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	names := make([]string, 0, len(s.dirty))
	for name := range s.dirty {
		names = append(names, name)
	}
	clear(s.dirty)
	return names
}

func (s *Subscriber) mark(name string) {
	s.mu.Lock()
	s.dirty[name] = struct{}{}
	s.mu.Unlock()
	select {
	case s.ready <- struct{}{}:
	default: // it has a wake-up waiting
	}
}
