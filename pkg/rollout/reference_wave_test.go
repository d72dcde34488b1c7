package rollout

import (
	"maps"
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

// lets reports whether a rollout that is tried again lets one go first that is not: for as long as it would have been held once more.
func (m *reference) lets(r *refRollout, w *refWave) bool {
	return r.alone && m.now.Before(r.started.Add(m.policy.RetryAfter)) && slices.ContainsFunc(m.under(), func(o *refRollout) bool {
		return o != r && slices.ContainsFunc(o.waves[o.wave:], func(next *refWave) bool {
			return next == o.current() && slices.ContainsFunc(next.groups, w.holds)
		}) && m.free(o)
	})
}

// free reports whether a rollout waits for nothing but its groups.
func (m *reference) free(o *refRollout) bool {
	if o.state != Waiting || !o.travels() || o.current().state != Pending || m.wantsPromotion(o, o.current()) || m.wantsNode(o, o.current()) {
		return false
	}
	if slices.ContainsFunc(o.live(), func(c *refChange) bool { return m.isHeld(c.secret, c.to) }) {
		return false
	}
	_, culprit, late, wait := m.earlier(o, o.current())
	return culprit == nil && !late && !wait
}

func (m *reference) closed() bool {
	if m.policy.Calendar == nil {
		return false
	}
	open, _, _ := m.policy.Calendar.Open(m.now)
	return !open
}

func (m *reference) holdAll(r *refRollout, kind HoldKind) {
	for _, c := range r.live() {
		m.hold(c.secret, c.to, kind, false)
	}
}

// earlier asks the nodes of the groups of earlier waves that serve what the rollout brings: one that has refused it, one that has not
// answered in time, or one that has still to answer; and what the background probing shows there.
func (m *reference) earlier(r *refRollout, w *refWave) (group string, culprit *holdID, late, wait bool) {
	if r.is(Add) || r.is(Remove) {
		return "", nil, false, false
	}
	for _, wave := range m.policy.Waves {
		if slices.ContainsFunc(wave, w.holds) {
			return group, nil, late, wait
		}
		for _, g := range wave {
			want := m.servedOf(r, g)
			if len(want) == 0 {
				continue
			}
			nodes := m.fleet.Progress(g, want)
			enough := m.enough(nodes)
			for _, n := range nodes {
				switch {
				case n.Nacked != nil:
					return g, &holdID{n.Nacked.Secret, n.Nacked.Version}, false, false
				case !n.Connected || n.Acked || late || enough:
				case !n.Since.IsZero() && !m.now.Before(n.Since.Add(m.policy.AckTimeout)):
					group, late = g, true
				default:
					wait = true
				}
			}
			for _, name := range m.mismatches(r, g, want) {
				return g, &holdID{name, want[name]}, false, false
			}
		}
	}
	return "", nil, false, false
}

// enough reports whether the share of nodes that is asked for has ACKed, where that is not all of them.
func (m *reference) enough(nodes []NodeProgress) bool {
	acked, expected := 0, 0
	for _, n := range nodes {
		if n.Unsubscribed || !n.Acked && n.Nacked == nil && !m.counts(n) {
			continue
		}
		if expected++; n.Acked && n.Nacked == nil {
			acked++
		}
	}
	return m.policy.minAcked() < 100 && acked > 0 && acked*100 >= expected*m.policy.minAcked()
}

func (m *reference) wantsPromotion(r *refRollout, w *refWave) bool {
	if w.promoted || r.is(Add) || slices.ContainsFunc(w.groups, m.policy.first) || !m.needsMove(r, w) {
		return false
	}
	if r.is(Remove) && m.policy.Watch == 0 {
		for _, g := range w.groups {
			if slices.ContainsFunc(m.fleet.Progress(g, r.wants()), m.counts) {
				return true
			}
		}
	}
	return m.policy.Manual
}

func (m *reference) needsMove(r *refRollout, w *refWave) bool {
	for _, g := range w.groups {
		for name, v := range r.wants() {
			if m.serves[g][name] != v {
				return true
			}
		}
	}
	return false
}

// counts reports whether a node is there, or was within its grace.
func (m *reference) counts(n NodeProgress) bool {
	return n.Connected || m.now.Before(n.LastSeen.Add(m.policy.NodeGrace))
}

// wantsNode reports whether a group of the wave is empty, where that is waited for.
func (m *reference) wantsNode(r *refRollout, w *refWave) bool {
	if !m.policy.EmptyWait || w.promoted || r.is(Remove) || !m.needsMove(r, w) {
		return false
	}
	return slices.ContainsFunc(w.groups, func(g string) bool {
		return !slices.ContainsFunc(m.fleet.Progress(g, r.wants()), m.counts)
	})
}

// askGates asks for the values before the wave.
func (m *reference) askGates(r *refRollout, w *refWave) (ended, wait bool) {
	if len(m.policy.Gates) == 0 || !m.watches(r) || w.promoted && !m.needsMove(r, w) {
		return false, false
	}
	if r.asked.IsZero() {
		r.asked = m.now
	}
	values := map[string]*float64{}
	for _, g := range m.policy.Gates {
		v := m.reading(g.Name)
		if v == nil || g.Max != nil && *v > *g.Max {
			if m.now.Before(r.asked.Add(g.Timeout)) {
				r.wait()
				return false, true
			}
			m.holdAll(r, Soft)
			m.end(r, RolledBack)
			return true, false
		}
		values[g.Name] = v
	}
	r.asked, w.before = time.Time{}, values
	return false, false
}

// reading is a gate's value; nil: it cannot be had.
func (m *reference) reading(gate string) *float64 {
	for _, one := range m.meters.Read(m.now) {
		if one.Name == gate && one.Err == "" {
			return new(one.Value)
		}
	}
	return nil
}

func (m *reference) watches(r *refRollout) bool {
	return !r.is(Add) && !r.is(Emergency) && (m.policy.Watch > 0 || len(m.policy.Gates) > 0 || m.policy.Hook)
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

// assess looks at a wave that is switched.
func (m *reference) assess(r *refRollout, w *refWave) bool {
	ballot := m.count(r, w)
	if n := ballot.nack; n != nil && r.is(Emergency) { // it helps all the others
		m.hold(n.Secret, n.Version, Hard, false)
	}
	var round refRound
	if w.state == Verifying || w.state == Watching {
		round = m.handshakes(r, w)
	}
	if m.policy.minAcked() < 100 { // those that have not ACKed were let pass
		round.findings = slices.DeleteFunc(round.findings, func(f Finding) bool { return f.Kind == OldLeaf && slices.Contains(ballot.unacked, f.Node) })
	}
	if w.state == Verifying && !round.some && w.acked && m.now.Before(w.since.Add(min(m.policy.NodeGrace, roundLimit))) {
		round.hung = true // those that have ACKed come back, maybe
	}
	if w.state == Watching {
		w.watched += min(m.now.Sub(w.ticked), 2*Wave{Watch: w.watch.Seconds()}.tick())
		if w.ticked = m.now; w.complete.IsZero() && w.watched >= w.watch {
			w.complete = m.now
		}
	}
	if names := m.refused(r, w, round); len(names) > 0 {
		m.fail(r, w, names)
		return true
	}
	switch w.state {
	case Moving:
		return m.moving(r, w, ballot)
	case Verifying:
		return m.proven(r, w, round)
	default:
		return m.watched(r, w, round)
	}
}

// refRound is what handshakes with everything in a wave showed: what failed, whether they have not ended, whether there is something to look at, and
// of which secrets one was good.
type refRound struct {
	findings   []Finding
	hung, some bool
	good       map[string]bool
}

func (m *reference) handshakes(r *refRollout, w *refWave) refRound {
	round := refRound{good: map[string]bool{}}
	if r.is(Remove) {
		return round
	}
	for _, g := range w.groups {
		one := m.prober.Look(g, r.wants(), m.now)
		round.findings = append(round.findings, one.Findings...)
		round.hung = round.hung || one.Ended.IsZero()
		round.some = round.some || one.Targets > 0
		for name := range one.Served {
			round.good[name] = true
		}
	}
	return round
}

// refused holds what a node of the wave has refused, and what handshakes have shown to be bad, and names it.
func (m *reference) refused(r *refRollout, w *refWave, round refRound) []string {
	var names []string
	if n := m.count(r, w).nack; n != nil && !r.is(Emergency) {
		m.hold(n.Secret, n.Version, Hard, false)
		names = append(names, n.Secret)
	}
	for _, f := range round.findings {
		if f.Unseen || r.is(Emergency) && f.Kind == OldLeaf || slices.Contains(names, f.Secret) {
			continue
		}
		m.hold(f.Secret, f.Version, Hard, f.Kind != OldLeaf && !round.good[f.Secret])
		names = append(names, f.Secret)
	}
	return names
}

// fail takes secrets back in the wave's groups; an addition stays, because nothing can get worse.
func (m *reference) fail(r *refRollout, w *refWave, names []string) {
	if r.is(Add) {
		w.state = Done
		m.end(r, Done)
		return
	}
	m.takeBack(r, w.moved, names, RolledBack)
}

// softly ends a wave that failed without a culprit; an emergency goes on.
func (m *reference) softly(r *refRollout, w *refWave) bool {
	if r.is(Emergency) {
		return m.pass(r, w)
	}
	m.holdAll(r, Soft)
	m.fail(r, w, r.secrets())
	return true
}

// unanswered ends what late nodes have not ACKed of a wave; where that cannot be told, all of it.
func (m *reference) unanswered(r *refRollout, w *refWave) bool {
	var names []string
	for _, c := range r.live() {
		if slices.ContainsFunc(w.groups, func(g string) bool {
			return slices.ContainsFunc(m.fleet.Progress(g, versions{c.secret: c.to}), NodeProgress.waits)
		}) {
			names = append(names, c.secret)
		}
	}
	if len(names) == 0 {
		return m.softly(r, w)
	}
	for _, name := range names {
		m.hold(name, r.wants()[name], Soft, false)
	}
	m.fail(r, w, names)
	return true
}

// waits reports whether a node is there and has not answered.
func (n NodeProgress) waits() bool { return n.Connected && !n.Acked && n.Nacked == nil }

// ballot is what the nodes say.
type ballot struct {
	expected, acked, nacked int
	nack                    *NACK
	late                    bool
	unacked                 []string
}

// count asks the nodes: those that were there when the wave was switched, or within their grace, and those that are there now.
func (m *reference) count(r *refRollout, w *refWave) ballot {
	var b ballot
	seen := map[string]bool{}
	for _, g := range w.groups {
		for _, n := range m.fleet.Progress(g, r.wants()) {
			_, member := w.members[n.Node]
			if n.Unsubscribed {
				delete(w.members, n.Node)
				continue
			}
			if !member && !n.Connected && n.Nacked == nil {
				continue
			}
			seen[n.Node] = true
			if member {
				w.members[n.Node] = n.left()
			}
			if n.waits() {
				b.unacked = append(b.unacked, n.Node)
			}
			switch {
			case n.Nacked != nil:
				b.expected++
				b.nacked++
				b.nack = n.Nacked
			case n.Acked:
				b.expected++
				b.acked++
			case n.Connected:
				b.expected++
				b.late = b.late || !n.Since.IsZero() && !m.now.Before(later(w.at, n.Since).Add(m.policy.AckTimeout))
			case m.now.Before(n.LastSeen.Add(m.policy.NodeGrace)):
				b.expected++
			}
		}
	}
	maps.DeleteFunc(w.members, func(node string, _ time.Time) bool { return !seen[node] }) // it subscribes to nothing of what is left
	return b
}

// moving waits for the ACKs.
func (m *reference) moving(r *refRollout, w *refWave, b ballot) bool {
	enough := b.acked > 0 && b.acked*100 >= b.expected*m.policy.minAcked()
	switch {
	case w.forced:
		return m.pass(r, w)
	case b.late && r.is(Emergency):
		return m.pass(r, w)
	case b.late && !enough:
		return m.unanswered(r, w)
	case r.is(Emergency) && b.acked+b.nacked == b.expected:
		return m.pass(r, w)
	case b.acked < b.expected && !enough:
		return false
	case len(w.members) > 0 && b.acked == 0 && !r.is(Add) && !r.is(Remove) && !r.is(Emergency):
		was := w.stalled
		w.stalled, r.state = true, Moving // it holds no slot any more
		return !was
	default:
		return m.pass(r, w)
	}
}

// proven waits for the handshakes, for five minutes at most.
func (m *reference) proven(r *refRollout, w *refWave, round refRound) bool {
	switch {
	case round.hung && m.now.Before(w.since.Add(roundLimit)):
		return false
	case round.hung || len(round.findings) > 0:
		return m.softly(r, w)
	default:
		return m.pass(r, w)
	}
}

// watched waits for the end of the watch, then for the last handshakes, the gates and the hook.
func (m *reference) watched(r *refRollout, w *refWave, round refRound) bool {
	var lacking []Gate
	for _, g := range m.policy.Gates {
		v := m.reading(g.Name)
		before := w.before[g.Name]
		if before == nil {
			before = v
		}
		if v == nil {
			lacking = append(lacking, g)
		} else if most := g.bound(before); most != nil && *v > *most {
			return m.softly(r, w)
		}
	}
	if w.complete.IsZero() || round.hung && m.now.Before(w.complete.Add(roundLimit)) {
		return false
	}
	if round.hung || len(round.findings) > 0 {
		return m.softly(r, w)
	}
	for _, g := range lacking {
		if !m.now.Before(w.complete.Add(g.Timeout)) {
			return m.softly(r, w)
		}
	}
	h := m.hook.result
	switch {
	case len(lacking) > 0:
		return false
	case m.policy.Hook && (h.Failed != "" || h.Err != ""):
		return m.softly(r, w)
	default:
		return (!m.policy.Hook || h.Done) && m.pass(r, w)
	}
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

// watchOf is shorter where what the later waves serve ends soon.
func (m *reference) watchOf(r *refRollout) time.Duration {
	if r.deadline.IsZero() {
		return m.policy.Watch
	}
	return max(0, min(m.policy.Watch, r.deadline.Sub(m.now)/time.Duration(len(r.waves)-r.wave)*9/10))
}
