package rollout

import (
	"context"
	"fmt"
	"slices"
)

// PromoteAhead is Promote without the waves before the group's: those that have not begun go after it, by the usual rules, and one under way
// is left as it stands, its nodes unproven. What nodes have refused, or an operator holds, stays where it is all the same. A rollout whose
// wave is being switched at this moment is let go as by Promote.
func (c *Controller) PromoteAhead(ctx context.Context, group string, id uint64, op Operator) (Promotion, error) {
	return c.promote(ctx, group, id, op, (*transaction).letAhead)
}

// letAhead puts the group's wave first among those that are not done, and goes on with it.
func (t *transaction) letAhead(ctx context.Context, id uint64, group string, op Operator, p *Promotion) error {
	r := t.look(id)
	if r == nil || r.State.Ended() || r.Unwind != nil {
		return nil
	}
	wave := r.waveOf(group)
	if wave <= r.Wave || len(r.current().Moved) > 0 && len(r.current().Moved) < len(r.current().Groups) {
		return t.let(ctx, id, group, op, p)
	}
	t.edit(id).goAhead(t, wave, op)
	return t.let(ctx, id, group, op, p)
}

// goAhead ends the wave under way, if there is one, and puts another one in front of those that have not begun.
func (r *Rollout) goAhead(t *transaction, wave int, op Operator) {
	if w := r.current(); w.State.moved() {
		w.State, w.Stalled = Done, false
		r.log(t.now, r.State, op.because(fmt.Sprintf("wave %d (%s) was left as it stands", r.Wave+1, some(w.Groups))), op.By)
		r.Parked = false
		r.Wave++
	}
	ahead := r.Waves[wave]
	ahead.Ahead = true
	r.Waves = slices.Insert(slices.Delete(r.Waves, wave, wave+1), r.Wave, ahead)
}

// order sorts waves that have not begun: those that an operator has put in front come first.
func (w Wave) order() int {
	if w.Ahead {
		return 1
	}
	return 0
}
