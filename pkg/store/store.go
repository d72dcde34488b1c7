// Package store keeps the durable state of sds-server: secret versions, snapshots, groups, rollouts, accounts, orders.
//
// It is the smallest interface that an embedded bbolt file and an etcd cluster can both do exactly (DESIGN 8): four verbs over
// a flat, ordered key space with one revision counter. Every other package writes through it before anything becomes visible
// to an Envoy. Package bbolt (below this one) is the embedded engine, package seal encrypts every value at rest, and package
// storetest is the conformance suite that each engine passes unchanged.
//
// Invariants: a Commit is atomic and durable when it returns; revisions only grow; a reader sees whole commits only.
package store

import (
	"context"
	"errors"
	"net/url"
	"strings"
)

// Limits that hold for every engine; they are those that etcd has by default, so that state can move between engines.
const (
	// MaxOperations is the largest number of conditions plus operations in one Commit.
	MaxOperations = 100
	// MaxCommitBytes is the largest sum of key and value bytes in one Commit.
	MaxCommitBytes = 1 << 20
	// WatchHistory is how many of the last changes an engine can at least replay to a Watch.
	WatchHistory = 1000
)

var (
	// ErrNotFound is returned by Get for a key that does not exist.
	ErrNotFound = errors.New("key not found")
	// ErrConflict is returned by Commit when a condition does not hold; nothing was written.
	ErrConflict = errors.New("conflict: the key was changed by someone else")
	// ErrCompacted is returned by Watch when the changes after the asked revision are no longer kept: List again.
	ErrCompacted = errors.New("revision compacted")
	// ErrTooLarge is returned by Commit for more than MaxOperations or MaxCommitBytes; nothing was written.
	ErrTooLarge = errors.New("commit too large")
)

// Entry is one key with its value and the revision of the commit that wrote it last.
type Entry struct {
	Key      string
	Value    []byte
	Revision int64
}

// Condition demands that a key was last written at Revision; 0 demands that it does not exist.
type Condition struct {
	Key      string
	Revision int64
}

// Operation puts Value at Key, or deletes Key. Deleting an absent key is no error.
type Operation struct {
	Key    string
	Value  []byte
	Delete bool
}

// Put returns the operation that writes value at key.
func Put(key string, value []byte) Operation { return Operation{Key: key, Value: value} }

// Delete returns the operation that deletes key.
func Delete(key string) Operation { return Operation{Key: key, Delete: true} }

// Event is one change, in the order of revisions. Several events of one commit share a revision and arrive together.
type Event struct {
	Entry
	Deleted bool
}

// Store is durable, ordered key-value state. All methods are safe for concurrent use. Keys are made with Key.
// Errors other than the sentinels are faults of the medium (disk full, read-only, connection lost): nothing was written, and
// the caller may retry.
type Store interface {
	// Get returns the entry at key, or ErrNotFound.
	Get(ctx context.Context, key string) (Entry, error)
	// List returns every entry whose key begins with prefix, sorted by key, and the one revision at which all were read.
	List(ctx context.Context, prefix string) ([]Entry, int64, error)
	// Commit applies operations in one atomic, durable step if all conditions hold, and returns its revision.
	// A key may stand in at most one operation. An empty list of operations only checks the conditions.
	Commit(ctx context.Context, conditions []Condition, operations []Operation) (int64, error)
	// Watch sends the changes below prefix with a revision greater than from, each slice being one commit, until ctx ends;
	// then the channel is closed. A reader that falls behind WatchHistory changes finds the channel closed and must List again.
	// ErrCompacted is returned at once if the history no longer reaches back to from.
	Watch(ctx context.Context, prefix string, from int64) (<-chan []Event, error)
	// Close releases the medium. Calls after it fail.
	Close() error
}

// Key joins path parts into a key. Each part is escaped, so that a secret's name may hold any character and
// Key("secret", name)+"/" is a prefix of exactly that secret's keys.
func Key(parts ...string) string {
	escaped := make([]string, len(parts))
	for i, p := range parts {
		escaped[i] = url.PathEscape(p)
	}
	return strings.Join(escaped, "/")
}

// Parts splits a key that Key made into its unescaped parts; a part that cannot be unescaped is returned as it is.
func Parts(key string) []string {
	parts := strings.Split(key, "/")
	for i, p := range parts {
		if u, err := url.PathUnescape(p); err == nil {
			parts[i] = u
		}
	}
	return parts
}
