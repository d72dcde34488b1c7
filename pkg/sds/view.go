package sds

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// State is how a node stands to its group.
type State string

// The states of a node. They compare versions of secrets, not snapshot numbers.
const (
	Synced  State = "SYNCED"  // acknowledged everything that it subscribes to and its group serves
	Stale   State = "STALE"   // did not yet
	Nacked  State = "NACKED"  // rejected something that its group is at
	Offline State = "OFFLINE" // has no stream
)

// Protocol is how a node asks.
type Protocol string

// The protocols, as the nodes command shows them.
const (
	SotW     Protocol = "sotw"
	Delta    Protocol = "delta"
	ADSSotW  Protocol = "ads-sotw"
	ADSDelta Protocol = "ads-delta"
)

// delta reports whether the node is told differences; otherwise it is the state of the world.
func (p Protocol) delta() bool { return p == Delta || p == ADSDelta }

// aggregated reports whether the stream could carry other types, too, which the other servers of ADS do.
func (p Protocol) aggregated() bool { return p == ADSSotW || p == ADSDelta }

// Node is one Envoy as the nodes command shows it.
type Node struct {
	ID        string    `json:"id"`
	Group     string    `json:"group"`
	Identity  string    `json:"identity"`
	Transport Transport `json:"transport"`
	Protocol  Protocol  `json:"protocol"`
	Connected bool      `json:"connected"`
	Since     time.Time `json:"since"`    // when it connected, or left
	Snapshot  uint64    `json:"snapshot"` // that its group is at
	State     State     `json:"state"`
	// Address is where its newest stream comes from: loopback for a Unix socket, not valid where that is not known. It is proven by the
	// connection, unlike anything that the node says of itself.
	Address netip.Addr   `json:"-"`
	Secrets []NodeSecret `json:"secrets"` // sorted by name; those that it subscribes to, or did when it left
}

// NodeSecret is one secret of a node. Absent parts are nil.
type NodeSecret struct {
	Name   string         `json:"name"` // that it asked for
	Want   secret.Version `json:"want"` // what its group is at; empty: nothing, or nothing that it may have
	Sent   *VersionAt     `json:"sent"`
	Acked  *VersionAt     `json:"acked"`
	Nacked *NACK          `json:"nacked"` // the newest
	Served *Served        `json:"served"` // filled in by whoever made handshakes
	// CoveredBy is the secret of which it is given the certificate; empty where that is the one of this name.
	CoveredBy string `json:"covered_by,omitempty"`
}

// VersionAt is a version and when something was done with it.
type VersionAt struct {
	Version secret.Version `json:"version"`
	At      time.Time      `json:"at"`
}

// NACK is a rejected version.
type NACK struct {
	Secret  string         `json:"secret,omitempty"` // empty where it is the one of the name that was asked for
	Version secret.Version `json:"version"`
	At      time.Time      `json:"at"`
	Message string         `json:"message"` // by the Envoy; up to 1 KiB, printable
}

// Served is what a handshake with the node showed.
type Served struct {
	Serial  string         `json:"serial"`
	Version secret.Version `json:"version"`
	At      time.Time      `json:"at"`
}

// Nodes returns every node that is or was connected in one of the groups, sorted by group, id and identity; without groups, in any.
func (s *Server) Nodes(groups ...string) []Node {
	policy := s.rights.Load().policy
	var nodes []Node
	for group, members := range s.ledger.members(groups...) {
		at, ok := s.cache.At(group)
		if !ok {
			continue
		}
		w := wants{server: s, policy: policy, group: group, at: at}
		for _, n := range members {
			nodes = append(nodes, n.view(w))
		}
	}
	slices.SortFunc(nodes, func(a, b Node) int {
		return cmp.Or(strings.Compare(a.Group, b.Group), strings.Compare(a.ID, b.ID), strings.Compare(a.Identity, b.Identity))
	})
	return nodes
}

// members lists the nodes of each of the groups; without groups, of every one.
func (l *ledger) members(groups ...string) map[string][]*node {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(groups) == 0 {
		groups = slices.Collect(maps.Keys(l.groups))
	}
	members := make(map[string][]*node, len(groups))
	for _, group := range groups {
		if r := l.groups[group]; r != nil {
			members[group] = slices.Collect(maps.Keys(r.nodes))
		}
	}
	return members
}

