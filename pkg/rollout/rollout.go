// Package rollout moves node groups to new secret versions, one wave at a time, and back.
//
// It stands between pkg/cache, where it is the only one that moves a group, and pkg/sds, which tells it what the nodes ACKed. A new
// version becomes a Rollout; the Controller stores every transition with its reason before it acts (DESIGN 7), in the same commit
// as the groups' moves, so that a restart finds both or neither.
//
// This is the smallest durable form: waiting, moving, done, superseded, rolled_back. A wave ends when the nodes that subscribe to
// a changed secret have ACKed it.
package rollout

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// State is where a rollout, or a wave of it, is.
type State string

// The states. A wave is pending, moving, done or rolled back; the others are those of a rollout.
const (
	Pending    State = "pending"     // the wave's turn has not come
	Waiting    State = "waiting"     // for a promotion, or until another change has left the wave's groups
	Moving     State = "moving"      // switched; waits for ACKs
	Done       State = "done"        // every wave moved and ACKed
	Superseded State = "superseded"  // a newer version of the same secret took over
	RolledBack State = "rolled_back" // taken back by a NACK, a time-out or an operator
)

// Ended reports whether nothing will happen to a rollout in this state any more.
func (s State) Ended() bool { return s == Done || s == Superseded || s == RolledBack }

// Kind says what a change does to a secret.
type Kind string

// The kinds of change.
const (
	Renewal Kind = "renewal" // another version of the same secret
	Add     Kind = "add"     // a secret that the group did not have
	Remove  Kind = "remove"  // a secret that left the configuration
)

// Change is one secret of a rollout. From is what the last wave served when the rollout began; a group's own history has what the
// group really left. An empty version means absent.
type Change struct {
	Secret string         `json:"secret"`
	From   secret.Version `json:"from"`
	To     secret.Version `json:"to"`
	Kind   Kind           `json:"kind"`
}

// Rollout is a change carried through the groups in waves. Its JSON is what the store keeps and what `rollout status` prints.
type Rollout struct {
	ID      uint64    `json:"id"`
	State   State     `json:"state"`
	Reason  string    `json:"reason"`
	Started time.Time `json:"started"`
	Change  []Change  `json:"change"`
	Wave    int       `json:"wave"` // index into Waves of the wave under way, or the next one
	Waves   []Wave    `json:"waves"`
	Log     []Event   `json:"log"`
}

// Wave is a set of groups that are moved together.
type Wave struct {
	Groups   []string  `json:"groups"`
	State    State     `json:"state"`
	Snapshot uint64    `json:"snapshot"` // of the first group after the move; 0 before
	Nodes    Nodes     `json:"nodes"`
	Promoted bool      `json:"promoted,omitempty"` // an operator let it go
	Moved    []string  `json:"moved,omitempty"`    // groups that are switched
	At       time.Time `json:"at,omitzero"`        // when the first group was switched
	Members  []Member  `json:"members,omitempty"`  // while it moves: nodes that subscribed when their group was switched, or within node_grace before; up to maxMembers
	Back     string    `json:"back,omitempty"`     // why its groups are taken back
	Early    bool      `json:"early,omitempty"`    // switched so soon after a start that Members may lack nodes
	Stalled  bool      `json:"stalled,omitempty"`  // every member went without an ACK; it holds no slot any more
	Forced   bool      `json:"forced,omitempty"`   // an operator let it pass when it was stalled
}

// maxMembers bounds the members of a wave, so that its rollout fits into one commit. The nodes beyond them are waited for while they
// are connected, and not any more when they are gone.
const maxMembers = 8192

// Nodes counts the nodes of a wave that subscribe to a changed secret.
type Nodes struct {
	Expected int `json:"expected"`
	Acked    int `json:"acked"`
	Nacked   int `json:"nacked"`
}

// Member is a node that a wave waits for, also while it is gone.
type Member struct {
	Node string `json:"node"`           // digest of its group, identity and id: 11 characters, because there may be many
	Gone int64  `json:"gone,omitempty"` // Unix seconds at which it was last seen; 0 while it is connected
}

