package app

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
)

// An entry about a push stands in the trail before the first node is sent anything, and before the move that leads to it is known to be stored: the two
// waits for the disk run side by side. Where the move is not stored, an entry says so: at once, or, where the server ended in between, at the next start.

const (
	// maxNodesOfPush is how many nodes one entry names: a line has its bounds.
	maxNodesOfPush = 1000
	// maxTail is how many of the newest entries are looked at after a start. One commit begins no more.
	maxTail = 4000
)

// announce begins the records of what groups are going to be sent, while that is being stored.
func (s *server) announce(placements []cache.Placement) (begun []cache.Placement) {
	s.pushes.together(func() {
		for _, p := range placements {
			if s.edge.Announce(p.Group, p.Secret, p.Version, p.Snapshot) {
				begun = append(begun, p)
			}
		}
	})
	return begun
}

// retract records that what was announced was not stored, so that nobody was sent it.
func (s *server) retract(placements []cache.Placement) {
	for _, p := range placements {
		if s.edge.Retract(p.Group, p.Secret, p.Version) {
			s.audit.Add(audit.Entry{
				Event: eventRetracted, Secret: p.Secret, Version: string(p.Version), Group: p.Group,
				Detail: fmt.Sprintf("the move to snapshot %d could not be stored: nothing of it was sent", p.Snapshot),
			})
		}
	}
}

// reconsider looks at the pushes behind the last transition in the trail: where the server ended before their move was stored, nothing of them was sent. It is
// called before anything moves.
func (s *server) reconsider(ctx context.Context) error {
	entries, err := s.audit.List(ctx, audit.Filter{Limit: maxTail})
	if err != nil {
		s.log.ErrorContext(ctx, "the end of the audit trail cannot be read", "err", err) // which stops nothing
		return nil
	}
	for len(entries) > 0 {
		i := slices.IndexFunc(entries, func(e audit.Entry) bool { return strings.HasPrefix(e.Event, eventRollout+"_") })
		if i < 0 {
			break
		}
		entries = entries[i+1:]
	}
	var open []audit.Entry
	for _, e := range entries {
		same := func(other audit.Entry) bool {
			return other.Group == e.Group && other.Secret == e.Secret && other.Version == e.Version
		}
		switch e.Event {
		case eventPush:
			if !slices.ContainsFunc(open, same) && !s.serves(e) {
				open = append(open, e)
			}
		case eventRetracted:
			open = slices.DeleteFunc(open, same)
		}
	}
	if len(open) == 0 {
		return nil
	}
	history, err := s.rollout.History(ctx)
	if err != nil {
		return err
	}
	for _, e := range open {
		if !slices.ContainsFunc(history, func(r *rollout.Rollout) bool { return brought(r, e) }) {
			s.audit.Add(audit.Entry{
				Event: eventRetracted, Secret: e.Secret, Version: e.Version, Group: e.Group,
				Detail: "the server ended before the move was stored: nothing of it was sent",
			})
		}
	}
	return nil
}

// serves reports whether the group of a push is at its version.
func (s *server) serves(push audit.Entry) bool {
	at, ok := s.cache.At(push.Group)
	if !ok {
		return false
	}
	have, _ := at.Secrets.Version(push.Secret)
	return have == secret.Version(push.Version)
}

// brought reports whether a rollout has moved the group of a push to its version, though it may be at another one now.
func brought(r *rollout.Rollout, push audit.Entry) bool {
	return slices.ContainsFunc(r.Change, func(c rollout.Change) bool { return c.Secret == push.Secret && c.To == secret.Version(push.Version) }) &&
		slices.ContainsFunc(r.Waves, func(w rollout.Wave) bool { return slices.Contains(w.Moved, push.Group) })
}

// pushes records pushes in the audit trail.
type pushes struct {
	log *audit.Log

	mu      sync.Mutex
	gather  bool         // guarded by mu
	waiting []audit.Item // guarded by mu; while gather
}

var _ sds.Pushes = (*pushes)(nil)

// Record implements sds.Pushes.
func (p *pushes) Record(pushed func() sds.Push, done func()) {
	item := audit.Item{Entries: func() []audit.Entry { return pushEntries(pushed()) }, Done: func(error) { done() }}
	p.mu.Lock()
	wait := p.gather
	if wait {
		p.waiting = append(p.waiting, item)
	}
	p.mu.Unlock()
	if !wait {
		p.log.Queue(item)
	}
}

// together has what begin records written in one commit.
func (p *pushes) together(begin func()) {
	p.mu.Lock()
	p.gather = true
	p.mu.Unlock()
	begin()
	p.mu.Lock()
	waiting := p.waiting
	p.gather, p.waiting = false, nil
	p.mu.Unlock()
	if len(waiting) > 0 {
		p.log.Queue(waiting...)
	}
}

// pushEntries are one entry, or several where there are many nodes.
func pushEntries(p sds.Push) []audit.Entry {
	var out []audit.Entry
	for begin := 0; begin < len(p.Nodes); begin += maxNodesOfPush {
		out = append(out, audit.Entry{
			Event: eventPush, Secret: p.Secret, Version: string(p.Version), Group: p.Group, Nodes: p.Nodes[begin:min(begin+maxNodesOfPush, len(p.Nodes))],
			Detail: fmt.Sprintf("with snapshot %d, to %s", p.Snapshot, strings.Join(p.Identities, ", ")),
		})
	}
	return out
}
