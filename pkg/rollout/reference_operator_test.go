package rollout

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// refIntent is a version that every group shall have; the empty one is a removal.
type refIntent struct {
	secret     string
	version    version
	leave      map[string]bool
	now, alone bool
}

// accept takes a new version in.
func (m *reference) accept(one cache.Meta) {
	name := one.Name
	m.now = time.Now()
	m.stored[name] = slices.Insert(slices.DeleteFunc(m.stored[name], func(have cache.Meta) bool { return have.Version == one.Version }), 0, one)
	m.propose(refIntent{secret: name, version: one.Version})
	m.prune(name)
}

// prune forgets versions: three stay, and what a group, rollout or hold refers to.
func (m *reference) prune(name string) {
	kept := map[version]bool{}
	for _, g := range m.policy.Groups() {
		kept[m.serves[g][name]] = true
		if n := len(m.moves[g]); n > 0 {
			kept[m.moves[g][n-1].from[name]] = true
		}
	}
	for id := range m.holds {
		kept[id.version] = true
	}
	for _, r := range m.under() {
		for _, c := range r.change {
			kept[c.from], kept[c.to] = true, true
		}
	}
	var keep []cache.Meta
	for i, one := range m.stored[name] {
		if i < 3 || kept[one.Version] || m.fleet.lastGood(name, one.Version) {
			keep = append(keep, one)
		}
	}
	m.stored[name] = keep
}

// propose gives a version to every group: at once to those that lack the secret, by waves to the others.
func (m *reference) propose(in refIntent) *refRollout {
	covered := m.covered(in.secret, in.version, false)
	for _, g := range m.policy.Groups() {
		if have, ok := m.serves[g][in.secret]; ok && in.version != "" && have != in.version {
			last, _ := m.lastPart(in.secret, have)
			in.now = in.now || last
		}
	}
	if in.now {
		covered = m.covered(in.secret, in.version, true)
	}
	m.supersede(in)
	var lacking, behind []string
	for _, g := range m.policy.Groups() {
		have, ok := m.serves[g][in.secret]
		switch {
		case covered[g] || in.leave[g]:
		case !ok && in.version != "":
			lacking = append(lacking, g)
		case ok && have != in.version:
			behind = append(behind, g)
		}
	}
	var last *refRollout
	if len(lacking) > 0 {
		last = m.create(in, Add, "", [][]string{lacking})
	}
	if len(behind) == 0 {
		return last
	}
	from := m.serves[behind[len(behind)-1]][in.secret]
	if in.now {
		return m.create(in, Emergency, from, [][]string{behind})
	}
	r := m.prepare(in, m.kind(in, behind), from, m.wavesOf(in, behind, covered))
	if in.version != "" {
		for _, g := range behind {
			one := m.meta(in.secret, m.serves[g][in.secret])
			if !one.NotAfter.IsZero() {
				r.deadline = sooner(r.deadline, one.NotAfter.Add(-one.NotAfter.Sub(one.NotBefore)/20))
			}
		}
	}
	m.advance(r)
	return r
}

func (m *reference) kind(in refIntent, behind []string) Kind {
	if in.version == "" {
		return Remove
	}
	for _, g := range behind {
		have := m.meta(in.secret, m.serves[g][in.secret])
		if have.Version != "" && have.Issuer != m.meta(in.secret, in.version).Issuer {
			return Chain
		}
	}
	return Renewal
}

// covered are the groups to which rollouts under way bring exactly this version.
func (m *reference) covered(name string, v version, fast bool) map[string]bool {
	covered := map[string]bool{}
	for _, r := range m.under() {
		to, ok := r.brings(name)
		if !ok || to != v || fast && !r.is(Emergency) && !r.is(Add) {
			continue
		}
		for _, w := range r.waves[r.wave:] {
			for _, g := range w.groups {
				covered[g] = true
			}
		}
	}
	return covered
}

// supersede takes the secret out of rollouts under way that bring another version, or the same one too slowly.
func (m *reference) supersede(in refIntent) {
	for _, r := range m.under() {
		to, ok := r.brings(in.secret)
		if !ok || to == in.version && (!in.now || r.is(Emergency) || r.is(Add)) {
			continue
		}
		for _, g := range r.allMoved() {
			for _, n := range m.fleet.Progress(g, versions{in.secret: to}) {
				if n.Nacked != nil {
					m.hold(n.Nacked.Secret, n.Nacked.Version, Hard, false)
				}
			}
		}
		if r.leave([]string{in.secret}); len(r.live()) == 0 {
			m.end(r, Superseded)
		}
	}
}

// wavesOf: before the last wave with something to do, also the groups that have the version already, or are being given it, are asked.
func (m *reference) wavesOf(in refIntent, behind []string, given map[string]bool) [][]string {
	var waves [][]string
	last := 0
	for i, wave := range m.policy.Waves {
		if slices.ContainsFunc(wave, func(g string) bool { return slices.Contains(behind, g) }) {
			last = i
		}
	}
	for i, wave := range m.policy.Waves[:last+1] {
		var groups []string
		for _, g := range wave {
			has := in.version != "" && m.serves[g][in.secret] == in.version
			if slices.Contains(behind, g) || i < last && in.version != "" && (has || given[g]) {
				groups = append(groups, g)
			}
		}
		if len(groups) > 0 {
			waves = append(waves, groups)
		}
	}
	return waves
}

func (m *reference) prepare(in refIntent, kind Kind, from version, waves [][]string) *refRollout {
	r := &refRollout{
		id: len(m.rollouts) + 1, state: Waiting, alone: in.alone, started: m.now,
		change: []*refChange{{secret: in.secret, from: from, to: in.version, kind: kind}},
	}
	for _, groups := range waves {
		r.waves = append(r.waves, &refWave{groups: groups, state: Pending})
	}
	m.rollouts = append(m.rollouts, r)
	return r
}

