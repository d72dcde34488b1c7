package rollout

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// ErrHeld is returned for a version that an operator or a NACK keeps back.
var ErrHeld = errors.New("held")

// Proposal is a validated secret that shall be served.
type Proposal struct {
	Secret *secret.Secret
	Source cache.Source
	Issuer string // configured name; empty for imports
	By     string // operator, or "" for the server itself
	Reason string

	// Conditions and Operations go into the same commit as the version, so that a crash leaves both or neither.
	Conditions []store.Condition
	Operations []store.Operation
}

// Accepted tells what became of a proposal.
type Accepted struct {
	Meta     cache.Meta
	Rollout  uint64 // 0: every group serves the version already
	Snapshot uint64 // of the first wave's first group
}

// Accept stores a new version and begins its rollout: groups that do not have the secret get it at once, the others go by waves.
// When it returns nil, everything is durable and the first wave is on its way.
func (c *Controller) Accept(ctx context.Context, p Proposal) (Accepted, error) {
	if err := c.take(ctx); err != nil {
		return Accepted{}, err
	}
	defer c.leave()
	t := c.begin()
	meta, _, err := t.PutSecret(ctx, p.Secret, p.Source, p.Issuer)
	if err != nil {
		return Accepted{}, err
	}
	if h, ok := t.held(meta.Name, meta.Version); ok {
		return Accepted{}, fmt.Errorf("secret %q version %s is %w (%s): %s", meta.Name, meta.Version.Short(), ErrHeld, h.Kind, h.Reason)
	}
	t.Add(p.Conditions, p.Operations...)
	id, err := t.propose(ctx, meta.Name, meta.Version, p.Reason, p.By)
	if err != nil {
		return Accepted{}, err
	}
	if err := t.Prune(ctx, meta.Name, t.refersTo(meta.Name)); err != nil {
		return Accepted{}, err
	}
	accepted := Accepted{Meta: meta, Rollout: id}
	if groups := t.policy.Groups(); len(groups) > 0 {
		accepted.Snapshot = t.Target(groups[0]).Number
	}
	if err := t.commit(ctx); err != nil {
		return Accepted{}, err
	}
	c.Wake()
	return accepted, nil
}

// refersTo reports which versions of a secret rollouts under way and holds speak of.
func (t *transaction) refersTo(name string) func(secret.Version) bool {
	return func(v secret.Version) bool {
		if _, held := t.held(name, v); held {
			return true
		}
		return slices.ContainsFunc(t.activeIDs(), func(id uint64) bool {
			return slices.ContainsFunc(t.look(id).Change, func(c Change) bool { return c.Secret == name && (c.From == v || c.To == v) })
		})
	}
}

// propose makes a version (empty: removal) of a secret the one that every group shall get. It supersedes what was under way for the
// secret, and returns the rollout, or 0 if there is nothing to do.
func (t *transaction) propose(ctx context.Context, name string, version secret.Version, reason, by string) (uint64, error) {
	lacking, behind := t.sort(name, version)
	if len(lacking)+len(behind) == 0 {
		return 0, nil
	}
	if id, ok := t.carried(name, version); ok {
		return id, nil
	}
	t.supersede(name, reason)
	var id uint64
	if len(lacking) > 0 && version != "" {
		r := t.create([]Change{{Secret: name, To: version, Kind: Add}}, [][]string{lacking}, reason, by)
		if err := t.move(ctx, r, &r.Waves[0]); err != nil {
			return 0, err
		}
		id = r.ID
	}
	if len(behind) == 0 {
		return id, nil
	}
	kind := Renewal
	if version == "" {
		kind = Remove
	}
	var waves [][]string
	for _, groups := range t.policy.Waves {
		if w := slices.DeleteFunc(slices.Clone(groups), func(g string) bool { return !slices.Contains(behind, g) }); len(w) > 0 {
			waves = append(waves, w)
		}
	}
	from, _ := t.Target(behind[len(behind)-1]).Secrets.Version(name)
	r := t.create([]Change{{Secret: name, From: from, To: version, Kind: kind}}, waves, reason, by)
	_, err := t.advance(ctx, r)
	return r.ID, err
}

// carried returns the rollout under way that brings exactly this version of the secret.
func (t *transaction) carried(name string, version secret.Version) (uint64, bool) {
	for _, id := range t.activeIDs() {
		if r := t.look(id); r.touches(name) && r.wants()[name] == version {
			return id, true
		}
	}
	return 0, false
}

// sort tells which groups lack the secret, and which have another version of it.
func (t *transaction) sort(name string, version secret.Version) (lacking, behind []string) {
	for _, g := range t.policy.Groups() {
		at := t.Target(g)
		if at == nil {
			continue
		}
		switch have, ok := at.Secrets.Version(name); {
		case !ok:
			lacking = append(lacking, g)
		case have != version:
			behind = append(behind, g)
		}
	}
	if version == "" {
		lacking = nil // there is nothing to take away
	}
	return lacking, behind
}

// supersede ends the rollouts under way that change the secret.
func (t *transaction) supersede(name, reason string) {
	for _, id := range t.activeIDs() {
		if t.look(id).touches(name) {
			r := t.edit(id)
			if r.Wave < len(r.Waves) {
				r.Waves[r.Wave].Members = nil
			}
			r.log(t.now, Superseded, "a newer version of "+name+" took over: "+reason, "")
		}
	}
}

