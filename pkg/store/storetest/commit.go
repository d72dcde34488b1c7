package storetest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
)

func testConditions(t *testing.T, s store.Store) {
	first := commit(t, s, store.Put("a", []byte("1")))
	second := commit(t, s, store.Put("b", []byte("1")))
	tests := []struct {
		name       string
		conditions []store.Condition
		conflict   bool
	}{
		{"absent key demanded absent", []store.Condition{{Key: "c"}}, false},
		{"absent key demanded at a revision", []store.Condition{{Key: "c", Revision: first}}, true},
		{"present key demanded absent", []store.Condition{{Key: "a"}}, true},
		{"present key at its revision", []store.Condition{{Key: "a", Revision: first}}, false},
		{"present key at the store's revision", []store.Condition{{Key: "a", Revision: second}}, true},
		{"present key at a later revision", []store.Condition{{Key: "a", Revision: second + 1000}}, true},
		{"all hold", []store.Condition{{Key: "a", Revision: first}, {Key: "b", Revision: second}, {Key: "c"}}, false},
		{"the last does not hold", []store.Condition{{Key: "a", Revision: first}, {Key: "b", Revision: first}}, true},
		{"one key twice, both hold", []store.Condition{{Key: "a", Revision: first}, {Key: "a", Revision: first}}, false},
		{"one key twice, contradicting", []store.Condition{{Key: "a", Revision: first}, {Key: "a"}}, true},
	}
	for i, tt := range tests {
		key := fmt.Sprintf("written/%d", i)
		_, err := s.Commit(t.Context(), tt.conditions, []store.Operation{store.Put(key, nil)})
		if got := errors.Is(err, store.ErrConflict); got != tt.conflict || !got && err != nil {
			t.Errorf("%s: got %v, want conflict %v", tt.name, err, tt.conflict)
		}
		if _, err := s.Get(t.Context(), key); errors.Is(err, store.ErrNotFound) != tt.conflict {
			t.Errorf("%s: afterwards get says %v, want not found %v", tt.name, err, tt.conflict)
		}
	}
	commit(t, s, store.Delete("a"))
	if _, err := s.Commit(t.Context(), []store.Condition{{Key: "a", Revision: first}}, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("deleted key at its old revision: got %v, want %v", err, store.ErrConflict)
	}
	if _, err := s.Commit(t.Context(), []store.Condition{{Key: "a"}}, []store.Operation{store.Put("a", nil)}); err != nil {
		t.Errorf("deleted key demanded absent: %v", err)
	}
}

func testAtomic(t *testing.T, s store.Store) {
	revision := commit(t, s, store.Put("a", []byte("1")), store.Put("b", []byte("1")))
	_, err := s.Commit(t.Context(), []store.Condition{{Key: "absent", Revision: revision}},
		[]store.Operation{store.Put("a", []byte("2")), store.Delete("b"), store.Put("c", nil)})
	if !errors.Is(err, store.ErrConflict) {
		t.Fatalf("got %v, want %v", err, store.ErrConflict)
	}
	entries, now := list(t, s, "")
	equalEntries(t, "after a conflict", entries, []store.Entry{entry("a", "1", revision), entry("b", "1", revision)})
	if now != revision {
		t.Fatalf("revision %d after a conflict, want %d", now, revision)
	}
	// Conditions look at the state before the commit, not at its own operations.
	next, err := s.Commit(t.Context(), []store.Condition{{Key: "a", Revision: revision}, {Key: "c"}},
		[]store.Operation{store.Put("c", []byte("3")), store.Delete("b"), store.Put("a", []byte("3"))})
	if err != nil {
		t.Fatal(err)
	}
	entries, _ = list(t, s, "")
	equalEntries(t, "after the commit", entries, []store.Entry{entry("a", "3", next), entry("c", "3", next)})
}

func testEmptyCommit(t *testing.T, s store.Store) {
	revision := commit(t, s, store.Put("a", nil))
	for _, conditions := range [][]store.Condition{nil, {{Key: "a", Revision: revision}}, {{Key: "b"}}} {
		got, err := s.Commit(t.Context(), conditions, nil)
		if err != nil || got != revision {
			t.Errorf("%v: got revision %d, %v, want %d", conditions, got, err, revision)
		}
	}
	if _, err := s.Commit(t.Context(), []store.Condition{{Key: "a"}}, nil); !errors.Is(err, store.ErrConflict) {
		t.Errorf("got %v, want %v", err, store.ErrConflict)
	}
	if _, now := list(t, s, ""); now != revision {
		t.Errorf("revision %d after commits without operations, want %d", now, revision)
	}
}

