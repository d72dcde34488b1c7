package rollout

import (
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Fleet tells how the nodes stand. It is asked after every change of the ledger and must not block.
type Fleet interface {
	// Progress returns the nodes of a group that subscribe, or did when last seen, to at least one of the wanted secrets.
	Progress(group string, want map[string]secret.Version) []NodeProgress
}

// NodeProgress is how one node stands with the wanted versions.
type NodeProgress struct {
	Identity  string
	Node      string
	Connected bool
	Acked     bool      // every wanted secret that it subscribes to is ACKed at the wanted version
	Nacked    *NACK     // it refused one of the wanted versions
	Since     time.Time // of its oldest unacknowledged send; zero if nothing is outstanding
	LastSeen  time.Time // when it was last connected
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
	recheck time.Time // when the verdict may change without an event; zero: never
}

// judge weighs the nodes of a wave: the members at the time of the move, and all that are connected now.
func judge(w Wave, progress map[string][]NodeProgress, p Policy, started, now time.Time) verdict {
	var v verdict
	seen := map[Member]bool{}
	for group, nodes := range progress {
		for _, n := range nodes {
			m := Member{Identity: n.Identity, Node: n.Node, Group: group}
			if !n.Connected && !slices.Contains(w.Members, m) {
				continue // it was gone before the move: ordinary scaling in
			}
			seen[m] = true
			v.weigh(n, p, now)
		}
	}
	for _, m := range w.Members {
		if !seen[m] { // not heard of since this server started
			v.absent(later(started, w.At).Add(p.NodeGrace), now)
		}
	}
	return v
}

func (v *verdict) weigh(n NodeProgress, p Policy, now time.Time) {
	switch {
	case n.Nacked != nil:
		v.nodes.Expected++
		v.nodes.Nacked++
		v.nack, v.nackBy = n.Nacked, fmt.Sprintf("%s (%s)", n.Node, n.Identity)
	case n.Acked:
		v.nodes.Expected++
		v.nodes.Acked++
	case !n.Connected:
		v.absent(n.LastSeen.Add(p.NodeGrace), now)
	default:
		v.nodes.Expected++
		if n.Since.IsZero() {
			return
		}
		limit := n.Since.Add(p.AckTimeout)
		if !now.Before(limit) {
			v.late = n.Node
			return
		}
		v.wakeAt(limit)
	}
}

// absent counts a disconnected node until its grace has passed; then it leaves the count.
func (v *verdict) absent(until, now time.Time) {
	if now.Before(until) {
		v.nodes.Expected++
		v.wakeAt(until)
	}
}

func (v *verdict) wakeAt(t time.Time) {
	if v.recheck.IsZero() || t.Before(v.recheck) {
		v.recheck = t
	}
}

// passed reports whether every counted node has ACKed.
func (v *verdict) passed() bool { return v.nodes.Acked == v.nodes.Expected }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
