// Package cache holds numbered, immutable snapshots of secret versions, which snapshot each node group is at, and who listens.
//
// It stands between the issuance loop, which adds versions, and the SDS edge, which sends them: pkg/rollout plans a change (Plan),
// Commit makes it durable and then visible, and only the streams that subscribe to a changed name are woken.
//
// Invariants (DESIGN 4): durable before visible; a secret version is immutable and encoded once; only the rollout controller
// moves a group, one Plan at a time.
package cache

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// Options configure a Cache. Store and Log are required.
type Options struct {
	// Store is where everything is kept. Values must be sealed by it: private keys are among them.
	Store store.Store
	// Log gets one line for each moved group.
	Log *slog.Logger
}

// Cache is the state of the fleet as it should be. All methods are safe for concurrent use, but Plans are made, and Refresh is
// called, one at a time.
type Cache struct {
	store      store.Store
	log        *slog.Logger
	versionKey []byte

	snapshots snapshots // used by the one Plan under way, and by Refresh, only

	mu        sync.RWMutex
	groups    map[string]*group                      // guarded by mu; each group has its own lock for its subscribers
	resources map[string]map[secret.Version]resource // guarded by mu; the versions that groups are at
	marks     map[string]map[secret.Version]mark     // guarded by mu; see Reencode
	coverage  coverage                               // guarded by mu; of resources
	latest    uint64                                 // guarded by mu; the newest snapshot's number
}

// resource is an encoded version in use, with its description.
type resource struct {
	*Resource
	meta Meta
}

// Open reads the stored state: every group is where it was, before any listener opens (DESIGN 4, invariant 5).
func Open(ctx context.Context, opts Options) (*Cache, error) {
	c := &Cache{
		store: opts.Store, log: opts.Log, groups: map[string]*group{}, resources: map[string]map[secret.Version]resource{},
		marks:     map[string]map[secret.Version]mark{},
		coverage:  coverage{},
		snapshots: snapshots{store: opts.Store, byDigest: map[string]uint64{}},
	}
	if err := c.loadVersionKey(ctx); err != nil {
		return nil, err
	}
	named, err := c.snapshots.load(ctx)
	if err != nil {
		return nil, err
	}
	if err := c.snapshots.sweep(ctx, named); err != nil { // a full disk: what is stored can be served all the same
		c.log.WarnContext(ctx, "unnamed snapshot pages stay", "err", err)
	}
	if c.snapshots.last == 0 {
		if err := c.first(ctx); err != nil {
			return nil, err
		}
	}
	return c, c.loadGroups(ctx)
}

// first stores snapshot 1, the empty set.
func (c *Cache) first(ctx context.Context) error {
	s := &Snapshot{Number: firstSnapshot, Reason: "empty", Secrets: &Set{}, Created: now()}
	_, head := s.operations(nil)
	if _, err := c.store.Commit(ctx, []store.Condition{{Key: snapshotKey(firstSnapshot)}}, []store.Operation{head}); err != nil {
		return fmt.Errorf("store the first snapshot: %w", err)
	}
	c.snapshots.note(s)
	return nil
}

// loadVersionKey reads the key of the version HMAC, or makes it: equal content has an equal version on every replica and after
// every restart.
func (c *Cache) loadVersionKey(ctx context.Context) error {
	e, err := c.store.Get(ctx, versionKeyPath)
	if err == nil && len(e.Value) != versionKeyBytes {
		return fmt.Errorf("stored value at %s: %d bytes, want %d", versionKeyPath, len(e.Value), versionKeyBytes)
	}
	if err == nil {
		c.versionKey = e.Value
		return nil
	}
	if !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("read the version key: %w", err)
	}
	key := make([]byte, versionKeyBytes)
	rand.Read(key) // never fails
	_, err = c.store.Commit(ctx, []store.Condition{{Key: versionKeyPath}}, []store.Operation{store.Put(versionKeyPath, key)})
	if err != nil {
		return fmt.Errorf("store the version key: %w", err)
	}
	c.versionKey = key
	return nil
}

// Version returns the version that s has in this store.
func (c *Cache) Version(s *secret.Secret) secret.Version { return s.Version(c.versionKey) }

// Groups returns the names of all groups, sorted.
func (c *Cache) Groups() []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return slices.Sorted(maps.Keys(c.groups))
}

// At returns the snapshot that a group is at; false for an unknown group.
func (c *Cache) At(name string) (*Snapshot, bool) {
	g, ok := c.group(name)
	if !ok {
		return nil, false
	}
	return g.at(), true
}

// Moves returns the moves of a group that can be taken back, oldest first.
func (c *Cache) Moves(name string) []Move {
	g, ok := c.group(name)
	if !ok {
		return nil
	}
	_, moves := g.stored()
	return slices.Clone(moves)
}

// Entries returns what a move changed, sorted by secret.
func (c *Cache) Entries(ctx context.Context, m Move) ([]Entry, error) {
	if len(m.Entries) > 0 {
		return m.Entries, nil
	}
	from, err := c.Snapshot(ctx, m.From)
	if err != nil {
		return nil, err
	}
	to, err := c.Snapshot(ctx, m.To)
	if err != nil {
		return nil, err
	}
	diff := from.Secrets.Diff(to.Secrets)
	entries := make([]Entry, 0, len(diff))
	for _, name := range slices.Sorted(maps.Keys(diff)) {
		before, _ := from.Secrets.Version(name)
		entries = append(entries, Entry{Secret: name, From: before, To: diff[name]})
	}
	return entries, nil
}

func (c *Cache) group(name string) (*group, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	g, ok := c.groups[name]
	return g, ok
}

// Resource returns what a group serves under a name, and the number of the snapshot that says so; nil if it serves nothing there.
func (c *Cache) Resource(groupName, name string) (*Resource, uint64) {
	c.mu.RLock() // for both reads: what the snapshot names is in memory only while the group is there
	defer c.mu.RUnlock()
	g, ok := c.groups[groupName]
	if !ok {
		return nil, 0
	}
	at := g.at()
	version, ok := at.Secrets.Version(name)
	if !ok {
		return nil, at.Number
	}
	return c.resources[name][version].Resource, at.Number
}

// Latest returns the newest snapshot's number.
func (c *Cache) Latest() uint64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.latest
}

// Meta describes one version in use by a group without touching the store; false if no group is at it.
func (c *Cache) Meta(name string, version secret.Version) (Meta, bool) {
	r, ok := c.resource(name, version)
	return r.meta, ok
}
