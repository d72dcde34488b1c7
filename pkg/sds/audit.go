package sds

import (
	"maps"
	"slices"
	"sync"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// Pushes is where it is recorded which nodes are sent which version of a secret.
type Pushes interface {
	// Record returns at once. pushed is called once, when the record is made: nodes that come until then are in it. done is called once, when the
	// record is durable, or when it is known that it cannot be made so now: keys are served all the same. Both may be called before Record returns, and from
	// any goroutine; neither blocks.
	Record(pushed func() Push, done func())
}

// Push is one record: a version of a secret goes to nodes of a group.
type Push struct {
	Secret     string
	Version    secret.Version
	Group      string
	Snapshot   uint64   // of the group, with which it goes there first
	Nodes      []string // ids, sorted
	Identities []string // that these nodes have proven, sorted, each once
}

// maxPushed is how many versions of a secret in one group it is known of that they were recorded: the newest ones. Older ones are sent to nodes
// that rejected what came after; they are recorded again where they are not known any more.
const maxPushed = 4

// gate holds the first sending of a version to a group back until it is recorded, without holding up anything else: the stream goes on with other names, and
// comes back to this one. Later nodes are sent it at once, and are recorded when the records before are.
//
// Lock order: gate.mu, then ledger.mu, then node.mu.
type gate struct {
	pushes Pushes
	ledger *ledger

	mu     sync.Mutex
	passed map[pushKey][]*pushed // guarded by mu, the newest last
}

// pushKey is one secret in one group.
type pushKey struct{ group, secret string }

// pushed is one version of it. All of it is guarded by gate.mu.
type pushed struct {
	key      pushKey
	version  secret.Version
	snapshot uint64
	begun    bool                       // a record is made, or was
	vain     bool                       // the record under way names nobody
	named    bool                       // a record named somebody
	void     bool                       // retracted: a record under way names nobody
	durable  bool                       // recorded once, or not to be waited for
	next     map[*node]struct{}         // not recorded yet; nil: no record is under way
	parked   map[*subscription]parkedAt // that wait
}

// parkedAt is who looks again at a name.
type parkedAt struct {
	subscriber *cache.Subscriber
	name       string
}

func newGate(pushes Pushes, l *ledger) *gate {
	return &gate{pushes: pushes, ledger: l, passed: map[pushKey][]*pushed{}}
}

// open reports whether a stream may send a version under a name now. If not, its subscriber is told of the name when it may.
func (g *gate) open(st *stream, name string, sub *subscription, res *cache.Resource, snapshot uint64) bool {
	if g == nil {
		return true
	}
	g.mu.Lock()
	p := g.of(pushKey{st.group, res.Name}, res.Version, snapshot)
	begin := false
	if st.node.notePushed(name, sub.record, res) || !p.begun {
		if begin = p.next == nil; begin {
			p.begun, p.next = true, map[*node]struct{}{}
		}
		p.next[st.node] = struct{}{}
	}
	may := p.durable
	if !may {
		p.parked[sub] = parkedAt{st.subscriber, name}
	}
	g.mu.Unlock()
	if begin {
		g.record(p)
	}
	return may
}

// announce begins the record of a version that a group is about to move to, before the streams of the nodes that subscribe to it come to send it. It reports
// whether it did.
func (g *gate) announce(key pushKey, version secret.Version, snapshot uint64) bool {
	if !g.ledger.subscribed(key) {
		return false
	}
	g.mu.Lock()
	p := g.of(key, version, snapshot)
	begin := !p.begun
	if begin {
		p.begun, p.next = true, map[*node]struct{}{}
	}
	g.mu.Unlock()
	if begin {
		g.record(p)
	}
	return begin
}

// retract forgets a version that was announced, and that no stream can have sent. It reports whether a record names nodes.
func (g *gate) retract(key pushKey, version secret.Version) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	known := g.passed[key]
	i := slices.IndexFunc(known, func(p *pushed) bool { return p.version == version })
	if i < 0 {
		return false
	}
	p := known[i]
	p.void = true
	g.passed[key] = slices.Delete(known, i, i+1)
	g.ledger.unpushed(key, version)
	return p.named
}

