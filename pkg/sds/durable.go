package sds

import (
	"cmp"
	"maps"
	"slices"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// This is the side of the ledger that the keeper sees.

// export returns what is to be stored of a record; false if there is nothing that the node rejected.
func (l *ledger) export(id recordID) (storedRecord, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[id.node]
	if n == nil {
		return storedRecord{}, false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.records[id.name]
	if r == nil || len(r.nacks) == 0 {
		return storedRecord{}, false
	}
	s := storedRecord{
		Identity: id.node.identity, Node: id.node.id, Secret: id.name, Group: n.group, Transport: n.transport, Protocol: n.protocol,
		Good: r.goodVersion(), NACKs: slices.Clone(r.nacks),
	}
	if name := r.goodSecret(id.name); name != id.name {
		s.GoodSecret = name
	}
	for i := range s.NACKs {
		if s.NACKs[i].Secret == id.name { // which the key says already
			s.NACKs[i].Secret = ""
		}
	}
	return s, true
}

// goodVersion is what the node goes on with: what it acknowledged last, or, where that was before our time, said that it has.
func (r *record) goodVersion() secret.Version {
	if r.good != nil {
		return r.good.Version
	}
	return r.acked
}

// goodSecret is the secret that goodVersion is one of.
func (r *record) goodSecret(name string) string {
	if r.good != nil {
		return r.good.Name
	}
	return cmp.Or(r.covering, name)
}

// lacks reports whether a node goes on with a version of which the bytes are not in memory.
func (l *ledger) lacks(id recordID, version secret.Version) bool {
	lacks := false
	l.with(id, func(_ *node, r *record) { lacks = r.good == nil && r.acked == version })
	return lacks
}

// recall gives back the bytes that a node goes on with.
func (l *ledger) recall(id recordID, res *cache.Resource) {
	l.with(id, func(_ *node, r *record) {
		if r.good == nil && r.acked == res.Version && !r.rejected(res.Version) {
			r.good = res
		}
	})
}

// with calls do for a record, if there is one.
func (l *ledger) with(id recordID, do func(*node, *record)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[id.node]
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r := n.records[id.name]; r != nil {
		do(n, r)
	}
}

// restore takes over a stored record. Its node is offline, and subscribes to nothing until it comes back.
func (l *ledger) restore(id recordID, s storedRecord, good *cache.Resource) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.nodes[id.node]
	if n == nil {
		_ = l.makeRoom(id.node.identity, s.Group) // all known nodes are offline, so there is room
		n = l.add(id.node)
		n.transport, n.protocol = s.Transport, s.Protocol
	}
	if n.group != s.Group {
		l.regroup(n, s.Group)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.since = s.last() // they come sorted by it
	if n.parked != nil {
		l.groups[n.group].offline.Remove(n.parked)
	}
	n.parked = l.groups[n.group].offline.PushBack(n)
	r := &record{good: good, nacks: s.NACKs}
	n.records[id.name] = r
	for i := range s.NACKs {
		if s.NACKs[i].Secret == "" {
			s.NACKs[i].Secret = id.name
		} else {
			n.refusing[id.name] = r
			l.groups[n.group].refused[n] = struct{}{}
		}
	}
}

// forgetNACKs drops the NACKs of a secret's versions for which gone is true.
func (l *ledger) forgetNACKs(name string, gone func(secret.Version) bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.nodes {
		n.mu.Lock()
		if r := n.records[name]; r != nil {
			n.forgetNACKs(name, r, name, gone)
		}
		for asked, r := range n.refusing {
			n.forgetNACKs(asked, r, name, gone)
		}
		if len(n.refusing) == 0 {
			delete(l.groups[n.group].refused, n)
		}
		n.mu.Unlock()
	}
}

// forgetNACKs drops those of a secret from one record. The caller holds mu.
func (n *node) forgetNACKs(asked string, r *record, secretName string, gone func(secret.Version) bool) {
	before := len(r.nacks)
	r.nacks = slices.DeleteFunc(r.nacks, func(nack NACK) bool { return nack.Secret == secretName && gone(nack.Version) })
	if len(r.nacks) != before {
		n.changed(n.key, asked)
	}
	if !slices.ContainsFunc(r.nacks, func(nack NACK) bool { return nack.Secret != asked }) {
		delete(n.refusing, asked)
	}
	if len(r.nacks) == 0 && r.streams == 0 && !r.subscribed {
		delete(n.records, asked)
	}
}

// Refusers returns the identities whose nodes rejected a version of a secret, sorted.
func (s *Server) Refusers(name string, version secret.Version) []string {
	who := map[string]struct{}{}
	s.ledger.mu.Lock()
	defer s.ledger.mu.Unlock()
	for _, n := range s.ledger.nodes {
		n.mu.Lock()
		if n.rejected(name, version) {
			who[n.key.identity] = struct{}{}
		}
		n.mu.Unlock()
	}
	return slices.Sorted(maps.Keys(who))
}

// rejected reports whether the node rejected a version of a secret, under its name or another one. The caller holds mu.
func (n *node) rejected(name string, version secret.Version) bool {
	is := func(nack NACK) bool { return nack.Secret == name && nack.Version == version }
	if r := n.records[name]; r != nil && slices.ContainsFunc(r.nacks, is) {
		return true
	}
	for _, r := range n.refusing {
		if slices.ContainsFunc(r.nacks, is) {
			return true
		}
	}
	return false
}

// good returns the versions of a secret with which nodes go on that rejected another one.
func (l *ledger) good(name string) map[secret.Version]bool {
	versions := map[secret.Version]bool{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, n := range l.nodes {
		n.mu.Lock()
		add := func(asked string, r *record) {
			if v := r.goodVersion(); v != "" && len(r.nacks) > 0 && r.goodSecret(asked) == name {
				versions[v] = true
			}
		}
		if r := n.records[name]; r != nil {
			add(name, r)
		}
		for asked, r := range n.refusing {
			add(asked, r)
		}
		n.mu.Unlock()
	}
	return versions
}

// Refers reports which versions of a secret must stay stored because nodes that rejected another one go on with them (DESIGN 4, invariant
// 6). It is asked before versions are pruned; NACKs of those that are gone by then are forgotten.
func (s *Server) Refers(name string) func(secret.Version) bool {
	good := s.ledger.good(name)
	if s.keeper != nil {
		s.keeper.sweep(name)
	}
	return func(v secret.Version) bool { return good[v] }
}

// changedFunc is told that what a node rejected, or goes on with after that, has changed. It is called with locks held.
type changedFunc func(node nodeKey, name string)
