package bbolt

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/sds-server/sds-server/pkg/store"
)

// history keeps the last commits in memory, at least store.WatchHistory changes, and lets any number of watchers follow
// them. A watcher is a position in it: no watcher has a queue of its own, and none can delay a commit.
type history struct {
	mu sync.Mutex
	// Guarded by mu: commits in the order of revisions, the number of events in them, the revision up to which commits are
	// not (or no longer) kept, and the channel that is closed at the next commit.
	commits [][]store.Event
	events  int
	base    int64
	next    chan struct{}
	closed  bool

	done     chan struct{}
	watchers sync.WaitGroup
}

func newHistory(revision int64) *history {
	return &history{base: revision, next: make(chan struct{}), done: make(chan struct{})}
}

// publish appends one commit and wakes the watchers. Events must not be changed afterwards.
func (h *history) publish(events []store.Event) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.commits = append(h.commits, events)
	h.events += len(events)
	for h.events-len(h.commits[0]) >= store.WatchHistory {
		h.base = h.commits[0][0].Revision
		h.events -= len(h.commits[0])
		h.commits[0] = nil // the array behind the slice would keep it alive
		h.commits = h.commits[1:]
	}
	close(h.next)
	h.next = make(chan struct{})
}

// watch starts a watcher after revision from.
func (h *history) watch(ctx context.Context, prefix string, from int64) (<-chan []store.Event, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return nil, closed()
	}
	if from < h.base {
		return nil, store.ErrCompacted
	}
	events := make(chan []store.Event)
	h.watchers.Go(func() {
		defer close(events)
		h.follow(ctx, prefix, from, events)
	})
	return events, nil
}

// follow sends every commit after position until ctx or the history ends, or the watcher has fallen behind.
func (h *history) follow(ctx context.Context, prefix string, position int64, out chan<- []store.Event) {
	for {
		commit, wait, kept := h.after(position)
		switch {
		case !kept:
			return
		case commit == nil:
			select {
			case <-wait:
			case <-ctx.Done():
				return
			case <-h.done:
				return
			}
			continue
		}
		position = commit[0].Revision
		own := below(prefix, commit)
		if len(own) == 0 {
			continue
		}
		select {
		case out <- own:
		case <-ctx.Done():
			return
		case <-h.done:
			return
		}
	}
}

// after returns the first commit after position or, if there is none yet, a channel that is closed when there is; kept is
// false if commits after position are gone.
func (h *history) after(position int64) (commit []store.Event, wait <-chan struct{}, kept bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if position < h.base {
		return nil, nil, false
	}
	i, _ := slices.BinarySearchFunc(h.commits, position+1, func(c []store.Event, revision int64) int {
		return cmp.Compare(c[0].Revision, revision)
	})
	if i == len(h.commits) {
		return nil, h.next, true
	}
	return h.commits[i], nil, true
}

// below returns copies of the events of one commit whose keys begin with prefix.
func below(prefix string, commit []store.Event) []store.Event {
	var own []store.Event
	for _, e := range commit {
		if strings.HasPrefix(e.Key, prefix) {
			e.Value = bytes.Clone(e.Value)
			own = append(own, e)
		}
	}
	return own
}

// close ends every watcher and waits for them; it is false if that was done before.
func (h *history) close() bool {
	h.mu.Lock()
	first := !h.closed
	if first {
		h.closed = true
		close(h.done)
	}
	h.mu.Unlock()
	h.watchers.Wait()
	return first
}
