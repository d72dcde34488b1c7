package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

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
	for i, move := range slices.Backward(c.cache.Moves(group)) {
		back, err := t.backwards(ctx, group, move)
		if err != nil {
			return Step{}, err
		}
		if len(back) == 0 {
			continue // every entry is something else by now
		}
		for name, v := range back {
			if h, ok := t.held(name, v); ok && h.Kind == Hard {
				return Step{}, fmt.Errorf("secret %q version %s is %w (hard): %s", name, v.Short(), ErrHeld, h.Reason)
			}
		}
		return t.apply(ctx, group, back, cache.Why{Reason: op.because("rollback of " + group), Direction: cache.Back, Keep: i}, op)
	}
	return Step{}, fmt.Errorf("group %q: %w", group, ErrNothingToUndo)
}

// RollbackTo applies the difference to snapshot number. Names that it did not know stay. Expired certificates are refused by name.
func (c *Controller) RollbackTo(ctx context.Context, group string, number uint64, op Operator) (Step, error) {
	why := cache.Why{Reason: op.because(fmt.Sprintf("rollback of %s to snapshot %d", group, number)), Direction: cache.Beside}
	return c.toSnapshot(ctx, group, number, why, op)
}

// PromoteTo applies the difference to snapshot number, and never removes a name that it did not know. Manual and soft holds on what it
// brings are released; a hard hold is an error. Rollback can take it back.
func (c *Controller) PromoteTo(ctx context.Context, group string, number uint64, op Operator) (Step, error) {
	why := cache.Why{Reason: op.because(fmt.Sprintf("promotion of %s to snapshot %d", group, number)), Direction: cache.Forward}
	return c.toSnapshot(ctx, group, number, why, op)
}

func (c *Controller) toSnapshot(ctx context.Context, group string, number uint64, why cache.Why, op Operator) (Step, error) {
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
		if have, _ := t.has(group, name); have == v {
			continue
		}
		changes[name] = v
		if h, ok := t.held(name, v); ok && h.Kind == Hard {
			return Step{}, fmt.Errorf("secret %q version %s is %w (hard): %s", name, v.Short(), ErrHeld, h.Reason)
		}
		t.release(name, v)
	}
	return t.apply(ctx, group, changes, why, op)
}

// apply moves one group as an operator says, holds the newer versions that it leaves, and ends the rollouts that brought them.
func (t *transaction) apply(ctx context.Context, group string, changes map[string]secret.Version, why cache.Why, op Operator) (Step, error) {
	step := Step{Group: group, From: t.Target(group).Number}
	if err := t.refuseUnfit(ctx, changes); err != nil {
		return step, err
	}
	for _, id := range t.activeIDs() {
		left := t.look(id).left(group, t.Target(group), changes)
		if len(left) == 0 {
			continue
		}
		r := t.edit(id)
		for _, name := range left {
			r.leave(name, why.Reason)
		}
		if !r.empty() {
			t.goesOn(r, why.Reason+": "+some(left), op.By)
			continue
		}
		if r.Unwind != nil {
			continue // it ends when everything is taken back
		}
		if w := r.current(); w != nil {
			w.Members = nil
		}
		r.log(t.now, RolledBack, why.Reason, op.By)
		step.Rollouts = append(step.Rollouts, id)
	}
	entries, err := t.Move(ctx, group, changes, why)
	if err != nil {
		return step, err
	}
	for _, e := range entries {
		newer, err := t.leavesNewer(ctx, group, e)
		if err != nil {
			return step, err
		}
		for _, v := range newer {
			t.hold(e.Secret, v, Manual, why.Reason)
			step.Held = append(step.Held, e.Secret+" "+v.Short())
		}
	}
	t.redate(changes)
	step.Changes, step.Snapshot = entries, t.Target(group).Number
	if err := t.commit(ctx); err != nil {
		return step, err
	}
	t.c.Wake()
	return step, nil
}

// left names the secrets of which the changes take the group away from the version that the rollout brought there.
func (r *Rollout) left(group string, at *cache.Snapshot, changes map[string]secret.Version) []string {
	w := r.waveOf(group)
	if w < 0 || !slices.Contains(r.Waves[w].Moved, group) {
		return nil
	}
	var names []string
	for c := range r.live() {
		have, _ := at.Secrets.Version(c.Secret)
		if to, ok := changes[c.Secret]; ok && have == c.To && to != c.To {
			names = append(names, c.Secret)
		}
	}
	return names
}

