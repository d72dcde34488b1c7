package rollout

import (
	"context"
	"slices"
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
				known = len(before.Log)
			}
			for _, e := range r.rollout.Log[min(known, len(r.rollout.Log)):] {
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

// untold returns the transitions of rollouts that were stored without an answer.
func untold(rollouts []*Rollout, before map[uint64]*Rollout, last uint64) []Record {
	var out []Record
	for _, r := range rollouts {
		known := len(r.Log)
		if was := before[r.ID]; was != nil {
			known = len(was.Log)
		} else if r.ID > last {
			known = 0
		}
		for _, e := range r.Log[min(known, len(r.Log)):] {
			out = append(out, Record{Rollout: r, Event: e})
		}
	}
	return out
}