func (n *node) view(w wants) Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	v := Node{
		ID: n.key.id, Group: w.group, Identity: n.key.identity, Transport: n.transport, Protocol: n.protocol, Connected: n.connected,
		Since: n.since.UTC(), Address: n.address, Snapshot: w.at.Number, State: n.state(w), Secrets: []NodeSecret{},
	}
	for name, r := range n.records {
		if !n.counts(r) && (n.connected || len(r.nacks) == 0) { // of an offline node, also what it rejected before a restart of ours
			continue
		}
		want, by := w.of(name)
		if r.evicted && by != name {
			want, by = "", name
		}
		one := NodeSecret{Name: name, Want: want, Sent: versionAt(r.sent, r.sentAt), Acked: versionAt(r.acked, r.ackedAt)}
		if by != name {
			one.CoveredBy = by
		}
		if len(r.nacks) > 0 {
			one.Nacked = new(r.nacks[len(r.nacks)-1])
			if one.Nacked.Secret == name {
				one.Nacked.Secret = ""
			}
		}
		v.Secrets = append(v.Secrets, one)
	}
	for _, name := range n.absentNames() {
		want, _ := w.of(name)
		v.Secrets = append(v.Secrets, NodeSecret{Name: name, Want: want})
	}
	slices.SortFunc(v.Secrets, func(a, b NodeSecret) int { return strings.Compare(a.Name, b.Name) })
	return v
}

func versionAt(version secret.Version, nanoseconds int64) *VersionAt {
	if version == "" {
		return nil
	}
	return &VersionAt{Version: version, At: time.Unix(0, nanoseconds).UTC()}
}

// wants says what the nodes of a group should have.
type wants struct {
	server *Server
	policy *Policy
	group  string
	at     *cache.Snapshot
}

// of returns the version that is wanted under a name, and the secret of which it is one; empty for none.
func (w wants) of(name string) (version secret.Version, secretName string) {
	if version, ok := w.at.Secrets.Version(name); ok {
		if !w.policy.Allowed(w.group, name) {
			return "", ""
		}
		return version, name
	}
	if res := w.server.wanted(w.policy, w.group, name); res != nil {
		return res.Version, res.Name
	}
	return "", ""
}

// counts reports whether the node subscribes to the name: now, or, if it is offline, when it left. The caller holds mu.
func (n *node) counts(r *record) bool {
	return r.streams > 0 || (!n.connected && r.subscribed)
}

// state compares the node with its group. The caller holds mu.
func (n *node) state(w wants) State {
	if !n.connected {
		return Offline
	}
	state := Synced
	for name, r := range n.records {
		want, of := secret.Version(""), ""
		if n.counts(r) {
			want, of = w.of(name)
		}
		switch {
		case want == "", r.evicted && of != name:
		case n.refusal(name, r, of, want) != nil:
			return Nacked
		case r.acked != want:
			state = Stale
		}
	}
	return state
}

// count returns how many nodes of each group are in each state. Groups without a node are counted, too.
func (s *Server) count() map[string]map[State]int {
	policy := s.rights.Load().policy
	members := s.ledger.members()
	counts := make(map[string]map[State]int, len(policy.groups))
	for _, g := range policy.groups {
		counts[g.name] = map[State]int{}
		at, ok := s.cache.At(g.name)
		if !ok {
			continue
		}
		for _, n := range members[g.name] {
			n.mu.Lock()
			counts[g.name][n.state(wants{server: s, policy: policy, group: g.name, at: at})]++
			n.mu.Unlock()
		}
	}
	return counts
}

// Displaces reports whether nodes of a group that were given another secret's certificate under a name that they asked for (on-demand) might be given
// that of a new secret of this name, with these DNS names, instead.
func (s *Server) Displaces(group, name string, dnsNames []string) bool {
	policy := s.rights.Load().policy
	if !policy.Allowed(group, name) {
		return false
	}
	names := []string{strings.ToLower(name)}
	for _, n := range dnsNames {
		names = append(names, strings.ToLower(n))
	}
	for _, asked := range s.ledger.asked(group, names) {
		if res := s.wanted(policy, group, asked); res != nil && res.Name != name && res.Name != asked {
			return true
		}
	}
	return false
}
