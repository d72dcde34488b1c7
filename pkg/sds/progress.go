package sds

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// NodeProgress is how far one node is with a change.
type NodeProgress struct {
	Identity  string
	Node      string
	Connected bool
	// Acked is whether the node acknowledged every name that it subscribes to and that stands for a secret of the change, at the wanted
	// version.
	Acked bool
	// NACK is the newest rejection of a wanted version; nil if there is none.
	NACK *NACK
	// LastSeen is when the node went offline; now while it is connected. Of one that was connected when the server ended, however it did, it is
	// when this one began: nobody saw it leave.
	LastSeen time.Time
	// Since is when the oldest wanted version that is not acknowledged was sent; zero if none is under way.
	Since time.Time
	// Returning is until when a node that has just come back may still ask for what it had. It has acknowledged everything that it asked for
	// already, and counts as not connected. Zero: the node has said what it wants.
	Returning time.Time
	// Unsubscribed is whether the node subscribed to a secret of the change and is known not to any more: it ended that, what it asks for
	// stands for another secret now, it went to another group, or it lost the right to this one. There is nothing to wait for: it counts as not
	// connected, and LastSeen is zero.
	Unsubscribed bool
}

// Progress returns how far each node is that subscribes to at least one secret of a change in its group, or did when it went offline,
// sorted by identity and node: by the secret's name, or by a name that its certificate covers. One that rejected the wanted version under such a
// name counts, too, after it unsubscribed. A node that is known from the store only, or has just come back, subscribes to what it did before.
// An empty version is a removal, which no node has to acknowledge. Secrets that the group may not have do not count. The cost is that of the
// nodes which subscribe to the names, or did.
func (s *Server) Progress(group string, want map[string]secret.Version) []NodeProgress {
	q := inquiry{policy: s.rights.Load().policy, group: group, names: make(map[string]goal, len(want)), now: time.Now()}
	for name, version := range want {
		if !q.policy.Allowed(group, name) {
			continue
		}
		q.names[name] = goal{name, version}
		q.secrets = append(q.secrets, q.names[name])
		for _, asked := range s.ledger.asked(group, s.cache.DNSNames(group, name)) {
			if res := s.wanted(q.policy, group, asked); res != nil && res.Name == name && asked != name {
				q.names[asked] = goal{name, version}
			}
		}
	}
	nodes, moved := s.ledger.concerned(q)
	var progress []NodeProgress
	for _, n := range nodes {
		if p, ok := n.progress(q); ok {
			progress = append(progress, p)
		}
	}
	for _, key := range moved {
		progress = append(progress, NodeProgress{Identity: key.identity, Node: key.id, Unsubscribed: true})
	}
	slices.SortFunc(progress, func(a, b NodeProgress) int {
		return cmp.Or(strings.Compare(a.Identity, b.Identity), strings.Compare(a.Node, b.Node))
	})
	return progress
}

// inquiry is what Progress asks of each node.
type inquiry struct {
	policy  *Policy
	group   string
	secrets []goal          // of the change
	names   map[string]goal // that stand for them
	now     time.Time
}

// goal is the secret that a name stands for, and the version of it that is wanted.
type goal struct {
	secret  string
	version secret.Version
}

// asked lists the names that nodes of a group subscribe to and that certificates with the DNS names cover.
func (l *ledger) asked(group string, dnsNames []string) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.groups[group]
	if r == nil {
		return nil
	}
	var names []string
	for _, dnsName := range dnsNames {
		names = slices.AppendSeq(names, r.asked.CoveredBy(dnsName))
	}
	return names
}

// concerned lists the nodes of a group that subscribe to any of the names, or did, and those that may have rejected something under one of them
// before they unsubscribed; and those that went to another group.
func (l *ledger) concerned(q inquiry) (nodes []*node, moved []nodeKey) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.groups[q.group]
	if r == nil {
		return nil, nil
	}
	found := maps.Clone(r.refused)
	for name := range q.names {
		maps.Copy(found, r.subscribers[name])
	}
	for _, g := range q.secrets {
		r.listing.collect(g.secret, found)
		r.past.collect(g.secret, found)
	}
	for n := range r.moved {
		moved = append(moved, n.key)
	}
	return slices.Collect(maps.Keys(found)), moved
}

