// Package storetest is the conformance suite of package store: every engine, and every wrapper around one, passes it
// unchanged. A store that passes can be exchanged for another one without any change above it.
//
// It demands no first revision and no step between revisions, since etcd shares its counter with others. A store that adds
// bytes to each value says so by a method Overhead() int.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/store"
)

// patience is how long an event may take on a busy machine.
const patience = 30 * time.Second

// Run runs every test that needs only one opening. Each call of open returns a new, empty store; the suite closes it.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	tests := []struct {
		name string
		test func(t *testing.T, s store.Store)
	}{
		{"GetFindsWhatWasPut", testGet},
		{"ListIsSortedAndOfOneRevision", testList},
		{"PrefixEndsAtItsLastByte", testPrefix},
		{"ConditionDecides", testConditions},
		{"CommitIsWholeOrNothing", testAtomic},
		{"EmptyCommitOnlyChecks", testEmptyCommit},
		{"DeletingAnAbsentKeyChangesNothing", testDeleteAbsent},
		{"WrongCommitIsRefused", testWrongCommits},
		{"LimitOfOperationsIsExact", testMaxOperations},
		{"LimitOfBytesIsExact", testMaxBytes},
		{"ValueBelongsToTheCaller", testCopies},
		{"EndedContextStartsNothing", testEndedContext},
		{"ClosedStoreFails", testClosed},
		{"NoUpdateIsLost", testNoLostUpdate},
		{"ReadersSeeWholeCommits", testReaders},
		{"RandomHistoryMatchesModel", testModel},
		{"WatchSendsWholeCommitsInOrder", testWatchOrder},
		{"WatchSeesOnlyItsPrefix", testWatchPrefix},
		{"WatchReplaysFromRevision", testWatchReplay},
		{"WatchKeepsHistory", testWatchHistory},
		{"ListThenWatchMissesNothing", testListThenWatch},
		{"SlowReaderFindsChannelClosed", testSlowReader},
		{"EndedContextClosesWatch", testWatchContext},
		{"CloseClosesWatch", testWatchClose},
		{"WatchersDoNotShareValues", testWatchCopies},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := open(t)
			// A test may have closed it, and has looked at the error if it matters.
			t.Cleanup(func() { _ = s.Close() })
			tt.test(t, s)
		})
	}
}

// Reopener opens the same medium again at each call; the store that it returned before has been closed.
type Reopener func(t *testing.T) store.Store

// RunReopen runs the tests of durability. Each call of medium returns the Reopener of a new, empty medium.
func RunReopen(t *testing.T, medium func(t *testing.T) Reopener) {
	t.Run("StateSurvivesReopening", func(t *testing.T) { testReopen(t, medium(t)) })
	t.Run("RevisionSurvivesReopening", func(t *testing.T) { testReopenRevision(t, medium(t)) })
	t.Run("WatchAfterReopeningHasNoGap", func(t *testing.T) { testReopenWatch(t, medium(t)) })
}

func overhead(s store.Store) int {
	if o, ok := s.(interface{ Overhead() int }); ok {
		return o.Overhead()
	}
	return 0
}

// commit commits operations without conditions; it must work.
func commit(t *testing.T, s store.Store, operations ...store.Operation) int64 {
	t.Helper()
	revision, err := s.Commit(t.Context(), nil, operations)
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return revision
}

func list(t *testing.T, s store.Store, prefix string) ([]store.Entry, int64) {
	t.Helper()
	entries, revision, err := s.List(t.Context(), prefix)
	if err != nil {
		t.Fatalf("list %q: %v", prefix, err)
	}
	return entries, revision
}

func keys(entries []store.Entry) []string {
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Key
	}
	return names
}

func entry(key, value string, revision int64) store.Entry {
	return store.Entry{Key: key, Value: []byte(value), Revision: revision}
}

// equalEntries compares entries; a nil value equals an empty one.
func equalEntries(t *testing.T, what string, got, want []store.Entry) {
	t.Helper()
	if d := cmp.Diff(want, got, cmp.Transformer("text", func(b []byte) string { return string(b) })); len(got)+len(want) > 0 && d != "" {
		t.Fatalf("%s (-want +got):\n%s", what, d)
	}
}