func (g *gate) record(p *pushed) {
	g.pushes.Record(func() Push { return g.take(p) }, func() { g.release(p) })
}

// of returns what is known of a version. The caller holds mu.
func (g *gate) of(key pushKey, version secret.Version, snapshot uint64) *pushed {
	known := g.passed[key]
	if i := slices.IndexFunc(known, func(p *pushed) bool { return p.version == version }); i >= 0 {
		return known[i]
	}
	p := &pushed{key: key, version: version, snapshot: snapshot, parked: map[*subscription]parkedAt{}}
	known = append(known, p)
	g.passed[key] = known[max(0, len(known)-maxPushed):]
	return p
}

// take returns the nodes that are to be recorded. The first record of a version names all that are about to be sent it.
func (g *gate) take(p *pushed) Push {
	g.mu.Lock()
	defer g.mu.Unlock()
	nodes := p.next
	p.next = nil
	if p.void {
		return Push{}
	}
	if !p.durable {
		for _, n := range g.ledger.expecting(p.key, p.version) {
			nodes[n] = struct{}{}
		}
	}
	p.vain, p.named = !p.durable && len(nodes) == 0, p.named || len(nodes) > 0
	out := Push{Secret: p.key.secret, Version: p.version, Group: p.key.group, Snapshot: p.snapshot}
	identities := map[string]struct{}{}
	for n := range nodes {
		out.Nodes = append(out.Nodes, n.key.id)
		identities[n.key.identity] = struct{}{}
	}
	slices.Sort(out.Nodes)
	out.Identities = slices.Sorted(maps.Keys(identities))
	return out
}

// release lets the streams go on that wait for a version.
func (g *gate) release(p *pushed) {
	g.mu.Lock()
	if p.vain && len(p.parked) == 0 { // those that were announced have gone meanwhile
		p.begun, p.vain = p.next != nil, false
		g.mu.Unlock()
		return
	}
	p.durable, p.vain = true, false
	parked := p.parked
	p.parked = nil
	g.mu.Unlock()
	for _, one := range parked {
		one.subscriber.Wake(one.name)
	}
}

// keep forgets groups that are not among the policy's.
func (g *gate) keep(policy *Policy) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	maps.DeleteFunc(g.passed, func(key pushKey, _ []*pushed) bool {
		return policy.byName[key.group] == nil
	})
}

// notePushed reports whether a version is not recorded for the node yet; then it is about to be. Names of clients that it covers count as one.
func (n *node) notePushed(name string, r *record, res *cache.Resource) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if res.Name == name {
		was := r.pushed
		r.pushed = res.Version
		return was != res.Version
	}
	if n.covering[res.Name] == res.Version {
		return false
	}
	if n.covering == nil {
		n.covering = map[string]secret.Version{}
	}
	n.covering[res.Name] = res.Version
	return true
}

// subscribed reports whether a node of a group subscribes to a secret by its own name.
func (l *ledger) subscribed(key pushKey) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.groups[key.group]
	return r != nil && len(r.subscribers[key.secret]) > 0
}

// unpushed forgets that nodes of a group are recorded for a version.
func (l *ledger) unpushed(key pushKey, version secret.Version) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.groups[key.group]
	if r == nil {
		return
	}
	for n := range r.nodes {
		n.mu.Lock()
		if one := n.records[key.secret]; one != nil && one.pushed == version {
			one.pushed = ""
		}
		if n.covering[key.secret] == version {
			delete(n.covering, key.secret)
		}
		n.mu.Unlock()
	}
}

// expecting returns the connected nodes of a group that subscribe to a secret by its own name, and are not recorded for a version yet nor rejected it; then they
// are about to be.
func (l *ledger) expecting(key pushKey, version secret.Version) []*node {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.groups[key.group]
	if r == nil {
		return nil
	}
	var nodes []*node
	for n := range r.subscribers[key.secret] {
		n.mu.Lock()
		one := n.records[key.secret]
		if n.connected && one != nil && one.streams > 0 && one.pushed != version && n.refusal(key.secret, one, key.secret, version) == nil {
			one.pushed = version
			nodes = append(nodes, n)
		}
		n.mu.Unlock()
	}
	return nodes
}
