package sds

import (
	"container/list"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	// leaveGrace joins the ends of a node's streams into one: without ADS each secret has its own, and they end one by one.
	leaveGrace = 10 * time.Second
	// maxNACKs is how many rejected versions of one secret are remembered for a node, the newest. Older ones are no longer stored.
	maxNACKs = 32
	// versionLength is that of a secret.Version: 64 hex digits.
	versionLength = 64
)

// ledger knows every node: what it was sent, and what it said about that. Nodes that are offline stay, as far as there is room.
//
// Lock order: ledger.mu, then node.mu. A stream holds its node, so that an acknowledgement takes the node's lock only.
type ledger struct {
	perIdentity int                                     // node ids of one identity
	changed     changedFunc                             // what is to be stored of a node
	marked      func(node nodeKey, delay time.Duration) // what is to be stored of where a node is; called with locks held

	mu         sync.Mutex
	nodes      map[nodeKey]*node             // guarded by mu
	groups     map[string]*roster            // guarded by mu
	identities map[string]map[*node]struct{} // guarded by mu
}

// nodeKey is what a node is known by: the proven identity, and what it calls itself.
type nodeKey struct{ identity, id string }

// roster is the nodes of one group.
type roster struct {
	nodes       map[*node]struct{}
	subscribers map[string]map[*node]struct{} // by subscribed name
	asked       cache.Hosts                   // the subscribed names
	offline     *list.List                    // of *node, the one that left first in front
	refused     map[*node]struct{}            // those that unsubscribed from a name under which they rejected another secret
	listing     *listing                      // what the store says
	past        *pastNames
	moved       map[*node]struct{} // that went from here to the group where they are now
}

// node is one Envoy.
type node struct {
	key     nodeKey
	changed changedFunc
	marked  func(node nodeKey, delay time.Duration)

	// Guarded by ledger.mu.
	streams int
	group   string
	parked  *list.Element // in roster.offline; nil while connected
	before  *roster       // in which moved has it; nil for none

	// Written under ledger.mu and mu, read under either.
	stored *nameSet // the secrets that it has by the store; nil for none

	mu        sync.Mutex
	transport Transport          // guarded by mu
	protocol  Protocol           // guarded by mu
	address   netip.Addr         // guarded by mu; where its newest stream comes from
	connected bool               // guarded by mu
	since     time.Time          // guarded by mu; when connected changed
	records   map[string]*record // guarded by mu; by subscribed name
	refusing  map[string]*record // guarded by mu; those of records that rejected another secret than that of their name
	aliases   *list.List         // guarded by mu; of *alias, the one that was asked for the longest time ago in front
	left      []leaver           // guarded by mu; oldest first

	awaited   bool                // guarded by mu; it may come back to the stored secrets: while it is offline, or until
	until     time.Time           // guarded by mu
	dismissed bool                // guarded by mu; the last stream ended because this server stops
	past      map[string]struct{} // guarded by mu; secrets that it had under other names, or unsubscribed from
	pastIn    *pastNames          // guarded by mu; that of its group
	judged    *Policy             // guarded by mu; by which barred is
	barred    bool                // guarded by mu; the identity has no right to the group any more

	covering map[string]secret.Version // guarded by mu; the version that was recorded last of each secret that was sent under another name (see gate)
}

// leaver is a name whose last stream ended.
type leaver struct {
	name string
	at   time.Time
}

func newLedger(perIdentity int) *ledger {
	return &ledger{
		perIdentity: perIdentity, changed: func(nodeKey, string) {}, marked: func(nodeKey, time.Duration) {}, nodes: map[nodeKey]*node{}, groups: map[string]*roster{},
		identities: map[string]map[*node]struct{}{},
	}
}

// roster returns that of a group. The caller holds mu.
func (l *ledger) roster(group string) *roster {
	r := l.groups[group]
	if r == nil {
		r = &roster{
			nodes: map[*node]struct{}{}, subscribers: map[string]map[*node]struct{}{}, offline: list.New(), refused: map[*node]struct{}{},
			listing: newListing(), past: newPastNames(), moved: map[*node]struct{}{},
		}
		l.groups[group] = r
	}
	return r
}

// connect counts one more stream of a node, which is made if it is new.
func (l *ledger) connect(key nodeKey, group string, transport Transport, protocol Protocol, now time.Time) (*node, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[key]
	if n == nil {
		if err := l.makeRoom(key.identity, group); err != nil {
			return nil, err
		}
		n = l.add(key)
	}
	if n.group != group {
		l.regroup(n, group)
	}
	if n.parked != nil {
		l.roster(group).offline.Remove(n.parked)
		n.parked = nil
	}
	n.streams++
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transport, n.protocol = transport, protocol
	if !n.connected {
		n.connected, n.since = true, now
		l.settle(n) // what it had before it went away counts only if it subscribes again
		n.awaited, n.until, n.dismissed = n.stored != nil, now.Add(leaveGrace), false
		n.marked(n.key, comeDelay)
	}
	return n, nil
}

// noteAddress records where a stream comes from.
func (n *node) noteAddress(address netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.address = address
}