// Event is one transition, with the reason and who caused it ("" for the server itself).
type Event struct {
	At     time.Time `json:"at"`
	State  State     `json:"state"`
	Reason string    `json:"reason"`
	By     string    `json:"by"`
}

// log notes a transition; it becomes durable with the commit that makes it.
func (r *Rollout) log(now time.Time, state State, reason, by string) {
	r.State, r.Reason = state, reason
	if n := len(r.Log); n > 0 && r.Log[n-1].State == state && r.Log[n-1].Reason == reason {
		return
	}
	r.Log = append(r.Log, Event{At: now.UTC(), State: state, Reason: reason, By: by})
}

// wants returns the versions that the rollout puts in place; an empty version is a removal.
func (r *Rollout) wants() map[string]secret.Version {
	m := make(map[string]secret.Version, len(r.Change))
	for _, c := range r.Change {
		m[c.Secret] = c.To
	}
	return m
}

// brings returns the version of the named secret that the rollout puts in place; false if it does not change the secret.
func (r *Rollout) brings(name string) (secret.Version, bool) {
	for _, c := range r.Change {
		if c.Secret == name {
			return c.To, true
		}
	}
	return "", false
}

// current returns the wave under way, or nil when all are done.
func (r *Rollout) current() *Wave {
	if r.Wave >= len(r.Waves) {
		return nil
	}
	return &r.Waves[r.Wave]
}

// occupies returns the groups that no other change may move now. Additions hold no slot.
func (r *Rollout) occupies() []string {
	w := r.current()
	if w == nil || r.State.Ended() || r.addition() || w.Stalled || (w.State != Moving && w.State != RolledBack) {
		return nil
	}
	return w.Groups
}

// addition reports whether the rollout only adds: it holds no slot, waits for no promotion, and is not undone.
func (r *Rollout) addition() bool {
	for _, c := range r.Change {
		if c.Kind != Add {
			return false
		}
	}
	return true
}

// removal reports whether the rollout takes names away: no node ACKs that.
func (r *Rollout) removal() bool {
	return !slices.ContainsFunc(r.Change, func(c Change) bool { return c.To != "" })
}

// waveOf returns the index of the wave that holds the group, or -1.
func (r *Rollout) waveOf(group string) int {
	return slices.IndexFunc(r.Waves, func(w Wave) bool { return slices.Contains(w.Groups, group) })
}

// describe is the reason that the snapshots of a rollout show.
func (r *Rollout) describe() string {
	parts := make([]string, 0, len(r.Change))
	for _, c := range r.Change {
		parts = append(parts, fmt.Sprintf("%s of %s", c.Kind, c.Secret))
	}
	return fmt.Sprintf("rollout %d: %s", r.ID, strings.Join(parts, ", "))
}

// clone copies what a transition may write to, so that a commit that fails leaves the controller's own copy as it was. Members are
// shared: they are replaced, never written to.
func (r *Rollout) clone() *Rollout {
	c := *r
	c.Waves = slices.Clone(r.Waves)
	for i := range c.Waves {
		c.Waves[i].Moved = slices.Clone(c.Waves[i].Moved)
	}
	c.Log = slices.Clone(r.Log)
	return &c
}

// HoldKind says how a version came to be held.
type HoldKind string

// The kinds of hold (DESIGN 3).
const (
	Hard   HoldKind = "hard"   // a NACK named it the culprit
	Soft   HoldKind = "soft"   // its wave timed out; tried again after a while
	Manual HoldKind = "manual" // an operator took it back
)

// weight orders the kinds: a hold is never replaced by a weaker one.
func (k HoldKind) weight() int { return slices.Index([]HoldKind{Soft, Manual, Hard}, k) }

// Hold keeps a version from being rolled out.
type Hold struct {
	Secret  string         `json:"secret"`
	Version secret.Version `json:"version"`
	Kind    HoldKind       `json:"kind"`
	Reason  string         `json:"reason"`
	Since   time.Time      `json:"since"`
}

// some names the groups of a wave for a reason: the first few of many.
func some(groups []string) string {
	const shown = 5
	if len(groups) <= shown {
		return strings.Join(groups, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(groups[:shown], ", "), len(groups)-shown)
}
