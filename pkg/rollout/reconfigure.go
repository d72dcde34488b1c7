package rollout

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
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
	added, err := c.addGroups(ctx)
	if err != nil {
		return fmt.Errorf("add groups: %w", err)
	}
	if err := c.rewave(ctx, added); err != nil {
		return fmt.Errorf("change waves: %w", err)
	}
	if err := c.noteAway(ctx); err != nil { // last: a policy that does not come into force has sent nobody away
		return fmt.Errorf("note groups that left: %w", err)
	}
	if err := c.redateAll(ctx); err != nil {
		return fmt.Errorf("find deadlines: %w", err)
	}
	c.prepared = true
	return nil
}

// redateAll finds all deadlines anew: groups may have come, and what is stored may know none.
func (c *Controller) redateAll(ctx context.Context) error {
	t := c.begin()
	names := map[string]secret.Version{}
	for _, id := range t.activeIDs() {
		maps.Copy(names, t.look(id).wants())
	}
	for _, h := range c.Holds() {
		names[h.Secret] = h.Version
	}
	t.redate(names)
	return t.commit(ctx)
}

// addGroups makes the groups that the cache does not have yet, gives those that come back what a new one gets, and returns both.
func (c *Controller) addGroups(ctx context.Context) ([]string, error) {
	away, err := c.away(ctx)
	if err != nil {
		return nil, err
	}
	t := c.begin()
	stands := func(g string) bool { return !away[g] && slices.Contains(t.policy.Groups(), g) }
	known := slices.DeleteFunc(c.cache.Groups(), func(g string) bool { return !stands(g) })
	missing := slices.DeleteFunc(t.policy.Groups(), func(g string) bool { return slices.Contains(known, g) })
	if len(missing) == 0 {
		return nil, nil
	}
	start, err := t.initial(ctx, known)
	if err != nil {
		return nil, err
	}
	for _, name := range missing {
		if t.Full() {
			if err := t.commit(ctx); err != nil {
				return nil, err
			}
			t = c.begin()
		}
		if err := t.AddGroup(ctx, name); err != nil {
			return nil, err
		}
		changes, why := start, cache.Why{Reason: "new group " + name, Direction: cache.Beside}
		if away[name] {
			if changes, err = t.replacing(ctx, name, start, len(known) == 0); err != nil {
				return nil, err
			}
			why = cache.Why{Reason: "group " + name + " is configured again", Direction: cache.Back} // its moves are history
			t.Add(nil, store.Delete(awayKey(name)))
		}
		if _, err := t.Move(ctx, name, changes, why); err != nil {
			return nil, err
		}
	}
	return missing, t.commit(ctx)
}

// awayPrefix is where the groups stand that have left the configuration: the cache keeps them, but nothing moves them.
const awayPrefix = "away"

func awayKey(group string) string { return store.Key(awayPrefix, group) }

// away returns the groups that have left the configuration.
func (c *Controller) away(ctx context.Context) (map[string]bool, error) {
	entries, _, err := c.store.List(ctx, awayPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("list groups that are away: %w", err)
	}
	away := make(map[string]bool, len(entries))
	for _, e := range entries {
		away[store.Parts(e.Key)[1]] = true
	}
	return away, nil
}

// noteAway stores which groups the policy does not name any more.
func (c *Controller) noteAway(ctx context.Context) error {
	away, err := c.away(ctx)
	if err != nil {
		return err
	}
	t := c.begin()
	policy := t.policy.Groups()
	for _, g := range c.cache.Groups() {
		if len(policy) == 0 || slices.Contains(policy, g) || away[g] {
			continue
		}
		if t.Full() {
			if err := t.commit(ctx); err != nil {
				return err
			}
			t = c.begin()
		}
		t.Add(nil, store.Put(awayKey(g), []byte("{}")))
	}
	return t.commit(ctx)
}

// replacing completes what a group starts with by what it has to leave: the names that no other group serves any more. Where there is
// no other group, alone, it keeps its names.
func (t *transaction) replacing(ctx context.Context, group string, start map[string]secret.Version, alone bool) (map[string]secret.Version, error) {
	changes := maps.Clone(start)
	for name := range t.Target(group).Secrets.All() {
		if _, ok := start[name]; ok {
			continue
		}
		changes[name] = ""
		if !alone {
			continue
		}
		v, err := t.oldest(ctx, name)
		if err != nil {
			return nil, err
		}
		changes[name] = v
	}
	return changes, nil
}

