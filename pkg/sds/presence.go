package sds

import (
	"cmp"
	"iter"
	"slices"
	"sync"
	"time"
)

// This is about nodes that are not there, or not yet: which secrets they had by the store, so that a rollout knows whom it waits for, also after
// a restart; and what connected ones had once, so that it knows whom it waits for in vain.

const (
	// comeDelay is how long a node has to be quiet before it is looked at whether the store has to be told of what it has now.
	comeDelay = time.Second
	// aliasDelay is the same for names that come and go with the clients of an on-demand Envoy.
	aliasDelay = time.Minute
)

// pastNames finds the nodes of a group by secrets that they had under other names, or unsubscribed from. Its lock is taken last.
type pastNames struct {
	mu    sync.Mutex
	nodes map[string]map[*node]struct{} // guarded by mu; by secret
}

func newPastNames() *pastNames { return &pastNames{nodes: map[string]map[*node]struct{}{}} }

func (p *pastNames) add(name string, n *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.nodes[name] == nil {
		p.nodes[name] = map[*node]struct{}{}
	}
	p.nodes[name][n] = struct{}{}
}

func (p *pastNames) remove(name string, n *node) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.nodes[name], n)
	if len(p.nodes[name]) == 0 {
		delete(p.nodes, name)
	}
}

// collect adds the nodes that had a secret to found.
func (p *pastNames) collect(name string, found map[*node]struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for n := range p.nodes[name] {
		found[n] = struct{}{}
	}
}

// gain notes that the node has something of a secret under a name. The caller holds mu.
func (n *node) gain(name, secretName string) {
	if secretName != name {
		n.remember(secretName)
	}
	if !n.stored.has(secretName) {
		n.marked(n.key, comeDelay)
	}
}

// lose notes that the node has nothing under a name any more. The caller holds mu.
func (n *node) lose(name string, r *record) {
	if !r.given() {
		return // such names come from the internet
	}
	n.remember(cmp.Or(r.covering, name))
	delay := leaveGrace
	if r.covering != "" {
		delay = aliasDelay
	}
	n.marked(n.key, delay)
}

// given reports whether the node has something under a name. The caller holds the node's mu.
func (r *record) given() bool { return r.sent != "" || r.acked != "" }

// leaving yields the names of which one of several streams ended, and until when that may come again. The caller holds mu.
func (n *node) leaving(now time.Time) iter.Seq2[string, time.Time] {
	return func(yield func(string, time.Time) bool) {
		for _, l := range n.left {
			r, until := n.records[l.name], l.at.Add(leaveGrace)
			if n.connected && r != nil && r.streams == 0 && now.Before(until) && !yield(l.name, until) {
				return
			}
		}
	}
}

// remember notes that the node had a secret. The caller holds mu.
func (n *node) remember(secretName string) {
	if _, ok := n.past[secretName]; !ok && n.pastIn != nil {
		n.past[secretName] = struct{}{}
		n.pastIn.add(secretName, n)
	}
}

// forgetPast drops a secret that the node subscribes to again. The caller holds mu.
func (n *node) forgetPast(name string) {
	if _, ok := n.past[name]; ok {
		delete(n.past, name)
		n.pastIn.remove(name, n)
	}
}

// transfer takes what the groups know of a node from the old to the new one; either may be nil. The caller holds both locks.
func (n *node) transfer(old, next *roster) {
	for name := range n.past {
		n.pastIn.remove(name, n)
	}
	clear(n.past)
	if n.before != nil {
		delete(n.before.moved, n)
		n.before = nil
	}
	if old != nil {
		old.listing.remove(n.stored, n)
	}
	n.stored, n.awaited, n.pastIn, n.judged = nil, false, nil, nil
	if next == nil {
		return
	}
	n.pastIn = next.past
	if old != nil {
		old.moved[n], n.before = struct{}{}, old
	}
}

