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
	"github.com/sds-server/sds-server/pkg/secret"
)

// takeBack takes secrets of a rollout back from the groups of its wave; the rest of it goes on. An addition stays: nothing was served under its
// name before.
func (t *transaction) takeBack(ctx context.Context, r *Rollout, w *Wave, secrets []string, reason string) error {
	if r.addition() {
		w.Members, w.State = nil, Done
		r.log(t.now, Done, "added, but "+reason, "")
		return nil
	}
	return t.begins(ctx, r, Unwind{Secrets: secrets, Groups: slices.Clone(w.Moved), Reason: reason, End: RolledBack})
}

// begins starts a way back.
func (t *transaction) begins(ctx context.Context, r *Rollout, u Unwind) error {
	for _, name := range u.Secrets {
		r.leave(name, "taken back: "+u.Reason)
	}
	r.Unwind = &u
	return t.unwind(ctx, r)
}

// wayBack goes on with a way back as it was stored first: in the state of the wave.
func (r *Rollout) wayBack() {
	w := r.current()
	if r.State.Ended() || r.Unwind != nil || w == nil || w.State != RolledBack {
		return
	}
	r.Unwind = &Unwind{Secrets: r.secrets(), Groups: slices.Clone(w.Moved), Reason: r.Reason, End: RolledBack}
	for _, name := range r.Unwind.Secrets {
		r.leave(name, "taken back: "+r.Reason)
	}
}

// unwind moves groups back to what each of them left, as many as fit into this commit. What is not taken back goes on then.
func (t *transaction) unwind(ctx context.Context, r *Rollout) error {
	u := r.Unwind
	for len(u.Groups) > 0 {
		if t.touched = true; t.Full() {
			r.log(t.now, r.State, "taking back: "+u.Reason, u.By)
			return nil
		}
		last := len(u.Groups) - 1
		stays, err := t.undo(ctx, u.Groups[last], r, u.Secrets, u.Reason)
		if err != nil {
			return err
		}
		if stays != "" && !strings.HasSuffix(u.Reason, stays) {
			u.Reason += stays
		}
		u.Groups = u.Groups[:last]
	}
	r.Unwind = nil
	for _, c := range r.Change {
		if c.To != "" && slices.Contains(u.Secrets, c.Secret) {
			t.c.ailing[c.Secret] = true
		}
	}
	if !r.empty() {
		t.goesOn(r, u.Reason, u.By)
		return nil
	}
	if w := r.current(); w != nil && w.State.moved() {
		w.State, w.Members = RolledBack, nil
	}
	r.log(t.now, u.End, u.Reason, u.By)
	return nil
}

// undo takes a group back from what the rollout brings to what its history has before; see fallback. What it cannot take back stays,
// and the returned text says so: the new version, which other nodes may serve well, is better than an expired or a refused one.
func (t *transaction) undo(ctx context.Context, group string, r *Rollout, secrets []string, reason string) (stays string, err error) {
	moves := t.c.cache.Moves(group)
	back := map[string]secret.Version{}
	why := cache.Why{Reason: "taken back: " + reason, Rollout: r.ID, Direction: cache.Beside}
	for _, c := range r.Change {
		if have, _ := t.has(group, c.Secret); have != c.To || !slices.Contains(secrets, c.Secret) {
			continue // it is something else by now, or goes on
		}
		to, by, ok, err := t.fallback(ctx, group, moves, c)
		switch {
		case err != nil:
			return "", err
		case !ok:
			stays += fmt.Sprintf("; %s of %s stays: there is no earlier version that may be served", c.Secret, group)
			continue
		case by == len(moves)-1 && moves[by].Rollout == r.ID && r.empty(): // else an operator's move, say, that can still be taken back
			why.Direction, why.Keep = cache.Back, by
		}
		back[c.Secret] = to
	}
	if _, err := t.Move(ctx, group, back, why); err != nil {
		return "", err
	}
	t.redate(back)
	return stays, nil
}

// fallback returns the version that a group goes back to from a change, and the index of the move that brought the change: of what it has served before,
// the newest of the best rank.
func (t *transaction) fallback(ctx context.Context, group string, moves []cache.Move, c Change) (to secret.Version, by int, ok bool, err error) {
	by, next, err := t.brought(ctx, moves, c.Secret, c.To)
	best := rankUnfit
	for i := by; i >= 0 && err == nil && best < rankGood; {
		one := next
		if i, next, err = t.brought(ctx, moves[:i], c.Secret, one); err != nil {
			break
		}
		var r rank
		if r, err = t.rank(ctx, group, c.Secret, one, moves, i); r > best {
			to, best = one, r
		}
	}
	return to, by, best > rankUnfit && err == nil, err
}

// rank is how good an earlier version is to go back to.
type rank int

const (
	rankUnfit   rank = iota // not stored any more, expired or held
	rankRescued             // held, but a deadline brought it all the same: the group has served it since
	rankSpare               // in the last part of its life, or superseded before the nodes had ACKed it
	rankGood                // it was carried through in the group
)

// rank weighs a version that the i-th move has brought; -1: none that is remembered.
func (t *transaction) rank(ctx context.Context, group, name string, v secret.Version, moves []cache.Move, i int) (rank, error) {
	problem, err := t.unfit(ctx, name, v)
	if err != nil || problem != "" {
		return rankUnfit, err
	}
	sure, err := t.confirmed(ctx, group, name, moves, i)
	if err != nil {
		return rankUnfit, err
	}
	if h, held := t.held(name, v); held {
		if !sure || h.Handshake {
			return rankUnfit, nil
		}
		return t.rescued(ctx, moves, i)
	}
	lasting, err := t.lasts(ctx, name, v)
	if err != nil || !lasting || !sure {
		return rankSpare, err
	}
	return rankGood, nil
}

// rescued is the rank of a held version: it was overruled for a deadline, or not.
func (t *transaction) rescued(ctx context.Context, moves []cache.Move, i int) (rank, error) {
	if i < 0 || moves[i].Rollout == 0 {
		return rankUnfit, nil
	}
	switch r, err := t.c.Rollout(ctx, moves[i].Rollout); {
	case errors.Is(err, ErrNoRollout): // so long ago that it is forgotten
		return rankUnfit, nil
	case err != nil || !r.emergency():
		return rankUnfit, err
	}
	return rankRescued, nil
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

// lasts reports whether a version is not in the last part of its life: then another one is better, if there is any.
func (t *transaction) lasts(ctx context.Context, name string, v secret.Version) (bool, error) {
	versions, err := t.stored(ctx, name)
	for _, m := range versions {
		if m.Version == v {
			last, _ := lifeOf(m)
			return last.IsZero() || t.now.Before(last), err
		}
	}
	return true, err
}

// confirmed reports whether a move was carried through: its rollout's wave ended with ACKs. A move of an operator, or none at all, is.
func (t *transaction) confirmed(ctx context.Context, group, name string, moves []cache.Move, i int) (bool, error) {
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
	left := slices.ContainsFunc(r.Change, func(c Change) bool { return c.Secret == name && c.Left != "" })
	return w < 0 || r.Waves[w].State == Done && !left, nil
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
			err = t.heal(ctx, versions, intent{reason: "tried again after " + policy.RetryAfter.String(), alone: true})
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
	slices.SortFunc(soft, func(a, b Hold) int { // what expires first goes first
		return cmp.Or(a.NotAfter.Compare(b.NotAfter), strings.Compare(a.Secret, b.Secret), strings.Compare(string(a.Version), string(b.Version)))
	})
	return soft
}