func equalGet(t *testing.T, s store.Store, want store.Entry) {
	t.Helper()
	got, err := s.Get(t.Context(), want.Key)
	if err != nil {
		t.Fatalf("get %q: %v", want.Key, err)
	}
	equalEntries(t, "get "+want.Key, []store.Entry{got}, []store.Entry{want})
}

func absent(t *testing.T, s store.Store, key string) {
	t.Helper()
	if got, err := s.Get(t.Context(), key); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("get %q: got %v, %v, want %v", key, got, err, store.ErrNotFound)
	}
}

func testGet(t *testing.T, s store.Store) {
	absent(t, s, "a")
	first := commit(t, s, store.Put("a", []byte("1")), store.Put("b", []byte{0, 255}), store.Put("empty", nil))
	second := commit(t, s, store.Put("a", []byte("2")))
	if second <= first {
		t.Fatalf("revision %d after %d, want a greater one", second, first)
	}
	equalGet(t, s, entry("a", "2", second))
	equalGet(t, s, entry("b", "\x00\xff", first))
	equalGet(t, s, entry("empty", "", first))
	third := commit(t, s, store.Delete("a"))
	absent(t, s, "a")
	absent(t, s, "")
	fourth := commit(t, s, store.Put("a", []byte("3")))
	if third <= second || fourth <= third {
		t.Fatalf("revisions %d, %d, %d, want them to grow", second, third, fourth)
	}
	equalGet(t, s, entry("a", "3", fourth))
	equalGet(t, s, entry("b", "\x00\xff", first))
}

func testList(t *testing.T, s store.Store) {
	entries, empty := list(t, s, "")
	if len(entries) != 0 {
		t.Fatalf("new store lists %v, want nothing", keys(entries))
	}
	first := commit(t, s, store.Put("b", []byte("1")), store.Put("a/2", nil), store.Put("a/10", []byte("x")))
	if first <= empty {
		t.Fatalf("first commit has revision %d, the empty store had %d", first, empty)
	}
	second := commit(t, s, store.Put("c", []byte("2")), store.Delete("b"))
	entries, revision := list(t, s, "")
	equalEntries(t, "list", entries, []store.Entry{entry("a/10", "x", first), entry("a/2", "", first), entry("c", "2", second)})
	if revision != second {
		t.Fatalf("list at revision %d, want %d", revision, second)
	}
	_, revision = list(t, s, "nothing/")
	if revision != second {
		t.Fatalf("list of nothing at revision %d, want %d", revision, second)
	}
}

func testPrefix(t *testing.T, s store.Store) {
	all := []string{"a", "a/", "a/b", "a/b/c", "a0", "a\xff", "a\xff\xff", "b", store.Key("secret", "x/y", "z"), "\xff", "\xff\xff"}
	var operations []store.Operation
	for _, k := range all {
		operations = append(operations, store.Put(k, []byte(k)))
	}
	commit(t, s, operations...)
	tests := []struct {
		prefix string
		want   []string
	}{
		{"a/", []string{"a/", "a/b", "a/b/c"}},
		{"a", []string{"a", "a/", "a/b", "a/b/c", "a0", "a\xff", "a\xff\xff"}},
		{"a0", []string{"a0"}},
		{"a\xff", []string{"a\xff", "a\xff\xff"}},
		{"\xff", []string{"\xff", "\xff\xff"}},
		{"\xff\xff\xff", []string{}},
		{"a/b", []string{"a/b", "a/b/c"}},
		{store.Key("secret", "x/y") + "/", []string{store.Key("secret", "x/y", "z")}},
		{store.Key("secret", "x") + "/", []string{}},
		{"", []string{"a", "a/", "a/b", "a/b/c", "a0", "a\xff", "a\xff\xff", "b", "secret/x%2Fy/z", "\xff", "\xff\xff"}},
	}
	for _, tt := range tests {
		entries, _ := list(t, s, tt.prefix)
		if d := cmp.Diff(tt.want, keys(entries)); d != "" {
			t.Errorf("list %q (-want +got):\n%s", tt.prefix, d)
		}
	}
}

