package rollout

import (
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// advance makes the next transition of a rollout, and reports whether there was one.
func (m *reference) advance(r *refRollout) bool {
	w := r.current()
	switch {
	case r.state.Ended():
		return false
	case w == nil:
		m.end(r, Done)
		return true
	case w.state == Done:
		r.wave++
		m.advance(r)
		return true
	case r.paused || (r.parked || w.stalled) && m.occupied(r, w):
		return m.idle(r, w)
	case w.state == Pending:
		return m.enter(r, w)
	default:
		changed := r.parked
		if r.parked {
			r.parked, r.state = false, w.state
		}
		return m.assess(r, w) || changed
	}
}

// idle: only a complaint takes the wave of a paused rollout back.
func (m *reference) idle(r *refRollout, w *refWave) bool {
	if !w.moving() {
		return false
	}
	w.ticked = m.now // nobody watches
	if names := m.refused(r, w, refRound{}); len(names) > 0 {
		m.fail(r, w, names)
		return true
	}
	if !r.paused && !w.stalled {
		r.state = Waiting
	}
	return false
}

// slot is the rollout that is moving a group: at most one is (DESIGN 7). What is paused, adds, or is an emergency has none.
func (m *reference) slot(group string) *refRollout {
	for _, r := range m.under() {
		if w := r.current(); w.moving() && w.holds(group) && !w.stalled && !r.paused && !r.parked && !r.is(Add) && !r.is(Emergency) {
			return r
		}
	}
	return nil
}

func (m *reference) occupied(r *refRollout, w *refWave) bool {
	if r.is(Add) || r.is(Emergency) {
		return false
	}
	return slices.ContainsFunc(w.groups, func(g string) bool { s := m.slot(g); return s != nil && s != r })
}

// enter begins a wave, if nothing keeps it.
func (m *reference) enter(r *refRollout, w *refWave) bool {
	if r.is(Emergency) {
		return m.switchTo(r, w)
	}
	for _, c := range r.live() {
		c.left = m.isHeld(c.secret, c.to)
	}
	if len(r.live()) == 0 {
		m.end(r, RolledBack)
		return true
	}
	group, culprit, late, wait := m.earlier(r, w)
	if culprit != nil {
		m.hold(culprit.secret, culprit.version, Hard, false)
		m.takeBack(r, []string{group}, []string{culprit.secret}, RolledBack)
		return true
	}
	if m.wantsPromotion(r, w) {
		r.wait()
		return false
	}
	if late {
		m.holdAll(r, Soft)
		m.takeBack(r, []string{group}, r.secrets(), RolledBack)
		return true
	}
	if wait || !r.is(Add) && (m.closed() || m.wantsNode(r, w) || m.occupied(r, w) || m.lets(r, w)) {
		r.asked = time.Time{}
		r.wait()
		return false
	}
	if ended, wait := m.askGates(r, w); ended || wait {
		return ended
	}
	m.couple(r)
	for _, c := range r.live() { // what has expired while it waited goes nowhere
		c.left = c.to != "" && m.meta(c.secret, c.to).Ended(m.now)
	}
	if len(r.live()) == 0 {
		m.end(r, RolledBack)
		return true
	}
	return m.switchTo(r, w)
}

func (r *refRollout) wait() {
	if r.state = Waiting; r.paused {
		r.state = Paused
	}
}

// couple takes along every change that is ready at the same moment, and goes the same way.
func (m *reference) couple(r *refRollout) {
	if !r.travels() {
		return
	}
	for _, o := range m.under() {
		apart := slices.ContainsFunc(o.live(), func(c *refChange) bool {
			return slices.ContainsFunc(r.change, func(have *refChange) bool { return have.secret == c.secret })
		})
		if o == r || apart || !r.sameWay(o) || !m.free(o) {
			continue
		}
		for _, c := range o.live() {
			r.change = append(r.change, new(*c))
		}
		r.deadline = sooner(r.deadline, o.deadline)
		m.end(o, Superseded)
	}
}

func (r *refRollout) travels() bool {
	return !r.alone && !r.paused && !r.parked && !r.is(Add) && !r.is(Remove) && !r.is(Emergency)
}

func (r *refRollout) sameWay(o *refRollout) bool {
	return r.wave == o.wave && slices.EqualFunc(r.waves, o.waves, func(a, b *refWave) bool {
		return slices.Equal(a.groups, b.groups) && a.promoted == b.promoted && (a.state == Pending) == (b.state == Pending)
	})
}

// switchTo moves a wave's groups: each from where it is, plus the change.
func (m *reference) switchTo(r *refRollout, w *refWave) bool {
	w.state, w.at, w.since, w.members = Moving, m.now, m.now, map[string]time.Time{}
	direction := cache.Forward
	if r.is(Add) {
		direction = cache.Beside
	}
	for _, g := range w.groups {
		for _, n := range m.fleet.Progress(g, r.wants()) {
			if m.counts(n) {
				w.members[n.Node] = n.left()
			}
		}
		m.move(g, r.wants(), r.id, direction, 0)
	}
	w.moved = w.groups
	r.state = Moving
	return true
}

// left is when a node was last seen; zero while it is there.
func (n NodeProgress) left() time.Time {
	if n.Connected {
		return time.Time{}
	}
	return n.LastSeen
}

// pass ends a state of a wave.
func (m *reference) pass(r *refRollout, w *refWave) bool {
	round := m.handshakes(r, w)
	switch {
	case w.state == Moving && (round.hung || round.some):
		w.acked = m.count(r, w).acked > 0
		w.state = Verifying
	case w.state != Watching && m.watches(r):
		w.state, w.watch, w.watched, w.ticked, w.complete = Watching, m.watchOf(r), 0, m.now, time.Time{}
	default:
		w.state = Done
	}
	if w.since, w.stalled, w.members = m.now, false, nil; w.state != Done {
		r.state = w.state
	}
	m.advance(r)
	return true
}
