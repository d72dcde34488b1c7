package rollout

import (
	"fmt"
	"slices"
)

// maxTrain is how many changes travel together.
const maxTrain = 64

// couple takes along what waits for the same groups, and is as far: changes that are ready at the same moment travel together, so that
// one watch serves them all.
func (t *transaction) couple(r *Rollout) {
	if !r.travels() {
		return
	}
	for _, id := range t.activeIDs() {
		if len(r.Change) >= maxTrain || len(t.rollouts) >= batch {
			return
		}
		if other := t.look(id); id != r.ID && other.ready() && other.sameWay(r) && t.fits(r, other) {
			t.join(r, t.edit(id))
		}
	}
}

// travels reports whether a rollout may take others along, or go along.
func (r *Rollout) travels() bool {
	return !r.Alone && !r.Paused && !r.Parked && r.Unwind == nil && !r.addition() && !r.removal() && !r.emergency()
}

// ready reports whether a rollout waits for nothing but its groups.
func (r *Rollout) ready() bool {
	w := r.current()
	return r.travels() && r.State == Waiting && w != nil && w.State == Pending
}

// sameWay reports whether two rollouts have the same waves, and are as far.
func (r *Rollout) sameWay(o *Rollout) bool {
	return r.Wave == o.Wave && slices.EqualFunc(r.Waves, o.Waves, func(a, b Wave) bool {
		return slices.Equal(a.Groups, b.Groups) && a.Promoted == b.Promoted && (a.State == Pending) == (b.State == Pending)
	})
}

// fits reports whether another rollout's changes may join: each secret once, none of them held or refused, and none waits for something.
func (t *transaction) fits(r, o *Rollout) bool {
	for c := range o.live() {
		if _, held := t.held(c.Secret, c.To); held || slices.ContainsFunc(r.Change, func(have Change) bool { return have.Secret == c.Secret }) {
			return false
		}
	}
	if len(r.Change)+len(o.Change) > maxTrain {
		return false
	}
	w := o.current()
	if wait, _ := t.wantsPromotion(o, w); wait || t.wantsNode(o, w) != "" {
		return false
	}
	e := t.askEarlier(o, w)
	return e.reason == ""
}

// join moves a rollout's changes into another.
func (t *transaction) join(r, o *Rollout) {
	for c := range o.live() {
		r.Change = append(r.Change, c)
	}
	if !o.Deadline.IsZero() {
		r.Deadline = sooner(r.Deadline, o.Deadline)
	}
	r.log(t.now, r.State, fmt.Sprintf("takes rollout %d along: %s", o.ID, some(o.secrets())), "")
	o.Joined = r.ID
	o.log(t.now, Superseded, fmt.Sprintf("goes on with rollout %d", r.ID), "")
}
