package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
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

// Promote lets the rollouts that wait for a group go on (id 0: all of them), up to the wave that holds the group. A rolled back rollout
// named by its id is begun again, and its manual holds are released.
func (c *Controller) Promote(ctx context.Context, group string, id uint64, op Operator) (Promotion, error) {
	if err := c.take(ctx); err != nil {
		return Promotion{}, err
	}
	defer c.leave()
	t := c.begin()
	p := Promotion{Group: group}
	if err := t.knows(group); err != nil {
		return p, err
	}
	if id != 0 {
		if err := c.revive(ctx, t, &id, op); err != nil {
			return p, err
		}
	}
	for _, active := range t.activeIDs() {
		if id == 0 || id == active {
			if err := t.let(ctx, active, group, op, &p); err != nil {
				return p, err
			}
		}
	}
	if len(p.Rollouts) == 0 {
		p.Snapshot = t.Target(group).Number
		return p, c.nothing(ctx, t, group, id, &p)
	}
	if err := t.commit(ctx); err != nil {
		return p, err
	}
	at, _ := c.cache.At(group)
	p.Snapshot = at.Number
	c.Wake()
	return p, nil
}

func (t *transaction) knows(group string) error {
	if !slices.Contains(t.policy.Groups(), group) {
		return fmt.Errorf("group %q: unknown; there are %s", group, strings.Join(t.policy.Groups(), ", "))
	}
	return nil
}

// let marks a rollout's waves as promoted up to the group's, and goes on with it.
func (t *transaction) let(ctx context.Context, id uint64, group string, op Operator, p *Promotion) error {
	wave := t.look(id).waveOf(group)
	if wave < 0 || t.look(id).Waves[wave].Promoted || wave < t.look(id).Wave || t.look(id).Waves[wave].State != Pending {
		return nil
	}
	r := t.edit(id)
	for i := r.Wave; i <= wave; i++ {
		r.Waves[i].Promoted = true
		if r.Waves[i].State == Pending {
			p.Groups = append(p.Groups, r.Waves[i].Groups...)
		}
	}
	r.log(t.now, r.State, op.because("promoted up to "+group), op.By)
	p.Rollouts = append(p.Rollouts, id)
	for _, c := range r.Change {
		p.Changes = append(p.Changes, fmt.Sprintf("%s of %s: %s -> %s", c.Kind, c.Secret, short(c.From), short(c.To)))
	}
	_, err := t.advance(ctx, r)
	return err
}

// revive begins a rolled back rollout again under a new id.
func (c *Controller) revive(ctx context.Context, t *transaction, id *uint64, op Operator) error {
	old, err := c.Rollout(ctx, *id)
	if err != nil {
		return err
	}
	if !old.State.Ended() {
		return nil
	}
	if old.State != RolledBack {
		return fmt.Errorf("rollout %d is %s: nothing of it waits", *id, old.State)
	}
	for _, ch := range old.Change {
		if h, ok := t.held(ch.Secret, ch.To); ok && h.Kind == Hard {
			return fmt.Errorf("secret %q version %s is %w (hard): %s", ch.Secret, ch.To.Short(), ErrHeld, h.Reason)
		}
		t.release(ch.Secret, ch.To)
		next, err := t.propose(ctx, ch.Secret, ch.To, op.because(fmt.Sprintf("rollout %d begun again", *id)), op.By)
		if err != nil {
			return err
		}
		*id = next
	}
	return nil
}

// nothing explains why there was nothing to promote.
func (c *Controller) nothing(ctx context.Context, t *transaction, group string, id uint64, p *Promotion) error {
	if id != 0 {
		return fmt.Errorf("rollout %d does not wait for group %q", id, group)
	}
	reasons, err := c.behind(ctx, t, group)
	if err != nil {
		return err
	}
	if len(reasons) > 0 {
		return fmt.Errorf("%w: %s", ErrBehind, strings.Join(reasons, "; "))
	}
	p.Already = true
	return nil
}

