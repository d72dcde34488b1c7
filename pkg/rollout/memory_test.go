package rollout

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"

	"github.com/sds-server/sds-server/pkg/store"
)

// memory is a store without a disk: histories by the thousand would wait for it most of their time. What it holds outlives a crash.
type memory struct {
	mu       sync.Mutex
	entries  map[string]store.Entry // guarded by mu
	revision int64                  // guarded by mu
}

var _ store.Store = (*memory)(nil)

func (s *memory) Get(_ context.Context, key string) (store.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.entries[key]
	if !ok {
		return store.Entry{}, store.ErrNotFound
	}
	return e, nil
}

func (s *memory) List(_ context.Context, prefix string) ([]store.Entry, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []store.Entry
	for key, e := range s.entries {
		if strings.HasPrefix(key, prefix) {
			found = append(found, e)
		}
	}
	slices.SortFunc(found, func(a, b store.Entry) int { return strings.Compare(a.Key, b.Key) })
	return found, s.revision, nil
}

func (s *memory) Commit(_ context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(conditions)+len(operations) > store.MaxOperations {
		return 0, store.ErrTooLarge
	}
	for _, c := range conditions {
		if s.entries[c.Key].Revision != c.Revision {
			return 0, store.ErrConflict
		}
	}
	if len(operations) > 0 {
		s.revision++
	}
	for _, o := range operations {
		if o.Delete {
			delete(s.entries, o.Key)
		} else {
			s.entries[o.Key] = store.Entry{Key: o.Key, Value: slices.Clone(o.Value), Revision: s.revision}
		}
	}
	return s.revision, nil
}

func (s *memory) Watch(context.Context, string, int64) (<-chan []store.Event, error) {
	return nil, errors.ErrUnsupported
}

// at is the revision of the last commit.
func (s *memory) at() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.revision
}

func (s *memory) Close() error { return nil }
