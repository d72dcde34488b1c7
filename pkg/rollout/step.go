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

// step carries every rollout as far as it goes now, and returns when to look again without an event.
func (c *Controller) step(ctx context.Context) (time.Time, error) {
	if err := c.take(ctx); err != nil {
		return time.Time{}, err
	}
	defer c.leave()
	var faults []error
	if c.unhealed {
		if err := c.heal(ctx); err != nil {
			faults = append(faults, err)
		}
	}
	if err := c.settle(ctx); err != nil {
		return time.Time{}, errors.Join(append(faults, err)...)
	}
	if err := c.healAiling(ctx); err != nil {
		faults = append(faults, err)
	}
	if err := c.retrySoftHolds(ctx); err != nil {
		faults = append(faults, err)
	}
	back, err := c.lookBack(ctx)
	if err != nil {
		faults = append(faults, err)
	}
	if err := c.rescueAll(ctx); err != nil {
		faults = append(faults, err)
	}
	next, err := c.carryAll(ctx)
	if len(c.ailing) > 0 {
		c.Wake() // something was taken back just now
	}
	next = sooner(sooner(next, back), sooner(c.nextRetry(), c.nextDeadline()))
	return next, errors.Join(append(faults, err)...)
}

// carryAll carries on the rollouts under way, oldest first. One that cannot go on delays no other.
func (c *Controller) carryAll(ctx context.Context) (time.Time, error) {
	failed := map[uint64]error{}
	for {
		var next time.Time
		progress := false
		for _, id := range c.begin().activeIDs() {
			if failed[id] != nil {
				continue
			}
			recheck, moved, err := c.carry(ctx, id)
			next, progress = sooner(next, recheck), progress || moved
			if err == nil {
				continue
			}
			failed[id] = fmt.Errorf("rollout %d: %w", id, err)
			if err := c.settle(ctx); err != nil {
				return next, errors.Join(failed[id], err)
			}
		}
		if progress { // a slot may be free now for a rollout that was asked before
			continue
		}
		var faults []error
		for _, err := range failed {
			faults = append(faults, err)
		}
		slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
		return next, errors.Join(faults...)
	}
}

// sooner returns the earlier of two times; a zero time is never.
func sooner(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}

// carry takes one rollout through as many transitions as are due, one commit each, and reports whether there was one.
func (c *Controller) carry(ctx context.Context, id uint64) (recheck time.Time, moved bool, err error) {
	for {
		t := c.begin()
		before := t.look(id)
		if before == nil {
			return time.Time{}, moved, nil
		}
		recheck, err := t.advance(ctx, t.edit(id))
		if err != nil {
			return time.Time{}, moved, err
		}
		if !t.touched && len(t.holds) == 0 && !changed(before, t.look(id)) {
			return recheck, moved, nil
		}
		if err := t.commit(ctx); err != nil {
			return time.Time{}, moved, err
		}
		moved = true
	}
}

// changed reports whether a rollout has something to store. New counts of nodes alone are not stored.
func changed(before, after *Rollout) bool {
	return before.State != after.State || before.Reason != after.Reason || before.Wave != after.Wave || before.Logged != after.Logged ||
		!slices.EqualFunc(before.Waves, after.Waves, func(a, b Wave) bool {
			return a.State == b.State && len(a.Moved) == len(b.Moved) && a.Promoted == b.Promoted
		})
}

// advance makes the next transition of a rollout, if one is due.
func (t *transaction) advance(ctx context.Context, r *Rollout) (time.Time, error) {
	w := r.current()
	switch {
	case r.State.Ended():
		return time.Time{}, nil
	case r.Unwind != nil:
		return time.Time{}, t.unwind(ctx, r)
	case w == nil:
		r.log(t.now, Done, "every wave is done", "")
		return time.Time{}, nil
	case r.Paused || (r.Parked || w.Stalled) && t.occupied(r, w):
		return t.lookPaused(ctx, r, w)
	case w.State == Pending:
		return t.enter(ctx, r, w)
	case w.State == Moving && len(w.Moved) < len(w.Groups):
		return time.Time{}, t.move(ctx, r, w)
	case w.State.moved():
		if r.Parked {
			r.Parked = false
			r.log(t.now, w.State, fmt.Sprintf("wave %d (%s) goes on", r.Wave+1, some(w.Groups)), "")
		}
		return t.assess(ctx, r, w)
	default: // it is done
		r.Wave++
		return t.advance(ctx, r)
	}
}

