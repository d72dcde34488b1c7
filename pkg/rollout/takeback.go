package rollout

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// takeBack moves the wave's groups back to what each of them left, as many as fit into this commit. An addition stays: nothing was
// served under its name before.
func (t *transaction) takeBack(ctx context.Context, r *Rollout, w *Wave, reason string) error {
	w.Members, w.Back = nil, reason
	if r.addition() {
		w.State = Done
		r.log(t.now, Done, "added, but "+reason, "")
		return nil
	}
	w.State = RolledBack
	for len(w.Moved) > 0 {
		if t.Full() {
			r.log(t.now, Moving, "taking back: "+reason, "")
			return nil
		}
		last := len(w.Moved) - 1
		if err := t.undo(ctx, w.Moved[last], r.ID, reason); err != nil {
			return err
		}
		w.Moved = w.Moved[:last]
	}
	r.log(t.now, RolledBack, reason, "")
	return nil
}

// undo applies the from values of the move that the rollout made in a group. An entry that is something else by now is skipped, and so
// is one that has expired or is no longer stored: the new version, which other nodes may serve well, is better than that.
func (t *transaction) undo(ctx context.Context, group string, id uint64, reason string) error {
	moves := t.c.cache.Moves(group)
	i := len(moves) - 1
	for i >= 0 && moves[i].Rollout != id {
		i--
	}
	if i < 0 {
		return nil // the group had nothing to move
	}
	back, err := t.backwards(ctx, group, moves[i])
	if err != nil {
		return err
	}
	for name := range back {
		if problem, err := t.unfit(ctx, name, back[name]); err != nil {
			return err
		} else if problem != "" {
			delete(back, name)
		}
	}
	why := cache.Why{Reason: "taken back: " + reason, Rollout: id, Direction: cache.Back, Keep: i}
	if i < len(moves)-1 { // an operator's move came later; it can still be taken back
		why.Direction = cache.Beside
	}
	_, err = t.Move(ctx, group, back, why)
	return err
}

// retrySoftHolds gives the secrets whose soft hold has ended a rollout of their own again, unless a newer version has taken over.
func (c *Controller) retrySoftHolds(ctx context.Context) error {
	var faults []error
	policy := c.currentPolicy()
	for _, h := range c.softHolds() {
		if time.Now().Before(h.Since.Add(policy.RetryAfter)) {
			continue
		}
		t := c.begin()
		t.release(h.Secret, h.Version)
		versions, err := t.stored(ctx, h.Secret)
		if err == nil {
			err = t.heal(ctx, versions, "tried again after "+policy.RetryAfter.String(), "")
		}
		if err == nil {
			err = t.commit(ctx)
		}
		if err == nil {
			continue
		}
		faults = append(faults, fmt.Errorf("retry %q: %w", h.Secret, err))
		if err := c.settle(ctx); err != nil {
			return errors.Join(append(faults, err)...)
		}
	}
	return errors.Join(faults...)
}

// nextRetry returns when the next soft hold ends; zero: none does.
func (c *Controller) nextRetry() time.Time {
	var next time.Time
	for _, h := range c.softHolds() {
		next = sooner(next, h.Since.Add(c.currentPolicy().RetryAfter))
	}
	return next
}

func (c *Controller) softHolds() []Hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	var soft []Hold
	for _, h := range c.holds {
		if h.Kind == Soft {
			soft = append(soft, h)
		}
	}
	return soft
}
