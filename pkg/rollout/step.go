package rollout

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

func compare(a, b, c, d string) int { return cmp.Or(strings.Compare(a, b), strings.Compare(c, d)) }

// step carries every rollout as far as it goes now, and returns when to look again without an event.
func (c *Controller) step(ctx context.Context) (time.Time, error) {
	if err := c.take(ctx); err != nil {
		return time.Time{}, err
	}
	defer c.leave()
	var next time.Time
	var faults []error
	soonest := func(t time.Time) {
		if !t.IsZero() && (next.IsZero() || t.Before(next)) {
			next = t
		}
	}
	for _, id := range c.begin().activeIDs() {
		recheck, err := c.carry(ctx, id)
		if err != nil { // one bad rollout delays no other
			faults = append(faults, fmt.Errorf("rollout %d: %w", id, err))
		}
		soonest(recheck)
	}
	retry, err := c.retrySoftHolds(ctx)
	soonest(retry)
	return next, errors.Join(append(faults, err)...)
}

// carry takes one rollout through as many transitions as are due, one commit each.
func (c *Controller) carry(ctx context.Context, id uint64) (time.Time, error) {
	for {
		t := c.begin()
		if r := t.look(id); r == nil || r.State.Ended() {
			return time.Time{}, nil
		}
		recheck, err := t.advance(ctx, t.edit(id))
		if err != nil {
			return time.Time{}, err
		}
		if !t.changed(id) {
			return recheck, nil
		}
		if err := t.commit(ctx); err != nil {
			return time.Time{}, err
		}
	}
}

// changed reports whether the transaction has something to store for the rollout.
func (t *transaction) changed(id uint64) bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	before, after := t.c.active[id], t.rollouts[id]
	return before == nil || before.State != after.State || before.Wave != after.Wave || len(before.Log) != len(after.Log) ||
		!slices.EqualFunc(before.Waves, after.Waves, func(a, b Wave) bool {
			return a.State == b.State && len(a.Moved) == len(b.Moved) && a.Promoted == b.Promoted
		})
}

// advance makes the next transition of a rollout, if one is due.
func (t *transaction) advance(ctx context.Context, r *Rollout) (time.Time, error) {
	if r.Wave >= len(r.Waves) {
		r.log(t.now, Done, "every wave is done", "")
		return time.Time{}, nil
	}
	w := &r.Waves[r.Wave]
	switch w.State {
	case Pending:
		return time.Time{}, t.enter(ctx, r, w)
	case Moving:
		if len(w.Moved) < len(w.Groups) {
			return time.Time{}, t.move(ctx, r, w)
		}
		return t.assess(ctx, r, w)
	default: // Done: its ACKs are in
		r.Wave++
		return t.advance(ctx, r)
	}
}

// enter switches a wave's groups, unless it waits for a promotion or for another change.
func (t *transaction) enter(ctx context.Context, r *Rollout, w *Wave) error {
	if t.policy.Manual && r.Wave > 0 && !w.Promoted && !r.addition() && t.needsMove(r, w) {
		r.log(t.now, Waiting, "for a promotion of "+strings.Join(w.Groups, ", "), "")
		return nil
	}
	if other := t.occupant(r, w); other != 0 {
		r.log(t.now, Waiting, fmt.Sprintf("for rollout %d, which is moving the same groups", other), "")
		return nil
	}
	return t.move(ctx, r, w)
}

// needsMove reports whether a group of the wave is not at the wanted versions yet.
func (t *transaction) needsMove(r *Rollout, w *Wave) bool {
	for _, g := range w.Groups {
		for name, to := range r.wants() {
			if v, _ := t.Target(g).Secrets.Version(name); v != to {
				return true
			}
		}
	}
	return false
}

// occupant returns the rollout that is moving a group of the wave, or 0. Additions hold no slot.
func (t *transaction) occupant(r *Rollout, w *Wave) uint64 {
	if r.addition() {
		return 0
	}
	for _, id := range t.activeIDs() {
		other := t.look(id)
		if id == r.ID || other.addition() || other.Wave >= len(other.Waves) || other.Waves[other.Wave].State != Moving {
			continue
		}
		if slices.ContainsFunc(other.Waves[other.Wave].Groups, func(g string) bool { return slices.Contains(w.Groups, g) }) {
			return id
		}
	}
	return 0
}

