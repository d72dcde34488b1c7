// Package rollout moves node groups to new secret versions, one wave at a time, and back.
//
// It stands between pkg/cache, where it is the only one that moves a group, and pkg/sds, which tells it what the nodes ACKed. A new
// version becomes a Rollout; the Controller stores every transition with its reason before it acts (DESIGN 7), in the same commit
// as the groups' moves, so that a restart finds both or neither.
//
// A wave is switched, waits for the ACKs of the nodes that subscribe to a changed secret, is proven by handshakes, and watched; then the next
// one follows. What is decided from what was seen is in decide.go, and pure; step.go makes the transitions; evidence.go is what it asks for.
package rollout

import (
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// State is where a rollout, or a wave of it, is.
type State string

// The states. A wave is pending, moving, verifying, watching, done or rolled back; a rollout has the others besides.
const (
	Pending    State = "pending"     // the wave's turn has not come
	Waiting    State = "waiting"     // for a promotion, a window, a node, or until another change has left the wave's groups
	Moving     State = "moving"      // switched; waits for ACKs
	Verifying  State = "verifying"   // ACKed; waits for handshakes
	Watching   State = "watching"    // proven; NACKs, handshakes and gates are watched for a while
	Paused     State = "paused"      // by an operator
	Done       State = "done"        // every wave is done
	Superseded State = "superseded"  // a newer version of the same secret took over, or another rollout took the change with it
	RolledBack State = "rolled_back" // taken back, by what was seen or by an operator
	Aborted    State = "aborted"     // ended by an operator, and taken back
)

// States are those of rollouts under way.
func States() []State { return []State{Waiting, Moving, Verifying, Watching, Paused} }

// Results are the states in which rollouts end.
func Results() []State { return []State{Done, Superseded, RolledBack, Aborted} }

// Ended reports whether nothing will happen to a rollout in this state any more.
func (s State) Ended() bool { return slices.Contains(Results(), s) }

// moved reports whether a wave in this state is switched, and not done yet.
func (s State) moved() bool { return s == Moving || s == Verifying || s == Watching }

// Kind says what a change does to a secret.
type Kind string

// The kinds of change.
const (
	Renewal   Kind = "renewal"   // another version of the same secret
	Chain     Kind = "chain"     // likewise, of another root, issuer, profile, key type or number of CA certificates
	Add       Kind = "add"       // a secret that the group did not have
	Remove    Kind = "remove"    // a secret that left the configuration
	Emergency Kind = "emergency" // what is served ends soon: to all groups at once, without watch
)

// Change is one secret of a rollout. From is what the last wave served when the rollout began; a group's own history has what the
// group really left. An empty version means absent.
type Change struct {
	Secret string         `json:"secret"`
	From   secret.Version `json:"from"`
	To     secret.Version `json:"to"`
	Kind   Kind           `json:"kind"`
	Left   string         `json:"left,omitempty"` // why it is not part of the rollout any more
}

// Rollout is a change carried through the groups in waves. Its JSON is what the store keeps and what `rollout status` prints.
type Rollout struct {
	ID       uint64    `json:"id"`
	State    State     `json:"state"`
	Reason   string    `json:"reason"`
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished,omitzero"`
	Deadline time.Time `json:"deadline,omitzero"` // when the policy is overruled, because what is served ends soon; zero: never
	Change   []Change  `json:"change"`
	Wave     int       `json:"wave"` // index into Waves of the wave under way, or the next one
	Waves    []Wave    `json:"waves"`
	Log      []Event   `json:"log"`
	Logged   uint64    `json:"logged,omitempty"` // events that there were
	Paused   bool      `json:"paused,omitempty"` // by an operator
	Parked   bool      `json:"parked,omitempty"` // its wave has lost its slot by a pause, and has not got it back
	Alone    bool      `json:"alone,omitempty"`  // tried again after a soft hold: it joins no train
	Joined   uint64    `json:"joined,omitempty"` // the rollout that took the change with it
	Unwind   *Unwind   `json:"unwind,omitempty"` // it is being taken back
}

// Unwind is a way back under way. It has many commits where there are many groups.
type Unwind struct {
	Secrets []string `json:"secrets"`
	Groups  []string `json:"groups"` // still to be taken back
	Reason  string   `json:"reason"`
	By      string   `json:"by"`
	End     State    `json:"end"` // of the rollout, where nothing of it is left
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
	Stalled  bool      `json:"stalled,omitempty"`  // every member went without an ACK; it holds no slot any more
	Forced   bool      `json:"forced,omitempty"`   // an operator let it pass when it was stalled
	Ahead    bool      `json:"ahead,omitempty"`    // an operator let it go before earlier waves: it does not wait for their nodes

	Handshakes Handshakes   `json:"handshakes"`                // of the last look
	Gates      []GateResult `json:"gates"`                     // of the last look
	Since      time.Time    `json:"since,omitzero"`            // when its state began
	Answered   int          `json:"answered,omitempty"`        // nodes that had ACKed when it was to be proven
	Watch      float64      `json:"watch_seconds,omitempty"`   // how long it is watched
	Watched    float64      `json:"watched_seconds,omitempty"` // how long it was watched before the server's start
	Ends       time.Time    `json:"ends,omitzero"`             // when the watch ends, as far as one can know
}

// Handshakes counts those of the last look at a wave's groups.
type Handshakes struct {
	OK        int    `json:"ok"`
	Failed    int    `json:"failed"`
	LastError string `json:"last_error,omitempty"`
}

// GateResult is a gate's value at the last look, beside that before the wave.
type GateResult struct {
	Name   string   `json:"name"`
	Value  *float64 `json:"value"` // nil: none was had
	Before *float64 `json:"before"`
	Max    *float64 `json:"max"` // the bound that holds, be it given or made from the value before; nil: none
	OK     bool     `json:"ok"`
	Error  string   `json:"error,omitempty"`
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

// The events that a rollout keeps: the first ones, and the last.
const (
	firstEvents = 20
	mostEvents  = 200
)

// log notes a transition; it becomes durable with the commit that makes it.
func (r *Rollout) log(now time.Time, state State, reason, by string) {
	if r.Paused && !state.Ended() {
		state = Paused
	}
	r.State, r.Reason = state, reason
	if state.Ended() {
		r.Finished, r.Unwind = now.UTC(), nil
	}
	n := len(r.Log)
	if n > 0 && r.Log[n-1].State == state && r.Log[n-1].Reason == reason {
		return
	}
	if n > 1 && state == Waiting && r.Log[n-1].State == Waiting && r.Log[n-1].By == "" && by == "" { // it may wait for this and that a thousand times
		r.Logged++
		r.Log = append(slices.Clone(r.Log[:n-1]), Event{At: now.UTC(), State: state, Reason: reason})
		return
	}
	r.Logged++
	if n >= mostEvents { // the beginning and the end are what people want to know
		r.Log = slices.Delete(slices.Clone(r.Log), firstEvents, firstEvents+1)
	}
	r.Log = append(r.Log, Event{At: now.UTC(), State: state, Reason: reason, By: by})
}

// live yields the changes that are still part of the rollout.
func (r *Rollout) live() iter.Seq[Change] {
	return func(yield func(Change) bool) {
		for _, c := range r.Change {
			if c.Left == "" && !yield(c) {
				return
			}
		}
	}
}

// empty reports whether nothing is left of the rollout.
func (r *Rollout) empty() bool {
	for range r.live() {
		return false
	}
	return true
}

// secrets names what is still part of the rollout.
func (r *Rollout) secrets() []string {
	var names []string
	for c := range r.live() {
		names = append(names, c.Secret)
	}
	return names
}

// leave takes a change out of the rollout.
func (r *Rollout) leave(name, why string) {
	for i := range r.Change {
		if r.Change[i].Secret == name && r.Change[i].Left == "" {
			r.Change[i].Left = why
		}
	}
}

// wants returns the versions that the rollout puts in place; an empty version is a removal.
func (r *Rollout) wants() map[string]secret.Version {
	m := make(map[string]secret.Version, len(r.Change))
	for c := range r.live() {
		m[c.Secret] = c.To
	}
	return m
}

// brings returns the version of the named secret that the rollout puts in place; false if it does not change the secret.
func (r *Rollout) brings(name string) (secret.Version, bool) {
	for c := range r.live() {
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

// occupies returns the groups that no other change may move now. Additions, emergencies and what is paused hold no slot.
func (r *Rollout) occupies() []string {
	w := r.current()
	if w == nil || r.State.Ended() || r.addition() || r.emergency() || r.Paused || r.Parked || w.Stalled || !w.State.moved() {
		return nil
	}
	return w.Groups
}

// emergency reports whether the rollout passes everything else: it waits for nothing, and is not watched.
func (r *Rollout) emergency() bool {
	return slices.ContainsFunc(r.Change, func(c Change) bool { return c.Kind == Emergency })
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
	var parts []string
	for c := range r.live() {
		parts = append(parts, fmt.Sprintf("%s of %s", c.Kind, c.Secret))
	}
	return fmt.Sprintf("rollout %d: %s", r.ID, some(parts))
}

// clone copies what a transition may write to, so that a commit that fails leaves the controller's own copy as it was. Members are
// shared: they are replaced, never written to.
func (r *Rollout) clone() *Rollout {
	c := *r
	c.Change = slices.Clone(r.Change)
	c.Waves = slices.Clone(r.Waves)
	for i := range c.Waves {
		c.Waves[i].Moved = slices.Clone(c.Waves[i].Moved)
	}
	c.Log = slices.Clone(r.Log)
	if r.Unwind != nil {
		c.Unwind = new(*r.Unwind)
	}
	return &c
}

// HoldKind says how a version came to be held.
type HoldKind string

// The kinds of hold (DESIGN 3).
const (
	Hard   HoldKind = "hard"   // a NACK or a handshake named it the culprit
	Soft   HoldKind = "soft"   // its wave failed without a culprit; tried again after a while
	Manual HoldKind = "manual" // an operator held it, or took it back
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
	// Handshake is whether a handshake showed it: it is overruled only once what is served has expired.
	Handshake bool `json:"handshake,omitempty"`
	// NotAfter is when the version ends; zero: never, or not known.
	NotAfter time.Time `json:"not_after,omitzero"`
	// Deadline is when it is overruled, because what is served ends soon; zero: never.
	Deadline time.Time `json:"deadline,omitzero"`
}

// some names groups or secrets for a reason: the first few of many.
func some(names []string) string {
	const shown = 5
	if len(names) <= shown {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:shown], ", "), len(names)-shown)
}
