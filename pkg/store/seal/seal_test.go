package seal_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
	"github.com/sds-server/sds-server/pkg/store/storetest"
)

func newKey(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seal.key")
	if err := seal.GenerateKeyFile(path); err != nil {
		t.Fatal(err)
	}
	return path
}

func openEngine(t testing.TB, path string) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return db
}

func openSealed(t testing.TB, inner store.Store, key string) *seal.Store {
	t.Helper()
	s, err := seal.Open(t.Context(), inner, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t testing.TB, s store.Store, key, value string) {
	t.Helper()
	if _, err := s.Commit(t.Context(), nil, []store.Operation{store.Put(key, []byte(value))}); err != nil {
		t.Fatal(err)
	}
}

func wantFault(t *testing.T, err error, path, message, hint string) {
	t.Helper()
	fault, ok := errors.AsType[*store.Fault](err)
	if !ok || fault.Path != path || !strings.Contains(fault.Message, message) || !strings.Contains(fault.Hint, hint) || fault.Hint == "" {
		t.Fatalf("got %v (%+v), want a fault of %s: %q, hint %q", err, fault, path, message, hint)
	}
	if text := err.Error() + fault.Hint; strings.Contains(text, "\n") || strings.Contains(text, "AGE-SECRET-KEY-1Q") {
		t.Fatalf("got %q, want one line without the key", text)
	}
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Store {
		return openSealed(t, openEngine(t, filepath.Join(t.TempDir(), "store.db")), newKey(t))
	})
	storetest.RunReopen(t, func(t *testing.T) storetest.Reopener {
		path, key := filepath.Join(t.TempDir(), "store.db"), newKey(t)
		return func(t *testing.T) store.Store { return openSealed(t, openEngine(t, path), key) }
	})
}

func TestNoValueIsReadableInTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openSealed(t, openEngine(t, path), newKey(t))
	const marker = "PRIVATE KEY marker"
	for i := range 50 {
		put(t, s, fmt.Sprintf("secret/%d", i), strings.Repeat(marker, i+1))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(content, []byte(marker[:8])) {
		t.Error("a value lies open in the file")
	}
	if !bytes.Contains(content, []byte("secret/49")) {
		t.Error("the file does not hold the entries: the test looked at the wrong thing")
	}
}

// TestEqualValuesDiffer sees that every sealing has a nonce of its own.
func TestEqualValuesDiffer(t *testing.T) {
	inner := openEngine(t, filepath.Join(t.TempDir(), "store.db"))
	s := openSealed(t, inner, newKey(t))
	seen := map[string]bool{}
	for range 10 {
		put(t, s, "k", "value")
		e, err := inner.Get(t.Context(), "k")
		if err != nil || len(e.Value) != len("value")+seal.Overhead || seen[string(e.Value)] {
			t.Fatalf("sealed value %x, %v: want another one each time, %d bytes longer", e.Value, err, seal.Overhead)
		}
		seen[string(e.Value)] = true
	}
}