// move switches the wave's groups, at most cache.MaxMoves in this commit.
func (t *transaction) move(ctx context.Context, r *Rollout, w *Wave) error {
	direction := cache.Forward
	if r.addition() {
		direction = cache.Beside
	}
	why := cache.Why{Reason: r.describe(), Rollout: r.ID, Direction: direction}
	budget := cache.MaxMoves
	for _, g := range w.Groups {
		if slices.Contains(w.Moved, g) {
			continue
		}
		if budget--; budget < 0 {
			break
		}
		t.muster(r, w, g)
		if _, err := t.Move(ctx, g, r.wants(), why); err != nil {
			return err
		}
		w.Moved = append(w.Moved, g)
	}
	if w.State != Moving {
		w.State, w.At = Moving, t.now
		w.Snapshot = t.Target(w.Groups[0]).Number
	}
	w.Nodes.Expected = len(w.Members)
	r.log(t.now, Moving, fmt.Sprintf("wave %d (%s) was switched", r.Wave+1, strings.Join(w.Groups, ", ")), "")
	return nil
}

// muster notes which nodes of a group have to ACK.
func (t *transaction) muster(r *Rollout, w *Wave, group string) {
	for _, n := range t.c.fleet.Progress(group, r.wants()) {
		if n.Connected {
			w.Members = append(w.Members, Member{Identity: n.Identity, Node: n.Node, Group: group})
		}
	}
}

// assess ends a moving wave when its nodes have answered.
func (t *transaction) assess(ctx context.Context, r *Rollout, w *Wave) (time.Time, error) {
	progress := map[string][]NodeProgress{}
	for _, g := range w.Groups {
		progress[g] = t.c.fleet.Progress(g, r.wants())
	}
	v := judge(*w, progress, t.policy, t.c.started, t.now)
	w.Nodes = v.nodes
	switch {
	case v.nack != nil:
		reason := fmt.Sprintf("%s refused %s version %s: %s", v.nackBy, v.nack.Secret, v.nack.Version.Short(), v.nack.Message)
		t.hold(v.nack.Secret, v.nack.Version, Hard, reason)
		return time.Time{}, t.takeBack(ctx, r, w, reason)
	case v.late != "":
		reason := fmt.Sprintf("%s did not answer within %s", v.late, t.policy.AckTimeout)
		for _, c := range r.Change {
			t.hold(c.Secret, c.To, Soft, reason)
		}
		return time.Time{}, t.takeBack(ctx, r, w, reason)
	case v.passed():
		w.State, w.Members = Done, nil
		return t.advance(ctx, r) // the next wave in the same commit
	}
	return v.recheck, nil
}

// takeBack moves the wave's groups back to what each of them left. An addition stays: nothing was served under its name before.
func (t *transaction) takeBack(ctx context.Context, r *Rollout, w *Wave, reason string) error {
	if r.addition() {
		w.State = Done
		r.log(t.now, Done, "added, but "+reason, "")
		return nil
	}
	for _, g := range w.Moved {
		if err := t.undo(ctx, g, r.ID, reason); err != nil {
			return err
		}
	}
	w.State, w.Members = RolledBack, nil
	r.log(t.now, RolledBack, reason, "")
	return nil
}

// undo applies the from values of a group's last move, if the rollout made it; an entry that is something else by now is skipped.
func (t *transaction) undo(ctx context.Context, group string, id uint64, reason string) error {
	moves := t.c.cache.Moves(group)
	if len(moves) == 0 || moves[len(moves)-1].Rollout != id {
		return nil // the group had nothing to move
	}
	_, err := t.back(ctx, group, len(moves)-1, reason)
	return err
}

// retrySoftHolds makes secrets whose soft hold has ended rollouts of their own again, and returns when the next hold ends.
func (c *Controller) retrySoftHolds(ctx context.Context) (time.Time, error) {
	var next time.Time
	for _, h := range c.Holds() {
		if h.Kind != Soft {
			continue
		}
		policy := c.currentPolicy()
		if until := h.Since.Add(policy.RetryAfter); time.Now().Before(until) {
			if next.IsZero() || until.Before(next) {
				next = until
			}
			continue
		}
		t := c.begin()
		t.release(h.Secret, h.Version)
		if _, err := t.propose(ctx, h.Secret, h.Version, "tried again after "+policy.RetryAfter.String(), ""); err != nil {
			return next, fmt.Errorf("retry %q: %w", h.Secret, err)
		}
		if err := t.commit(ctx); err != nil {
			return next, err
		}
		c.Wake()
	}
	return next, nil
}

// describe is the reason that the snapshots of a rollout show.
func (r *Rollout) describe() string {
	parts := make([]string, 0, len(r.Change))
	for _, c := range r.Change {
		parts = append(parts, fmt.Sprintf("%s of %s", c.Kind, c.Secret))
	}
	return fmt.Sprintf("rollout %d: %s", r.ID, strings.Join(parts, ", "))
}
