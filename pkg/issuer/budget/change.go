package budget

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// chunk is how many buckets one commit changes: each has a condition and an operation.
	chunk = store.MaxOperations / 2
	// mostConflicts is how often a change is computed again because another process has changed the same buckets.
	mostConflicts = 20
	// storeTime bounds what is done in one turn.
	storeTime = 30 * time.Second
)

// change is one use of a ledger on its way into the store. Those that come while a commit is under way are stored together in the next one.
type change struct {
	// touches says which buckets it is about, given the entries as they are; the book's lock is held when it is called.
	touches func(now int64) []touch
	// edit changes the buckets, or returns why not.
	edit func(now int64, of []*touched) error
	// done gets the result.
	done chan error
}

// touched is a bucket while a change is computed: a copy, brought to now.
type touched struct {
	touch
	*entry
	was     *entry // as it is stored
	changed bool
}

// change makes one change, in its turn.
func (b *Book) change(ctx context.Context, touches func(now int64) []touch, edit func(now int64, of []*touched) error) error {
	c := &change{touches: touches, edit: edit, done: make(chan error, 1)}
	b.mu.Lock()
	b.queue = append(b.queue, c)
	b.mu.Unlock()
	select {
	case err := <-c.done:
		return err
	case b.turn <- struct{}{}:
		b.work(ctx)
		<-b.turn
		return <-c.done
	case <-ctx.Done():
		if b.withdraw(c) {
			return fmt.Errorf("budget: %w", context.Cause(ctx))
		}
		return <-c.done
	}
}

// withdraw takes a change out of the queue; false where it is being made.
func (b *Book) withdraw(c *change) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	i := slices.Index(b.queue, c)
	if i < 0 {
		return false
	}
	b.queue = slices.Delete(b.queue, i, i+1)
	return true
}

// work makes all changes that are waiting, those of others too: the end of ctx does not end it.
func (b *Book) work(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), storeTime)
	defer cancel()
	b.mu.Lock()
	waiting := b.queue
	b.queue = nil
	b.mu.Unlock()
	for len(waiting) > 0 {
		waiting = waiting[b.batch(ctx, waiting):]
	}
	b.sweep(ctx, time.Now().UnixNano())
}

// batch makes as many of the changes as one commit holds, at least the first, and returns how many. One that needs several commits is alone.
func (b *Book) batch(ctx context.Context, waiting []*change) int {
	for try := 0; ; try++ {
		now := time.Now().UnixNano()
		set := map[string]*touched{}
		var results []error
		for _, c := range waiting {
			of, err := b.compute(ctx, now, c, set)
			more := map[string]*touched{}
			for _, t := range of {
				if err == nil && t.changed {
					more[t.key] = t
				}
			}
			if len(results) > 0 && len(set)+len(more) > chunk {
				break
			}
			maps.Copy(set, more)
			results = append(results, err)
		}
		of := slices.Collect(maps.Values(set))
		err := b.commit(ctx, now, of)
		if errors.Is(err, store.ErrConflict) && try < mostConflicts {
			if err = b.refresh(ctx, of); err == nil {
				continue
			}
		}
		for i, result := range results {
			if result == nil && err != nil {
				result = fmt.Errorf("budget: %w", err)
			}
			waiting[i].done <- result
		}
		return len(results)
	}
}

// compute makes one change in memory, on top of those in set. Before a refusal is believed the store is asked: another process may have given
// something back.
func (b *Book) compute(ctx context.Context, now int64, c *change, set map[string]*touched) ([]*touched, error) {
	of := b.touched(now, c, set)
	err := c.edit(now, of)
	if err == nil {
		return of, nil
	}
	if err := b.refresh(ctx, of); err != nil {
		return nil, fmt.Errorf("budget: %w", err)
	}
	of = b.touched(now, c, set)
	return of, c.edit(now, of)
}

func (b *Book) touched(now int64, c *change, set map[string]*touched) []*touched {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := c.touches(now)
	out := make([]*touched, 0, len(list))
	for _, t := range list {
		if before := set[t.key]; before != nil {
			out = append(out, &touched{touch: t, entry: before.clone(), was: before.was, changed: true})
			continue
		}
		e := b.look(t, now)
		out = append(out, &touched{touch: t, entry: e, was: e.clone()})
	}
	return out
}

// look returns a copy of an entry, brought to now; mu is held.
func (b *Book) look(t touch, now int64) *entry {
	if e := b.entries[t.key]; e != nil {
		e.at(t.limit, now) // kept: what a wrong clock has left is bounded once
	}
	e := b.copy(t)
	e.at(t.limit, now)
	return e
}

// copy returns a copy of an entry as it is; mu is held.
func (b *Book) copy(t touch) *entry {
	if e := b.entries[t.key]; e != nil {
		return e.clone()
	}
	return &entry{owner: t.owner, of: t.limit.name, scope: t.scope, label: t.label}
}

// commit stores entries, in as many commits as it takes. Where a later one fails, the earlier ones are undone; what cannot be undone stays
// spent.
func (b *Book) commit(ctx context.Context, now int64, of []*touched) error {
	var done []*touched
	for part := range slices.Chunk(of, chunk) {
		if err := b.write(ctx, now, part); err != nil {
			b.undo(ctx, now, done)
			return err
		}
		done = append(done, part...)
	}
	return nil
}

// write stores entries in one commit, and then in memory.
func (b *Book) write(ctx context.Context, now int64, of []*touched) error {
	conditions := make([]store.Condition, 0, len(of))
	operations := make([]store.Operation, 0, len(of))
	for _, t := range of {
		conditions = append(conditions, store.Condition{Key: t.key, Revision: t.revision})
		if !t.keep(now) {
			operations = append(operations, store.Delete(t.key))
			continue
		}
		value, err := t.encode()
		if err != nil {
			return err
		}
		operations = append(operations, store.Put(t.key, value))
	}
	revision, err := b.store.Commit(ctx, conditions, operations)
	if err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, t := range of {
		if !t.keep(now) {
			delete(b.entries, t.key)
			t.revision = 0
			continue
		}
		t.revision = revision
		b.entries[t.key] = t.entry
	}
	return nil
}

// undo writes what was before a commit whose later part has failed.
func (b *Book) undo(ctx context.Context, now int64, of []*touched) {
	for part := range slices.Chunk(of, chunk) {
		for _, t := range part {
			revision := t.revision
			t.entry = t.was.clone()
			t.revision = revision
		}
		if err := b.write(ctx, now, part); err != nil {
			b.log.WarnContext(ctx, "what was spent of the limits of a CA for a request that was not sent cannot be given back", "err", err)
			return
		}
	}
}

// refresh reads entries from the store.
func (b *Book) refresh(ctx context.Context, of []*touched) error {
	for _, t := range of {
		raw, err := b.store.Get(ctx, t.key)
		if err != nil && !errors.Is(err, store.ErrNotFound) {
			return err
		}
		b.mu.Lock()
		known := b.entries[t.key]
		switch {
		case err != nil:
			delete(b.entries, t.key)
		case known == nil || known.revision != raw.Revision:
			b.entries[t.key] = b.read(ctx, raw)
		}
		b.mu.Unlock()
	}
	return nil
}
