package rollout

import (
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

	faulty  bool // only so many things are done as are allowed
	allowed int
	cut     bool // something was not done for that
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
		if m.ailing[name] && m.managed(name) && m.may() {
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
			for m.may() && m.advance(r) {
				progress = true
			}
		}
	}
}

// may reports whether one more thing that is due may be done, where a fault lets only some be: what the controller stores by one commit is one.
func (m *reference) may() bool {
	if m.faulty && m.allowed == 0 {
		m.cut = true
		return false
	}
	m.allowed--
	return true
}

// halves returns what there is when a step breaks off: with nothing done, with everything, and then with ever more of what is due.
func (m *reference) halves(now time.Time) []*reference {
	var all []*reference
	seen := map[string]bool{}
	for n := 0; ; n++ {
		c := m.clone()
		c.faulty, c.allowed = true, n
		c.step(now)
		whole := !c.cut
		c.faulty, c.cut = false, false
		if what := c.String(); !seen[what] || whole {
			seen[what] = true
			all = append(all, c)
		}
		if whole {
			break
		}
	}
	last := len(all) - 1
	return append([]*reference{all[0], all[last]}, all[1:max(1, last)]...)
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

func (m *reference) holdAll(r *refRollout, kind HoldKind) {
	for _, c := range r.live() {
		m.hold(c.secret, c.to, kind, false)
	}
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
