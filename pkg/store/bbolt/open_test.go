package bbolt_test

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

func TestStoreIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "b", "store.db")
	db := open(t, path)
	defer func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	}()
	for name, want := range map[string]os.FileMode{path: 0o600, filepath.Dir(path): os.ModeDir | 0o700} {
		if info, err := os.Stat(name); err != nil || info.Mode() != want {
			t.Errorf("%s has mode %v, %v, want %v", name, info.Mode(), err, want)
		}
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v, want the store alone", left, err)
	}
}

func TestStoreInUseIsOneError(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db := open(t, path)
	start := time.Now()
	for _, readOnly := range []bool{false, true} {
		_, err := bbolt.Open(bbolt.Options{Path: path, ReadOnly: readOnly, LockTimeout: 100 * time.Millisecond})
		wantFault(t, err, path, "used by another process", "another sds-server uses it", nil)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("it took %v to say so", took)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, path)
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestWrongFileIsNeverInitialised opens what is no store; each must be left as it is.
func TestWrongFileIsNeverInitialised(t *testing.T) {
	tests := []struct {
		name, content, message string
	}{
		{"empty file", "", "the file is empty"},
		{"text", "hello\n", "store is damaged"},
		{"zeros", string(make([]byte, 64<<10)), "it is not a store"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			if err := os.WriteFile(path, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := bbolt.Open(bbolt.Options{Path: path})
			wantFault(t, err, path, tt.message, "restore it from a copy", nil)
			if after, err := os.ReadFile(path); err != nil || string(after) != tt.content {
				t.Errorf("the file was changed, %v", err)
			}
		})
	}
	directory := t.TempDir()
	_, err := bbolt.Open(bbolt.Options{Path: directory})
	wantFault(t, err, directory, "not a regular file", "check data_dir", nil)
	missing := filepath.Join(directory, "store.db")
	_, err = bbolt.Open(bbolt.Options{Path: missing, ReadOnly: true})
	wantFault(t, err, missing, "cannot be opened", "check data_dir", os.ErrNotExist)
	if _, err := bbolt.Open(bbolt.Options{}); err == nil {
		t.Error("empty path: got no error")
	}
}

// TestStoreIsMadeOnce lets many openers race for a new file: one gets it, the others find it in use, and no opener destroys
// what another has written.
func TestStoreIsMadeOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			db, err := bbolt.Open(bbolt.Options{Path: path, LockTimeout: 20 * time.Second})
			if err != nil {
				t.Errorf("open: %v", err)
				return
			}
			_, n, err := db.List(t.Context(), "")
			if err == nil {
				_, err = db.Commit(t.Context(), nil, []store.Operation{store.Put("k", nil)})
			}
			if closeErr := db.Close(); err != nil || closeErr != nil {
				t.Errorf("after %d commits: %v, %v", n, err, closeErr)
			}
		})
	}
	group.Wait()
	db := open(t, path)
	if _, revision, err := db.List(t.Context(), ""); err != nil || revision != 8 {
		t.Errorf("revision %d, %v, want 8", revision, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(filepath.Dir(path)); err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v, want the store alone", left, err)
	}
}

func TestHistoryIsEmptyAfterOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	db := open(t, path)
	if _, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("k", nil)}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	db = open(t, path)
	if _, err := db.Watch(t.Context(), "", 0); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from 0: got %v, want %v", err, store.ErrCompacted)
	}
	if _, err := db.Watch(t.Context(), "", 1); err != nil {
		t.Errorf("watch from the last revision: %v", err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}