func testDeleteAbsent(t *testing.T, s store.Store) {
	revision := commit(t, s, store.Put("a", []byte("1")))
	events := watch(t, s, "", revision)
	got := commit(t, s, store.Delete("b"), store.Delete("c"))
	if _, now := list(t, s, ""); got != revision || now != revision {
		t.Errorf("deleting absent keys: revision %d, store at %d, want %d", got, now, revision)
	}
	next := commit(t, s, store.Delete("b"), store.Put("a", []byte("2")))
	expect(t, events, put("a", "2", next))
}

func testWrongCommits(t *testing.T, s store.Store) {
	revision := commit(t, s, store.Put("a", []byte("1")))
	long := string(make([]byte, store.MaxKeyBytes+1))
	tests := []struct {
		name       string
		conditions []store.Condition
		operations []store.Operation
		want       error
	}{
		{name: "key put twice", operations: []store.Operation{store.Put("x", nil), store.Put("x", nil)}},
		{name: "key put and deleted", operations: []store.Operation{store.Put("x", nil), store.Put("y", nil), store.Delete("x")}},
		{name: "key deleted twice", operations: []store.Operation{store.Delete("a"), store.Delete("a")}},
		{name: "empty key", operations: []store.Operation{store.Put("x", nil), store.Put("", []byte("v"))}},
		{name: "empty key in a condition", conditions: []store.Condition{{}}, operations: []store.Operation{store.Put("x", nil)}},
		{name: "negative revision", conditions: []store.Condition{{Key: "a", Revision: -1}}, operations: []store.Operation{store.Put("x", nil)}},
		{name: "long key", operations: []store.Operation{store.Put(long, nil)}, want: store.ErrTooLarge},
	}
	for _, tt := range tests {
		_, err := s.Commit(t.Context(), tt.conditions, tt.operations)
		if err == nil || tt.want != nil && !errors.Is(err, tt.want) || errors.Is(err, store.ErrConflict) {
			t.Errorf("%s: got %v, want an error %v", tt.name, err, tt.want)
		}
	}
	entries, now := list(t, s, "")
	equalEntries(t, "after refused commits", entries, []store.Entry{entry("a", "1", revision)})
	if now != revision {
		t.Errorf("revision %d after refused commits, want %d", now, revision)
	}
}

func testMaxOperations(t *testing.T, s store.Store) {
	for _, conditioned := range []int{0, 1, store.MaxOperations / 2, store.MaxOperations} {
		name := fmt.Sprintf("%d conditions", conditioned)
		var conditions []store.Condition
		var operations []store.Operation
		for i := range store.MaxOperations {
			key := fmt.Sprintf("%d/%d", conditioned, i)
			if i < conditioned {
				conditions = append(conditions, store.Condition{Key: key})
			} else {
				operations = append(operations, store.Put(key, nil))
			}
		}
		more := append(slices.Clip(operations), store.Put("one more", nil))
		if _, err := s.Commit(t.Context(), conditions, more); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("%s, one operation too many: got %v, want %v", name, err, store.ErrTooLarge)
		}
		more = append(slices.Clip(operations), store.Delete("one more"))
		if _, err := s.Commit(t.Context(), conditions, more); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("%s, one deletion too many: got %v, want %v", name, err, store.ErrTooLarge)
		}
		extra := append(slices.Clip(conditions), store.Condition{Key: "one more"})
		if _, err := s.Commit(t.Context(), extra, operations); !errors.Is(err, store.ErrTooLarge) {
			t.Errorf("%s and one too many: got %v, want %v", name, err, store.ErrTooLarge)
		}
		if entries, _ := list(t, s, strconv.Itoa(conditioned)+"/"); len(entries) != 0 {
			t.Errorf("%s: a commit that was too large wrote %d entries", name, len(entries))
		}
		if _, err := s.Commit(t.Context(), conditions, operations); err != nil {
			t.Errorf("%s, exactly at the limit: %v", name, err)
		}
		if entries, _ := list(t, s, strconv.Itoa(conditioned)+"/"); len(entries) != len(operations) {
			t.Errorf("%s: %d entries, want %d", name, len(entries), len(operations))
		}
	}
}

