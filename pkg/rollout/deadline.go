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

// lastPart is the part of a certificate's life at whose beginning everything else is overruled (DESIGN 3).
const lastPart = 20

// deadline returns when a version begins the last part of its life, and when it ends; zero: never.
func (t *transaction) deadline(name string, version secret.Version) (last, end time.Time) {
	m, ok := t.Meta(name, version)
	if !ok {
		return time.Time{}, time.Time{}
	}
	return lifeOf(m)
}

// lifeOf returns when a version begins the last part of its life, and when it ends; zero: never.
func lifeOf(m cache.Meta) (last, end time.Time) {
	if m.NotAfter.IsZero() {
		return time.Time{}, time.Time{}
	}
	return m.NotAfter.Add(-m.NotAfter.Sub(m.NotBefore) / lastPart), m.NotAfter
}

// redate finds the deadlines of secrets anew of which groups have gone to other versions: these may end sooner.
func (t *transaction) redate(changes map[string]secret.Version) {
	for _, h := range t.c.Holds() {
		if _, ok := changes[h.Secret]; !ok {
			continue
		}
		if now, held := t.held(h.Secret, h.Version); held {
			t.holds[holdID{h.Secret, h.Version}] = &now
		}
	}
	for _, id := range t.activeIDs() {
		for name := range changes {
			r := t.look(id)
			to, ok := r.brings(name)
			if !ok || r.emergency() || r.addition() || r.removal() {
				continue
			}
			if last, _ := t.soonest(name, to, t.policy.Groups()); !last.IsZero() && (r.Deadline.IsZero() || last.Before(r.Deadline)) {
				t.edit(id).Deadline = last
			}
		}
	}
}

// soonest returns the earliest deadline and end of what groups serve of a secret, leaving out those that serve a version.
func (t *transaction) soonest(name string, without secret.Version, groups []string) (last, end time.Time) {
	var served []secret.Version // few, whatever the number of groups
	for _, g := range groups {
		if have, ok := t.has(g, name); ok && have != without && !slices.Contains(served, have) {
			served = append(served, have)
		}
	}
	for _, v := range served {
		l, e := t.deadline(name, v)
		last, end = sooner(last, l), sooner(end, e)
	}
	return last, end
}

// due reports whether groups serve a version whose life is nearly over.
func (t *transaction) due(name string, without secret.Version, groups []string) bool {
	last, _ := t.soonest(name, without, groups)
	return !last.IsZero() && !t.now.Before(last)
}

// overruled returns when a hold is overruled.
func (t *transaction) overruled(h Hold) time.Time {
	last, end := t.soonest(h.Secret, h.Version, t.policy.Groups())
	if h.Handshake {
		last = end
	}
	if t.quieted == h.Secret && !last.IsZero() && !t.now.Before(last) {
		return time.Time{} // it was overruled just now, or nothing can be done
	}
	return last
}

// rescueAll begins emergencies for what is held, waits or is watched while what is served ends.
func (c *Controller) rescueAll(ctx context.Context) error {
	now := time.Now()
	var names []string
	c.mu.Lock()
	for _, r := range c.active {
		if !r.Deadline.IsZero() && !now.Before(r.Deadline) {
			names = append(names, r.secrets()...)
		}
	}
	for _, h := range c.holds {
		if !h.Deadline.IsZero() && !now.Before(h.Deadline) {
			names = append(names, h.Secret)
		}
	}
	c.mu.Unlock()
	slices.Sort(names)
	var faults []error
	for _, name := range slices.Compact(names) {
		err := c.rescue(ctx, name)
		if err == nil {
			continue
		}
		faults = append(faults, fmt.Errorf("overrule for %q: %w", name, err))
		if err := c.settle(ctx); err != nil {
			return errors.Join(append(faults, err)...)
		}
	}
	return errors.Join(faults...)
}

