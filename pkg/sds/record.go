package sds

import (
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// record is what a node and we said about one name. All of it is guarded by the node's mu.
type record struct {
	streams    int            // that subscribe to it now
	subscribed bool           // and did not unsubscribe, though the stream may have ended
	sent       secret.Version // empty: nothing, or its removal
	sentAt     int64          // Unix nanoseconds, as all times here: there are many records
	acked      secret.Version
	ackedAt    int64
	good       *cache.Resource // the bytes that were acknowledged last
	nacks      []NACK          // oldest first
	pushed     secret.Version  // that was recorded last (see gate); empty: none
	covering   string          // the secret of which sent and acked are versions, where that is not the one of this name
	alias      *alias          // nil unless the node is given that secret now
	evicted    bool            // made room for other aliases, and was not asked for since
}

// drop ends a node's interest in a name. What it rejected stays known. The caller holds both locks.
func (l *ledger) drop(n *node, name string, r *record) {
	l.groups[n.group].remove(name, n)
	if len(r.nacks) == 0 {
		delete(n.records, name)
		return
	}
	r.subscribed = false
	r.reset()
	if n.refusing[name] != nil {
		l.groups[n.group].refused[n] = struct{}{}
	}
}

// subscribe counts one more stream of the node that wants a name. A node that comes anew has acknowledged nothing yet: an Envoy
// that was restarted has lost what it had.
func (l *ledger) subscribe(n *node, name string) *record {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	r := n.records[name]
	if r == nil {
		r = &record{}
		n.records[name] = r
	}
	if r.streams == 0 {
		r.reset()
	}
	r.streams++
	r.subscribed = true
	n.forgetPast(name)
	l.groups[n.group].add(name, n)
	return r
}

// reset forgets what the node was sent and has.
func (r *record) reset() {
	r.sent, r.sentAt, r.acked, r.ackedAt, r.covering, r.evicted = "", 0, "", 0, "", false
}

// unsubscribe ends the interest of one stream, which listens by listener.
func (l *ledger) unsubscribe(n *node, name string, r *record, listener *cache.Subscriber) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.unlisten(r, listener)
	r.streams--
	if r.streams == 0 {
		n.lose(name, r)
		l.drop(n, name, r)
	}
}

// rejected reports whether the node has said no to a version under this name.
func (r *record) rejected(version secret.Version) bool {
	return slices.ContainsFunc(r.nacks, func(n NACK) bool { return n.Version == version })
}

// noteSent records that res is under way; nil for a removal.
func (n *node) noteSent(name string, r *record, res *cache.Resource, at time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	before := *r
	r.sent, r.sentAt = "", at.UnixNano()
	if res != nil {
		r.sent = res.Version
		r.cover(name, res.Name)
	}
	switch {
	case res != nil && (before.sent == "" || before.covering != r.covering):
		n.gain(name, res.Name)
	case res == nil && before.sent != "":
		n.lose(name, &before)
	}
}

// cover notes which secret a name stands for.
func (r *record) cover(name, secretName string) {
	r.covering = ""
	if secretName != name {
		r.covering = secretName
	}
}

// noteACK records that the node acknowledged res, or has it already. It reports whether that counts: bytes that it rejected before
// are acknowledged without being applied (facts/envoy-sds.md, trap 1).
func (n *node) noteACK(name string, r *record, res *cache.Resource, at time.Time) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.rejected(res.Version) {
		return false
	}
	if len(r.nacks) > 0 && r.goodVersion() != res.Version {
		n.changed(n.key, name)
	}
	r.acked, r.ackedAt, r.good = res.Version, at.UnixNano(), res
	r.cover(name, res.Name)
	return true
}

// noteKnown records that the node says it has a version from before, which is taken to be one of the named secret. It counts like an
// acknowledgement. It reports whether that can be: an Envoy also says it of bytes that it rejected, and then acknowledged without applying
// them.
func (n *node) noteKnown(name string, r *record, secretName string, version secret.Version, at time.Time) bool {
	if len(version) != versionLength {
		return false // none of ours, and possibly long
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if r.rejected(version) {
		return false
	}
	r.acked, r.ackedAt = version, at.UnixNano()
	r.cover(name, secretName)
	n.gain(name, secretName)
	return true
}

// noteGone records that the node acknowledged the removal of a name.
func (n *node) noteGone(r *record) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r.acked, r.ackedAt = "", 0
}

// noteNACK records that the node rejected a version that it was sent under a name.
func (n *node) noteNACK(name string, r *record, nack NACK) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r.nacks = slices.DeleteFunc(r.nacks, func(old NACK) bool { return old.Version == nack.Version })
	r.nacks = append(r.nacks, nack)
	r.nacks = r.nacks[max(0, len(r.nacks)-maxNACKs):]
	if r.good != nil && r.good.Version == nack.Version {
		r.good = nil
	}
	if r.acked == nack.Version {
		r.acked, r.ackedAt = "", 0
	}
	if nack.Secret != name {
		n.refusing[name] = r
	}
	n.changed(n.key, name)
}
