package storetest

import (
	"fmt"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
)

// Sizes of a usual secret (chain, key and what belongs to them) and of a small record.
const (
	benchmarkSecret = 6 << 10
	benchmarkRecord = 200
)

// BenchmarkCommit measures a commit as a rotation makes it: a secret version and the group that serves it, under one
// condition, in a store of 10,000 entries. Open returns a new, empty store.
func BenchmarkCommit(b *testing.B, open func(b *testing.B) store.Store) {
	s := open(b)
	fill(b, s, benchmarkRecord)
	value, record := make([]byte, benchmarkSecret), make([]byte, benchmarkRecord)
	revision := int64(0)
	n := 0
	for b.Loop() {
		var err error
		revision, err = s.Commit(b.Context(), []store.Condition{{Key: "group", Revision: revision}}, []store.Operation{
			store.Put(fmt.Sprintf("version/%d", n%1000), value),
			store.Put("group", record),
		})
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
}

// BenchmarkGet measures reads of small entries in a store of 10,000. Open returns a new, empty store.
func BenchmarkGet(b *testing.B, open func(b *testing.B) store.Store) {
	s := open(b)
	fill(b, s, benchmarkRecord)
	n := 0
	for b.Loop() {
		if _, err := s.Get(b.Context(), fillKey(n%10000)); err != nil {
			b.Fatal(err)
		}
		n += 7
	}
}

// BenchmarkList10k measures a list of 10,000 small entries. Open returns a new, empty store.
func BenchmarkList10k(b *testing.B, open func(b *testing.B) store.Store) {
	s := open(b)
	fill(b, s, benchmarkRecord)
	for b.Loop() {
		entries, _, err := s.List(b.Context(), "fill/")
		if err != nil || len(entries) != 10000 {
			b.Fatalf("%d entries, %v, want 10000", len(entries), err)
		}
	}
}

func fillKey(i int) string { return fmt.Sprintf("fill/%06d", i) }

// fill puts 10,000 entries of size bytes.
func fill(b *testing.B, s store.Store, size int) {
	b.Helper()
	for i := 0; i < 10000; i += store.MaxOperations {
		var operations []store.Operation
		for j := range store.MaxOperations {
			operations = append(operations, store.Put(fillKey(i+j), make([]byte, size)))
		}
		if _, err := s.Commit(b.Context(), nil, operations); err != nil {
			b.Fatal(err)
		}
	}
}
