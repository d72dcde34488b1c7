package rollout

import (
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

func (m *reference) find(id int) *refRollout {
	if id < 1 || id > len(m.rollouts) {
		return nil
	}
	m.now = time.Now()
	return m.rollouts[id-1]
}

func (m *reference) pause(id int) bool {
	r := m.find(id)
	if r == nil || r.state.Ended() || r.is(Emergency) || r.paused {
		return false
	}
	w := r.current()
	r.parked = w.moving() && !w.stalled && !r.is(Add) && !r.parked
	r.paused, r.state = true, Paused
	return true
}

func (m *reference) resume(id int) bool {
	r := m.find(id)
	if r == nil || r.state.Ended() || !r.paused {
		return false
	}
	r.paused, r.state = false, Waiting
	if w := r.current(); w.moving() {
		if w.ticked = m.now; !r.parked {
			r.state = w.state
		}
	}
	return true
}

func (m *reference) abort(id int) bool {
	r := m.find(id)
	if r == nil || r.state.Ended() {
		return false
	}
	r.paused = false
	m.holdAll(r, Manual)
	m.takeBack(r, r.allMoved(), r.secrets(), Aborted)
	return true
}

func (m *reference) undo(id int) bool {
	r := m.find(id)
	if r == nil || r.state != Done || r.is(Add) || !m.now.Before(r.finished.Add(m.policy.UndoWindow)) {
		return false
	}
	m.holdAll(r, Manual)
	m.takeBack(r, r.allMoved(), r.secrets(), RolledBack)
	return true
}

// promote lets go what waits for a group.
func (m *reference) promote(group string) {
	m.now = time.Now()
	for _, r := range m.under() {
		wave := slices.IndexFunc(r.waves, func(w *refWave) bool { return w.holds(group) })
		if wave < r.wave || r.state.Ended() {
			continue
		}
		stalled := r.current().state == Moving && r.current().stalled
		if (r.waves[wave].state != Pending || r.waves[wave].promoted) && !stalled {
			continue
		}
		for _, w := range r.waves[r.wave : wave+1] {
			w.promoted = true
		}
		r.current().forced = stalled
		m.advance(r)
	}
}

// rollback takes the last move of a group back of which something is left, and holds the newer versions.
func (m *reference) rollback(group string) bool {
	m.now = time.Now()
	for i, one := range slices.Backward(m.moves[group]) {
		back := versions{}
		for name, to := range one.to {
			if m.serves[group][name] == to {
				back[name] = one.from[name]
			}
		}
		if len(back) > 0 {
			return m.apply(group, back, cache.Back, i)
		}
	}
	return false
}

// toSnapshot gives a group what a snapshot has, and releases it. Names that the snapshot does not have stay.
func (m *reference) toSnapshot(group string, set versions, direction cache.Direction) bool {
	m.now = time.Now()
	change := versions{}
	for name, v := range set {
		if m.serves[group][name] != v {
			change[name] = v
		}
	}
	if !m.fit(change) {
		return false
	}
	for name, v := range change {
		delete(m.holds, holdID{name, v})
	}
	return m.apply(group, change, direction, 0)
}

// fit reports whether versions may come to a group by an operator: they are stored and valid, and not held hard.
func (m *reference) fit(change versions) bool {
	for name, v := range change {
		if h := m.holds[holdID{name, v}]; h != nil && h.kind == Hard {
			return false
		}
		if one := m.meta(name, v); v != "" && (one.Version != v || one.Ended(m.now)) {
			return false
		}
	}
	return true
}

// apply moves one group as an operator says, ends the rollouts that brought it what it leaves, and holds that.
func (m *reference) apply(group string, change versions, direction cache.Direction, keep int) bool {
	if !m.fit(change) {
		return false
	}
	for _, r := range m.under() {
		if !slices.Contains(r.allMoved(), group) {
			continue
		}
		var names []string
		for name, to := range r.wants() {
			if v, ok := change[name]; ok && m.serves[group][name] == to && v != to {
				names = append(names, name)
			}
		}
		if r.leave(names); len(r.live()) == 0 {
			m.end(r, RolledBack)
		}
	}
	was := maps.Clone(m.serves[group])
	m.move(group, change, 0, direction, keep)
	for name, v := range change {
		m.holdBetween(group, name, was[name], v)
	}
	return true
}

// holdBetween holds a version that an operator has taken a group away from, and the ones between it and the older one that the group has now, but for
// those that are on their way to the group.
func (m *reference) holdBetween(group, name string, from, to version) {
	if from == "" || to != "" && m.atLeast(name, to, from) {
		return
	}
	m.hold(name, from, Manual, false)
	for _, one := range m.stored[name] {
		comes := slices.ContainsFunc(m.carriers(name, one.Version), func(r *refRollout) bool {
			return slices.ContainsFunc(r.waves, func(w *refWave) bool { return w.state == Pending && w.holds(group) })
		})
		if to != "" && one.Version != to && m.atLeast(name, from, one.Version) && m.atLeast(name, one.Version, to) && !comes && !m.isHeld(name, one.Version) {
			m.hold(name, one.Version, Manual, false)
		}
	}
}

// release ends the holds on a secret.
func (m *reference) release(name string) {
	m.now = time.Now()
	n := 0
	for id, h := range m.holds {
		if id.secret != name {
			continue
		}
		if h.kind == Hard {
			for _, node := range m.fleet.nodes {
				delete(node.nacked[name], id.version)
			}
		}
		delete(m.holds, id)
		n++
	}
	if n > 0 {
		m.heal(name, false)
	}
}

// keep holds the newest version of a secret; rollouts that bring it end, groups that serve it stay.
func (m *reference) keep(name string) bool {
	m.now = time.Now()
	if len(m.stored[name]) == 0 {
		return false
	}
	v := m.stored[name][0].Version
	m.hold(name, v, Manual, false)
	for _, r := range m.under() {
		if to, ok := r.brings(name); ok && to == v {
			if r.leave([]string{name}); len(r.live()) == 0 {
				m.end(r, Aborted)
			}
		}
	}
	return true
}

// start begins a rollout of a stored version, and holds the newer ones.
func (m *reference) start(name string, v version) bool {
	m.now = time.Now()
	h := m.holds[holdID{name, v}]
	if one := m.meta(name, v); one.Version == "" || one.Ended(m.now) || h != nil && h.kind == Hard {
		return false
	}
	delete(m.holds, holdID{name, v})
	if h != nil || len(m.carriers(name, v)) == 0 {
		for _, newer := range m.stored[name][:slices.IndexFunc(m.stored[name], func(one cache.Meta) bool { return one.Version == v })] {
			if !m.isHeld(name, newer.Version) {
				m.hold(name, newer.Version, Manual, false)
			}
		}
		m.propose(refIntent{secret: name, version: v})
	}
	return true
}

func (m *reference) carriers(name string, v version) []*refRollout {
	return slices.DeleteFunc(m.under(), func(r *refRollout) bool { to, ok := r.brings(name); return !ok || to != v })
}
