package storetest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/store"
)

func put(key, value string, revision int64) store.Event {
	return store.Event{Entry: entry(key, value, revision)}
}

func deleted(key string, revision int64) store.Event {
	return store.Event{Entry: store.Entry{Key: key, Revision: revision}, Deleted: true}
}

func watch(t *testing.T, s store.Store, prefix string, from int64) <-chan []store.Event {
	t.Helper()
	events, err := s.Watch(t.Context(), prefix, from)
	if err != nil {
		t.Fatalf("watch %q from %d: %v", prefix, from, err)
	}
	return events
}

// receive returns the next commit; ok is false if the channel was closed.
func receive(t *testing.T, events <-chan []store.Event) (commit []store.Event, ok bool) {
	t.Helper()
	select {
	case commit, ok = <-events:
		return commit, ok
	case <-time.After(patience):
		t.Fatalf("no event and no end within %v", patience)
	}
	return nil, false
}

// expect demands that the next commit is exactly want, in that order.
func expect(t *testing.T, events <-chan []store.Event, want ...store.Event) {
	t.Helper()
	got, ok := receive(t, events)
	if !ok {
		t.Fatalf("watch ended, want %v", want)
	}
	if d := diffEvents(want, got); d != "" {
		t.Fatalf("watched commit (-want +got):\n%s", d)
	}
}

func diffEvents(want, got []store.Event) string {
	return cmp.Diff(want, got, cmp.Transformer("text", func(b []byte) string { return string(b) }))
}

// expectClosed demands that the channel is closed, after events that were on their way.
func expectClosed(t *testing.T, events <-chan []store.Event) {
	t.Helper()
	for ok := true; ok; {
		_, ok = receive(t, events)
	}
}

func testWatchOrder(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	events := watch(t, s, "", start)
	first := commit(t, s, store.Put("b", []byte("1")), store.Put("a", nil), store.Put("c", []byte("1")))
	second := commit(t, s, store.Delete("a"), store.Put("b", []byte("2")), store.Delete("absent"))
	if _, err := s.Commit(t.Context(), []store.Condition{{Key: "b", Revision: first}}, []store.Operation{store.Delete("b")}); !errors.Is(err, store.ErrConflict) {
		t.Fatalf("got %v, want %v", err, store.ErrConflict)
	}
	third := commit(t, s, store.Put("b", []byte("2"))) // the same value again is a change, too
	expect(t, events, put("b", "1", first), put("a", "", first), put("c", "1", first))
	expect(t, events, deleted("a", second), put("b", "2", second))
	expect(t, events, put("b", "2", third))
}

func testWatchPrefix(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	below := watch(t, s, "a/", start)
	one := watch(t, s, "a/1", start)
	all := watch(t, s, "", start)
	other := watch(t, s, "b", start)
	first := commit(t, s, store.Put("a", nil), store.Put("a0", nil), store.Put("a/1", []byte("x")), store.Put("a/2", nil))
	second := commit(t, s, store.Put("a0", []byte("y")))
	third := commit(t, s, store.Delete("a/1"))
	last := commit(t, s, store.Put("b", []byte("z")))
	expect(t, below, put("a/1", "x", first), put("a/2", "", first))
	expect(t, below, deleted("a/1", third))
	expect(t, one, put("a/1", "x", first))
	expect(t, one, deleted("a/1", third))
	expect(t, all, put("a", "", first), put("a0", "", first), put("a/1", "x", first), put("a/2", "", first))
	expect(t, all, put("a0", "y", second))
	expect(t, all, deleted("a/1", third))
	expect(t, all, put("b", "z", last))
	expect(t, other, put("b", "z", last))
}

func testWatchReplay(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	var revisions []int64
	for i := range 10 {
		revisions = append(revisions, commit(t, s, store.Put("k", fmt.Append(nil, i)), store.Put("l", nil)))
	}
	for from := range len(revisions) + 1 {
		revision := start
		if from > 0 {
			revision = revisions[from-1]
		}
		ctx, cancel := context.WithCancel(t.Context())
		events, err := s.Watch(ctx, "k", revision)
		if err != nil {
			t.Fatalf("watch from %d: %v", revision, err)
		}
		for i := from; i < len(revisions); i++ {
			expect(t, events, put("k", fmt.Sprint(i), revisions[i]))
		}
		cancel()
		expectClosed(t, events)
	}
	// A revision that is not reached yet: only what comes after it counts.
	next := revisions[len(revisions)-1] + 1
	future := watch(t, s, "k", next)
	if got := commit(t, s, store.Put("k", []byte("not after"))); got > next {
		expect(t, future, put("k", "not after", got))
	}
	after := commit(t, s, store.Put("k", []byte("after")))
	expect(t, future, put("k", "after", after))
}