// behind lists the newer versions that a group does not serve, and why.
func (c *Controller) behind(ctx context.Context, t *transaction, group string) ([]string, error) {
	metas, err := c.cache.Secrets(ctx)
	if err != nil {
		return nil, err
	}
	var reasons []string
	seen := map[string]bool{}
	for _, m := range metas {
		have, ok := t.Target(group).Secrets.Version(m.Name)
		if !ok || seen[m.Name] {
			continue
		}
		seen[m.Name] = true // metas are sorted newest first
		if have == m.Version {
			continue
		}
		if h, held := t.held(m.Name, m.Version); held {
			reasons = append(reasons, fmt.Sprintf("%s version %s is held (%s): %s", m.Name, m.Version.Short(), h.Kind, h.Reason))
		}
	}
	return reasons, nil
}

// Step is what a Rollback or a PromoteTo changed in a group.
type Step struct {
	Group    string        `json:"group"`
	From     uint64        `json:"from"` // snapshot before
	Snapshot uint64        `json:"snapshot"`
	Rollouts []uint64      `json:"rollouts"` // rollouts under way that this ended
	Changes  []cache.Entry `json:"changes"`
	Held     []string      `json:"held"` // versions taken back, as "secret version"
}

// ErrNothingToUndo is returned by Rollback for a group without a move that can be taken back.
var ErrNothingToUndo = errors.New("the group has no move that could be taken back")

// Rollback takes a group's last move back. Rollouts under way that moved it end as rolled back, and the versions that the group leaves
// are held until they are released or promoted.
func (c *Controller) Rollback(ctx context.Context, group string, op Operator) (Step, error) {
	if err := c.take(ctx); err != nil {
		return Step{}, err
	}
	defer c.leave()
	t := c.begin()
	if err := t.knows(group); err != nil {
		return Step{}, err
	}
	moves := c.cache.Moves(group)
	for i, move := range slices.Backward(moves) {
		back := t.backwards(group, move)
		if len(back) == 0 {
			continue // every entry is something else by now
		}
		return c.apply(ctx, t, group, back, cache.Why{Reason: op.because("rollback of " + group), Direction: cache.Back, Keep: i}, op)
	}
	return Step{}, fmt.Errorf("group %q: %w", group, ErrNothingToUndo)
}

// RollbackTo applies the difference to snapshot number. Names that it did not know stay. Expired certificates are refused by name.
func (c *Controller) RollbackTo(ctx context.Context, group string, number uint64, op Operator) (Step, error) {
	return c.toSnapshot(ctx, group, number, op, fmt.Sprintf("rollback of %s to snapshot %d", group, number))
}

// PromoteTo applies the difference to snapshot number, and never removes a name that it did not know. Manual holds on what it brings
// are released; a hard hold is an error.
func (c *Controller) PromoteTo(ctx context.Context, group string, number uint64, op Operator) (Step, error) {
	return c.toSnapshot(ctx, group, number, op, fmt.Sprintf("promotion of %s to snapshot %d", group, number))
}

func (c *Controller) toSnapshot(ctx context.Context, group string, number uint64, op Operator, what string) (Step, error) {
	if err := c.take(ctx); err != nil {
		return Step{}, err
	}
	defer c.leave()
	t := c.begin()
	if err := t.knows(group); err != nil {
		return Step{}, err
	}
	to, err := c.cache.Snapshot(ctx, number)
	if err != nil {
		return Step{}, err
	}
	changes := map[string]secret.Version{}
	for name, v := range to.Secrets.All() {
		if have, _ := t.Target(group).Secrets.Version(name); have != v {
			changes[name] = v
			if h, ok := t.held(name, v); ok && h.Kind == Hard {
				return Step{}, fmt.Errorf("secret %q version %s is %w (hard): %s", name, v.Short(), ErrHeld, h.Reason)
			}
			t.release(name, v)
		}
	}
	return c.apply(ctx, t, group, changes, cache.Why{Reason: op.because(what), Direction: cache.Beside}, op)
}

