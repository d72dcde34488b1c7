package rollout

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/cache"
)

// retry ends soft holds, the one that expires first goes first (DESIGN 3).
func (m *reference) retry() {
	var over []holdID
	for id, h := range m.holds {
		if h.kind == Soft && !m.now.Before(h.since.Add(m.policy.RetryAfter)) {
			over = append(over, id)
		}
	}
	slices.SortFunc(over, func(a, b holdID) int {
		return cmp.Or(m.meta(a.secret, a.version).NotAfter.Compare(m.meta(b.secret, b.version).NotAfter), strings.Compare(a.secret, b.secret), strings.Compare(string(a.version), string(b.version)))
	})
	for _, id := range over {
		if !m.may() {
			return
		}
		delete(m.holds, id)
		m.heal(id.secret, true)
	}
}

// lookBack takes rollouts back that ended a short while ago, where a node refuses now or a handshake fails.
func (m *reference) lookBack() {
	if m.now.Before(m.looked.Add(lookBackPause)) {
		return
	}
	m.looked = m.now
	for _, r := range m.rollouts {
		if r.state != Done || r.is(Add) || !m.now.Before(r.finished.Add(m.policy.UndoWindow)) {
			continue
		}
		bad := map[string]holdID{}
		for _, w := range r.waves {
			for _, g := range w.moved {
				m.complaints(r, g, bad)
			}
		}
		var names []string
		for name, id := range bad {
			if h := m.holds[id]; h == nil || h.kind != Hard {
				names = append(names, name)
			}
		}
		if len(names) > 0 && m.may() {
			slices.Sort(names)
			for _, name := range names {
				m.hold(name, bad[name].version, Hard, false)
			}
			m.takeBack(r, r.allMoved(), names, RolledBack)
			if !r.state.Ended() {
				r.state = Moving
			}
		}
	}
}

func (m *reference) complaints(r *refRollout, group string, bad map[string]holdID) {
	want := m.servedOf(r, group)
	blame := func(name string, v version) {
		if _, known := bad[name]; !known {
			bad[name] = holdID{name, v}
		}
	}
	for _, n := range m.fleet.Progress(group, want) {
		if n.Nacked != nil && !r.is(Emergency) {
			blame(n.Nacked.Secret, n.Nacked.Version)
		}
	}
	for _, name := range m.mismatches(r, group, want) {
		blame(name, want[name])
	}
}

// mismatches names what the background probing has shown to be bad in a group. An older version proves nothing of a node that has refused an emergency, nor
// of one that need not have ACKed.
func (m *reference) mismatches(r *refRollout, group string, want versions) []string {
	var names []string
	for _, name := range slices.Sorted(maps.Keys(want)) {
		f, ok := m.prober.Mismatch(group, name, want[name])
		if !ok || f.Unseen || f.Kind == OldLeaf && r.is(Emergency) {
			continue
		}
		passedOver := m.policy.minAcked() < 100 && slices.ContainsFunc(m.fleet.Progress(group, versions{name: want[name]}), func(n NodeProgress) bool {
			return n.Node == f.Node && !n.Acked
		})
		if f.Kind != OldLeaf || !passedOver {
			names = append(names, name)
		}
	}
	return names
}

// servedOf is what a group serves of what a rollout brings.
func (m *reference) servedOf(r *refRollout, group string) versions {
	want := versions{}
	for name, v := range r.wants() {
		if have, ok := m.serves[group][name]; ok && have == v {
			want[name] = v
		}
	}
	return want
}

func (r *refRollout) allMoved() []string {
	var all []string
	for _, w := range r.waves {
		all = append(all, w.moved...)
	}
	return all
}

// takeBack takes secrets of a rollout back in groups. What is left of the rollout goes on.
func (m *reference) takeBack(r *refRollout, groups, names []string, end State) {
	was := r.wants()
	r.leave(names)
	for _, name := range names {
		m.ailing[name] = m.ailing[name] || was[name] != ""
	}
	for _, g := range groups {
		back, keep := versions{}, -1
		for _, name := range slices.Sorted(maps.Keys(was)) {
			v := was[name]
			if !slices.Contains(names, name) || m.serves[g][name] != v {
				continue
			}
			to, by, ok := m.earlierVersion(g, name, v)
			if !ok {
				continue
			}
			back[name] = to
			if by == len(m.moves[g])-1 && m.moves[g][by].rollout == r.id {
				keep = by
			}
		}
		if keep >= 0 && len(r.live()) == 0 {
			m.move(g, back, r.id, cache.Back, keep)
		} else {
			m.move(g, back, r.id, cache.Beside, 0)
		}
	}
	if len(r.live()) > 0 {
		return
	}
	if w := r.current(); w.moving() {
		w.state = RolledBack
	}
	m.end(r, end)
}

// earlierVersion is the newest version in a group's history before one that is stored, neither expired nor held, was carried
// through, and is not in the last part of its life; one that was not, or is, comes only after those, and last one that is held though a deadline has brought it. It returns also which move brought the one that is left.
func (m *reference) earlierVersion(group, name string, v version) (to version, by int, ok bool) {
	by = -1
	var spare, rescued *version
	moves := m.moves[group]
	look := v
	candidate := false
	for i, one := range slices.Backward(moves) {
		if brought, ok := one.to[name]; !ok || brought != look {
			continue
		}
		if candidate && m.usable(name, look) { // this move brought the candidate
			if last, _ := m.lastPart(name, look); !last && m.carriedThrough(group, name, one.rollout) {
				return look, by, true
			}
			if spare == nil {
				spare = new(look)
			}
		}
		if candidate && rescued == nil && m.rescued(group, name, look, one.rollout) {
			rescued = new(look)
		}
		if by < 0 {
			by = i
		}
		look, candidate = one.from[name], true
	}
	if last, _ := m.lastPart(name, look); candidate && m.usable(name, look) && (!last || spare == nil) { // nothing that is remembered brought it
		return look, by, true
	}
	if spare == nil {
		spare = rescued
	}
	if spare != nil {
		return *spare, by, true
	}
	return "", by, false
}

// rescued reports whether a version that is held is valid, no handshake has shown it to be bad, and a deadline has brought it to the group.
func (m *reference) rescued(group, name string, v version, rollout int) bool {
	h, one := m.holds[holdID{name, v}], m.meta(name, v)
	return h != nil && !h.handshake && one.Version == v && !one.Ended(m.now) && rollout > 0 && m.rollouts[rollout-1].is(Emergency) &&
		m.carriedThrough(group, name, rollout)
}

func (m *reference) carriedThrough(group, name string, rollout int) bool {
	if rollout == 0 {
		return true
	}
	r := m.rollouts[rollout-1]
	for _, c := range r.change {
		if c.secret == name && c.left {
			return false
		}
	}
	for _, w := range r.waves {
		if w.holds(group) {
			return w.state == Done
		}
	}
	return true
}