// leavesNewer returns the version that an entry leaves where it is newer than the one that it brings, or than none, and those between the two that
// nobody holds: else they came with the next start of the server, to this group or, passing it by, to later ones. A rollout under way that has still
// to reach the group brings its version in the order of the waves: that one stays free.
func (t *transaction) leavesNewer(ctx context.Context, group string, e cache.Entry) ([]secret.Version, error) {
	switch {
	case e.From == "":
		return nil, nil
	case e.To == "":
		return []secret.Version{e.From}, nil
	}
	versions, err := t.stored(ctx, e.Secret)
	if err != nil {
		return nil, err
	}
	newer := []secret.Version{e.From}
	left := false
	for _, m := range versions { // the newest first
		switch {
		case m.Version == e.From:
			left = true
		case m.Version == e.To && !left:
			return nil, nil
		case m.Version == e.To:
			return newer, nil
		case left && !t.isHeld(m) && !t.comes(group, m):
			newer = append(newer, m.Version)
		}
	}
	return newer, nil
}

func (t *transaction) isHeld(m cache.Meta) bool {
	_, held := t.held(m.Name, m.Version)
	return held
}

// comes reports whether a rollout under way has still to bring a version to a group.
func (t *transaction) comes(group string, m cache.Meta) bool {
	return slices.ContainsFunc(t.activeIDs(), func(id uint64) bool {
		r := t.look(id)
		w := r.waveOf(group)
		return w >= 0 && r.carries(m.Name, m.Version) && r.Waves[w].State == Pending
	})
}

// refuseUnfit names every version that may not come back.
func (t *transaction) refuseUnfit(ctx context.Context, changes map[string]secret.Version) error {
	var problems []string
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		problem, err := t.unfit(ctx, name, changes[name])
		if err != nil {
			return err
		}
		if problem != "" {
			problems = append(problems, problem)
		}
	}
	if len(problems) == 0 {
		return nil
	}
	return fmt.Errorf("refused: %s", strings.Join(problems, "; "))
}

// unfit says why a version may not be served any more; empty if it may, or if it is a removal.
func (t *transaction) unfit(ctx context.Context, name string, v secret.Version) (string, error) {
	if v == "" {
		return "", nil
	}
	versions, err := t.stored(ctx, name)
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v })
	switch {
	case i < 0:
		return fmt.Sprintf("%s version %s is no longer stored", name, v.Short()), nil
	case versions[i].Ended(t.now):
		return fmt.Sprintf("%s version %s expired at %s", name, v.Short(), versions[i].NotAfter.Format(time.RFC3339)), nil
	}
	return "", nil
}

// backwards returns the changes that take a group's move back. Entries that are something else by now are left out.
func (t *transaction) backwards(ctx context.Context, group string, move cache.Move) (map[string]secret.Version, error) {
	entries, err := t.c.cache.Entries(ctx, move)
	if err != nil {
		return nil, err
	}
	back := map[string]secret.Version{}
	for _, e := range entries {
		if have, _ := t.has(group, e.Secret); have == e.To {
			back[e.Secret] = e.From
		}
	}
	return back, nil
}

// Release ends the holds on a secret, or on one version of it (a prefix will do), and returns how many there were. What may be rolled
// out then, and is newer than what is served, is.
func (c *Controller) Release(ctx context.Context, name string, version secret.Version) (int, error) {
	if err := c.take(ctx); err != nil {
		return 0, err
	}
	defer c.leave()
	t := c.begin()
	n := 0
	for _, h := range c.Holds() {
		if h.Secret != name || !strings.HasPrefix(string(h.Version), string(version)) {
			continue
		}
		if h.Kind == Hard && c.released != nil {
			c.released(h.Secret, h.Version)
		}
		t.release(h.Secret, h.Version)
		n++
	}
	if n == 0 {
		return 0, nil
	}
	versions, err := t.stored(ctx, name)
	if err != nil {
		return 0, err
	}
	if err := t.heal(ctx, versions, intent{reason: "released"}); err != nil {
		return 0, err
	}
	if err := t.commit(ctx); err != nil {
		return 0, err
	}
	c.Wake()
	return n, nil
}

func short(v secret.Version) string {
	if v == "" {
		return "(none)"
	}
	return v.Short()
}
