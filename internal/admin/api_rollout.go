package admin

import (
	"time"

	"github.com/sds-server/sds-server/pkg/rollout"
)

// Rollouts is the answer of `rollout status` and `rollout history`.
type Rollouts struct {
	Rollouts []Rollout `json:"rollouts"`
}

// Rollout is one rollout as it is printed.
type Rollout struct {
	ID         uint64        `json:"id"`
	State      rollout.State `json:"state"`
	Reason     string        `json:"reason"`
	Started    time.Time     `json:"started"`
	Finished   *time.Time    `json:"finished"`
	Deadline   *time.Time    `json:"deadline"`
	Paused     bool          `json:"paused"`
	TakingBack bool          `json:"taking_back"` // groups are still to be taken back
	Joined     *uint64       `json:"joined"`      // the rollout that took its changes along
	Change     []Change      `json:"change"`
	Wave       int           `json:"wave"` // index of the wave under way; their number when all are done
	Waves      []Wave        `json:"waves"`
	Log        []Event       `json:"log"` // the oldest first
}

// Event is one transition of a rollout; by is null for the server itself.
type Event struct {
	At     time.Time     `json:"at"`
	State  rollout.State `json:"state"`
	Reason string        `json:"reason"`
	By     *string       `json:"by"`
}

// Change is one secret of a rollout; null is absent.
type Change struct {
	Secret string       `json:"secret"`
	From   *string      `json:"from"`
	To     *string      `json:"to"`
	Kind   rollout.Kind `json:"kind"`
	Left   *string      `json:"left"` // why it is not part of the rollout any more
}

// Wave is one wave of a rollout.
type Wave struct {
	Groups     []string      `json:"groups"`
	State      rollout.State `json:"state"`
	Snapshot   *uint64       `json:"snapshot"`
	Ends       *time.Time    `json:"ends"` // of the watch, while it runs
	Nodes      rollout.Nodes `json:"nodes"`
	Handshakes Handshakes    `json:"handshakes"`
	Gates      []Gate        `json:"gates"`
	Watch      *float64      `json:"watch_seconds"`   // how long it is watched
	Watched    *float64      `json:"watched_seconds"` // how long it was watched so far
}

// Handshakes counts the verifying handshakes of the last look at a wave.
type Handshakes struct {
	OK        int     `json:"ok"`
	Failed    int     `json:"failed"`
	LastError *string `json:"last_error"`
}

// Gate is a metric gate at the last look at a wave; null is a value that was not had, or no bound.
type Gate struct {
	Name   string   `json:"name"`
	Value  *float64 `json:"value"`
	Before *float64 `json:"before"` // the wave
	Max    *float64 `json:"max"`
	OK     bool     `json:"ok"`
	Error  *string  `json:"error"`
}

// StartRequest asks for a rollout of a stored version.
type StartRequest struct {
	Secret  string `json:"secret"`
	Version string `json:"version,omitempty"` // 12 or more digits; empty: the newest one
	Reason  string `json:"reason,omitempty"`
}

// ReasonRequest is what every step of an operator may say.
type ReasonRequest struct {
	Reason string `json:"reason,omitempty"`
}

// Controlled is the answer of `rollout start`, `pause`, `resume`, `abort` and `undo`.
type Controlled struct {
	ID      *uint64       `json:"id"` // null: every group serves the version
	State   rollout.State `json:"state"`
	Reason  string        `json:"reason"`
	Already bool          `json:"already"` // nothing changed
	Change  []Change      `json:"change"`
	Groups  []string      `json:"groups"` // that it has moved; of one that is aborted or undone, those that were taken back
	Held    []string      `json:"held"`   // its versions that are held, as "secret version"
}

// GroupRequest asks for a promotion or a rollback of a group.
type GroupRequest struct {
	Group   string `json:"group"`
	Rollout uint64 `json:"rollout,omitempty"`
	To      uint64 `json:"to,omitempty"`
	Reason  string `json:"reason,omitempty"`
	// SkipEarlier is only for promote.
	SkipEarlier bool `json:"skip_earlier,omitempty"`
}

// Promotion is the answer of `promote`.
type Promotion struct {
	Group    string   `json:"group"`
	Rollouts []uint64 `json:"rollouts"` // let go, the oldest first
	Changes  []string `json:"changes"`  // each in words
	Groups   []string `json:"groups"`   // that move with it, earlier waves first
	Snapshot uint64   `json:"snapshot"` // where the group is now
	Already  bool     `json:"already"`  // nothing waited, and there is nothing newer
}

// Step is the answer of `rollback` and of `promote --to`.
type Step struct {
	Group    string      `json:"group"`
	From     uint64      `json:"from"` // snapshot before
	Snapshot uint64      `json:"snapshot"`
	Rollouts []uint64    `json:"rollouts"` // under way, that this has ended
	Changes  []DiffEntry `json:"changes"`
	Held     []string    `json:"held"` // versions taken back, as "secret version"
}
