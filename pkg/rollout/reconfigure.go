package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// batch is how many rollouts a commit changes where many may have to be.
const batch = 16

// Reconfigure takes over a new policy: groups that are new start with what the last wave serves, rollouts under way get the new
// waves, secrets that left the configuration are removed through them, and versions that no rollout carries (a crash, an ended hold)
// get one. An error leaves the old policy in force. What could not be healed is not an error; Run tries it again.
func (c *Controller) Reconfigure(ctx context.Context, p Policy) error {
	if err := c.takeTurn(ctx); err != nil {
		return err
	}
	defer c.leave()
	old := c.currentPolicy()
	c.enforce(p)
	if err := c.prepare(ctx); err != nil {
		c.enforce(old)
		return err
	}
	if err := c.heal(ctx); err != nil {
		c.slog.ErrorContext(ctx, "heal", "err", err)
	}
	c.Wake()
	return nil
}

// enforce puts a policy in force.
func (c *Controller) enforce(p Policy) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.policy, c.prepared, c.unhealed = p, false, true
}

// prepare makes the groups and waves those of the policy.
func (c *Controller) prepare(ctx context.Context) error {
	if c.prepared {
		return nil
	}
	if err := c.addGroups(ctx); err != nil {
		return fmt.Errorf("add groups: %w", err)
	}
	if err := c.rewave(ctx); err != nil {
		return fmt.Errorf("change waves: %w", err)
	}
	c.prepared = true
	return nil
}

// addGroups makes the groups that the cache does not have yet.
func (c *Controller) addGroups(ctx context.Context) error {
	t := c.begin()
	known := c.cache.Groups()
	missing := slices.DeleteFunc(t.policy.Groups(), func(g string) bool { return slices.Contains(known, g) })
	if len(missing) == 0 {
		return nil
	}
	start, err := t.initial(ctx, known)
	if err != nil {
		return err
	}
	for _, name := range missing {
		if t.Full() {
			if err := t.commit(ctx); err != nil {
				return err
			}
			t = c.begin()
		}
		if err := t.AddGroup(ctx, name); err != nil {
			return err
		}
		if _, err := t.Move(ctx, name, start, cache.Why{Reason: "new group " + name, Direction: cache.Beside}); err != nil {
			return err
		}
	}
	return t.commit(ctx)
}

// initial returns what a new group starts with: for each secret that is served, the version that every group of the last wave serves;
// where there is none, the oldest one that is valid and not held.
func (t *transaction) initial(ctx context.Context, known []string) (map[string]secret.Version, error) {
	unknown := func(g string) bool { return !slices.Contains(known, g) }
	start := t.common(slices.DeleteFunc(slices.Clone(t.policy.last()), unknown))
	for _, g := range slices.DeleteFunc(t.policy.Groups(), unknown) {
		for name := range t.Target(g).Secrets.All() {
			if _, ok := start[name]; ok {
				continue
			}
			versions, err := t.stored(ctx, name)
			if err != nil {
				return nil, err
			}
			start[name] = "" // none
			for _, m := range slices.Backward(versions) {
				if t.eligible(m) {
					start[name] = m.Version
					break
				}
			}
		}
	}
	return start, nil
}

// common returns the versions that all the groups serve.
func (t *transaction) common(groups []string) map[string]secret.Version {
	common := map[string]secret.Version{}
	if len(groups) == 0 {
		return common
	}
	for name, v := range t.Target(groups[0]).Secrets.All() {
		same := !slices.ContainsFunc(groups[1:], func(g string) bool {
			other, _ := t.has(g, name)
			return other != v
		})
		if same {
			common[name] = v
		}
	}
	return common
}

// eligible reports whether a version may be rolled out.
func (t *transaction) eligible(m cache.Meta) bool {
	_, held := t.held(m.Name, m.Version)
	return !held && t.now.Before(m.NotAfter)
}