func TestTamperedOrMovedValueNamesItsKey(t *testing.T) {
	inner := openEngine(t, filepath.Join(t.TempDir(), "store.db"))
	s := openSealed(t, inner, newKey(t))
	put(t, s, "secret/a", "value of a")
	put(t, s, "secret/b", "value of b")
	a, err := inner.Get(t.Context(), "secret/a")
	if err != nil {
		t.Fatal(err)
	}
	flipped := func(i int) []byte {
		v := bytes.Clone(a.Value)
		v[i] ^= 1
		return v
	}
	b, err := inner.Get(t.Context(), "secret/b")
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name    string
		value   []byte
		message string
	}{
		{"moved", b.Value, "changed, or moved"},
		{"version", flipped(0), "version 0"},
		{"nonce", flipped(1), "changed, or moved"},
		{"ciphertext", flipped(1 + 24), "changed, or moved"},
		{"tag", flipped(len(a.Value) - 1), "changed, or moved"},
		{"cut", a.Value[:len(a.Value)-1], "changed, or moved"},
		{"almost nothing", a.Value[:seal.Overhead-1], "changed, or moved"},
		{"empty", nil, "changed, or moved"},
		{"plain", []byte("a value that was never sealed, long enough to look like one"), "version 97"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, revision, err := s.List(t.Context(), "secret/b")
			if err != nil {
				t.Fatal(err)
			}
			events, err := s.Watch(t.Context(), "secret/", revision)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := inner.Commit(t.Context(), nil, []store.Operation{store.Put("secret/a", tt.value)}); err != nil {
				t.Fatal(err)
			}
			_, err = s.Get(t.Context(), "secret/a")
			wantFault(t, err, "secret/a", tt.message, "nothing was changed")
			_, _, err = s.List(t.Context(), "")
			wantFault(t, err, "secret/a", tt.message, "nothing was changed")
			if got, ok := <-events; ok {
				t.Fatalf("watched %v, want the end of the watch", got)
			}
			if e, err := s.Get(t.Context(), "secret/b"); err != nil || string(e.Value) != "value of b" {
				t.Fatalf("the other entry: %q, %v", e.Value, err)
			}
		})
	}
}

func TestStoreWithoutItsKeyIsNeverMadeAnew(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "store.db"), newKey(t)
	inner := openEngine(t, path)
	s := openSealed(t, inner, key)
	put(t, s, "k", "v")
	before, revision, err := inner.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(t.TempDir(), "seal.key")
	_, err = seal.Open(t.Context(), inner, missing)
	wantFault(t, err, missing, "seal key is missing", "restore it from its copy")
	if _, err := os.Stat(missing); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key file was made: %v", err)
	}
	other := newKey(t)
	_, err = seal.Open(t.Context(), inner, other)
	wantFault(t, err, other, "seal key does not fit this store", "age1")
	after, now, err := inner.List(t.Context(), "")
	if d := cmp.Diff(before, after); err != nil || now != revision || d != "" {
		t.Errorf("the store was changed, %v:\n%s", err, d)
	}
	if e, err := openSealed(t, inner, key).Get(t.Context(), "k"); err != nil || string(e.Value) != "v" {
		t.Errorf("with its own key: %q, %v", e.Value, err)
	}
}

func TestStoreWithoutHeaderIsRefused(t *testing.T) {
	inner := openEngine(t, filepath.Join(t.TempDir(), "store.db"))
	put(t, inner, "k", "from before")
	key := newKey(t)
	_, err := seal.Open(t.Context(), inner, key)
	wantFault(t, err, seal.HeaderKey, "store holds 1 entries, but no sealed data key", "restore it")
	if entries, _, err := inner.List(t.Context(), ""); err != nil || len(entries) != 1 || string(entries[0].Value) != "from before" {
		t.Errorf("the store was changed: %v, %v", entries, err)
	}
}

func TestDamagedHeaderIsRefused(t *testing.T) {
	inner := openEngine(t, filepath.Join(t.TempDir(), "store.db"))
	key := newKey(t)
	openSealed(t, inner, key)
	header, err := inner.Get(t.Context(), seal.HeaderKey)
	if err != nil {
		t.Fatal(err)
	}
	tests := map[string][]byte{
		"empty":       {},
		"cut":         header.Value[:len(header.Value)-1],
		"last byte":   append(bytes.Clone(header.Value[:len(header.Value)-1]), header.Value[len(header.Value)-1]^1),
		"other mark":  append([]byte("x"), header.Value...),
		"longer":      append(bytes.Clone(header.Value), 0),
		"no age file": []byte("sds-server/seal/1 age1\nnothing"),
	}
	for name, value := range tests {
		if _, err := inner.Commit(t.Context(), nil, []store.Operation{store.Put(seal.HeaderKey, value)}); err != nil {
			t.Fatal(err)
		}
		t.Run(name, func(t *testing.T) {
			_, err := seal.Open(t.Context(), inner, key)
			wantFault(t, err, seal.HeaderKey, "the sealed data key is damaged", "restore the store")
		})
	}
}

