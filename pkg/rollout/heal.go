package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

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

// healAiling looks for another version of the secrets that were taken back: one that was superseded by the bad one, say.
func (c *Controller) healAiling(ctx context.Context) error {
	var faults []error
	for _, name := range slices.Sorted(maps.Keys(c.ailing)) {
		versions, err := c.cache.Versions(ctx, name)
		if policy := c.currentPolicy(); err == nil && len(versions) > 0 && (policy.Managed == nil || versions[0].Source == cache.SourceImport || policy.Managed(name)) {
			err = c.healOne(ctx, versions)
		}
		if err == nil {
			delete(c.ailing, name)
			continue
		}
		faults = append(faults, fmt.Errorf("secret %q: %w", name, err))
		if err := c.settle(ctx); err != nil {
			return errors.Join(append(faults, err)...)
		}
	}
	return errors.Join(faults...)
}

func (c *Controller) healOne(ctx context.Context, versions []cache.Meta) error {
	t := c.begin()
	if err := t.heal(ctx, versions, intent{reason: "found stored but not rolled out"}); err != nil {
		return err
	}
	return t.commit(ctx)
}

// heal looks at the versions of one secret, the newest first. A group at a newer version than the best is left alone: it is held because
// of another group.
func (t *transaction) heal(ctx context.Context, versions []cache.Meta, in intent) error {
	if len(versions) == 0 {
		return nil
	}
	name := versions[0].Name
	if versions[0].Source != cache.SourceImport && t.policy.Managed != nil && !t.policy.Managed(name) {
		_, err := t.propose(ctx, intent{secret: name, reason: name + " left the configuration"})
		return err
	}
	best := slices.IndexFunc(versions, t.eligible)
	if best < 0 || t.leftToSource(versions[0]) {
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
	in.secret, in.version, in.leave = name, want.Version, leave
	_, err := t.propose(ctx, in)
	return err
}

// leftToSource reports whether a secret is served nowhere that this server reads from files, or makes itself: what is stored of it may be from before it
// left the configuration, and its source knows what it is now.
func (t *transaction) leftToSource(newest cache.Meta) bool {
	if newest.Source != cache.SourceFile && newest.Source != cache.SourceServer {
		return false
	}
	return !slices.ContainsFunc(t.policy.Groups(), func(g string) bool {
		_, ok := t.has(g, newest.Name)
		return ok
	})
}

func createdBefore(versions []cache.Meta, v secret.Version, t time.Time) bool {
	i := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v })
	return i < 0 || versions[i].Created.Before(t)
}
