package rollout

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Fleet tells how the nodes stand. It is asked after every change of the ledger and must not block. It knows the nodes also after a restart of the
// server: those that are not back count as last seen when it started, where nobody saw them leave.
type Fleet interface {
	// Progress returns the nodes of a group that subscribe, or did when last seen, to at least one of the wanted secrets.
	Progress(group string, want map[string]secret.Version) []NodeProgress
	// Displaces reports whether a new secret with these DNS names might take the place of another one under names that nodes of the group have asked for.
	Displaces(group, name string, dnsNames []string) bool
}

// NodeProgress is how one node stands with the wanted versions.
type NodeProgress struct {
	Identity  string
	Node      string
	Connected bool
	Acked     bool      // every wanted secret that it subscribes to is ACKed at the wanted version
	Nacked    *NACK     // it refused one of the wanted versions
	Since     time.Time // of its oldest unacknowledged send; zero if nothing is outstanding
	LastSeen  time.Time // when it was last connected; for one that was there when the server ended, when that started again
	// Returning is until when a node that has just come back may still ask for what it subscribed to before; it is not Connected until it did.
	Returning time.Time
	// Unsubscribed: it subscribes to none of the wanted secrets any more, though it did. It is not Connected, and LastSeen is zero.
	Unsubscribed bool
}

// NACK is a refusal by a node.
type NACK struct {
	Secret  string
	Version secret.Version
	Message string
}

// verdict is what the nodes say of a wave.
type verdict struct {
	nodes   Nodes
	nack    *NACK
	nackBy  string
	late    string    // the node that let ack_timeout pass
	unacked []string  // nodes that are there and have not ACKed
	recheck time.Time // when the verdict may change without an event; zero: never
	members []Member  // the wave's members as they stand now
	changed bool      // a member has gone or come back
}

// jury weighs what the nodes of a wave say.
type jury struct {
	policy Policy
	now    time.Time
	unsent map[string]time.Time // by member key: since when a connected node has not been sent anything; nil: not asked
}

// judge weighs the nodes of a wave: the members at the time of the move, and all that are connected now.
func (j jury) judge(w Wave, progress map[string][]NodeProgress) verdict {
	v := verdict{members: w.Members}
	index := make(map[string]int, len(w.Members))
	for i, m := range w.Members {
		index[m.Node] = i
	}
	seen := make([]bool, len(w.Members))
	var left []string                                          // members that no longer subscribe
	for _, group := range slices.Sorted(maps.Keys(progress)) { // in one order: where several refuse, the same one is named
		for _, n := range progress[group] {
			key := memberKey(group, n.Identity, n.Node)
			i, member := index[key]
			switch {
			case member && n.Unsubscribed:
				seen[i], left = true, append(left, key)
				continue
			case member:
				seen[i] = true
				v.note(w, i, n.gone())
			case !n.Connected && n.Nacked == nil && n.Returning.IsZero():
				continue // it was gone long before the move: ordinary scaling in
			}
			j.weigh(&v, w, key, n)
		}
	}
	for i := range w.Members {
		if seen[i] {
			continue
		}
		if w.Members[i].Gone == 0 { // not heard of since this server started, or no subscriber any more
			v.note(w, i, j.now.Unix())
		}
		j.absent(&v, time.Unix(v.members[i].Gone, 0))
	}
	v.dismiss(left)
	return v
}

// dismiss drops members for which nothing waits any more, also if they leave now.
func (v *verdict) dismiss(keys []string) {
	if len(keys) > 0 {
		v.members, v.changed = slices.DeleteFunc(slices.Clone(v.members), func(m Member) bool { return slices.Contains(keys, m.Node) }), true
	}
}

// gone returns the Unix seconds at which a node was last seen; 0 while it is connected.
func (n NodeProgress) gone() int64 {
	if n.Connected || !n.Returning.IsZero() {
		return 0
	}
	return n.LastSeen.Unix()
}

// note takes over when a member was last seen.
func (v *verdict) note(w Wave, i int, gone int64) {
	if v.members[i].Gone == gone {
		return
	}
	if !v.changed {
		v.members, v.changed = slices.Clone(w.Members), true
	}
	v.members[i].Gone = gone
}

func (j jury) weigh(v *verdict, w Wave, key string, n NodeProgress) {
	waiting := n.Connected && !n.Acked && n.Nacked == nil
	if waiting {
		v.unacked = append(v.unacked, n.Node)
	}
	if !waiting || !n.Since.IsZero() {
		delete(j.unsent, key)
	}
	switch {
	case n.Nacked != nil:
		v.nodes.Expected++
		v.nodes.Nacked++
		v.nack, v.nackBy = n.Nacked, fmt.Sprintf("%s (%s)", n.Node, n.Identity)
	case n.Acked:
		v.nodes.Expected++
		v.nodes.Acked++
	case !n.Returning.IsZero():
		v.nodes.Expected++
		v.wakeAt(n.Returning)
	case !n.Connected:
		j.absent(v, n.LastSeen)
	default:
		v.nodes.Expected++
		limit := later(w.At, j.since(key, n)).Add(j.policy.AckTimeout)
		if !j.now.Before(limit) {
			v.late = n.Node
			return
		}
		v.wakeAt(limit)
	}
}

// since returns from when ack_timeout runs, at the earliest from the move: from the send, or, for a connected node whose stream does not
// move, from when that was noticed.
func (j jury) since(key string, n NodeProgress) time.Time {
	switch {
	case !n.Since.IsZero():
		return n.Since
	case j.unsent == nil:
		return j.now
	}
	if _, ok := j.unsent[key]; !ok {
		j.unsent[key] = j.now
	}
	return j.unsent[key]
}

// absent counts a disconnected node until its grace has passed; then it leaves the count.
func (j jury) absent(v *verdict, lastSeen time.Time) {
	if until := lastSeen.Add(j.policy.NodeGrace); j.now.Before(until) {
		v.nodes.Expected++
		v.wakeAt(until)
	}
}

func (v *verdict) wakeAt(t time.Time) {
	if v.recheck.IsZero() || t.Before(v.recheck) {
		v.recheck = t
	}
}

// refusal says who refused which version, and why.
func (v *verdict) refusal() string {
	return fmt.Sprintf("%s refused %s version %s: %s", v.nackBy, v.nack.Secret, v.nack.Version.Short(), v.nack.Message)
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// memberKey is what a wave keeps of a node.
func memberKey(group, identity, node string) string {
	sum := sha256.Sum256([]byte(group + "\x00" + identity + "\x00" + node))
	return base64.RawURLEncoding.EncodeToString(sum[:8])
}
