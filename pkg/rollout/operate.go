package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// Operator is who asks, and why.
type Operator struct {
	By     string // as the admin socket authenticated it
	Reason string
}

func (o Operator) because(what string) string {
	if o.Reason == "" {
		return what
	}
	return what + ": " + o.Reason
}

// ErrBehind is returned by Promote when nothing waits for a group although it is behind; the text says why.
var ErrBehind = errors.New("nothing waits for the group, but it is behind")

// Promotion says what a Promote did.
type Promotion struct {
	Group    string   `json:"group"`
	Rollouts []uint64 `json:"rollouts"` // let go, oldest first
	Changes  []string `json:"changes"`  // each named
	Groups   []string `json:"groups"`   // that move with it: earlier waves first
	Snapshot uint64   `json:"snapshot"` // where the group is now
	Already  bool     `json:"already"`  // nothing waited, and there is nothing newer
}

// add notes that a rollout is let go up to a wave.
func (p *Promotion) add(r *Rollout, wave int) {
	p.Rollouts = append(p.Rollouts, r.ID)
	for c := range r.live() {
		p.Changes = append(p.Changes, fmt.Sprintf("%s of %s: %s -> %s", c.Kind, c.Secret, short(c.From), short(c.To)))
	}
	for _, w := range r.Waves[r.Wave : wave+1] {
		for _, g := range w.Groups {
			if !slices.Contains(p.Groups, g) {
				p.Groups = append(p.Groups, g)
			}
		}
	}
}

// Promote lets the rollouts that wait for a group go on (id 0: all of them), up to the wave that holds the group. A rolled back or aborted rollout
// named by its id is begun again, and its manual and soft holds are released. Where there are many, those that were let go before an
// error stay so.
func (c *Controller) Promote(ctx context.Context, group string, id uint64, op Operator) (Promotion, error) {
	return c.promote(ctx, group, id, op, (*transaction).let)
}

// letFunc lets one rollout go on to a group.
type letFunc func(t *transaction, ctx context.Context, id uint64, group string, op Operator, p *Promotion) error

func (c *Controller) promote(ctx context.Context, group string, id uint64, op Operator, let letFunc) (Promotion, error) {
	if err := c.take(ctx); err != nil {
		return Promotion{}, err
	}
	defer c.leave()
	t := c.begin()
	p := Promotion{Group: group}
	if err := t.knows(group); err != nil {
		return p, err
	}
	ids := t.activeIDs()
	if id != 0 {
		ids = []uint64{id}
	}
	if id != 0 && t.look(id) == nil {
		next, err := t.revive(ctx, id, op)
		if err != nil {
			return p, err
		}
		ids = []uint64{next}
		if r := t.look(next); r != nil && r.moves(group) {
			p.add(r, r.Wave)
		}
	}
	for _, one := range ids {
		if err := let(t, ctx, one, group, op, &p); err != nil {
			return p, err
		}
		if t.Full() || len(t.rollouts) >= batch {
			if err := t.commit(ctx); err != nil {
				return p, err
			}
			t = c.begin()
		}
	}
	if err := t.commit(ctx); err != nil {
		return p, err
	}
	at, _ := c.cache.At(group)
	p.Snapshot = at.Number
	if len(p.Rollouts) == 0 {
		return p, t.nothing(ctx, group, ids, id, &p)
	}
	c.Wake()
	return p, nil
}

func (t *transaction) knows(group string) error {
	if !slices.Contains(t.policy.Groups(), group) {
		return fmt.Errorf("group %q: unknown; there are %s", group, strings.Join(t.policy.Groups(), ", "))
	}
	return nil
}

// moves reports whether the group is in the wave that is moving.
func (r *Rollout) moves(group string) bool {
	w := r.current()
	return w != nil && w.State == Moving && slices.Contains(w.Groups, group)
}

// let marks a rollout's waves as promoted up to the group's, and goes on with it.
func (t *transaction) let(ctx context.Context, id uint64, group string, op Operator, p *Promotion) error {
	r := t.look(id)
	if r == nil || r.State.Ended() {
		return nil
	}
	wave := r.waveOf(group)
	if wave < r.Wave {
		return nil
	}
	w := r.current()
	stalled := w.State == Moving && w.Stalled
	if r.Waves[wave].State != Pending && !stalled {
		return nil
	}
	p.add(r, wave)
	if r.Waves[wave].Promoted && !stalled {
		return nil // it is on its way
	}
	r = t.edit(id)
	for i := r.Wave; i <= wave; i++ {
		r.Waves[i].Promoted = true
	}
	r.current().Forced = stalled
	r.log(t.now, r.State, op.because("promoted up to "+group), op.By)
	_, err := t.advance(ctx, r)
	return err
}

