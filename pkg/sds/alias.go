package sds

import (
	"cmp"
	"container/list"
	"slices"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// This is about names that are no secret's own: an on-demand Envoy asks for whatever its clients send as SNI, so that the names come from the
// internet (DESIGN 5). Such a name is an alias of the certificate that covers it. It is sent that certificate's shared body under its own
// name, and everything that the node says is kept under its own name, too.

// alias is a name under which a node was given another secret's certificate.
type alias struct {
	name      string
	record    *record
	place     *list.Element       // in node.aliases
	listeners []*cache.Subscriber // of the node's streams that were given it
}

// resolve appends what a node of the group may have under a name, the best first: the secret of that name, or the certificates that cover
// it. There is nothing under the name of a secret that the group may not have.
func (s *Server) resolve(found []*cache.Resource, policy *Policy, group, name string) ([]*cache.Resource, uint64) {
	res, snapshot := s.cache.Resource(group, name)
	if res != nil {
		if policy.Allowed(group, name) {
			found = append(found, res)
		}
		return found, snapshot
	}
	return s.covering(found, policy, group, name), snapshot
}

// covering appends the certificates that cover a name, of those that a node of the group may have.
func (s *Server) covering(found []*cache.Resource, policy *Policy, group, name string) []*cache.Resource {
	for _, res := range s.cache.Covering(group, name) {
		if policy.Allowed(group, res.Name) {
			found = append(found, res)
		}
	}
	return found
}

// standIn reports whether the node goes on with another secret's certificate under a name, and rejected all that there was of the name's own.
func (n *node) standIn(r *record, name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return r.good != nil && r.good.Name != name
}

// choice returns what the node may be sent of what it should have, and what it should have: see choose. A secret that came to be after its name was
// covered by others, and that the node rejects, takes nothing away from it: it goes on with those, as far as it still may have them.
func (st *stream) choice(name string, sub *subscription, found []*cache.Resource) (*cache.Resource, []*cache.Resource) {
	res := st.node.choose(sub.record, name, found)
	if res == nil && found[0].Name == name && st.node.standIn(sub.record, name) {
		found = st.server.covering(found[:0], st.rights.policy, st.group, name)
		res = st.node.choose(sub.record, name, found)
	}
	return res, found
}

// wanted returns what a node of the group should have under a name; nil for nothing.
func (s *Server) wanted(policy *Policy, group, name string) *cache.Resource {
	if found, _ := s.resolve(nil, policy, group, name); len(found) > 0 {
		return found[0]
	}
	return nil
}

// holdAlias reports whether a stream of the node may be given a certificate under a name that is not its own, and how many aliases made
// room for it. The one that was asked for the longest time ago makes room: its streams say that it is gone, and an Envoy whose clients
// want it asks again. So names that nobody asks for twice cannot lock out real ones. SotW has no word for that, and what is not said to
// be gone would be served for ever: there the new name is the one that gets nothing.
func (n *node) holdAlias(name string, r *record, listener *cache.Subscriber, limit int) (ok bool, evicted int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.evicted {
		return false, 0
	}
	if r.alias == nil {
		for n.aliases.Len() >= limit {
			if !n.protocol.delta() {
				r.evicted = true
				return false, 1
			}
			oldest, _ := n.aliases.Front().Value.(*alias)
			oldest.record.evicted = true
			for _, l := range oldest.listeners {
				l.Wake(oldest.name)
			}
			n.letGo(oldest.record)
			evicted++
		}
		r.alias = &alias{name: name, record: r}
		r.alias.place = n.aliases.PushBack(r.alias)
	}
	if !slices.Contains(r.alias.listeners, listener) {
		r.alias.listeners = append(r.alias.listeners, listener)
	}
	return true, evicted
}

// askAlias notes that the Envoy asks for a name, again or for the first time.
func (n *node) askAlias(r *record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r.evicted = false
	if r.alias != nil {
		n.aliases.MoveToBack(r.alias.place)
	}
}

// leaveAlias ends that a stream was given something under an alias.
func (n *node) leaveAlias(r *record, listener *cache.Subscriber) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unlisten(r, listener)
}

// unlisten drops a stream from an alias, which ends with its last stream. The caller holds mu.
func (n *node) unlisten(r *record, listener *cache.Subscriber) {
	if r.alias == nil {
		return
	}
	r.alias.listeners = slices.DeleteFunc(r.alias.listeners, func(l *cache.Subscriber) bool { return l == listener })
	if len(r.alias.listeners) == 0 {
		n.letGo(r)
	}
}

// letGo forgets an alias. The caller holds mu.
func (n *node) letGo(r *record) {
	n.aliases.Remove(r.alias.place)
	r.alias = nil
}

// refusal returns the node's rejection of a version of a secret, under whatever name it was sent; nil if there is none. The same bytes are
// not sent again under another name: they would be rejected there, too, and a handshake would wait for them in vain. Under the same name it does not
// matter whose bytes they were, because an Envoy ACKs what it rejected without applying it. The caller holds mu.
func (n *node) refusal(name string, r *record, secretName string, version secret.Version) *NACK {
	if i := slices.IndexFunc(r.nacks, func(k NACK) bool { return k.Version == version }); i >= 0 {
		return &r.nacks[i]
	}
	if secretName != name {
		if own := n.records[secretName]; own != nil {
			if k := own.refusal(secretName, version); k != nil {
				return k
			}
		}
	}
	for _, other := range n.refusing {
		if k := other.refusal(secretName, version); k != nil {
			return k
		}
	}
	return nil
}

func (r *record) refusal(secretName string, version secret.Version) *NACK {
	for i := range r.nacks {
		if r.nacks[i].Version == version && r.nacks[i].Secret == secretName {
			return &r.nacks[i]
		}
	}
	return nil
}

// standsFor returns the secret that the node was sent under a name.
func (n *node) standsFor(name string, r *record) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return cmp.Or(r.covering, name)
}

// knows reports whether the bytes that the node acknowledged last are known.
func (n *node) knows(r *record) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return r.good != nil
}

// choose returns what the node may be sent of what it should have, the best first: that itself, or, where the node rejected it, the last bytes of
// the same secret that it acknowledged, under this name or another one that they cover. Where there are none, it is the next best. It
// returns nil where nothing is left.
func (n *node) choose(r *record, name string, found []*cache.Resource) *cache.Resource {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, res := range found {
		if n.refusal(name, r, res.Name, res.Version) == nil {
			return res
		}
		if r.good != nil && r.good.Name == res.Name {
			return r.good
		}
		if res.Name == name {
			continue
		}
		for _, other := range n.records {
			if g := other.good; g != nil && g.Name == res.Name && n.refusal(name, r, g.Name, g.Version) == nil && g.Covers(name) {
				return g
			}
		}
	}
	return nil
}