func (m *reference) create(in refIntent, kind Kind, from version, waves [][]string) *refRollout {
	r := m.prepare(in, kind, from, waves)
	m.advance(r)
	return r
}

// heal brings the newest version that may be served to every group that is at an older one.
func (m *reference) heal(name string, alone bool) {
	if !m.managed(name) {
		m.propose(refIntent{secret: name})
		return
	}
	for _, one := range m.stored[name] {
		if m.isHeld(name, one.Version) || one.Ended(m.now) {
			continue
		}
		leave, wanting := m.covered(name, one.Version, false), false
		for _, g := range m.policy.Groups() {
			have, ok := m.serves[g][name]
			leave[g] = leave[g] || ok && m.atLeast(name, have, one.Version)
			wanting = wanting || !leave[g]
		}
		if wanting {
			m.propose(refIntent{secret: name, version: one.Version, leave: leave, alone: alone})
		}
		return
	}
}

func (m *reference) managed(name string) bool {
	return m.policy.Managed == nil || m.policy.Managed(name)
}

// restart: what nodes ACKed is forgotten; what was found out by looking is found out again.
func (m *reference) restart() {
	m.now, m.looked, m.ailing = time.Now(), time.Time{}, map[string]bool{}
	for _, r := range m.under() {
		r.asked = time.Time{}
		if w := r.current(); w.moving() && w.state == Watching {
			w.complete = time.Time{}
		}
	}
	m.reconfigure(m.policy)
}

func (m *reference) reconfigure(p Policy) {
	m.now, m.policy = time.Now(), p
	var names []string
	for _, r := range m.under() {
		if !r.is(Add) && !r.is(Emergency) {
			m.rewave(r)
		}
		names = append(names, r.secrets()...)
	}
	m.redate(names)
	for _, name := range slices.Sorted(maps.Keys(m.stored)) {
		m.heal(name, false)
	}
}

// rewave puts the groups of the waves that have not begun into the order of the policy. A wave is promoted where all its groups were.
func (m *reference) rewave(r *refRollout) {
	keep := r.wave
	for i, w := range r.waves {
		if w.state != Pending {
			keep = max(keep, i+1)
		}
	}
	promoted := map[string]bool{}
	own := map[string]bool{}
	for _, w := range r.waves[keep:] {
		for _, g := range w.groups {
			own[g], promoted[g] = true, w.promoted
		}
	}
	r.waves = slices.Clone(r.waves[:keep])
	for _, groups := range m.policy.Waves {
		w := &refWave{state: Pending, promoted: true}
		for _, g := range groups {
			if own[g] {
				w.groups, w.promoted = append(w.groups, g), w.promoted && promoted[g]
			}
		}
		if len(w.groups) > 0 {
			r.waves = append(r.waves, w)
		}
	}
}

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

// redate finds the deadlines of rollouts anew whose secrets have gone to other versions in a group: these may end sooner.
func (m *reference) redate(names []string) {
	for _, r := range m.under() {
		for _, c := range r.live() {
			if !slices.Contains(names, c.secret) || c.to == "" || r.is(Add) || r.is(Emergency) {
				continue
			}
			for _, g := range m.policy.Groups() {
				if have, ok := m.serves[g][c.secret]; ok && have != c.to {
					r.deadline = sooner(r.deadline, m.lastPartAt(c.secret, have))
				}
			}
		}
	}
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

// String tells what there is, in words that can be compared.
func (m *reference) String() string {
	var p picture
	for _, g := range m.policy.Groups() {
		p.group(g, m.serves[g])
	}
	for _, r := range m.rollouts {
		waves := make([]string, 0, len(r.waves))
		for _, w := range r.waves {
			waves = append(waves, strings.Join(w.groups, "+")+" "+string(w.state))
		}
		p.rollout(r.id, r.state, r.wave, waves, r.wants())
	}
	for id, h := range m.holds {
		p.hold(id, h.kind, h.handshake)
	}
	return p.String()
}

// clone is another reference that goes on from here.
func (m *reference) clone() *reference {
	c := *m
	c.stored, c.serves, c.moves, c.holds = map[string][]cache.Meta{}, map[string]versions{}, map[string][]refMove{}, map[holdID]*refHold{}
	for name, all := range m.stored {
		c.stored[name] = slices.Clone(all)
	}
	for g, at := range m.serves {
		c.serves[g] = maps.Clone(at)
	}
	for g, moves := range m.moves {
		c.moves[g] = slices.Clone(moves)
	}
	for id, h := range m.holds {
		c.holds[id] = new(*h)
	}
	c.rollouts, c.ailing = nil, maps.Clone(m.ailing)
	for _, r := range m.rollouts {
		next := new(*r)
		next.change, next.waves = nil, nil
		for _, one := range r.change {
			next.change = append(next.change, new(*one))
		}
		for _, one := range r.waves {
			w := new(*one)
			w.members = maps.Clone(one.members)
			next.waves = append(next.waves, w)
		}
		c.rollouts = append(c.rollouts, next)
	}
	c.fleet = &fleet{}
	for _, one := range m.fleet.nodes {
		n := new(*one)
		n.sent, n.sentAt, n.acked = maps.Clone(n.sent), maps.Clone(n.sentAt), maps.Clone(n.acked)
		n.serves, n.received = maps.Clone(n.serves), maps.Clone(n.received)
		n.nacked = map[string]map[version]bool{}
		for name, all := range one.nacked {
			n.nacked[name] = maps.Clone(all)
		}
		c.fleet.nodes = append(c.fleet.nodes, n)
	}
	c.prober = new(*m.prober)
	c.prober.fleet = c.fleet
	return &c
}