// testWatchHistory fills more than the history that every engine keeps.
func testWatchHistory(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	const size = 50
	var revisions []int64
	for i := range store.WatchHistory/size + 5 {
		operations := make([]store.Operation, size)
		for j := range operations {
			operations[j] = store.Put(fmt.Sprintf("k/%02d", j), fmt.Append(nil, i))
		}
		revisions = append(revisions, commit(t, s, operations...))
	}
	kept := len(revisions) - store.WatchHistory/size
	events := watch(t, s, "k/", revisions[kept-1])
	for i := kept; i < len(revisions); i++ {
		got, ok := receive(t, events)
		if !ok || len(got) != size || got[0].Revision != revisions[i] {
			t.Fatalf("replayed commit %d: %d events, open %v, want %d at revision %d", i, len(got), ok, size, revisions[i])
		}
	}
	old, err := s.Watch(t.Context(), "k/", start)
	if err != nil {
		if !errors.Is(err, store.ErrCompacted) {
			t.Fatalf("watch from the beginning: got %v, want %v", err, store.ErrCompacted)
		}
		return
	}
	for _, revision := range revisions { // an engine may keep more, but without a gap
		if got, ok := receive(t, old); !ok || got[0].Revision != revision {
			t.Fatalf("replay from the beginning: got %v, open %v, want revision %d", got, ok, revision)
		}
	}
}

// testListThenWatch starts watches between commits that go on: list and events together give every state.
func testListThenWatch(t *testing.T, s store.Store) {
	const total = 200
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < total && err == nil; i++ {
			_, err = s.Commit(t.Context(), nil, []store.Operation{store.Put("n", fmt.Append(nil, i)), store.Put(fmt.Sprintf("k/%d", i%7), nil)})
		}
		done <- err
	}()
	for range 20 {
		entries, revision := list(t, s, "n")
		next := 0
		if len(entries) == 1 {
			if _, err := fmt.Sscan(string(entries[0].Value), &next); err != nil {
				t.Fatal(err)
			}
			next++
		}
		ctx, cancel := context.WithCancel(t.Context())
		events, err := s.Watch(ctx, "n", revision)
		if err != nil {
			t.Fatalf("watch from %d: %v", revision, err)
		}
		for range min(8, total-next) {
			got, ok := receive(t, events)
			if !ok || len(got) != 1 || string(got[0].Value) != fmt.Sprint(next) {
				t.Fatalf("got %v, open %v, want value %d", got, ok, next)
			}
			next++
		}
		cancel()
		expectClosed(t, events)
	}
	if err := <-done; err != nil {
		t.Fatalf("commit: %v", err)
	}
}

// testSlowReader commits far more than the history holds before it reads: what it gets has no gap, and then ends, unless
// the engine has kept all of it.
func testSlowReader(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	slow := watch(t, s, "", start)
	const size = store.MaxOperations
	var revisions []int64
	for i := range 3*store.WatchHistory/size + 1 {
		operations := make([]store.Operation, size)
		for j := range operations {
			operations[j] = store.Put(fmt.Sprintf("k/%03d", j), fmt.Append(nil, i))
		}
		revisions = append(revisions, commit(t, s, operations...))
	}
	// The store works on for the others.
	quick := watch(t, s, "other", revisions[len(revisions)-1])
	last := commit(t, s, store.Put("other", nil))
	expect(t, quick, put("other", "", last))
	revisions = append(revisions, last)
	for _, revision := range revisions {
		got, ok := receive(t, slow)
		if !ok {
			return
		}
		if got[0].Revision != revision || revision != last && len(got) != size {
			t.Fatalf("got %d events at revision %d, want all of %d", len(got), got[0].Revision, revision)
		}
	}
}

func testWatchContext(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	ctx, cancel := context.WithCancel(t.Context())
	idle, err := s.Watch(ctx, "nothing", start)
	if err != nil {
		t.Fatal(err)
	}
	blocked, err := s.Watch(ctx, "", start)
	if err != nil {
		t.Fatal(err)
	}
	survivor := watch(t, s, "", start)
	first := commit(t, s, store.Put("k", []byte("1")))
	second := commit(t, s, store.Put("k", []byte("2")))
	cancel()
	expectClosed(t, idle)
	expectClosed(t, blocked)
	expect(t, survivor, put("k", "1", first))
	expect(t, survivor, put("k", "2", second))
}

func testWatchClose(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	idle := watch(t, s, "nothing", start)
	blocked := watch(t, s, "", start)
	commit(t, s, store.Put("k", []byte("1")))
	commit(t, s, store.Put("k", []byte("2")))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	expectClosed(t, idle)
	expectClosed(t, blocked)
}

func testWatchCopies(t *testing.T, s store.Store) {
	_, start := list(t, s, "")
	first, second := watch(t, s, "", start), watch(t, s, "", start)
	revision := commit(t, s, store.Put("k", []byte("original")))
	got, ok := receive(t, first)
	if !ok || len(got) != 1 {
		t.Fatalf("got %v, open %v", got, ok)
	}
	copy(got[0].Value, "changed!")
	got[0].Key = "changed"
	expect(t, second, put("k", "original", revision))
	expect(t, watch(t, s, "", start), put("k", "original", revision))
	equalGet(t, s, entry("k", "original", revision))
}
