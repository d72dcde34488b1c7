package rollout

import (
	"maps"
	"slices"
	"time"
)

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