// oldest returns the oldest version of a secret that is valid and not held; empty if there is none.
func (t *transaction) oldest(ctx context.Context, name string) (secret.Version, error) {
	versions, err := t.stored(ctx, name)
	for _, m := range slices.Backward(versions) {
		if t.eligible(m) {
			return m.Version, err
		}
	}
	return "", err
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
			v, err := t.oldest(ctx, name)
			if err != nil {
				return nil, err
			}
			start[name] = v
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
	return !held && !m.Ended(t.now)
}

// rewave gives rollouts under way the waves of the policy, as far as their groups were not switched yet. The groups that were added join
// them, but for those that are at a newer version. No other group does: that a rollout passes it by has a reason.
func (c *Controller) rewave(ctx context.Context, added []string) error {
	t := c.begin()
	for _, id := range t.activeIDs() {
		r := t.look(id)
		if r.addition() || r.emergency() || r.Unwind != nil {
			continue
		}
		joining, err := t.joining(ctx, r, added)
		if err != nil {
			return err
		}
		next := r.clone()
		next.rewave(t.policy, joining)
		if len(joining) > 0 && !next.removal() {
			for change := range next.live() {
				last, _ := t.soonest(change.Secret, change.To, joining)
				next.Deadline = sooner(next.Deadline, last)
			}
		}
		t.dropGone(next)
		if r.Deadline.Equal(next.Deadline) && slices.EqualFunc(r.Waves, next.Waves, func(a, b Wave) bool { return slices.Equal(a.Groups, b.Groups) }) {
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

// dropGone takes groups out of the wave under way that have left the policy: nobody waits for their nodes.
func (t *transaction) dropGone(r *Rollout) {
	w := r.current()
	gone := func(g string) bool { return !slices.Contains(t.policy.Groups(), g) }
	if w == nil || !w.State.moved() || !slices.ContainsFunc(w.Groups, gone) {
		return
	}
	w.Groups = slices.DeleteFunc(slices.Clone(w.Groups), gone)
	w.Moved = slices.DeleteFunc(slices.Clone(w.Moved), gone)
	w.Members, w.Nodes, w.Stalled = nil, Nodes{}, false
	if w.State != Moving {
		return
	}
	for _, g := range w.Moved {
		t.muster(r, w, g)
	}
}

// joining returns the groups that a rollout may take with it: it brings none of them an older version.
func (t *transaction) joining(ctx context.Context, r *Rollout, added []string) ([]string, error) {
	var joining []string
	for _, g := range added {
		newer := false
		for c := range r.live() {
			have, ok := t.has(g, c.Secret)
			if !ok || have == c.To || c.To == "" {
				continue
			}
			versions, err := t.stored(ctx, c.Secret)
			if err != nil {
				return nil, err
			}
			to := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == c.To })
			newer = newer || to >= 0 && !createdBefore(versions, have, versions[to].Created)
		}
		if !newer {
			joining = append(joining, g)
		}
	}
	return joining, nil
}

// rewave replaces the waves that have not begun. Their groups stay the same, but for those that left the policy and those that join.
func (r *Rollout) rewave(p Policy, joining []string) {
	var begun []string
	keep := r.Wave
	for i, w := range r.Waves {
		if i < r.Wave || w.State != Pending {
			keep = max(keep, i+1)
			begun = append(begun, w.Groups...)
		}
	}
	promoted, ahead, own := map[string]bool{}, map[string]bool{}, slices.Clone(joining)
	for _, w := range r.Waves[keep:] {
		for _, g := range w.Groups {
			promoted[g], ahead[g] = w.Promoted, w.Ahead
		}
		own = append(own, w.Groups...)
	}
	r.Waves = r.Waves[:keep]
	for _, groups := range p.Waves {
		rest := slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return slices.Contains(begun, g) || !slices.Contains(own, g) })
		if len(rest) > 0 {
			all := !slices.ContainsFunc(rest, func(g string) bool { return !promoted[g] })
			first := slices.ContainsFunc(rest, func(g string) bool { return ahead[g] })
			r.Waves = append(r.Waves, Wave{Groups: rest, State: Pending, Promoted: all, Ahead: first})
		}
	}
	slices.SortStableFunc(r.Waves[keep:], func(a, b Wave) int { return cmp.Compare(b.order(), a.order()) })
}
