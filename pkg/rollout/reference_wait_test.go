package rollout

import (
	"slices"
	"time"
)

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
