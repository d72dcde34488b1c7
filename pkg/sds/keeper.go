package sds

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

const (
	nackPrefix = "nack" // nack/IDENTITY/NODE/SECRET
	// maxStored is how many records the nodes of one identity may have in the store: a hostile node may call itself by many names and reject
	// everything. What is beyond it is known until the server restarts.
	maxStored = 20_000
	// commitBytes and commitRecords bound one commit, below what the store allows.
	commitBytes   = 512 << 10
	commitRecords = 90

	retryFirst  = 100 * time.Millisecond // doubles up to retryMost
	retryMost   = 10 * time.Second
	lastTimeout = 5 * time.Second // for what is left when Run ends
)

// recordID is one name of one node.
type recordID struct {
	node nodeKey
	name string
}

func (id recordID) key() string { return store.Key(nackPrefix, id.node.identity, id.node.id, id.name) }

// storedRecord is what a node rejected of one secret, and what it goes on with.
type storedRecord struct {
	Identity  string         `json:"identity"`
	Node      string         `json:"node"`
	Secret    string         `json:"secret"`
	Group     string         `json:"group"`
	Transport Transport      `json:"transport"`
	Protocol  Protocol       `json:"protocol"`
	Good      secret.Version `json:"good,omitempty"` // that it acknowledged last; absent: none is known
	NACKs     []NACK         `json:"nacks"`          // oldest first

	GoodSecret string `json:"good_secret,omitempty"` // of which Good is a version, where that is not Secret
}

// keeper writes what nodes rejected to the store, so that bytes which a node rejected are not sent to it after a restart either. It works
// beside the streams, which only mark what changed: a record that changes often is written once, as it is then, and one that could not
// be written is tried again. A crash may lose the NACKs of the last moments: their nodes are sent the bytes once more.
type keeper struct {
	store  store.Store
	cache  *cache.Cache
	ledger *ledger
	log    *slog.Logger

	wake chan struct{} // capacity 1

	mu     sync.Mutex
	dirty  map[recordID]struct{} // guarded by mu; to be written
	sweeps map[string]struct{}   // guarded by mu; secrets of which versions may have been pruned

	// Used by the one goroutine that loads and writes.
	limit  int                              // records of one identity
	stored map[string]map[recordID]struct{} // what the store holds, by identity
}

func newKeeper(s store.Store, c *cache.Cache, l *ledger, log *slog.Logger) *keeper {
	return &keeper{
		store: s, cache: c, ledger: l, log: log, wake: make(chan struct{}, 1), dirty: map[recordID]struct{}{}, sweeps: map[string]struct{}{},
		limit: maxStored, stored: map[string]map[recordID]struct{}{},
	}
}

// mark says that a record has changed. It never blocks on the store.
func (k *keeper) mark(node nodeKey, name string) {
	k.mu.Lock()
	k.dirty[recordID{node, name}] = struct{}{}
	k.mu.Unlock()
	k.ring()
}

// sweep says that versions of a secret may have been pruned.
func (k *keeper) sweep(name string) {
	k.mu.Lock()
	k.sweeps[name] = struct{}{}
	k.mu.Unlock()
	k.ring()
}

func (k *keeper) ring() {
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// run writes until ctx ends, and then what is left.
func (k *keeper) run(ctx context.Context) {
	retry := retryFirst
	for ctx.Err() == nil {
		var again <-chan time.Time
		if err := k.flush(ctx); err == nil {
			retry = retryFirst
		} else if ctx.Err() == nil {
			if retry == retryFirst {
				k.log.WarnContext(ctx, "rejected versions cannot be stored; trying again", "err", err)
			}
			again = time.After(retry)
			retry = min(2*retry, retryMost)
		}
		wake := k.wake
		if again != nil {
			wake = nil // nothing new makes the store work again
		}
		select {
		case <-ctx.Done():
		case <-wake:
		case <-again:
		}
	}
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), lastTimeout)
	defer cancel()
	if err := k.flush(last); err != nil {
		k.log.ErrorContext(last, "rejected versions were not stored: they may be sent once more after the restart", "err", err)
	}
}

// flush writes everything that is marked. On an error what was not written stays marked.
func (k *keeper) flush(ctx context.Context) error {
	k.mu.Lock()
	sweeps, dirty := k.sweeps, k.dirty
	k.sweeps, k.dirty = map[string]struct{}{}, map[recordID]struct{}{}
	k.mu.Unlock()
	var errs []error
	for name := range sweeps {
		if err := k.forgetPruned(ctx, name); err != nil {
			errs = append(errs, err)
			k.sweep(name)
		}
	}
	ids := slices.Collect(maps.Keys(dirty))
	for len(ids) > 0 {
		n, err := k.commit(ctx, ids)
		if err != nil {
			errs = append(errs, err)
			break
		}
		ids = ids[n:]
	}
	k.mu.Lock()
	for _, id := range ids {
		k.dirty[id] = struct{}{}
	}
	left := len(k.dirty) + len(k.sweeps)
	k.mu.Unlock()
	if left > 0 { // also what was marked meanwhile
		k.ring()
	}
	return errors.Join(errs...)
}