// add makes a node that is in no group yet. The caller holds mu.
func (l *ledger) add(key nodeKey) *node {
	n := &node{key: key, changed: l.changed, marked: l.marked, past: map[string]struct{}{}, records: map[string]*record{}, refusing: map[string]*record{}, aliases: list.New()}
	l.nodes[key] = n
	if l.identities[key.identity] == nil {
		l.identities[key.identity] = map[*node]struct{}{}
	}
	l.identities[key.identity][n] = struct{}{}
	return n
}

// settle drops what a node subscribed to before it went away. The caller holds both locks.
func (l *ledger) settle(n *node) {
	for name, r := range n.records {
		if r.streams == 0 {
			l.drop(n, name, r)
		}
	}
	n.left = nil
}

// regroup moves a node to another group. What was rejected stays known. The caller holds mu.
func (l *ledger) regroup(n *node, group string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := l.groups[n.group]
	if old != nil {
		delete(old.nodes, n)
		delete(old.refused, n)
		if n.parked != nil {
			old.offline.Remove(n.parked)
			n.parked = nil
		}
	}
	next := l.roster(group)
	n.transfer(old, next)
	next.nodes[n] = struct{}{}
	if len(n.refusing) > 0 {
		next.refused[n] = struct{}{}
	}
	for name, r := range n.records {
		if r.subscribed {
			if old != nil {
				old.remove(name, n)
			}
			next.add(name, n)
		}
		if len(r.nacks) > 0 {
			l.changed(n.key, name)
		}
	}
	n.group = group
}

func (r *roster) add(name string, n *node) {
	if r.subscribers[name] == nil {
		r.subscribers[name] = map[*node]struct{}{}
		r.asked.Add(name)
	}
	r.subscribers[name][n] = struct{}{}
}

func (r *roster) remove(name string, n *node) {
	delete(r.subscribers[name], n)
	if len(r.subscribers[name]) == 0 {
		delete(r.subscribers, name)
		r.asked.Remove(name)
	}
}

// makeRoom forgets the node that is offline for the longest time where a limit is met. The caller holds mu.
func (l *ledger) makeRoom(identity, group string) error {
	if len(l.identities[identity]) >= l.perIdentity {
		oldest := l.oldestOffline(identity)
		if oldest == nil {
			return errNodes
		}
		l.forget(oldest)
	}
	if r := l.roster(group); len(r.nodes) >= maxNodes {
		if e := r.offline.Front(); e != nil { // otherwise all of them are connected, and are kept
			if oldest, ok := e.Value.(*node); ok {
				l.forget(oldest)
			}
		}
	}
	return nil
}

func (l *ledger) oldestOffline(identity string) *node {
	var oldest *node
	var at time.Time
	for n := range l.identities[identity] {
		if n.parked == nil {
			continue
		}
		n.mu.Lock()
		since := n.since
		n.mu.Unlock()
		if oldest == nil || since.Before(at) {
			oldest, at = n, since
		}
	}
	return oldest
}

// forget drops a node that is offline. The caller holds mu.
func (l *ledger) forget(n *node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := l.groups[n.group]
	for name, record := range n.records {
		r.remove(name, n)
		if len(record.nacks) > 0 {
			l.changed(n.key, name)
		}
	}
	delete(r.nodes, n)
	delete(r.refused, n)
	r.offline.Remove(n.parked)
	n.parked = nil
	n.transfer(r, nil)
	n.marked(n.key, 0)
	delete(l.nodes, n.key)
	delete(l.identities[n.key.identity], n)
	if len(l.identities[n.key.identity]) == 0 {
		delete(l.identities, n.key.identity)
	}
}

// disconnect ends one stream of a node that subscribed to names, and listened by listener; dismissed: because this server stops.
func (l *ledger) disconnect(n *node, names map[string]*subscription, listener *cache.Subscriber, now time.Time, dismissed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	for name, sub := range names {
		sub.record.streams--
		n.unlisten(sub.record, listener)
		if sub.record.streams == 0 {
			n.left = append(n.left, leaver{name, now})
		}
	}
	l.expire(n, now)
	n.streams--
	n.marked(n.key, leaveGrace) // those that are back by then cost no write
	if n.streams > 0 {
		return
	}
	n.connected, n.since, n.dismissed = false, now, dismissed
	n.awaited = n.awaited && now.Before(n.until)
	for _, r := range n.records {
		if len(r.nacks) == 0 {
			r.good = nil // keeps no private key of an old version in memory
		}
	}
	n.parked = l.roster(n.group).offline.PushBack(n)
}

// expire drops names whose stream ended some time ago while others went on. The caller holds both locks.
func (l *ledger) expire(n *node, now time.Time) {
	i := 0
	for ; i < len(n.left) && now.Sub(n.left[i].at) > leaveGrace; i++ {
		if r := n.records[n.left[i].name]; r != nil && r.streams == 0 {
			n.lose(n.left[i].name, r)
			l.drop(n, n.left[i].name, r)
		}
	}
	n.left = slices.Delete(n.left, 0, i)
}