// among yields the records of a node that are in want, at the cost of the smaller side. The caller holds mu.
func (n *node) among(want map[string]goal) iter.Seq2[string, *record] {
	return func(yield func(string, *record) bool) {
		if len(n.records) < len(want) {
			for name, r := range n.records {
				if _, ok := want[name]; ok && !yield(name, r) {
					return
				}
			}
			return
		}
		for name := range want {
			if r := n.records[name]; r != nil && !yield(name, r) {
				return
			}
		}
	}
}

func (n *node) progress(q inquiry) (NodeProgress, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := NodeProgress{Identity: n.key.identity, Node: n.key.id, Connected: n.connected, Acked: true, LastSeen: q.now}
	if !n.connected {
		p.LastSeen = n.since
	}
	if n.lostRight(q.policy, q.group) {
		return p.unsubscribed(), true
	}
	subscribes := n.compare(q.names, &p)
	n.accuse(q.names, &p)
	switch {
	case p.NACK != nil:
		return p, true
	case n.absentee(q, &p):
		return p, true
	case subscribes:
		return p, true
	default:
		had := slices.ContainsFunc(q.secrets, func(g goal) bool { _, had := n.past[g.secret]; return had || n.stored.has(g.secret) })
		return p.unsubscribed(), had
	}
}

func (p NodeProgress) unsubscribed() NodeProgress {
	return NodeProgress{Identity: p.Identity, Node: p.Node, Unsubscribed: true}
}

// compare looks at the names that the node subscribes to, and reports whether there is one. The caller holds mu.
func (n *node) compare(want map[string]goal, p *NodeProgress) bool {
	subscribes := false
	for name, r := range n.among(want) {
		g := want[name]
		if !n.counts(r) || r.evicted && g.secret != name {
			continue
		}
		subscribes = true
		if g.version == "" || r.acked == g.version {
			continue
		}
		p.Acked = false
		if nack := n.refusal(name, r, g.secret, g.version); nack != nil {
			p.refuse(*nack, g.secret)
		} else if r.sent == g.version {
			if sent := time.Unix(0, r.sentAt); p.Since.IsZero() || sent.Before(p.Since) {
				p.Since = sent
			}
		}
	}
	return subscribes
}

// accuse looks at what the node rejected before it unsubscribed: an on-demand Envoy ends a subscription that it was told there is nothing
// under. The caller holds mu.
func (n *node) accuse(want map[string]goal, p *NodeProgress) {
	for _, r := range n.refusing {
		for _, nack := range r.nacks {
			if g := want[nack.Secret]; g.secret == nack.Secret && g.version == nack.Version {
				p.Acked = false
				p.refuse(nack, g.secret)
			}
		}
	}
}

// absentee looks at the secrets that the node may come back to, and reports whether p says all that there is to say because of one. The caller
// holds mu.
func (n *node) absentee(q inquiry, p *NodeProgress) bool {
	misses := false
	for _, g := range q.secrets {
		until, ok := n.returns(g.secret, q.now)
		if !ok || n.subscribesTo(g.secret, q.names) {
			continue
		}
		misses = true
		p.Returning = later(p.Returning, until)
		if g.version != "" {
			p.Acked = false
		}
	}
	switch {
	case !misses:
		return false
	case n.connected && !p.Acked && p.Since.IsZero(): // otherwise what is under way is waited for first
		p.Connected = false
	default:
		p.Returning = time.Time{}
	}
	return true
}

// subscribesTo reports whether the node subscribes to a secret, by its own or another of the names. The caller holds mu.
func (n *node) subscribesTo(secretName string, names map[string]goal) bool {
	for name, r := range n.among(names) {
		if names[name].secret == secretName && n.counts(r) && (!r.evicted || name == secretName) {
			return true
		}
	}
	return false
}

// returns reports whether the node may come back to a secret, and if it is connected, until when. The caller holds mu.
func (n *node) returns(secretName string, now time.Time) (until time.Time, ok bool) {
	if n.mayReturn(now) && n.stored.has(secretName) {
		if n.connected {
			until = n.until
		}
		return until, true
	}
	for name, at := range n.leaving(now) {
		if cmp.Or(n.records[name].covering, name) == secretName {
			until, ok = later(until, at), true
		}
	}
	return until, ok
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// refuse notes a rejection of a secret's wanted version.
func (p *NodeProgress) refuse(nack NACK, secretName string) {
	if p.NACK == nil || nack.At.After(p.NACK.At) {
		nack.Secret = secretName
		p.NACK = &nack
	}
}
