package cache

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// fullEvery is how many differences may follow each other before a full set is stored again.
	fullEvery = 256
	// inlineBytes is the largest list of entries, in bytes of JSON, that stands in the snapshot's own record. Larger ones stand in
	// pages, so that the commit that moves a group has room for the records of others.
	inlineBytes = 48 << 10
	// pageBytes is the size of a page, in bytes of JSON. Each is a commit of its own.
	pageBytes = 512 << 10
	// firstSnapshot is the number of the empty set, at which every group starts.
	firstSnapshot = 1
)

// ErrNoSnapshot is returned for a snapshot number that was never given.
var ErrNoSnapshot = errors.New("no such snapshot")

// Snapshot is an immutable set of secret versions with a number (DESIGN 3). Equal sets are one snapshot; a number is a name, not an
// order.
type Snapshot struct {
	Number  uint64
	Parent  uint64 // 0: none
	Reason  string
	Created time.Time
	Secrets *Set

	depth int // differences since the last full set
}

// operations returns the operation that stores the snapshot as a difference to parent, and the pages that must be committed before.
func (s *Snapshot) operations(parent *Snapshot) (pages []store.Operation, head store.Operation) {
	r := snapshotRecord{
		Number: s.Number, Parent: s.Parent, Reason: s.Reason, Created: s.Created, Digest: hex.EncodeToString(s.Secrets.digest[:]),
	}
	if s.depth == 0 {
		r.Full, r.Entries = true, maps.Collect(s.Secrets.All())
	} else {
		r.Entries = parent.Secrets.Diff(s.Secrets)
	}
	if len(mustJSON(r.Entries)) > inlineBytes {
		pages = paginate(s.Number, r.Entries)
		r.Entries, r.Pages = nil, len(pages)
	}
	return pages, store.Put(snapshotKey(s.Number), mustJSON(r))
}

// paginate splits entries into pages of at most pageBytes.
func paginate(number uint64, entries map[string]secret.Version) []store.Operation {
	var pages []store.Operation
	page, size := map[string]secret.Version{}, 0
	flush := func() {
		pages = append(pages, store.Put(pageKey(number, len(pages)), mustJSON(page)))
		page, size = map[string]secret.Version{}, 0
	}
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		entry := len(mustJSON(name)) + len(entries[name]) + len(`:"",`)
		if size+entry > pageBytes {
			flush()
		}
		page[name] = entries[name]
		size += entry
	}
	flush()
	return pages
}

// snapshots knows every snapshot's number and digest, and rebuilds the sets that are asked for.
type snapshots struct {
	store    store.Store
	byDigest map[string]uint64
	last     uint64
}

// load reads the stored records' heads. Memory: about 100 bytes for each snapshot.
func (s *snapshots) load(ctx context.Context) (named map[string]bool, err error) {
	entries, _, err := s.store.List(ctx, snapshotPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	named = map[string]bool{}
	for _, e := range entries {
		var r snapshotRecord
		if err := decode(e, &r); err != nil {
			return nil, err
		}
		if e.Key != snapshotKey(r.Number) {
			return nil, fmt.Errorf("stored value at %s: it is that of snapshot %d", e.Key, r.Number)
		}
		s.byDigest[r.Digest] = r.Number
		s.last = max(s.last, r.Number)
		for i := range r.Pages {
			named[pageKey(r.Number, i)] = true
		}
	}
	return named, nil
}

// sweep deletes pages that no snapshot names: those of a commit that a crash cut off.
func (s *snapshots) sweep(ctx context.Context, named map[string]bool) error {
	pages, _, err := s.store.List(ctx, pagePrefix+"/")
	if err != nil {
		return fmt.Errorf("list snapshot pages: %w", err)
	}
	var stale []store.Operation
	for _, p := range pages {
		if !named[p.Key] {
			stale = append(stale, store.Delete(p.Key))
		}
	}
	for chunk := range slices.Chunk(stale, store.MaxOperations) {
		if _, err := s.store.Commit(ctx, nil, chunk); err != nil {
			return fmt.Errorf("sweep snapshot pages: %w", err)
		}
	}
	return nil
}

// get rebuilds a snapshot from its record and those that it is the difference to.
func (s *snapshots) get(ctx context.Context, number uint64) (*Snapshot, error) {
	var chain []snapshotRecord
	for n := number; ; {
		r, err := s.record(ctx, n)
		if err != nil {
			return nil, err
		}
		chain = append(chain, r)
		if r.Full {
			break
		}
		if r.Parent >= n { // a number is always given after that of the parent
			return nil, fmt.Errorf("snapshot %d: its stored parent is snapshot %d", n, r.Parent)
		}
		n = r.Parent
	}
	set := &Set{}
	for _, r := range slices.Backward(chain) {
		set = set.With(r.Entries)
	}
	head := chain[0]
	if got := hex.EncodeToString(set.digest[:]); got != head.Digest {
		return nil, fmt.Errorf("snapshot %d: stored content does not match its digest", number)
	}
	return &Snapshot{
		Number: head.Number, Parent: head.Parent, Reason: head.Reason, Created: head.Created, Secrets: set, depth: len(chain) - 1,
	}, nil
}

func (s *snapshots) record(ctx context.Context, number uint64) (snapshotRecord, error) {
	var r snapshotRecord
	e, err := s.store.Get(ctx, snapshotKey(number))
	if errors.Is(err, store.ErrNotFound) {
		return r, fmt.Errorf("snapshot %d: %w", number, ErrNoSnapshot)
	}
	if err != nil {
		return r, fmt.Errorf("snapshot %d: %w", number, err)
	}
	if err := decode(e, &r); err != nil {
		return r, err
	}
	if r.Pages > 0 {
		r.Entries = map[string]secret.Version{}
	}
	for i := range r.Pages {
		page, err := s.store.Get(ctx, pageKey(number, i))
		if err != nil {
			return r, fmt.Errorf("snapshot %d, page %s: %w", number, strconv.Itoa(i), err)
		}
		if err := decode(page, &r.Entries); err != nil {
			return r, err
		}
	}
	return r, nil
}

func (s *snapshots) note(made *Snapshot) {
	s.byDigest[hex.EncodeToString(made.Secrets.digest[:])] = made.Number
	s.last = max(s.last, made.Number)
}

// find returns the stored snapshot that holds exactly set, or ErrNoSnapshot. One that a group is at costs no reading.
func (c *Cache) find(ctx context.Context, set *Set) (*Snapshot, error) {
	number, ok := c.snapshots.byDigest[hex.EncodeToString(set.digest[:])]
	if !ok {
		return nil, ErrNoSnapshot
	}
	found := c.current(number)
	if found == nil {
		var err error
		if found, err = c.snapshots.get(ctx, number); err != nil {
			return nil, err
		}
	}
	if !found.Secrets.Equal(set) {
		return nil, ErrNoSnapshot
	}
	return found, nil
}

// current returns the snapshot of that number if a group is at it, else nil.
func (c *Cache) current(number uint64) *Snapshot {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, g := range c.groups {
		if at := g.at(); at.Number == number {
			return at
		}
	}
	return nil
}