func (t *transaction) create(change []Change, waves [][]string, reason, by string) *Rollout {
	t.last++
	r := &Rollout{ID: t.last, Started: t.now, Change: change}
	for _, groups := range waves {
		r.Waves = append(r.Waves, Wave{Groups: groups, State: Pending})
	}
	r.log(t.now, Waiting, reason, by)
	t.rollouts[r.ID] = r
	return r
}

// Reconfigure takes over a new policy: groups that are new start with what the last wave serves, secrets that left the
// configuration are removed through the waves, and versions that no rollout carries (a crash, an ended hold) get one.
func (c *Controller) Reconfigure(ctx context.Context, p Policy) error {
	if err := c.take(ctx); err != nil {
		return err
	}
	defer c.leave()
	old := c.currentPolicy()
	c.mu.Lock()
	c.policy = p
	c.mu.Unlock()
	if err := c.addGroups(ctx, p); err != nil {
		c.mu.Lock()
		c.policy = old
		c.mu.Unlock()
		return err
	}
	if err := c.rewave(ctx); err != nil {
		return err
	}
	if err := c.heal(ctx); err != nil {
		return err
	}
	c.Wake()
	return nil
}

// addGroups makes the groups that the cache does not have yet.
func (c *Controller) addGroups(ctx context.Context, p Policy) error {
	known := c.cache.Groups()
	for _, name := range p.Groups() {
		if slices.Contains(known, name) {
			continue
		}
		t := c.begin()
		if err := t.AddGroup(ctx, name); err != nil {
			return err
		}
		if common := t.common(slices.DeleteFunc(slices.Clone(p.last()), func(g string) bool { return !slices.Contains(known, g) })); len(common) > 0 {
			if _, err := t.Move(ctx, name, common, cache.Why{Reason: "new group " + name, Direction: cache.Beside}); err != nil {
				return err
			}
		}
		if err := t.commit(ctx); err != nil {
			return fmt.Errorf("add group %q: %w", name, err)
		}
	}
	return nil
}

// common returns the versions that all the groups serve.
func (t *transaction) common(groups []string) map[string]secret.Version {
	if len(groups) == 0 {
		return nil
	}
	common := map[string]secret.Version{}
	for name, v := range t.Target(groups[0]).Secrets.All() {
		same := !slices.ContainsFunc(groups[1:], func(g string) bool {
			other, _ := t.Target(g).Secrets.Version(name)
			return other != v
		})
		if same {
			common[name] = v
		}
	}
	return common
}

// rewave gives rollouts under way the waves of the new policy, as far as their groups were not switched yet.
func (c *Controller) rewave(ctx context.Context) error {
	t := c.begin()
	for _, id := range t.activeIDs() {
		if r := t.look(id); !r.addition() {
			t.edit(id).rewave(t.policy)
		}
	}
	for id := range t.rollouts {
		if !t.changedWaves(id) {
			delete(t.rollouts, id)
		}
	}
	return t.commit(ctx)
}

func (t *transaction) changedWaves(id uint64) bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return !slices.EqualFunc(t.c.active[id].Waves, t.rollouts[id].Waves, func(a, b Wave) bool { return slices.Equal(a.Groups, b.Groups) })
}

// rewave replaces the waves that have not begun.
func (r *Rollout) rewave(p Policy) {
	var begun []string
	keep := 0
	for i, w := range r.Waves {
		if len(w.Moved) > 0 {
			keep = i + 1
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

// heal proposes, for each secret, the newest version that may be served and that no rollout carries, and the removal of secrets
// that are no longer configured.
func (c *Controller) heal(ctx context.Context) error {
	metas, err := c.cache.Secrets(ctx)
	if err != nil {
		return err
	}
	for len(metas) > 0 {
		n := 1
		for n < len(metas) && metas[n].Name == metas[0].Name {
			n++
		}
		if err := c.healOne(ctx, metas[:n]); err != nil {
			return fmt.Errorf("secret %q: %w", metas[0].Name, err)
		}
		metas = metas[n:]
	}
	return nil
}

// healOne looks at the versions of one secret, the newest first.
func (c *Controller) healOne(ctx context.Context, versions []cache.Meta) error {
	t := c.begin()
	name := versions[0].Name
	if versions[0].Source == cache.SourceACME && !t.policy.Managed(name) {
		if _, err := t.propose(ctx, name, "", name+" left the configuration", ""); err != nil {
			return err
		}
		return t.commit(ctx)
	}
	best := slices.IndexFunc(versions, func(m cache.Meta) bool {
		_, held := t.held(name, m.Version)
		return !held && t.now.Before(m.NotAfter)
	})
	if best < 0 || !t.wantsHealing(versions, best) {
		return nil
	}
	if _, err := t.propose(ctx, name, versions[best].Version, "found stored but not rolled out", ""); err != nil {
		return err
	}
	return t.commit(ctx)
}

// wantsHealing reports whether a group lacks the secret or is at an older version than the best one, and no rollout carries the
// best one there. A group at a newer version than the best (it is held elsewhere) is left alone.
func (t *transaction) wantsHealing(versions []cache.Meta, best int) bool {
	name, want := versions[0].Name, versions[best]
	if _, ok := t.carried(name, want.Version); ok {
		return false
	}
	for _, g := range t.policy.Groups() {
		at := t.Target(g)
		if at == nil {
			continue
		}
		have, ok := at.Secrets.Version(name)
		if !ok || have != want.Version && createdBefore(versions, have, want.Created) {
			return true
		}
	}
	return false
}

func createdBefore(versions []cache.Meta, v secret.Version, t time.Time) bool {
	i := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v })
	return i < 0 || versions[i].Created.Before(t)
}
