package rollout

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// reference is DESIGN 7 written down a second time, as simply as it can be: everything stands in maps, nothing is stored, copied or kept
// that can be found out by looking, and there are no transactions. It has a fleet, and handshakes, of its own, and knows nothing of
// what the controller did.
type reference struct {
	policy   Policy
	fleet    *fleet
	prober   *probes
	meters   *meters
	hook     *command
	now      time.Time
	looked   time.Time
	stored   map[string][]cache.Meta // the newest first
	serves   map[string]versions     // by group
	moves    map[string][]refMove    // by group: what can be taken back, oldest first
	holds    map[holdID]*refHold
	rollouts []*refRollout // all there ever were
	ailing   map[string]bool
}

// refMove is one move of a group that can be taken back.
type refMove struct {
	rollout int
	from    versions
	to      versions
}

type refHold struct {
	kind      HoldKind
	since     time.Time
	handshake bool
}

type refRollout struct {
	id             int
	state          State
	change         []*refChange
	waves          []*refWave
	wave           int // index of the wave under way
	paused, parked bool
	alone          bool
	started        time.Time
	asked          time.Time // since when gates are asked before a wave
	deadline       time.Time
	finished       time.Time
}

type refChange struct {
	secret   string
	from, to version
	kind     Kind
	left     bool
}

type refWave struct {
	groups                    []string
	state                     State
	promoted, stalled, forced bool
	moved                     []string
	at, since                 time.Time
	members                   map[string]time.Time // when each was last seen; zero while it is there
	before                    map[string]*float64  // values of the gates
	watch, watched            time.Duration
	ticked, complete          time.Time
	acked                     bool // a node had, when handshakes began
}

func newReference(p Policy) *reference {
	m := &reference{
		policy: p, fleet: &fleet{}, meters: &meters{}, hook: &command{}, stored: map[string][]cache.Meta{}, serves: map[string]versions{},
		moves: map[string][]refMove{}, holds: map[holdID]*refHold{}, ailing: map[string]bool{},
	}
	m.prober = &probes{fleet: m.fleet}
	for _, g := range p.Groups() {
		m.serves[g] = versions{}
	}
	return m
}

// live are the changes that are still part of a rollout.
func (r *refRollout) live() []*refChange {
	var live []*refChange
	for _, c := range r.change {
		if !c.left {
			live = append(live, c)
		}
	}
	return live
}

func (r *refRollout) wants() versions {
	want := versions{}
	for _, c := range r.live() {
		want[c.secret] = c.to
	}
	return want
}

func (r *refRollout) secrets() []string {
	var names []string
	for _, c := range r.live() {
		names = append(names, c.secret)
	}
	return names
}

func (r *refRollout) brings(name string) (version, bool) {
	v, ok := r.wants()[name]
	return v, ok
}

func (r *refRollout) leave(names []string) {
	for _, c := range r.change {
		c.left = c.left || slices.Contains(names, c.secret)
	}
}

func (r *refRollout) is(kind Kind) bool { return r.change[0].kind == kind }

func (r *refRollout) current() *refWave {
	if r.wave >= len(r.waves) {
		return nil
	}
	return r.waves[r.wave]
}

func (w *refWave) moving() bool { return w != nil && w.state.moved() }

func (w *refWave) holds(group string) bool { return slices.Contains(w.groups, group) }

// end ends a rollout.
func (m *reference) end(r *refRollout, s State) {
	r.state, r.finished = s, m.now
}

// under are the rollouts under way.
func (m *reference) under() []*refRollout {
	return slices.DeleteFunc(slices.Clone(m.rollouts), func(r *refRollout) bool { return r.state.Ended() })
}