// rescue brings the newest version that may be served to all groups at once, where what they serve ends.
func (c *Controller) rescue(ctx context.Context, name string) error {
	t := c.begin()
	versions, err := t.stored(ctx, name)
	if err != nil {
		return err
	}
	id := uint64(0)
	lasting := func(fit func(cache.Meta) bool) func(cache.Meta) bool {
		return func(m cache.Meta) bool {
			last, _ := lifeOf(m)
			return fit(m) && (last.IsZero() || t.now.Before(last))
		}
	}
	// What nobody holds comes first, but what is nearly over itself last: nobody would look again before it has ended.
	for _, fit := range []func(cache.Meta) bool{lasting(t.eligible), lasting(t.rescues), t.eligible, t.rescues} {
		best := slices.IndexFunc(versions, fit)
		if best < 0 || !t.helps(versions, versions[best]) {
			continue
		}
		why := "what is served ends soon: everything else is overruled"
		if id, err = t.propose(ctx, intent{secret: name, version: versions[best].Version, reason: why, now: true}); err != nil {
			return err
		}
		break
	}
	t.quiet(name)
	if err := t.commit(ctx); err != nil || id == 0 {
		return err
	}
	c.mu.Lock()
	c.overrides++
	c.mu.Unlock()
	c.slog.WarnContext(ctx, "overruled: what is served ends soon", "secret", name, "rollout", id)
	return nil
}

// helps reports whether groups serve an older version whose life is nearly over, and this one's is not.
func (t *transaction) helps(versions []cache.Meta, want cache.Meta) bool {
	older := func(g string) bool {
		have, ok := t.has(g, want.Name)
		return ok && createdBefore(versions, have, want.Created)
	}
	groups := slices.DeleteFunc(t.policy.Groups(), func(g string) bool { return !older(g) })
	_, end := t.soonest(want.Name, want.Version, groups)
	return t.due(want.Name, want.Version, groups) && (want.NotAfter.IsZero() || end.Before(want.NotAfter))
}

// rescues reports whether a version may be served where nothing else is left. One that a handshake has shown to be bad is only better than one that
// has expired.
func (t *transaction) rescues(m cache.Meta) bool {
	if m.Ended(t.now) {
		return false
	}
	h, held := t.held(m.Name, m.Version)
	if !held || !h.Handshake {
		return true
	}
	_, end := t.soonest(m.Name, m.Version, t.policy.Groups())
	return !end.IsZero() && !t.now.Before(end)
}

// quiet sets the deadlines of a secret anew, so that nothing is looked at again before something can be done.
func (t *transaction) quiet(name string) {
	t.quieted = name
	for _, h := range t.c.Holds() {
		if h.Secret == name && !h.Deadline.IsZero() && !t.now.Before(h.Deadline) {
			if _, held := t.held(name, h.Version); held {
				t.holds[holdID{name, h.Version}] = &h // its deadline is found anew
			}
		}
	}
	for _, id := range t.activeIDs() {
		r := t.look(id)
		if _, ok := r.brings(name); ok && !r.Deadline.IsZero() && !t.now.Before(r.Deadline) {
			t.edit(id).Deadline = t.next(r)
		}
	}
}

// next returns the earliest deadline of what a rollout brings that is still to come; zero: none is.
func (t *transaction) next(r *Rollout) (next time.Time) {
	for c := range r.live() {
		if last, _ := t.soonest(c.Secret, c.To, t.policy.Groups()); t.now.Before(last) {
			next = sooner(next, last)
		}
	}
	return next
}

// nextDeadline returns when something has to be overruled next; zero: never.
func (c *Controller) nextDeadline() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	var next time.Time
	for _, r := range c.active {
		next = sooner(next, r.Deadline)
	}
	for _, h := range c.holds {
		next = sooner(next, h.Deadline)
	}
	return next
}

// Overrides counts how often a deadline overruled everything else since this server started.
func (c *Controller) Overrides() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.overrides
}
