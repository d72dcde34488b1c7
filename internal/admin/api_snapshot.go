package admin

import "time"

// Snapshots is the answer of `snapshots list`.
type Snapshots struct {
	Snapshots []SnapshotHead `json:"snapshots"`
}

// SnapshotHead is a snapshot without its secrets.
type SnapshotHead struct {
	Number  uint64   `json:"number"`
	Parent  *uint64  `json:"parent"`
	Reason  string   `json:"reason"`
	Created string   `json:"created"`
	Groups  []string `json:"groups"` // that are at it
}

// Snapshot is the answer of `snapshots show`.
type Snapshot struct {
	Number  uint64        `json:"number"`
	Parent  *uint64       `json:"parent"`
	Reason  string        `json:"reason"`
	Created time.Time     `json:"created"`
	Secrets []NameVersion `json:"secrets"`
}

// NameVersion is a secret in a snapshot.
type NameVersion struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

// Diff is the answer of `snapshots diff`.
type Diff struct {
	From    uint64      `json:"from"`
	To      uint64      `json:"to"`
	Changes []DiffEntry `json:"changes"`
}

// DiffEntry is one secret that differs; null is absent.
type DiffEntry struct {
	Secret string  `json:"secret"`
	From   *string `json:"from"`
	To     *string `json:"to"`
}
