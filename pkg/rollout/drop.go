package rollout

import (
	"context"
	"fmt"
)

// dropHeld takes what is held out of a rollout: by a node of another rollout, or by an operator.
func (t *transaction) dropHeld(r *Rollout) {
	why := ""
	for c := range r.live() {
		if h, held := t.held(c.Secret, c.To); held {
			why = fmt.Sprintf("%s version %s is held (%s): %s", c.Secret, c.To.Short(), h.Kind, h.Reason)
			r.leave(c.Secret, why)
		}
	}
	t.dropped(r, why)
}

// dropExpired takes what has expired while it waited out of a rollout whose wave is about to begin: no group leaves what it has for that.
func (t *transaction) dropExpired(ctx context.Context, r *Rollout) error {
	why := ""
	for c := range r.live() {
		if m, known := t.Meta(c.Secret, c.To); known && !m.Ended(t.now) { // nearly always: it is in memory
			continue
		}
		problem, err := t.unfit(ctx, c.Secret, c.To)
		if err != nil {
			return err
		}
		if problem != "" {
			why = problem
			r.leave(c.Secret, why)
		}
	}
	t.dropped(r, why)
	return nil
}

// dropped says that something has left a rollout before a wave, or that nothing is left of it; why is empty where nothing has.
func (t *transaction) dropped(r *Rollout, why string) {
	switch {
	case r.empty():
		r.log(t.now, RolledBack, why, "")
	case why != "":
		t.goesOn(r, why, "")
	}
}