// enter switches a wave's groups, unless an earlier group has refused or not ACKed the version, or the wave waits for something.
func (t *transaction) enter(ctx context.Context, r *Rollout, w *Wave) (time.Time, error) {
	if r.emergency() {
		return time.Time{}, t.move(ctx, r, w)
	}
	if t.dropHeld(r); r.State.Ended() {
		return time.Time{}, nil
	}
	e := t.askEarlier(r, w)
	if c := e.culprit; c != nil {
		t.hold(c.secret, c.version, Hard, c.reason)
		return time.Time{}, t.giveUp(ctx, r, e.group, []string{c.secret}, c.reason)
	}
	if wait, reason := t.wantsPromotion(r, w); wait {
		r.log(t.now, Waiting, reason, "")
		return t.graceEnds(r, w), nil
	}
	if e.late {
		t.holdAll(r, Soft, e.reason)
		return time.Time{}, t.giveUp(ctx, r, e.group, r.secrets(), e.reason)
	}
	if reason, recheck := t.mustWait(r, w, e); reason != "" {
		delete(t.c.asked, r.ID)
		r.log(t.now, Waiting, reason, "")
		return recheck, nil
	}
	if reason, recheck, failed := t.before(r, w); failed {
		t.holdAll(r, Soft, reason)
		r.log(t.now, RolledBack, reason, "")
		return time.Time{}, nil
	} else if reason != "" {
		r.log(t.now, Waiting, reason, "")
		return recheck, nil
	}
	t.couple(r)
	if err := t.dropExpired(ctx, r); err != nil || r.State.Ended() {
		return time.Time{}, err
	}
	return time.Time{}, t.move(ctx, r, w)
}

// mustWait says why a wave does not begin yet; empty if nothing keeps it.
func (t *transaction) mustWait(r *Rollout, w *Wave, e earlier) (reason string, recheck time.Time) {
	switch {
	case e.reason != "":
		return e.reason, e.recheck
	case r.addition():
		return "", time.Time{}
	}
	if t.policy.Calendar != nil {
		if open, why, until := t.policy.Calendar.Open(t.now); !open {
			return why, until
		}
	}
	if why := t.wantsNode(r, w); why != "" { // before what comes and goes: each other reason is stored
		return why, time.Time{}
	}
	if t.occupied(r, w) || r.Alone && t.now.Before(r.Started.Add(t.policy.RetryAfter)) && t.wanted(r, w) {
		return "until another change has left " + some(w.Groups), time.Time{}
	}
	return "", time.Time{}
}

// wanted reports whether a change that is not tried again, but new, waits for groups of the wave: it goes first.
func (t *transaction) wanted(r *Rollout, w *Wave) bool {
	return slices.ContainsFunc(t.activeIDs(), func(id uint64) bool {
		other := t.look(id)
		return id != r.ID && other.ready() && slices.ContainsFunc(other.current().Groups, func(g string) bool { return slices.Contains(w.Groups, g) }) &&
			t.free(other)
	})
}

// wantsNode says which group has no node that subscribes to what changes, where such a node is waited for.
func (t *transaction) wantsNode(r *Rollout, w *Wave) string {
	if !t.policy.EmptyWait || w.Promoted || r.removal() || !t.needsMove(r, w) {
		return ""
	}
	progress := t.c.progress(r, w)
	for _, g := range w.Groups { // in their order: the reason is the same at each look
		nodes := progress[g]
		if !slices.ContainsFunc(nodes, t.counts) {
			return fmt.Sprintf("for a node of %s that subscribes to %s (empty_group is wait)", g, some(r.secrets()))
		}
	}
	return ""
}

// counts reports whether a node is connected, or was a moment ago.
func (t *transaction) counts(n NodeProgress) bool {
	return n.Connected || t.now.Before(n.LastSeen.Add(t.policy.NodeGrace))
}

// graceEnds returns when the next absent node leaves the count that keeps a removal waiting; zero: never.
func (t *transaction) graceEnds(r *Rollout, w *Wave) time.Time {
	var next time.Time
	if !r.removal() {
		return next
	}
	for _, nodes := range t.c.progress(r, w) {
		for _, n := range nodes {
			if !n.Connected && t.counts(n) {
				next = sooner(next, n.LastSeen.Add(t.policy.NodeGrace))
			}
		}
	}
	return next
}