// step does everything that is due.
func (m *reference) step(now time.Time) {
	m.now = now
	for _, name := range slices.Sorted(maps.Keys(m.ailing)) { // another version of what was taken back may wait
		if m.ailing[name] && m.managed(name) {
			m.heal(name, false)
		}
	}
	clear(m.ailing)
	m.retry()
	m.lookBack()
	m.rescue()
	for progress := true; progress; {
		progress = false
		for _, r := range m.under() {
			for m.advance(r) {
				progress = true
			}
		}
	}
}

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
				m.hold(name, id.version, Hard, false)
				names = append(names, name)
			}
		}
		if len(names) > 0 {
			slices.Sort(names)
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

// meta describes a stored version.
func (m *reference) meta(name string, v version) cache.Meta {
	for _, one := range m.stored[name] {
		if one.Version == v {
			return one
		}
	}
	return cache.Meta{}
}

// newer reports whether a version is stored, and was not stored before another one.
func (m *reference) atLeast(name string, v, than version) bool {
	for _, one := range m.stored[name] { // the newest first
		switch one.Version {
		case v:
			return true
		case than:
			return false
		}
	}
	return false
}

// lastPart reports whether a version has under 1/20 of its life left, and whether it has ended.
func (m *reference) lastPart(name string, v version) (last, ended bool) {
	one := m.meta(name, v)
	if one.NotAfter.IsZero() {
		return false, false
	}
	return !m.now.Before(one.NotAfter.Add(-one.NotAfter.Sub(one.NotBefore) / 20)), one.Ended(m.now)
}

// rescue lets the deadline beat the policy (DESIGN 4.11): what is nearly over is replaced in all groups at once, by the newest version
// that is valid and that no handshake has shown to be bad, or by that one too where what is served has ended.
func (m *reference) rescue() {
	for _, name := range slices.Sorted(maps.Keys(m.stored)) {
		waits := m.onItsWay(name) || slices.ContainsFunc(m.stored[name], func(one cache.Meta) bool { return m.isHeld(name, one.Version) })
		for _, free := range []bool{true, false} { // what nobody holds comes first
			i := slices.IndexFunc(m.stored[name], func(one cache.Meta) bool { return m.rescues(one, free) })
			if i >= 0 && waits && m.helps(m.stored[name][i]) {
				m.propose(refIntent{secret: name, version: m.stored[name][i].Version, now: true})
				break
			}
		}
	}
	for _, r := range m.under() { // what is left of a train has deadlines of its own
		if !r.deadline.IsZero() && !m.now.Before(r.deadline) {
			r.deadline = time.Time{}
			for _, c := range r.live() {
				for _, g := range m.policy.Groups() {
					if have := m.serves[g][c.secret]; have != c.to {
						if last := m.lastPartAt(c.secret, have); m.now.Before(last) {
							r.deadline = sooner(r.deadline, last)
						}
					}
				}
			}
		}
	}
}

// rescues reports whether a version may be served where nothing else is left: free ones are not held.
func (m *reference) rescues(one cache.Meta, free bool) bool {
	h := m.holds[holdID{one.Name, one.Version}]
	if one.Ended(m.now) || free && h != nil {
		return false
	}
	return h == nil || !h.handshake || slices.ContainsFunc(m.policy.Groups(), func(g string) bool {
		have, ok := m.serves[g][one.Name]
		_, ended := m.lastPart(one.Name, have)
		return ok && have != one.Version && ended
	})
}

// helps reports whether a group serves an older version that is nearly over, and this one lasts longer.
func (m *reference) helps(one cache.Meta) bool {
	dying := false
	var end time.Time
	for _, g := range m.policy.Groups() {
		if have, ok := m.serves[g][one.Name]; ok && have != one.Version && !m.atLeast(one.Name, have, one.Version) {
			last, _ := m.lastPart(one.Name, have)
			dying, end = dying || last, sooner(end, m.meta(one.Name, have).NotAfter)
		}
	}
	return dying && (one.NotAfter.IsZero() || end.Before(one.NotAfter))
}

// lastPartAt is when the last 1/20 of a version's life begins; zero: never.
func (m *reference) lastPartAt(name string, v version) time.Time {
	one := m.meta(name, v)
	if one.NotAfter.IsZero() {
		return time.Time{}
	}
	return one.NotAfter.Add(-one.NotAfter.Sub(one.NotBefore) / 20)
}

// onItsWay reports whether a rollout under way brings a secret, and not as an emergency.
func (m *reference) onItsWay(name string) bool {
	return slices.ContainsFunc(m.under(), func(r *refRollout) bool {
		_, ok := r.brings(name)
		return ok && !r.is(Emergency) && !r.is(Add) && !r.is(Remove)
	})
}

// hold keeps a version back. A hold is not weakened.
func (m *reference) hold(name string, v version, kind HoldKind, handshake bool) {
	have := m.holds[holdID{name, v}]
	if v == "" || have != nil && have.kind.weight() >= kind.weight() {
		if have != nil && kind == Hard {
			have.handshake = have.handshake || handshake
		}
		return
	}
	m.holds[holdID{name, v}] = &refHold{kind: kind, since: m.now, handshake: handshake}
}

func (m *reference) isHeld(name string, v version) bool { return m.holds[holdID{name, v}] != nil }

// usable reports whether a version may be served again; the empty one is a removal.
func (m *reference) usable(name string, v version) bool {
	if v == "" {
		return true
	}
	one := m.meta(name, v)
	return one.Version == v && !one.Ended(m.now) && !m.isHeld(name, v)
}

// move changes what a group serves.
func (m *reference) move(group string, change versions, rollout int, direction cache.Direction, keep int) {
	move := refMove{rollout: rollout, from: versions{}, to: versions{}}
	for name, v := range change {
		if have := m.serves[group][name]; have != v {
			move.from[name], move.to[name] = have, v
		}
	}
	if len(move.to) == 0 {
		return
	}
	for name, v := range move.to {
		if m.serves[group][name] = v; v == "" {
			delete(m.serves[group], name)
		}
	}
	switch direction {
	case cache.Forward:
		m.moves[group] = append(m.moves[group], move)
		m.moves[group] = m.moves[group][max(0, len(m.moves[group])-16):] // so many are kept
	case cache.Back:
		m.moves[group] = m.moves[group][:keep]
	case cache.Beside:
	}
	m.redate(slices.Collect(maps.Keys(move.to)))
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