func testCopies(t *testing.T, s store.Store) {
	value := []byte("original")
	revision := commit(t, s, store.Put("k", value))
	want := entry("k", "original", revision)
	copy(value, "changed!")
	equalGet(t, s, want)
	got, err := s.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	copy(got.Value, "changed!")
	equalGet(t, s, want)
	entries, _ := list(t, s, "")
	copy(entries[0].Value, "changed!")
	// Appending to one value must not run into the next one.
	commit(t, s, store.Put("l", []byte("other")))
	entries, _ = list(t, s, "")
	_ = append(entries[0].Value, "overrun"...)
	if !bytes.Equal(entries[1].Value, []byte("other")) {
		t.Fatalf("appending to a listed value changed the next one to %q", entries[1].Value)
	}
	equalGet(t, s, want)
}

func testEndedContext(t *testing.T, s store.Store) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, getErr := s.Get(ended, "k")
	_, _, listErr := s.List(ended, "")
	_, commitErr := s.Commit(ended, nil, []store.Operation{store.Put("k", nil)})
	_, watchErr := s.Watch(ended, "", 0)
	for name, err := range map[string]error{"get": getErr, "list": listErr, "commit": commitErr, "watch": watchErr} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with an ended context: got %v, want %v", name, err, context.Canceled)
		}
	}
	absent(t, s, "k")
}

func testClosed(t *testing.T, s store.Store) {
	commit(t, s, store.Put("k", nil))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	_, getErr := s.Get(t.Context(), "k")
	_, _, listErr := s.List(t.Context(), "")
	_, commitErr := s.Commit(t.Context(), nil, []store.Operation{store.Put("k", nil)})
	_, emptyErr := s.Commit(t.Context(), nil, nil)
	_, watchErr := s.Watch(t.Context(), "", 0)
	for name, err := range map[string]error{
		"get": getErr, "list": listErr, "commit": commitErr, "empty commit": emptyErr, "watch": watchErr, "close": s.Close(),
	} {
		if err == nil || errors.Is(err, store.ErrNotFound) || errors.Is(err, store.ErrCompacted) {
			t.Errorf("%s after close: got %v, want an error that says so", name, err)
		}
	}
}

func testReopen(t *testing.T, open Reopener) {
	s := open(t)
	var want []store.Entry
	for i := range 20 {
		key := fmt.Sprintf("k/%02d", i)
		value := strings.Repeat(key, i*100)
		revision := commit(t, s, store.Put(key, []byte(value)), store.Put("overwritten", nil), store.Put(key+"/gone", nil))
		commit(t, s, store.Delete(key+"/gone"))
		want = append(want, entry(key, value, revision))
	}
	for range 3 {
		_, revision := list(t, s, "")
		if err := s.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
		s = open(t)
		entries, again := list(t, s, "k/")
		equalEntries(t, "list after reopening", entries, want)
		if again != revision {
			t.Fatalf("revision %d after reopening, want %d", again, revision)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func testReopenRevision(t *testing.T, open Reopener) {
	s := open(t)
	first := commit(t, s, store.Put("k", []byte("1")))
	deleted := commit(t, s, store.Delete("k"))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = open(t)
	// The last commit left no entry: its revision must not be given out again.
	again := commit(t, s, store.Put("k", []byte("2")))
	if first >= deleted || deleted >= again {
		t.Fatalf("revisions %d, %d and, after reopening, %d: want them to grow", first, deleted, again)
	}
	_, err := s.Commit(t.Context(), []store.Condition{{Key: "k", Revision: first}}, []store.Operation{store.Put("k", nil)})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("commit on a revision of before: got %v, want %v", err, store.ErrConflict)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}

func testReopenWatch(t *testing.T, open Reopener) {
	s := open(t)
	_, start := list(t, s, "")
	first := commit(t, s, store.Put("w", []byte("1")))
	second := commit(t, s, store.Put("w", []byte("2")))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
	s = open(t)
	live := watch(t, s, "w", second)
	replay, err := s.Watch(t.Context(), "w", start)
	switch {
	case err == nil: // an engine may keep its history, but then all of it
		expect(t, replay, put("w", "1", first))
		expect(t, replay, put("w", "2", second))
	case !errors.Is(err, store.ErrCompacted):
		t.Fatalf("watch from before the reopening: got %v, want %v", err, store.ErrCompacted)
	}
	third := commit(t, s, store.Put("w", []byte("3")))
	expect(t, live, put("w", "3", third))
	if err := s.Close(); err != nil {
		t.Fatalf("close: %v", err)
	}
}
