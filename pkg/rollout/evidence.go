package rollout

import (
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Prober proves by handshakes what is served. Its methods never block; it calls [Controller.Wake] when something new is known.
type Prober interface {
	// Look returns the newest round of handshakes with a group for the wanted versions that began at or after since, and begins one if
	// there is none.
	Look(group string, want map[string]secret.Version, since time.Time) Round
	// Mismatch returns what the probing in the background has found wrong last with a secret in a group, where this version was wanted.
	Mismatch(group, name string, version secret.Version) (Finding, bool)
}

// Round is one look at a group by handshakes.
type Round struct {
	Began, Ended time.Time      // Began zero: none yet; Ended zero: under way
	Targets      int            // endpoints that were to be looked at; 0: there is nothing to be looked at
	OK, Failed   int            // handshakes
	Served       map[string]int // those of OK, by secret
	Findings     []Finding      // what failed: those that prove something first
}

// OldLeaf is the kind of a finding where an older version of the secret is served.
const OldLeaf = "old_leaf"

// Finding is a handshake that did not show what is wanted.
type Finding struct {
	Secret  string
	Version secret.Version // the wanted one
	Node    string         // empty where it is not known
	Kind    string         // OldLeaf, or another one
	Unseen  bool           // nothing was seen: no proof either way
	Message string
}

// Gates reads metrics. Its methods never block; it calls [Controller.Wake] when a reading is in.
type Gates interface {
	// Read returns for each gate the newest reading whose request began at or after since, and begins one if there is none.
	Read(since time.Time) []Reading
}

// Reading is a value of a gate.
type Reading struct {
	Name  string
	At    time.Time // when the request began; zero: there is none yet
	Value float64
	Err   string // no data, NaN, not reachable: then Value means nothing
}

// Hook runs a command that has to agree. Its methods never block; it calls [Controller.Wake] when the command has ended.
type Hook interface {
	// Run begins the command for a wave once, and returns how it stands.
	Run(w HookWave) HookResult
	// Forget drops what is known of a rollout.
	Forget(rollout uint64)
}

// HookWave is what a hook is told.
type HookWave struct {
	Rollout uint64
	Wave    int // from 0
	Groups  []string
	Secrets []string
}

// HookResult is how a hook stands.
type HookResult struct {
	Done   bool
	Failed string // it ran and said no
	Err    string // it could not run, or not to its end
}

// Calendar says when waves may begin.
type Calendar interface {
	// Open reports whether a wave may begin at a time; if not, why, and when to look again (zero: not known).
	Open(at time.Time) (ok bool, reason string, until time.Time)
}