// firstWave reports whether the wave may move without a promotion, whatever the policy.
func (t *transaction) firstWave(w *Wave) bool { return slices.ContainsFunc(w.Groups, t.policy.first) }

// wantsPromotion reports whether a wave waits for an operator, and why: where the policy is manual, and where nodes would lose a name
// that they subscribe to, and nobody watches.
func (t *transaction) wantsPromotion(r *Rollout, w *Wave) (bool, string) {
	if w.Promoted || r.addition() || t.firstWave(w) || !t.needsMove(r, w) {
		return false, ""
	}
	reason := "for a promotion of " + some(w.Groups)
	if !r.removal() || t.policy.Watch > 0 {
		return t.policy.Manual, reason
	}
	for _, nodes := range t.c.progress(r, w) {
		if slices.ContainsFunc(nodes, t.counts) {
			return true, reason + ": nodes there subscribe to what is removed, and rollout.watch is 0"
		}
	}
	return t.policy.Manual, reason
}

// needsMove reports whether a group of the wave is not at the wanted versions yet.
func (t *transaction) needsMove(r *Rollout, w *Wave) bool {
	return slices.ContainsFunc(w.Groups, func(g string) bool {
		for c := range r.live() {
			if have, _ := t.has(g, c.Secret); have != c.To {
				return true
			}
		}
		return false
	})
}

// occupied reports whether another rollout is moving a group of the wave. Additions and emergencies need no slot.
func (t *transaction) occupied(r *Rollout, w *Wave) bool {
	if r.addition() || r.emergency() {
		return false
	}
	for id, other := range t.rollouts {
		if id != r.ID && slices.ContainsFunc(other.occupies(), func(g string) bool { return slices.Contains(w.Groups, g) }) {
			return true
		}
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return slices.ContainsFunc(w.Groups, func(g string) bool {
		id, taken := t.c.slots[g]
		return taken && id != r.ID && t.rollouts[id] == nil
	})
}

// move switches the wave's groups, as many as fit into this commit; the rest follows in the next.
func (t *transaction) move(ctx context.Context, r *Rollout, w *Wave) error {
	why := cache.Why{Reason: r.describe(), Rollout: r.ID, Direction: cache.Forward}
	if r.addition() {
		why.Direction = cache.Beside
	}
	for _, g := range w.Groups[len(w.Moved):] {
		if t.Full() {
			break
		}
		t.muster(r, w, g)
		if _, err := t.Move(ctx, g, r.wants(), why); err != nil {
			return err
		}
		w.Moved = append(w.Moved, g)
	}
	t.redate(r.wants())
	if len(w.Moved) == 0 {
		return nil // the commit is full; the next one begins
	}
	if w.State != Moving {
		w.State, w.At, w.Since = Moving, t.now, t.now
		w.Snapshot = t.Target(w.Groups[0]).Number
	}
	r.log(t.now, Moving, fmt.Sprintf("wave %d (%s) was switched", r.Wave+1, some(w.Groups)), "")
	return nil
}

// goesOn says that something has left a rollout. Nodes that subscribe to nothing of the rest are not waited for any more.
func (t *transaction) goesOn(r *Rollout, why, by string) {
	r.log(t.now, r.State, why+"; the rest goes on", by)
	w := r.current()
	if w == nil || w.State != Moving {
		return
	}
	subscribes := map[string]bool{}
	for g, nodes := range t.c.progress(r, w) {
		for _, n := range nodes {
			subscribes[memberKey(g, n.Identity, n.Node)] = true
		}
	}
	w.Members = slices.DeleteFunc(slices.Clone(w.Members), func(m Member) bool { return !subscribes[m.Node] })
}

// muster notes which nodes of a group have to ACK: those that are connected, and those that were a moment ago.
func (t *transaction) muster(r *Rollout, w *Wave, group string) {
	known := make(map[string]bool, len(w.Members))
	for _, m := range w.Members {
		known[m.Node] = true
	}
	members := slices.Clone(w.Members)
	for _, n := range t.c.fleet.Progress(group, r.wants()) {
		key := memberKey(group, n.Identity, n.Node)
		if known[key] || !t.counts(n) {
			continue
		}
		w.Nodes.Expected++
		if len(members) < maxMembers {
			members = append(members, Member{Node: key, Gone: n.gone()})
		}
	}
	w.Members = members
}
