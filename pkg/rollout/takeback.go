package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
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
		stays, err := t.undo(ctx, w.Moved[last], r, reason)
		if err != nil {
			return err
		}
		if stays != "" && !strings.HasSuffix(w.Back, stays) {
			w.Back += stays
		}
		w.Moved = w.Moved[:last]
	}
	r.log(t.now, RolledBack, w.Back, "")
	return nil
}

// undo takes a group back from what the rollout brings to what its history has before; see fallback. What it cannot take back stays,
// and the returned text says so: the new version, which other nodes may serve well, is better than an expired or a refused one.
func (t *transaction) undo(ctx context.Context, group string, r *Rollout, reason string) (stays string, err error) {
	moves := t.c.cache.Moves(group)
	back := map[string]secret.Version{}
	why := cache.Why{Reason: "taken back: " + reason, Rollout: r.ID, Direction: cache.Beside}
	for _, c := range r.Change {
		if have, _ := t.has(group, c.Secret); have != c.To {
			continue // it is something else by now
		}
		to, by, ok, err := t.fallback(ctx, group, moves, c)
		switch {
		case err != nil:
			return "", err
		case !ok:
			stays += fmt.Sprintf("; %s of %s stays: there is no earlier version that may be served", c.Secret, group)
			continue
		case by == len(moves)-1 && moves[by].Rollout == r.ID: // else an operator's move, say, that can still be taken back
			why.Direction, why.Keep = cache.Back, by
		}
		back[c.Secret] = to
	}
	_, err = t.Move(ctx, group, back, why)
	return stays, err
}

// fallback returns the version that a group goes back to from a change, and the index of the move that brought the change: the newest
// version before it that is stored, neither expired nor held, and was carried through in this group. One that was superseded
// before the nodes had ACKed it comes only after those.
func (t *transaction) fallback(ctx context.Context, group string, moves []cache.Move, c Change) (to secret.Version, by int, ok bool, err error) {
	by, to, err = t.brought(ctx, moves, c.Secret, c.To)
	var spare *secret.Version
	for i := by; i >= 0 && err == nil; {
		fit := false
		if fit, err = t.usable(ctx, c.Secret, to); err != nil {
			break
		}
		var before int
		var from secret.Version
		if before, from, err = t.brought(ctx, moves[:i], c.Secret, to); err != nil {
			break
		}
		var sure bool
		if sure, err = t.confirmed(ctx, group, moves, before); err != nil {
			break
		}
		if fit && sure {
			return to, by, true, nil
		}
		if fit && spare == nil {
			spare = new(to)
		}
		i, to = before, from
	}
	if err != nil || spare == nil {
		return "", by, false, err
	}
	return *spare, by, true, nil
}

// brought returns the index of the last move that brought a version of a secret, and what was there before; -1 if none did.
func (t *transaction) brought(ctx context.Context, moves []cache.Move, name string, v secret.Version) (int, secret.Version, error) {
	for i, m := range slices.Backward(moves) {
		entries, err := t.c.cache.Entries(ctx, m)
		if err != nil {
			return -1, "", err
		}
		for _, e := range entries {
			if e.Secret == name && e.To == v {
				return i, e.From, nil
			}
		}
	}
	return -1, "", nil
}

// usable reports whether a version may be served again.
func (t *transaction) usable(ctx context.Context, name string, v secret.Version) (bool, error) {
	if _, held := t.held(name, v); held {
		return false, nil
	}
	problem, err := t.unfit(ctx, name, v)
	return problem == "", err
}

// confirmed reports whether a move was carried through: its rollout's wave ended with ACKs. A move of an operator, or none at all, is.
func (t *transaction) confirmed(ctx context.Context, group string, moves []cache.Move, i int) (bool, error) {
	if i < 0 || moves[i].Rollout == 0 {
		return true, nil
	}
	r, err := t.c.Rollout(ctx, moves[i].Rollout)
	if errors.Is(err, ErrNoRollout) {
		return true, nil // so long ago that it is forgotten
	}
	if err != nil {
		return false, err
	}
	w := r.waveOf(group)
	return w < 0 || r.Waves[w].State == Done, nil
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