// rewave gives rollouts under way the waves of the policy, as far as their groups were not switched yet.
func (c *Controller) rewave(ctx context.Context) error {
	t := c.begin()
	for _, id := range t.activeIDs() {
		r := t.look(id)
		if r.addition() {
			continue
		}
		next := r.clone()
		next.rewave(t.policy)
		if slices.EqualFunc(r.Waves, next.Waves, func(a, b Wave) bool { return slices.Equal(a.Groups, b.Groups) }) {
			continue
		}
		t.rollouts[id] = next
		if len(t.rollouts) == batch {
			if err := t.commit(ctx); err != nil {
				return err
			}
			t = c.begin()
		}
	}
	return t.commit(ctx)
}

// rewave replaces the waves that have not begun.
func (r *Rollout) rewave(p Policy) {
	var begun []string
	keep := r.Wave
	for i, w := range r.Waves {
		if i < r.Wave || w.State != Pending {
			keep = max(keep, i+1)
			begun = append(begun, w.Groups...)
		}
	}
	promoted := map[string]bool{}
	for _, w := range r.Waves[keep:] {
		for _, g := range w.Groups {
			promoted[g] = w.Promoted
		}
	}
	r.Waves = r.Waves[:keep]
	for _, groups := range p.Waves {
		rest := slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return slices.Contains(begun, g) })
		if len(rest) > 0 {
			all := !slices.ContainsFunc(rest, func(g string) bool { return !promoted[g] })
			r.Waves = append(r.Waves, Wave{Groups: rest, State: Pending, Promoted: all})
		}
	}
}

// heal proposes, for each secret, the newest version that may be served and that no rollout carries, and the removal of secrets that
// are no longer configured. One secret that cannot be healed keeps no other one from it.
func (c *Controller) heal(ctx context.Context) error {
	metas, err := c.cache.Secrets(ctx)
	if err != nil {
		return err
	}
	var faults []error
	for len(metas) > 0 {
		n := 1
		for n < len(metas) && metas[n].Name == metas[0].Name {
			n++
		}
		err := c.healOne(ctx, metas[:n])
		if err == nil {
			metas = metas[n:]
			continue
		}
		faults = append(faults, fmt.Errorf("secret %q: %w", metas[0].Name, err))
		if err := c.settle(ctx); err != nil {
			return errors.Join(append(faults, err)...)
		}
		metas = metas[n:]
	}
	c.unhealed = len(faults) > 0
	return errors.Join(faults...)
}

func (c *Controller) healOne(ctx context.Context, versions []cache.Meta) error {
	t := c.begin()
	if err := t.heal(ctx, versions, "found stored but not rolled out", ""); err != nil {
		return err
	}
	return t.commit(ctx)
}

// heal looks at the versions of one secret, the newest first. A group at a newer version than the best is left alone: it is held because
// of another group.
func (t *transaction) heal(ctx context.Context, versions []cache.Meta, reason, by string) error {
	if len(versions) == 0 {
		return nil
	}
	name := versions[0].Name
	if versions[0].Source == cache.SourceACME && t.policy.Managed != nil && !t.policy.Managed(name) {
		_, err := t.propose(ctx, intent{secret: name, reason: name + " left the configuration"})
		return err
	}
	best := slices.IndexFunc(versions, t.eligible)
	if best < 0 {
		return nil
	}
	want := versions[best]
	_, leave := t.carriers(name, want.Version)
	wanting := false
	for _, g := range t.policy.Groups() {
		have, ok := t.has(g, name)
		if ok && !createdBefore(versions, have, want.Created) {
			leave[g] = true
		}
		wanting = wanting || !leave[g]
	}
	if !wanting {
		return nil
	}
	_, err := t.propose(ctx, intent{secret: name, version: want.Version, reason: reason, by: by, leave: leave})
	return err
}

func createdBefore(versions []cache.Meta, v secret.Version, t time.Time) bool {
	i := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v })
	return i < 0 || versions[i].Created.Before(t)
}
