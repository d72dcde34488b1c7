package bbolt_test

import (
	"path/filepath"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/storetest"
)

func open(t *testing.T, path string) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store { return open(t, filepath.Join(t.TempDir(), "store.db")) })
	storetest.RunReopen(t, func(t *testing.T) storetest.Reopener {
		path := filepath.Join(t.TempDir(), "store.db")
		return func(t *testing.T) store.Store { return open(t, path) }
	})
}