// commit writes the first of the records, as they are now, and returns how many these were.
func (k *keeper) commit(ctx context.Context, ids []recordID) (int, error) {
	var operations []store.Operation
	var deleted []recordID
	taken, bytes := 0, 0
	for _, id := range ids {
		o, ok, err := k.operation(ctx, id)
		if err != nil {
			return 0, err
		}
		size := len(o.Key) + len(o.Value)
		if ok && len(operations) > 0 && bytes+size > commitBytes {
			break
		}
		if ok {
			operations, bytes = append(operations, o), bytes+size
		}
		if ok && o.Delete {
			deleted = append(deleted, id)
		}
		if taken++; len(operations) == commitRecords {
			break
		}
	}
	if len(operations) > 0 {
		if _, err := k.store.Commit(ctx, nil, operations); err != nil {
			return 0, fmt.Errorf("store rejected versions: %w", err)
		}
	}
	for _, id := range deleted {
		k.unnote(id)
	}
	return taken, nil
}

func (k *keeper) note(id recordID) {
	if k.stored[id.node.identity] == nil {
		k.stored[id.node.identity] = map[recordID]struct{}{}
	}
	k.stored[id.node.identity][id] = struct{}{}
}

func (k *keeper) unnote(id recordID) {
	delete(k.stored[id.node.identity], id)
	if len(k.stored[id.node.identity]) == 0 {
		delete(k.stored, id.node.identity)
	}
}

// operation returns what makes the store say what the ledger says; false if nothing has to be done.
func (k *keeper) operation(ctx context.Context, id recordID) (store.Operation, bool, error) {
	r, ok := k.ledger.export(id)
	_, known := k.stored[id.node.identity][id]
	switch key := id.key(); {
	case !ok:
		return store.Delete(key), known, nil
	case len(key) > store.MaxKeyBytes || !known && len(k.stored[id.node.identity]) >= k.limit:
		k.log.WarnContext(ctx, "rejected version is remembered until the restart only", "secret", id.name, "node_id", id.node.id)
		return store.Operation{}, false, nil
	default:
		k.recall(ctx, id, r.goodSecret(), r.Good)
		b, err := json.Marshal(r)
		if err != nil {
			return store.Operation{}, false, fmt.Errorf("encode what node %q rejected: %w", id.node.id, err)
		}
		k.note(id) // before the commit, so that the limit holds within one; if that fails, the record stays marked
		return store.Put(key, b), true, nil
	}
}

// recall brings the bytes that a node goes on with into memory, where it was known by their version only.
func (k *keeper) recall(ctx context.Context, id recordID, secretName string, version secret.Version) {
	if version == "" || !k.ledger.lacks(id, version) {
		return
	}
	if res := k.resource(ctx, secretName, version); res != nil {
		k.ledger.recall(id, res)
	}
}

// resource reads a version; nil if there is none, or it cannot be read: then the node is told that there is nothing, and keeps what it has.
func (k *keeper) resource(ctx context.Context, name string, version secret.Version) *cache.Resource {
	res, err := k.cache.Stored(ctx, name, version)
	if err == nil {
		return res
	}
	if !errors.Is(err, store.ErrNotFound) {
		k.log.WarnContext(ctx, "last good version cannot be read", "secret", name, "version", version.Short(), "err", err)
	}
	return nil
}

// forgetPruned drops the NACKs of versions that are not stored any more.
func (k *keeper) forgetPruned(ctx context.Context, name string) error {
	versions, err := k.cache.Versions(ctx, name)
	if err != nil {
		return err
	}
	stored := make(map[secret.Version]bool, len(versions))
	for _, m := range versions {
		stored[m.Version] = true
	}
	k.ledger.forgetNACKs(name, func(v secret.Version) bool { return !stored[v] })
	return nil
}

// load fills the ledger with what the store holds. It comes before any stream.
func (k *keeper) load(ctx context.Context) error {
	entries, _, err := k.store.List(ctx, nackPrefix+"/")
	if err != nil {
		return fmt.Errorf("list rejected versions: %w", err)
	}
	records := make([]storedRecord, len(entries))
	for i, e := range entries {
		if err := json.Unmarshal(e.Value, &records[i]); err != nil {
			return fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
	}
	slices.SortStableFunc(records, func(a, b storedRecord) int { return a.last().Compare(b.last()) }) // the oldest make room
	names := map[string]struct{}{}
	good := map[recordGood]*cache.Resource{} // nil: not stored any more
	for _, r := range records {
		at := recordGood{r.goodSecret(), r.Good}
		if _, ok := good[at]; !ok && r.Good != "" {
			good[at] = k.resource(ctx, at.name, r.Good)
		}
		id := recordID{nodeKey{r.Identity, r.Node}, r.Secret}
		k.note(id)
		k.ledger.restore(id, r, good[at])
		for _, nack := range r.NACKs {
			names[nack.Secret] = struct{}{}
		}
	}
	for name := range names {
		if err := k.forgetPruned(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

type recordGood struct {
	name    string
	version secret.Version
}

// goodSecret is the secret of which Good is a version.
func (r storedRecord) goodSecret() string { return cmp.Or(r.GoodSecret, r.Secret) }

// last is when the newest rejection came.
func (r storedRecord) last() time.Time {
	if len(r.NACKs) == 0 {
		return time.Time{}
	}
	return r.NACKs[len(r.NACKs)-1].At
}