// revive begins a rolled back rollout again, and returns the id of the new one; 0 if every group serves its versions.
func (t *transaction) revive(ctx context.Context, id uint64, op Operator) (uint64, error) {
	old, err := t.c.Rollout(ctx, id)
	if err != nil {
		return 0, err
	}
	if old.State != RolledBack && old.State != Aborted {
		return 0, fmt.Errorf("rollout %d is %s: nothing of it waits", id, old.State)
	}
	var next uint64
	for _, ch := range old.Change {
		if h, ok := t.held(ch.Secret, ch.To); ok && h.Kind == Hard {
			return 0, fmt.Errorf("secret %q version %s is %w (hard): %s", ch.Secret, ch.To.Short(), ErrHeld, h.Reason)
		}
		if err := t.current(ctx, ch); err != nil {
			return 0, err
		}
		t.release(ch.Secret, ch.To)
		next, err = t.propose(ctx, intent{
			secret: ch.Secret, version: ch.To, reason: op.because(fmt.Sprintf("rollout %d begun again", id)), by: op.By,
		})
		if err != nil {
			return 0, err
		}
	}
	return next, nil
}

// current refuses a change that would bring an unfit version, or replace a newer one.
func (t *transaction) current(ctx context.Context, ch Change) error {
	if ch.To == "" {
		return nil
	}
	problem, err := t.unfit(ctx, ch.Secret, ch.To)
	if err != nil {
		return err
	}
	if problem != "" {
		return fmt.Errorf("refused: %s", problem)
	}
	versions, err := t.stored(ctx, ch.Secret)
	if err != nil {
		return err
	}
	for _, m := range versions {
		if m.Version == ch.To {
			return nil
		}
		if _, held := t.held(m.Name, m.Version); !held {
			return fmt.Errorf("secret %q: version %s is newer than version %s; `promote --to` goes back to an older one",
				ch.Secret, m.Version.Short(), ch.To.Short())
		}
	}
	return nil
}

// nothing explains why there was nothing to promote.
func (t *transaction) nothing(ctx context.Context, group string, ids []uint64, id uint64, p *Promotion) error {
	if id != 0 {
		if r := t.look(ids[0]); r != nil && r.waveOf(group) < 0 {
			return fmt.Errorf("rollout %d does not move group %q", id, group)
		}
		p.Already = true // it has moved the group, or every group serves its versions
		return nil
	}
	reasons, err := t.behind(ctx, group)
	if err != nil {
		return err
	}
	if len(reasons) > 0 {
		return fmt.Errorf("%w: %s", ErrBehind, strings.Join(reasons, "; "))
	}
	p.Already = true
	return nil
}

// behind lists the newest versions that a group does not serve, and why.
func (t *transaction) behind(ctx context.Context, group string) ([]string, error) {
	metas, err := t.c.cache.Secrets(ctx)
	if err != nil {
		return nil, err
	}
	var reasons []string
	for i, m := range metas { // sorted by name, the newest first
		have, ok := t.has(group, m.Name)
		if !ok || have == m.Version || i > 0 && metas[i-1].Name == m.Name {
			continue
		}
		if reason := t.lag(m, group); reason != "" {
			reasons = append(reasons, fmt.Sprintf("%s version %s %s", m.Name, m.Version.Short(), reason))
		}
	}
	return reasons, nil
}

// lag says why a group does not serve the newest version of a secret; empty if it is on its way.
func (t *transaction) lag(newest cache.Meta, group string) string {
	if h, held := t.held(newest.Name, newest.Version); held {
		return fmt.Sprintf("is held (%s): %s", h.Kind, h.Reason)
	}
	if _, covered := t.carriers(newest.Name, newest.Version); covered[group] {
		return ""
	}
	if newest.Ended(t.now) {
		return "expired at " + newest.NotAfter.Format(time.RFC3339)
	}
	return "is in no rollout"
}