func testMaxBytes(t *testing.T, s store.Store) {
	revision := commit(t, s, store.Put("c", nil))
	conditions := []store.Condition{{Key: "c", Revision: revision}} // one byte
	// One large value: key 1, condition 1.
	exact := make([]byte, store.MaxCommitBytes-2-overhead(s))
	if _, err := s.Commit(t.Context(), conditions, []store.Operation{store.Put("k", append(exact, 0))}); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("one byte too many: got %v, want %v", err, store.ErrTooLarge)
	}
	absent(t, s, "k")
	next, err := s.Commit(t.Context(), conditions, []store.Operation{store.Put("k", exact)})
	if err != nil {
		t.Fatalf("exactly at the limit: %v", err)
	}
	equalGet(t, s, entry("k", string(exact), next))
	// Many values, and the sum of them counts; deletions count with their key only.
	const n = 64
	size := store.MaxCommitBytes / n
	operations := make([]store.Operation, n)
	for i := range operations {
		key := fmt.Sprintf("many/%03d", i)
		operations[i] = store.Put(key, make([]byte, size-len(key)-overhead(s)))
	}
	operations[0].Value = operations[0].Value[:len(operations[0].Value)-len("k")]
	all := append(operations[:n:n], store.Operation{Key: "k", Delete: true, Value: []byte("ignored")})
	if _, err := s.Commit(t.Context(), conditions, all); !errors.Is(err, store.ErrTooLarge) {
		t.Errorf("many values, one byte too many: got %v, want %v", err, store.ErrTooLarge)
	}
	if _, err := s.Commit(t.Context(), nil, all); err != nil {
		t.Errorf("many values, exactly at the limit: %v", err)
	}
	absent(t, s, "k")
	if entries, _ := list(t, s, "many/"); len(entries) != n {
		t.Errorf("%d entries, want %d", len(entries), n)
	}
}

// testNoLostUpdate lets many writers count up by optimistic commits: each success must be in the sum.
func testNoLostUpdate(t *testing.T, s store.Store) {
	const writers, each = 8, 20
	commit(t, s, store.Put("counter", []byte("0")))
	var group sync.WaitGroup
	for w := range writers {
		group.Go(func() {
			for done := 0; done < each; {
				e, err := s.Get(t.Context(), "counter")
				if err != nil {
					t.Errorf("get: %v", err)
					return
				}
				n, err := strconv.Atoi(string(e.Value))
				if err != nil {
					t.Errorf("counter: %v", err)
					return
				}
				_, err = s.Commit(t.Context(), []store.Condition{{Key: "counter", Revision: e.Revision}}, []store.Operation{
					store.Put("counter", []byte(strconv.Itoa(n+1))),
					store.Put(fmt.Sprintf("by/%d/%d", w, done), nil),
				})
				switch {
				case err == nil:
					done++
				case !errors.Is(err, store.ErrConflict):
					t.Errorf("commit: %v", err)
					return
				}
			}
		})
	}
	group.Wait()
	e, err := s.Get(t.Context(), "counter")
	if err != nil || string(e.Value) != strconv.Itoa(writers*each) {
		t.Errorf("counter is %q, %v, want %d", e.Value, err, writers*each)
	}
	if entries, _ := list(t, s, "by/"); len(entries) != writers*each {
		t.Errorf("%d entries beside the counter, want %d", len(entries), writers*each)
	}
}

// testReaders lists while commits change two keys together: every list shows both of the same commit.
func testReaders(t *testing.T, s store.Store) {
	commit(t, s, store.Put("pair/a", []byte("0")), store.Put("pair/z", []byte("0")))
	done := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			last := int64(0)
			for {
				select {
				case <-done:
					return
				default:
				}
				entries, revision, err := s.List(t.Context(), "pair/")
				if err != nil || len(entries) != 2 {
					t.Errorf("list: %v, %v", keys(entries), err)
					return
				}
				a, z := entries[0], entries[1]
				if string(a.Value) != string(z.Value) || a.Revision != z.Revision || a.Revision > revision || revision < last {
					t.Errorf("a torn list: %s@%d and %s@%d at %d after %d", a.Value, a.Revision, z.Value, z.Revision, revision, last)
					return
				}
				last = revision
			}
		})
	}
	for i := range 100 {
		value := []byte(strconv.Itoa(i))
		commit(t, s, store.Put("pair/a", value), store.Put("pair/z", value))
	}
	close(done)
	group.Wait()
}
