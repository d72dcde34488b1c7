// Package seal encrypts every value of a store at rest; it is a store.Store over any other one.
//
// A random data key lies in the store at HeaderKey, sealed by age to the key file, which is kept outside the data directory.
// Each other value is: one version byte (1), a random nonce (24 bytes), and the XChaCha20-Poly1305 ciphertext (16 bytes
// longer than the value), with the key path as associated data. Keys, revisions and sizes are not hidden, and that an older
// value of the same key was put back is not noticed.
//
// Invariants: no value reaches the engine unsealed; a value that was changed, moved or swapped is an error that names its
// key, never skipped; a store whose key is missing or wrong is never initialised anew.
package seal

import (
	"context"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// version is the first byte of every sealed value.
	version = 1
	// Overhead is how many bytes longer a sealed value is. They count towards store.MaxCommitBytes, so a commit of n values
	// has 41*n bytes less.
	Overhead = 1 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

// Store is a store.Store whose values lie sealed in another one.
type Store struct {
	inner   store.Store
	dataKey []byte
	aead    cipher.AEAD

	mu sync.Mutex
	// closed is guarded by mu, so that no watch begins after Close.
	closed   bool
	done     chan struct{}
	watchers sync.WaitGroup
}

var _ store.Store = (*Store)(nil)

// Open opens the sealed store inner with the key file at keyFile. An empty store gets its data key now, once the key file is
// durable. A missing, unreadable or unfit key and a store that holds entries but no data key are each a *store.Fault, and
// nothing is written. The Store owns inner from then on; after an error it does not.
func Open(ctx context.Context, inner store.Store, keyFile string) (*Store, error) {
	identity, err := LoadKeyFile(keyFile)
	if err != nil {
		return nil, err
	}
	header, err := inner.Get(ctx, HeaderKey)
	if errors.Is(err, store.ErrNotFound) {
		dataKey := newDataKey()
		fresh, wrapErr := wrap(dataKey, identity)
		if wrapErr != nil {
			return nil, wrapErr
		}
		if err = initialise(ctx, inner, keyFile, fresh); err == nil {
			return newStore(inner, dataKey)
		}
		if !errors.Is(err, store.ErrConflict) {
			return nil, err
		}
		// Another replica was first: its data key counts.
		header, err = inner.Get(ctx, HeaderKey)
	}
	if err != nil {
		return nil, fmt.Errorf("sealed data key: %w", err)
	}
	dataKey, err := unwrap(header.Value, identity, keyFile)
	if err != nil {
		return nil, err
	}
	return newStore(inner, dataKey)
}

// initialise puts the header into an empty store.
func initialise(ctx context.Context, inner store.Store, keyFile string, header []byte) error {
	entries, _, err := inner.List(ctx, "")
	if err != nil {
		return fmt.Errorf("look for a sealed data key: %w", err)
	}
	for _, e := range entries {
		if e.Key == HeaderKey {
			return store.ErrConflict
		}
	}
	if len(entries) > 0 {
		return &store.Fault{
			Path: HeaderKey, Message: fmt.Sprintf("store holds %d entries, but no sealed data key", len(entries)),
			Hint: "it was not made with this seal, or lost a part: restore it from a copy; nothing was changed",
		}
	}
	if err := syncKeyFile(keyFile); err != nil {
		return err
	}
	_, err = inner.Commit(ctx, []store.Condition{{Key: HeaderKey}}, []store.Operation{store.Put(HeaderKey, header)})
	if err != nil && !errors.Is(err, store.ErrConflict) {
		return fmt.Errorf("write the sealed data key: %w", err)
	}
	return err
}

func newStore(inner store.Store, dataKey []byte) (*Store, error) {
	aead, err := chacha20poly1305.NewX(dataKey)
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	return &Store{inner: inner, dataKey: dataKey, aead: aead, done: make(chan struct{})}, nil
}

// Overhead returns by how many bytes each value grows: see the constant.
func (s *Store) Overhead() int { return Overhead }

// Get returns the entry at key, opened.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	if key == HeaderKey {
		return store.Entry{}, store.ErrNotFound
	}
	entry, err := s.inner.Get(ctx, key)
	if err != nil {
		return store.Entry{}, err
	}
	return s.open(entry)
}

// List returns the entries below prefix, opened. One that cannot be opened makes it fail as a whole.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	entries, revision, err := s.inner.List(ctx, prefix)
	if err != nil {
		return nil, 0, err
	}
	opened := entries[:0]
	for _, e := range entries {
		if e.Key == HeaderKey {
			continue
		}
		o, err := s.open(e)
		if err != nil {
			return nil, 0, err
		}
		opened = append(opened, o)
	}
	return opened, revision, nil
}