// apply moves one group as an operator says, holds what it leaves, and ends the rollouts that brought it.
func (c *Controller) apply(ctx context.Context, t *transaction, group string, changes map[string]secret.Version, why cache.Why, op Operator) (Step, error) {
	step := Step{Group: group, From: t.Target(group).Number}
	if err := t.refuseExpired(ctx, changes); err != nil {
		return step, err
	}
	for _, id := range t.activeIDs() {
		r := t.look(id)
		if w := r.waveOf(group); w >= 0 && slices.Contains(r.Waves[w].Moved, group) && leaves(t.Target(group), r, changes) {
			t.edit(id).log(t.now, RolledBack, why.Reason, op.By)
			step.Rollouts = append(step.Rollouts, id)
		}
	}
	entries, err := t.Move(ctx, group, changes, why)
	if err != nil {
		return step, err
	}
	for _, e := range entries {
		if e.From != "" && createdLater(ctx, c.cache, e) {
			t.hold(e.Secret, e.From, Manual, why.Reason)
			step.Held = append(step.Held, e.Secret+" "+e.From.Short())
		}
	}
	step.Changes, step.Snapshot = entries, t.Target(group).Number
	if err := t.commit(ctx); err != nil {
		return step, err
	}
	c.Wake()
	return step, nil
}

// leaves reports whether the changes take the group away from a version that the rollout brought.
func leaves(at *cache.Snapshot, r *Rollout, changes map[string]secret.Version) bool {
	for _, c := range r.Change {
		have, _ := at.Secrets.Version(c.Secret)
		if to, ok := changes[c.Secret]; ok && have == c.To && to != c.To {
			return true
		}
	}
	return false
}

// createdLater reports whether a step leaves a newer version for an older one: only then is the newer one held.
func createdLater(ctx context.Context, ca *cache.Cache, e cache.Entry) bool {
	versions, err := ca.Versions(ctx, e.Secret)
	if err != nil {
		return true // holding one version too many is the safe side
	}
	at := func(v secret.Version) int {
		return slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v })
	}
	return e.To == "" || at(e.From) < at(e.To) // newest first
}

// refuseExpired names every certificate that may not come back.
func (t *transaction) refuseExpired(ctx context.Context, changes map[string]secret.Version) error {
	var expired []string
	for name, v := range changes {
		if v == "" {
			continue
		}
		versions, err := t.c.cache.Versions(ctx, name)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v })
		switch {
		case i < 0:
			expired = append(expired, fmt.Sprintf("%s version %s is no longer stored", name, v.Short()))
		case !t.now.Before(versions[i].NotAfter):
			expired = append(expired, fmt.Sprintf("%s version %s expired at %s", name, v.Short(), versions[i].NotAfter.Format("2006-01-02T15:04:05Z")))
		}
	}
	if len(expired) == 0 {
		return nil
	}
	slices.Sort(expired)
	return fmt.Errorf("refused: %s", strings.Join(expired, "; "))
}

// backwards returns the changes that take a group's move back. Entries that are something else by now are left out.
func (t *transaction) backwards(group string, move cache.Move) map[string]secret.Version {
	back := map[string]secret.Version{}
	for _, e := range move.Entries {
		if have, _ := t.Target(group).Secrets.Version(e.Secret); have == e.To {
			back[e.Secret] = e.From
		}
	}
	return back
}

// back takes the group's move at index i back.
func (t *transaction) back(ctx context.Context, group string, i int, reason string) ([]cache.Entry, error) {
	move := t.c.cache.Moves(group)[i]
	return t.Move(ctx, group, t.backwards(group, move), cache.Why{
		Reason: "taken back: " + reason, Rollout: move.Rollout, Direction: cache.Back, Keep: i,
	})
}

// Release ends the holds on a secret, or on one version of it, and returns how many there were.
func (c *Controller) Release(ctx context.Context, name string, version secret.Version) (int, error) {
	if err := c.take(ctx); err != nil {
		return 0, err
	}
	defer c.leave()
	t := c.begin()
	n := 0
	for _, h := range c.Holds() {
		if h.Secret == name && (version == "" || strings.HasPrefix(string(h.Version), string(version))) {
			t.release(h.Secret, h.Version)
			n++
		}
	}
	return n, t.commit(ctx)
}

func short(v secret.Version) string {
	if v == "" {
		return "(none)"
	}
	return v.Short()
}
