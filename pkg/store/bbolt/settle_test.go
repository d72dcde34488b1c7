package bbolt

import (
	"errors"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/sds-server/sds-server/pkg/store"
)

// faulty makes the next transactions of db fail with EIO: each fault says whether before or after they have persisted.
func faulty(db *DB, faults ...string) {
	db.update = func(change func(*bolt.Tx) error) error {
		if len(faults) == 0 {
			return db.bolt.Update(change)
		}
		fault := faults[0]
		faults = faults[1:]
		if fault == "after" {
			if err := db.bolt.Update(change); err != nil {
				return err
			}
			return syscall.EIO
		}
		return db.bolt.Update(func(tx *bolt.Tx) error {
			if err := change(tx); err != nil {
				return err
			}
			return syscall.EIO
		})
	}
}

func openTest(t *testing.T) (*DB, <-chan []store.Event) {
	t.Helper()
	db, err := Open(Options{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	events, err := db.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	return db, events
}

// wantEvents demands that exactly the given revisions are watched, the last one being the newest of the store.
func wantEvents(t *testing.T, events <-chan []store.Event, revisions ...int64) {
	t.Helper()
	for _, want := range revisions {
		select {
		case got := <-events:
			if len(got) != 1 || got[0].Revision != want {
				t.Fatalf("watched %v, want revision %d", got, want)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("no event, want revision %d", want)
		}
	}
}

func TestFaultBeforePersistingWritesNothing(t *testing.T) {
	db, events := openTest(t)
	faulty(db, "before")
	_, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("k", []byte("1"))})
	if fault, ok := errors.AsType[*store.Fault](err); !ok || fault.Hint == "" || !errors.Is(err, syscall.EIO) {
		t.Fatalf("got %v, want a fault with a hint", err)
	}
	if _, err := db.Get(t.Context(), "k"); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("get: got %v, want %v", err, store.ErrNotFound)
	}
	revision, err := db.Commit(t.Context(), []store.Condition{{Key: "k"}}, []store.Operation{store.Put("k", []byte("2"))})
	if err != nil || revision != 1 {
		t.Fatalf("retry: revision %d, %v, want 1", revision, err)
	}
	wantEvents(t, events, 1)
}

func TestFailedFlushIsConfirmed(t *testing.T) {
	db, events := openTest(t)
	faulty(db, "after")
	revision, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("k", []byte("1"))})
	if err != nil || revision != 1 {
		t.Fatalf("revision %d, %v, want 1: the second flush worked", revision, err)
	}
	wantEvents(t, events, 1)
}

func TestUnconfirmedCommitIsPublishedOnce(t *testing.T) {
	db, events := openTest(t)
	faulty(db, "after", "before", "before")
	for range 2 {
		_, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("k", []byte("1"))})
		fault, ok := errors.AsType[*store.Fault](err)
		if !ok || !strings.Contains(fault.Message, "whether the last commit is durable is not known") || fault.Hint == "" {
			t.Fatalf("got %v, want that the outcome is not known", err)
		}
	}
	revision, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("l", []byte("2"))})
	if err != nil || revision != 2 {
		t.Fatalf("revision %d, %v, want 2", revision, err)
	}
	wantEvents(t, events, 1, 2)
	if _, err := db.Commit(t.Context(), []store.Condition{{Key: "k", Revision: 1}}, nil); err != nil {
		t.Errorf("the commit that was not known is there, but: %v", err)
	}
}
