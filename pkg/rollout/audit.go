package rollout

import (
	"context"
	"slices"

	"github.com/sds-server/sds-server/pkg/cache"
)

// Record is something that has become durable: a transition of a rollout, or a hold that began or ended.
type Record struct {
	Rollout *Rollout // as it is after the transition, read only; nil for a hold
	Event   Event    // the transition
	Hold    Hold     // where Rollout is nil
	Ended   bool     // the hold was released
}

// recorded returns what a commit did, in its order, before the controller takes it over. The caller holds mu.
func (t *transaction) recorded(records []record) []Record {
	var out []Record
	for _, r := range records {
		switch {
		case r.rollout != nil:
			known := t.reopened[r.rollout.ID]
			if before := t.c.active[r.rollout.ID]; before != nil {
				known = before.Logged
			}
			for _, e := range r.rollout.since(known) {
				out = append(out, Record{Rollout: r.rollout, Event: e})
			}
		case r.again:
		case r.hold != nil:
			out = append(out, Record{Hold: *r.hold})
		default:
			out = append(out, Record{Hold: t.c.holds[r.id], Ended: true})
		}
	}
	slices.SortStableFunc(out, func(a, b Record) int { return a.id() - b.id() })
	return out
}

// id orders records: holds first, then rollouts from the oldest on.
func (r Record) id() int {
	if r.Rollout == nil {
		return 0
	}
	return int(r.Rollout.ID)
}

// tell hands over what a commit did, also where that is only that groups moved.
func (c *Controller) tell(ctx context.Context, records []Record) {
	if c.audit != nil {
		c.audit(ctx, records)
	}
}

// announced tells what the commit is about to put into groups, and returns that of which a record is made.
func (t *transaction) announced() []cache.Placement {
	if t.c.announce == nil {
		return nil
	}
	return t.c.announce(t.Placements())
}

// reconsider retracts what was announced for commits that failed, and is not stored. What the store holds is known.
func (c *Controller) reconsider() {
	gone := slices.DeleteFunc(c.unsure, func(p cache.Placement) bool {
		at, ok := c.cache.At(p.Group)
		if !ok {
			return false
		}
		have, _ := at.Secrets.Version(p.Secret)
		return have == p.Version
	})
	if c.unsure = nil; len(gone) > 0 {
		c.retract(gone)
	}
}

// since returns the events after the first so many that there were, as far as they are kept.
func (r *Rollout) since(known uint64) []Event {
	n := int(min(r.Logged-min(known, r.Logged), uint64(len(r.Log))))
	return r.Log[len(r.Log)-n:]
}

// untold returns the transitions of rollouts that were stored without an answer.
func untold(rollouts []*Rollout, before map[uint64]*Rollout, last uint64) []Record {
	var out []Record
	for _, r := range rollouts {
		known := r.Logged
		if was := before[r.ID]; was != nil {
			known = was.Logged
		} else if r.ID > last {
			known = 0
		}
		for _, e := range r.since(known) {
			out = append(out, Record{Rollout: r, Event: e})
		}
	}
	return out
}
