package bbolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// mount mounts for the time of the test; the tests run as root, and fail where they may not mount.
func mount(t *testing.T, source, target, kind string, flags uintptr, data string) {
	t.Helper()
	if err := syscall.Mount(source, target, kind, flags, data); err != nil {
		t.Fatalf("mount on %s (this test needs root): %v", target, err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(target, syscall.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", target, err)
		}
	})
}

// wantFault demands a *store.Fault with the path, words of the message and a hint, and the cause.
func wantFault(t *testing.T, err error, path, message, hint string, cause error) {
	t.Helper()
	fault, ok := errors.AsType[*store.Fault](err)
	if !ok {
		t.Fatalf("got %v, want a fault", err)
	}
	if fault.Path != path || !strings.Contains(fault.Message, message) || !strings.Contains(fault.Hint, hint) || cause != nil && !errors.Is(err, cause) {
		t.Fatalf("got %v with hint %q, want %s: %s, hint %q, cause %v", err, fault.Hint, path, message, hint, cause)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Fatalf("got %q, want one line", err)
	}
}

func fillDisk(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 512))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: got %v, want %v", err, syscall.ENOSPC)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestFullDiskLosesNothing(t *testing.T) {
	disk := t.TempDir()
	mount(t, "tmpfs", disk, "tmpfs", 0, "size=1m")
	ballast := filepath.Join(disk, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 300<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(disk, "store.db")
	db := open(t, path)
	events, err := db.Watch(t.Context(), "", 0)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]int{}
	last := int64(0)
	put := func(n int) error {
		key := fmt.Sprintf("k/%04d", n)
		revision, err := db.Commit(t.Context(), []store.Condition{{Key: "last", Revision: last}}, []store.Operation{
			store.Put(key, bytes.Repeat([]byte{byte(n)}, 3000+n*13%5000)), store.Put("last", fmt.Append(nil, n)),
		})
		if err == nil {
			want[key], last = n, revision
			if got := <-events; len(got) != 2 || got[0].Revision != revision {
				t.Fatalf("watched %v, want commit %d", got, revision)
			}
		}
		return err
	}
	verify := func(when string) {
		t.Helper()
		entries, revision, err := db.List(t.Context(), "k/")
		if err != nil || revision != last || len(entries) != len(want) {
			t.Fatalf("%s: %d entries at %d, %v, want %d at %d", when, len(entries), revision, err, len(want), last)
		}
		for _, e := range entries {
			n := want[e.Key]
			if !bytes.Equal(e.Value, bytes.Repeat([]byte{byte(n)}, 3000+n*13%5000)) {
				t.Fatalf("%s: the value of %s is another one", when, e.Key)
			}
		}
	}
	n := 0
	for err = nil; err == nil; n++ {
		err = put(n)
	}
	wantFault(t, err, path, "the disk is full", "free some space", syscall.ENOSPC)
	if len(want) < 20 {
		t.Fatalf("only %d commits before the disk was full", len(want))
	}
	verify("on a full disk")
	for i := range 20 {
		if err := put(n + i); err != nil {
			wantFault(t, err, path, "the disk is full", "nothing was overwritten", syscall.ENOSPC)
		}
	}
	verify("after more commits on a full disk")
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if err := put(n + 100 + i); err != nil {
			t.Fatalf("commit once there is space again: %v", err)
		}
	}
	verify("once there is space again")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if err := bbolt.CheckInChild(t.Context(), childCommand(t, "check"), path); err != nil {
		t.Fatal(err)
	}
	db = open(t, path)
	verify("after reopening")
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestFullDiskAtStart opens an existing store on a disk that has no byte left, and makes a new one there.
func TestFullDiskAtStart(t *testing.T) {
	disk := t.TempDir()
	mount(t, "tmpfs", disk, "tmpfs", 0, "size=1m")
	path := filepath.Join(disk, "store.db")
	db := open(t, path)
	if _, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("k", []byte("v"))}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	fillDisk(t, filepath.Join(disk, "ballast"))

	other := filepath.Join(disk, "new", "store.db")
	_, err := bbolt.Open(bbolt.Options{Path: other})
	wantFault(t, err, other, "the disk is full", "free some space", syscall.ENOSPC)
	left, err := os.ReadDir(filepath.Dir(other))
	if err != nil && !errors.Is(err, os.ErrNotExist) || len(left) != 0 {
		t.Errorf("left over in the directory: %v, %v, want nothing", left, err)
	}

	db = open(t, path)
	if e, err := db.Get(t.Context(), "k"); err != nil || string(e.Value) != "v" {
		t.Errorf("get on a full disk: %q, %v", e.Value, err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestReadOnlyMediumChangesNothing(t *testing.T) {
	source, target := t.TempDir(), t.TempDir()
	db := open(t, filepath.Join(source, "store.db"))
	if _, err := db.Commit(t.Context(), nil, []store.Operation{store.Put("k", []byte("v"))}); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(source, "store.db"))
	if err != nil {
		t.Fatal(err)
	}
	mount(t, source, target, "", syscall.MS_BIND, "")
	if err := syscall.Mount("", target, "", syscall.MS_BIND|syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Fatalf("remount read-only: %v", err)
	}
	path := filepath.Join(target, "store.db")
	_, err = bbolt.Open(bbolt.Options{Path: path})
	wantFault(t, err, path, "the file system is read-only", "mount the file system", syscall.EROFS)
	other := filepath.Join(target, "deeper", "store.db")
	_, err = bbolt.Open(bbolt.Options{Path: other})
	wantFault(t, err, other, "the file system is read-only", "mount the file system", syscall.EROFS)
	if err := bbolt.CheckInChild(t.Context(), childCommand(t, "check"), path); err != nil {
		t.Errorf("check on a read-only medium: %v", err)
	}

	reader, err := bbolt.Open(bbolt.Options{Path: path, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	_, err = reader.Commit(t.Context(), nil, []store.Operation{store.Put("k", nil)})
	wantFault(t, err, path, "opened read-only", "nothing was written", nil)
	if e, err := reader.Get(t.Context(), "k"); err != nil || string(e.Value) != "v" {
		t.Errorf("get: %q, %v, want v", e.Value, err)
	}
	if err := reader.Close(); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(filepath.Join(source, "store.db"))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("the file was changed, %v", err)
	}
}
