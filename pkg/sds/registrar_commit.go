package sds

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// batch is one commit, and what it makes of the nodes.
type batch struct {
	policy     *Policy
	operations []store.Operation
	bytes      int
	nodes      map[nodeKey]registered // without a set: not any more
	added      map[string]int         // how many of nodes are new in each group, less those that are not there any more
	sets       map[string]*nameSet    // that are new
	setsBytes  int
}

// commit writes the first of the nodes, as they are now, and returns how many these were.
func (r *registrar) commit(ctx context.Context, keys []nodeKey) (int, error) {
	b := batch{policy: r.rights(), nodes: map[nodeKey]registered{}, added: map[string]int{}, sets: map[string]*nameSet{}}
	taken := 0
	for _, key := range keys {
		if len(b.operations)+2 > commitRecords || b.bytes > commitBytes {
			break
		}
		if err := r.add(ctx, &b, key); err != nil {
			return 0, err
		}
		taken++
	}
	if len(b.operations) > 0 {
		if _, err := r.store.Commit(ctx, nil, b.operations); err != nil {
			return 0, fmt.Errorf("store which nodes there are: %w", err)
		}
	}
	r.settle(b)
	return taken, nil
}

// add puts into a batch what makes the store say what the ledger says of a node, if anything has to be done.
func (r *registrar) add(ctx context.Context, b *batch, key nodeKey) error {
	p, ok := r.ledger.presence(key, b.policy, time.Now())
	if !p.again.IsZero() {
		r.mark(key, time.Until(p.again))
	}
	at, known := r.stored[key]
	path := store.Key(nodePrefix, key.identity, key.id)
	names := r.intern(b, p)
	if !ok || names == nil { // nothing waits for it
		if known {
			b.put(store.Delete(path))
			b.added[at.group]--
		}
		b.nodes[key] = registered{group: p.group}
		return nil
	}
	next := registered{group: p.group, names: names, left: p.left}
	switch {
	case known && at == next:
		r.ledger.enlist(key, p.group, names)
		return nil
	case !known && r.groups[p.group]+b.added[p.group] >= r.perGroup || len(path) > store.MaxKeyBytes:
		if !r.crowded {
			r.crowded = true
			r.log.WarnContext(ctx, "a group has more nodes than are remembered over a restart", "group", p.group, "nodes", r.perGroup)
		}
		return nil
	}
	value, err := json.Marshal(storedNode{Group: p.group, Transport: p.transport, Protocol: p.protocol, Names: names.digest, Left: p.left})
	if err != nil {
		return fmt.Errorf("encode node %q: %w", key.id, err)
	}
	if names != everyName && r.sets[names.digest] == nil && b.sets[names.digest] == nil {
		encoded, err := names.encode()
		if err != nil {
			return err
		}
		b.put(store.Put(store.Key(nameSetPrefix, names.digest), encoded))
		b.sets[names.digest], b.setsBytes = names, b.setsBytes+names.bytes
	}
	b.put(store.Put(path, value))
	b.nodes[key] = next
	if !known {
		b.added[p.group]++
	}
	return nil
}

func (b *batch) put(o store.Operation) {
	b.operations, b.bytes = append(b.operations, o), b.bytes+len(o.Key)+len(o.Value)
}

// intern returns the one set of the secrets that a node has; nil for none.
func (r *registrar) intern(b *batch, p presence) *nameSet {
	if p.returning == everyName {
		return everyName
	}
	var names []string
	for _, name := range p.asked {
		if secretName := r.secretOf(b.policy, p.group, name); secretName != "" {
			names = append(names, secretName)
		}
	}
	if p.returning != nil {
		names = append(names, p.returning.names...)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	s := newNameSet(slices.Compact(names))
	if known := r.sets[s.digest]; known != nil {
		return known.names
	}
	if known := b.sets[s.digest]; known != nil {
		return known
	}
	if s.bytes > maxSetBytes || r.setsBytes+b.setsBytes+s.bytes > r.setsLimit {
		return everyName
	}
	return s
}

// settle takes over what was committed.
func (r *registrar) settle(b batch) {
	for _, s := range b.sets {
		r.sets[s.digest] = &storedSet{names: s}
		r.setsBytes += s.bytes
	}
	for key, next := range b.nodes {
		r.note(key, next)
		r.ledger.enlist(key, next.group, next.names)
	}
}

// note takes over what the store says of a node; nothing if next has no set.
func (r *registrar) note(key nodeKey, next registered) {
	if next.names != nil {
		r.groups[next.group]++
		if s := r.sets[next.names.digest]; s != nil {
			s.nodes++
		}
	}
	if at, known := r.stored[key]; known {
		if r.groups[at.group]--; r.groups[at.group] == 0 {
			delete(r.groups, at.group)
		}
		if s := r.sets[at.names.digest]; s != nil {
			if s.nodes--; s.nodes == 0 {
				r.unused = append(r.unused, at.names.digest)
			}
		}
	}
	delete(r.stored, key)
	if next.names != nil {
		r.stored[key] = next
	}
}

// dropSets deletes the sets that no node has any more.
func (r *registrar) dropSets(ctx context.Context) error {
	unused := slices.DeleteFunc(r.unused, func(digest string) bool { return r.sets[digest] == nil || r.sets[digest].nodes > 0 })
	slices.Sort(unused)
	r.unused = slices.Compact(unused)
	for len(r.unused) > 0 {
		n := min(len(r.unused), commitRecords)
		operations := make([]store.Operation, 0, n)
		for _, digest := range r.unused[:n] {
			operations = append(operations, store.Delete(store.Key(nameSetPrefix, digest)))
		}
		if _, err := r.store.Commit(ctx, nil, operations); err != nil {
			return fmt.Errorf("delete names of nodes that are gone: %w", err)
		}
		for _, digest := range r.unused[:n] {
			r.setsBytes -= r.sets[digest].names.bytes
			delete(r.sets, digest)
		}
		r.unused = r.unused[n:]
	}
	return nil
}