// list notes which secrets a node has by the store. The caller holds both locks.
func (l *ledger) list(n *node, names *nameSet) {
	if n.stored == names {
		return
	}
	if n.stored != nil {
		for _, name := range n.stored.names {
			if !names.has(name) {
				n.remember(name)
			}
		}
	}
	listing := l.groups[n.group].listing
	listing.remove(n.stored, n)
	listing.add(names, n)
	n.stored = names
}

// mayReturn reports whether the node may come back to the stored secrets. The caller holds mu.
func (n *node) mayReturn(now time.Time) bool {
	return n.awaited && (!n.connected || now.Before(n.until))
}

// lostRight reports whether an offline node has no right to its group any more. The caller holds mu.
func (n *node) lostRight(policy *Policy, group string) bool {
	if n.connected {
		return false // its streams find that out
	}
	if n.judged != policy {
		n.judged, n.barred = policy, !policy.keeps(n.transport, n.key.identity, group)
	}
	return n.barred
}

// presence is what is to be stored of a node.
type presence struct {
	group     string
	transport Transport
	protocol  Protocol
	left      int64     // Unix seconds; 0 while it is connected
	asked     []string  // the names under which it has something
	returning *nameSet  // what it may come back to; nil for nothing
	again     time.Time // when it has to be looked at again; zero for never
}

// presence returns what is to be stored of a node; false for nothing.
func (l *ledger) presence(key nodeKey, policy *Policy, now time.Time) (presence, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[key]
	if n == nil {
		return presence{}, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lostRight(policy, n.group) {
		return presence{}, false
	}
	p := presence{group: n.group, transport: n.transport, protocol: n.protocol}
	if !n.connected && !n.dismissed {
		p.left = n.since.Unix()
		if now.Sub(n.since) >= keptAbsent {
			return presence{}, false
		}
	}
	if n.mayReturn(now) {
		p.returning = n.stored
		if n.connected {
			p.again = n.until
		}
	}
	for name, r := range n.records {
		if n.counts(r) && r.given() {
			p.asked = append(p.asked, name)
		}
	}
	for name, until := range n.leaving(now) {
		if n.records[name].given() {
			p.asked, p.again = append(p.asked, name), later(p.again, until)
		}
	}
	return p, true
}

// enlist notes that the store has the secrets of a node, if that is in the group still.
func (l *ledger) enlist(key nodeKey, group string, names *nameSet) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[key]
	if n == nil || n.group != group {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	l.list(n, names)
}

// readmit takes over a node from the store. It is offline, last seen at since. They come sorted by that.
func (l *ledger) readmit(key nodeKey, p presence, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[key]
	if n == nil {
		if l.makeRoom(key.identity, p.group) != nil {
			return // unreachable: all known nodes are offline
		}
		n = l.add(key)
	}
	if n.group != p.group {
		l.regroup(n, p.group)
	}
	r := l.groups[n.group]
	if n.parked != nil {
		r.offline.Remove(n.parked)
	}
	n.parked = r.offline.PushBack(n)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.transport, n.protocol, n.since, n.awaited = p.transport, p.protocol, since, true
	l.list(n, p.returning)
}

// unwelcome lists the offline nodes that have no right to their group any more.
func (l *ledger) unwelcome(policy *Policy) []nodeKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []nodeKey
	for key, n := range l.nodes {
		n.mu.Lock()
		if n.lostRight(policy, n.group) {
			keys = append(keys, key)
		}
		n.mu.Unlock()
	}
	return keys
}

// absent lists the nodes that are offline for which the answer of want is true.
func (l *ledger) absent(want func(key nodeKey, since time.Time) bool) []nodeKey {
	l.mu.Lock()
	defer l.mu.Unlock()
	var keys []nodeKey
	for key, n := range l.nodes {
		n.mu.Lock()
		if !n.connected && want(key, n.since) {
			keys = append(keys, key)
		}
		n.mu.Unlock()
	}
	return keys
}

// absentNames are the secrets of the store under which an offline node is shown. The caller holds mu.
func (n *node) absentNames() []string {
	if n.connected || !n.awaited || n.stored == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(n.stored.names), func(name string) bool {
		r := n.records[name]
		return r != nil && (n.counts(r) || len(r.nacks) > 0)
	})
}