func TestHeaderDoesNotExistForUsers(t *testing.T) {
	s := openSealed(t, openEngine(t, filepath.Join(t.TempDir(), "store.db")), newKey(t))
	if _, err := s.Get(t.Context(), seal.HeaderKey); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("get: got %v, want %v", err, store.ErrNotFound)
	}
	if entries, _, err := s.List(t.Context(), "meta/"); err != nil || len(entries) != 0 {
		t.Errorf("list: got %v, %v, want nothing", entries, err)
	}
	for _, o := range []store.Operation{store.Put(seal.HeaderKey, nil), store.Delete(seal.HeaderKey)} {
		if _, err := s.Commit(t.Context(), nil, []store.Operation{o}); err == nil {
			t.Errorf("operation %+v on the header: got no error", o)
		}
	}
	if _, err := s.Commit(t.Context(), []store.Condition{{Key: seal.HeaderKey}}, nil); err == nil {
		t.Error("condition on the header: got no error")
	}
	events, err := s.Watch(t.Context(), "meta/", 0)
	if err != nil {
		t.Fatal(err)
	}
	put(t, s, "meta/version-key", "v")
	if got := <-events; len(got) != 1 || got[0].Key != "meta/version-key" || string(got[0].Value) != "v" {
		t.Errorf("watched %v, want the other key alone", got)
	}
}

func TestRekey(t *testing.T) {
	path, key := filepath.Join(t.TempDir(), "store.db"), newKey(t)
	inner := openEngine(t, path)
	s := openSealed(t, inner, key)
	put(t, s, "k", "v")
	sealed, err := inner.Get(t.Context(), "k")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Rekey(t.Context(), filepath.Join(t.TempDir(), "missing")); err == nil {
		t.Fatal("rekey to a missing file: got no error")
	}
	next := newKey(t)
	if err := s.Rekey(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	put(t, s, "l", "w") // the open store goes on
	_, err = seal.Open(t.Context(), inner, key)
	wantFault(t, err, key, "does not fit", "age1")
	again := openSealed(t, inner, next)
	for k, v := range map[string]string{"k": "v", "l": "w"} {
		if e, err := again.Get(t.Context(), k); err != nil || string(e.Value) != v {
			t.Errorf("%s: %q, %v, want %q", k, e.Value, err, v)
		}
	}
	if e, err := inner.Get(t.Context(), "k"); err != nil || !bytes.Equal(e.Value, sealed.Value) {
		t.Errorf("rekey changed a value, %v", err)
	}
}

// rival is an engine in which another replica writes the header just before ours is committed.
type rival struct {
	store.Store
	key string
	won bool
}

func (r *rival) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	if !r.won {
		r.won = true
		theirs, err := seal.Open(ctx, r.Store, r.key)
		if err != nil {
			return 0, err
		}
		if _, err := theirs.Commit(ctx, nil, []store.Operation{store.Put("theirs", []byte("v"))}); err != nil {
			return 0, err
		}
	}
	return r.Store.Commit(ctx, conditions, operations)
}

func TestFirstOfTwoReplicasMakesTheDataKey(t *testing.T) {
	key := newKey(t)
	inner := &rival{Store: openEngine(t, filepath.Join(t.TempDir(), "store.db")), key: key}
	s := openSealed(t, inner, key)
	if e, err := s.Get(t.Context(), "theirs"); err != nil || string(e.Value) != "v" {
		t.Errorf("got %q, %v: want the value that the other replica sealed", e.Value, err)
	}
	if !inner.won {
		t.Error("the other replica was not first: the test showed nothing")
	}
}

func benchmarkStore(b *testing.B) store.Store {
	return openSealed(b, openEngine(b, filepath.Join(b.TempDir(), "store.db")), newKey(b))
}

func BenchmarkCommit(b *testing.B)  { storetest.BenchmarkCommit(b, benchmarkStore) }
func BenchmarkGet(b *testing.B)     { storetest.BenchmarkGet(b, benchmarkStore) }
func BenchmarkList10k(b *testing.B) { storetest.BenchmarkList10k(b, benchmarkStore) }
