package verify

import (
	"context"
	"slices"
	"sync"
	"time"
)

// earlyLooks are when the nodes of a group are looked at after the first of them was heard of: by the first it has subscribed, by the second all have
// come back to a server that was started again. What they serve is then known before the next round in the background.
func earlyLooks() []time.Duration { return []time.Duration{time.Second, 6 * time.Second} }

// earlyBatch is by how much a look may come before its time.
const earlyBatch = 500 * time.Millisecond

// early are the groups that were heard of.
type early struct {
	changed chan struct{} // of capacity 1: some group is new

	mu    sync.Mutex
	heard map[string]bool // guarded by mu
	fresh []earlyLook     // guarded by mu; in the order of at
}

// earlyLook is what is to be looked at, and when.
type earlyLook struct {
	group string
	at    time.Time
}

func newEarly() *early {
	return &early{changed: make(chan struct{}, 1), heard: map[string]bool{}}
}

// Changed tells that something changed with a node of a group. It is cheap and never blocks. The first time, the group is looked at soon: after a
// restart nothing is known of what is served.
func (m *Monitor) Changed(group string) {
	e := m.early
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.heard[group] {
		return
	}
	e.heard[group] = true
	now := time.Now()
	for _, after := range earlyLooks() {
		e.fresh = append(e.fresh, earlyLook{group, now.Add(after)})
	}
	slices.SortStableFunc(e.fresh, func(a, b earlyLook) int { return a.at.Compare(b.at) })
	select {
	case e.changed <- struct{}{}:
	default:
	}
}

// due returns the groups that are to be looked at now, and when the next ones are; false for none. Looks of the next moments are taken along: what is
// wanted is asked for once for all.
func (e *early) due(now time.Time) (names []string, next time.Time, more bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.fresh) > 0 && !e.fresh[0].at.After(now) {
		until := now.Add(earlyBatch)
		i := slices.IndexFunc(e.fresh, func(l earlyLook) bool { return l.at.After(until) })
		if i < 0 {
			i = len(e.fresh)
		}
		for _, l := range e.fresh[:i] {
			names = append(names, l.group)
		}
		e.fresh = slices.Delete(e.fresh, 0, i)
	}
	if len(e.fresh) == 0 {
		return names, time.Time{}, false
	}
	return names, e.fresh[0].at, true
}

// runEarly looks at groups that were heard of for the first time, until ctx ends.
func (m *Monitor) runEarly(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.early.changed:
		case <-timer.C:
		}
		names, next, more := m.early.due(time.Now())
		if more {
			timer.Reset(time.Until(next))
		}
		if len(names) == 0 {
			continue
		}
		under.Go(func() {
			for _, checks := range soonest(m.options.Source.Groups(ctx, names...)) {
				under.Go(func() {
					_ = m.probe(ctx, &m.background, checks, func(Result) {}) // it is the end of ctx, which ends Run
				})
			}
		})
	}
}
