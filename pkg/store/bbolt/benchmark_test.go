package bbolt_test

import (
	"path/filepath"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/storetest"
)

func openBenchmark(b *testing.B) store.Store {
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(b.TempDir(), "store.db")})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := db.Close(); err != nil {
			b.Error(err)
		}
	})
	return db
}

func BenchmarkCommit(b *testing.B)  { storetest.BenchmarkCommit(b, openBenchmark) }
func BenchmarkGet(b *testing.B)     { storetest.BenchmarkGet(b, openBenchmark) }
func BenchmarkList10k(b *testing.B) { storetest.BenchmarkList10k(b, openBenchmark) }
