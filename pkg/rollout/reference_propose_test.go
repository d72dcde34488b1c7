package rollout

import (
	"maps"
	"slices"
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
