// Package bbolt is the embedded engine of package store: one file, one process, no server to run.
//
// It implements the Store interface exactly, with the limits that etcd has. Layout of the file: bucket "meta" holds the
// format, the revision of the last commit and a tally of the entries; bucket "entries" holds key -> revision (8 bytes,
// big-endian), CRC-32C of key, revision and value (4 bytes, big-endian), value. bbolt keeps no checksum of its data pages: the
// CRC turns a flipped bit into a Fault instead of a wrong answer, and the tally shows entries that were lost.
//
// Invariants: a revision that Commit returned survives a crash; a failed Commit leaves the last state readable; an existing
// file is never initialised anew. A damaged file can end the process by a signal, so callers run CheckInChild before Open.
package bbolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/sds-server/sds-server/pkg/store"
)

// errUnchanged ends a transaction that would change nothing, so that it costs no fsync and no revision, as in etcd.
var errUnchanged = errors.New("unchanged")

// DB is a store.Store in one bbolt file.
type DB struct {
	path string
	bolt *bolt.DB
	// update is bolt.Update; tests put faults before and after it.
	update func(func(*bolt.Tx) error) error

	// turn holds a token while a commit runs: commits are published in the order of their revisions, and a caller that
	// waits for its turn can be cancelled.
	turn chan struct{}
	// unconfirmed is the commit whose last fsync failed although its bytes are in the file. Guarded by turn.
	unconfirmed []store.Event

	history *history
}

var _ store.Store = (*DB)(nil)

// Get returns the entry at key, or store.ErrNotFound. A damaged entry is a *store.Fault that names the key.
func (db *DB) Get(ctx context.Context, key string) (store.Entry, error) {
	if err := ctx.Err(); err != nil {
		return store.Entry{}, err
	}
	var entry store.Entry
	err := db.view(func(tx *bolt.Tx) error {
		raw := tx.Bucket(entriesBucket).Get([]byte(key))
		if raw == nil {
			return store.ErrNotFound
		}
		var err error
		entry, err = decode([]byte(key), raw)
		return err
	})
	if err != nil {
		return store.Entry{}, err
	}
	return entry, nil
}

// List returns every entry whose key begins with prefix, sorted by key, and the revision of the store at that moment.
func (db *DB) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	if err := ctx.Err(); err != nil {
		return nil, 0, err
	}
	var list []store.Entry
	var revision int64
	err := db.view(func(tx *bolt.Tx) error {
		now, err := readState(tx)
		if err != nil {
			return err
		}
		revision = now.revision
		cursor := tx.Bucket(entriesBucket).Cursor()
		start := []byte(prefix)
		for k, raw := cursor.Seek(start); k != nil && bytes.HasPrefix(k, start); k, raw = cursor.Next() {
			entry, err := decode(k, raw)
			if err != nil {
				return err
			}
			list = append(list, entry)
			if len(list)%1024 == 0 && ctx.Err() != nil {
				return ctx.Err()
			}
		}
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	return list, revision, nil
}

// Commit applies operations in one durable transaction if all conditions hold. Two fsyncs, nothing else, are its cost. When
// the medium fails nothing was written, the error is a *store.Fault, and the caller may retry. The one exception is a disk
// that took the last page and then failed to flush it: that commit is shown by Get, the Fault says so, and the next Commit
// makes it durable first, or fails too.
func (db *DB) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	if err := store.CheckCommit(conditions, operations); err != nil {
		return 0, err
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	select {
	case db.turn <- struct{}{}:
		defer func() { <-db.turn }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := db.confirm(); err != nil {
		return 0, err
	}
	if len(operations) == 0 {
		return db.verify(conditions)
	}
	var done change
	err := db.update(func(tx *bolt.Tx) error {
		var err error
		done, err = apply(tx, conditions, operations)
		return err
	})
	switch {
	case err == nil:
	case errors.Is(err, errUnchanged):
		return done.revision, nil
	case !done.applied:
		return 0, db.explain(err)
	default:
		if err := db.settle(done, err); err != nil {
			return 0, err
		}
		return done.revision, nil
	}
	db.history.publish(done.events)
	return done.revision, nil
}

// Watch replays the changes below prefix after revision from, as far as the history in memory reaches (it is empty after
// Open), and then follows. The values that it sends are the reader's own.
func (db *DB) Watch(ctx context.Context, prefix string, from int64) (<-chan []store.Event, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if from < 0 {
		return nil, fmt.Errorf("watch %q: negative revision %d", prefix, from)
	}
	return db.history.watch(ctx, prefix, from)
}

// Close ends all watches, waits for calls under way and releases the file. Every call after it, Close too, is os.ErrClosed.
func (db *DB) Close() error {
	if !db.history.close() {
		return closed()
	}
	db.turn <- struct{}{}
	defer func() { <-db.turn }()
	return db.bolt.Close()
}

// view runs read on one consistent state. What read keeps must be copied: the pages may be reused.
func (db *DB) view(read func(tx *bolt.Tx) error) error {
	err := db.bolt.View(read)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return closed()
	}
	return err
}

// verify checks conditions without writing and returns the current revision.
func (db *DB) verify(conditions []store.Condition) (int64, error) {
	var now state
	err := db.view(func(tx *bolt.Tx) error {
		var err error
		if now, err = readState(tx); err != nil {
			return err
		}
		return holds(tx.Bucket(entriesBucket), conditions)
	})
	if err != nil {
		return 0, err
	}
	return now.revision, nil
}

// settle decides what became of a change whose transaction failed with err after it had been applied. bbolt drops it unless
// its last page was written, and only the flush of that page failed: then readers see the change although it may not be
// durable. One more transaction writes the other meta page, which makes it so.
func (db *DB) settle(done change, err error) error {
	current, readErr := db.verify(nil)
	if readErr != nil || current != done.revision {
		return db.explain(err)
	}
	db.unconfirmed = done.events
	return db.confirm()
}

// confirm makes the unconfirmed commit durable, if there is one, and publishes it.
func (db *DB) confirm() error {
	if db.unconfirmed == nil {
		return nil
	}
	err := db.update(func(tx *bolt.Tx) error {
		now, err := readState(tx)
		if err != nil {
			return err
		}
		return now.write(tx)
	})
	if err != nil {
		fault := store.MediumFault(db.path, "store cannot be flushed, whether the last commit is durable is not known", err)
		if fault.Hint == "" {
			fault.Hint = "the next commit tries again; see the kernel's log, and keep a copy of the store"
		}
		return fault
	}
	db.history.publish(db.unconfirmed)
	db.unconfirmed = nil
	return nil
}

// explain turns an error of a transaction into what the interface promises.
func (db *DB) explain(err error) error {
	if errors.Is(err, store.ErrConflict) {
		return err
	}
	if _, ok := errors.AsType[*store.Fault](err); ok {
		return err
	}
	switch {
	case errors.Is(err, berrors.ErrDatabaseNotOpen):
		return closed()
	case errors.Is(err, berrors.ErrDatabaseReadOnly):
		return &store.Fault{
			Path: db.path, Message: "store was opened read-only",
			Hint: "nothing was written; commands that change something need a running server",
		}
	}
	return store.MediumFault(db.path, "store cannot be written", err)
}

func closed() error { return fmt.Errorf("store: %w", os.ErrClosed) }

// defaultLockTimeout outlives the last moments of a server that is being replaced, and no more.
const defaultLockTimeout = time.Second
