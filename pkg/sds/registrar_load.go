package sds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// load fills the ledger with what the store holds. It comes before any stream. Nobody saw those leave that were connected at the end: they count as
// seen now.
func (r *registrar) load(ctx context.Context) error {
	now := time.Now()
	r.sweepAt = now.Add(comeBack)
	if err := r.loadSets(ctx); err != nil {
		return err
	}
	entries, _, err := r.store.List(ctx, nodePrefix+"/")
	if err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	nodes := make([]loaded, 0, len(entries))
	for _, e := range entries {
		n, err := r.decode(e, now)
		if err != nil {
			return fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		r.note(n.key, registered{group: n.group, names: n.returning, left: n.left})
		nodes = append(nodes, n)
	}
	for digest, s := range r.sets {
		if s.nodes == 0 {
			r.unused = append(r.unused, digest)
		}
	}
	slices.SortStableFunc(nodes, func(a, b loaded) int { return a.seen.Compare(b.seen) }) // the oldest make room
	policy := r.rights()
	for _, n := range nodes {
		if now.Sub(n.seen) >= keptAbsent || !policy.keeps(n.transport, n.key.identity, n.group) {
			r.mark(n.key, comeBack) // to be deleted
			continue
		}
		r.ledger.readmit(n.key, n.presence, n.seen)
	}
	return nil
}

// loaded is one node of the store.
type loaded struct {
	key nodeKey
	presence
	seen time.Time
}

func (r *registrar) loadSets(ctx context.Context) error {
	entries, _, err := r.store.List(ctx, nameSetPrefix+"/")
	if err != nil {
		return fmt.Errorf("list names of nodes: %w", err)
	}
	for _, e := range entries {
		s, err := decodeNameSet(e.Value)
		if err != nil {
			return fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		if parts := store.Parts(e.Key); parts[len(parts)-1] != s.digest {
			return fmt.Errorf("stored value at %s: other names", e.Key)
		}
		r.sets[s.digest] = &storedSet{names: s}
		r.setsBytes += s.bytes
	}
	return nil
}

func (r *registrar) decode(e store.Entry, now time.Time) (loaded, error) {
	var v storedNode
	if err := json.Unmarshal(e.Value, &v); err != nil {
		return loaded{}, err
	}
	parts := store.Parts(e.Key)
	if len(parts) != 3 {
		return loaded{}, errors.New("not the key of a node")
	}
	n := loaded{
		key: nodeKey{parts[1], parts[2]}, seen: now,
		presence: presence{group: v.Group, transport: v.Transport, protocol: v.Protocol, left: v.Left, returning: everyName},
	}
	if v.Left != 0 {
		n.seen = sooner(time.Unix(v.Left, 0), now)
	}
	if s := r.sets[v.Names]; s != nil && v.Names != "" {
		n.returning = s.names
	}
	return n, nil
}