// Commit seals the values and commits them.
func (s *Store) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	if err := store.CheckCommit(conditions, operations); err != nil {
		return 0, err
	}
	for _, c := range conditions {
		if c.Key == HeaderKey {
			return 0, errReserved
		}
	}
	sealed := make([]store.Operation, len(operations))
	for i, o := range operations {
		if o.Key == HeaderKey {
			return 0, errReserved
		}
		if !o.Delete {
			o.Value = s.seal(o.Key, o.Value)
		}
		sealed[i] = o
	}
	return s.inner.Commit(ctx, conditions, sealed)
}

var errReserved = fmt.Errorf("key %q is reserved", HeaderKey)

// Watch follows the changes below prefix, opened. A value that cannot be opened ends the watch: the List that follows says
// which one it is.
func (s *Store) Watch(ctx context.Context, prefix string, from int64) (<-chan []store.Event, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, closed()
	}
	s.watchers.Add(1) // before Close can wait
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	sealed, err := s.inner.Watch(ctx, prefix, from)
	if err != nil {
		cancel()
		s.watchers.Done()
		return nil, err
	}
	opened := make(chan []store.Event)
	go func() {
		defer s.watchers.Done()
		defer close(opened)
		defer cancel()
		s.follow(ctx, sealed, opened)
	}()
	return opened, nil
}

// follow opens the commits that arrive from the engine.
func (s *Store) follow(ctx context.Context, sealed <-chan []store.Event, opened chan<- []store.Event) {
	for commit := range sealed {
		own := commit[:0]
		for _, e := range commit {
			if e.Key == HeaderKey {
				continue
			}
			if !e.Deleted {
				entry, err := s.open(e.Entry)
				if err != nil {
					return
				}
				e.Entry = entry
			}
			own = append(own, e)
		}
		if len(own) == 0 {
			continue
		}
		select {
		case opened <- own:
		case <-ctx.Done():
			return
		case <-s.done:
			return
		}
	}
}

// Close ends all watches and closes the engine. Every call after it fails.
func (s *Store) Close() error {
	s.mu.Lock()
	first := !s.closed
	if first {
		s.closed = true
		close(s.done)
	}
	s.mu.Unlock()
	if !first {
		return closed()
	}
	err := s.inner.Close()
	s.watchers.Wait()
	return err
}

// Rekey seals the data key to the key file at newKeyFile, which must exist; from then on only that one opens the store. The
// values stay as they are, and so does every copy of the store that was made before: it opens with the old key.
// store.ErrConflict means that another Rekey was faster.
func (s *Store) Rekey(ctx context.Context, newKeyFile string) error {
	identity, err := LoadKeyFile(newKeyFile)
	if err != nil {
		return err
	}
	header, err := wrap(s.dataKey, identity)
	if err != nil {
		return err
	}
	if err := syncKeyFile(newKeyFile); err != nil {
		return err
	}
	old, err := s.inner.Get(ctx, HeaderKey)
	if err != nil {
		return fmt.Errorf("rekey: %w", err)
	}
	_, err = s.inner.Commit(ctx, []store.Condition{{Key: HeaderKey, Revision: old.Revision}}, []store.Operation{store.Put(HeaderKey, header)})
	if err != nil {
		return fmt.Errorf("rekey: %w", err)
	}
	return nil
}

// seal returns value sealed for key.
func (s *Store) seal(key string, value []byte) []byte {
	sealed := make([]byte, 1+chacha20poly1305.NonceSizeX, Overhead+len(value))
	sealed[0] = version
	nonce := sealed[1:]
	// It never fails: package crypto/rand ends the process instead.
	_, _ = rand.Read(nonce)
	return s.aead.Seal(sealed, nonce, value, []byte(key))
}

// open returns entry with its value opened. The value of the given entry is overwritten: it is the engine's copy for us.
func (s *Store) open(entry store.Entry) (store.Entry, error) {
	const prefix = 1 + chacha20poly1305.NonceSizeX
	fault := &store.Fault{
		Path: entry.Key, Message: "sealed value cannot be opened: it was changed, or moved from another key",
		Hint: "restore the store from a copy; nothing was changed",
	}
	if len(entry.Value) < Overhead {
		return store.Entry{}, fault
	}
	if v := entry.Value[0]; v != version {
		fault.Message = fmt.Sprintf("sealed value has version %d, this program reads %d", v, version)
		fault.Hint = "use the version of sds-server that wrote it, or a newer one; nothing was changed"
		return store.Entry{}, fault
	}
	sealed := entry.Value[prefix:]
	value, err := s.aead.Open(sealed[:0], entry.Value[1:prefix], sealed, []byte(entry.Key))
	if err != nil {
		return store.Entry{}, fault
	}
	entry.Value = slices.Clip(value)
	return entry, nil
}

func closed() error { return fmt.Errorf("sealed store: %w", os.ErrClosed) }
