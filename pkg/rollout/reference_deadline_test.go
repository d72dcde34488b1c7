package rollout

import (
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

// lastPart reports whether a version has under 1/20 of its life left, and whether it has ended.
func (m *reference) lastPart(name string, v version) (last, ended bool) {
	one := m.meta(name, v)
	if one.NotAfter.IsZero() {
		return false, false
	}
	return !m.now.Before(one.NotAfter.Add(-one.NotAfter.Sub(one.NotBefore) / 20)), one.Ended(m.now)
}

// lastPartAt is when the last 1/20 of a version's life begins; zero: never.
func (m *reference) lastPartAt(name string, v version) time.Time {
	one := m.meta(name, v)
	if one.NotAfter.IsZero() {
		return time.Time{}
	}
	return one.NotAfter.Add(-one.NotAfter.Sub(one.NotBefore) / 20)
}

// rescue lets the deadline beat the policy (DESIGN 4.11): what is nearly over is replaced in all groups at once, by the newest version
// that is valid and that no handshake has shown to be bad, or by that one too where what is served has ended.
func (m *reference) rescue() {
	for _, name := range slices.Sorted(maps.Keys(m.stored)) {
		waits := m.onItsWay(name) || slices.ContainsFunc(m.stored[name], m.isHeldBack)
		for n := range 4 { // what nobody holds comes first, but what is nearly over itself last
			i := slices.IndexFunc(m.stored[name], func(one cache.Meta) bool {
				last, _ := m.lastPart(name, one.Version)
				return m.rescues(one, n%2 == 0) && (!last || n >= 2)
			})
			if i >= 0 && waits && m.helps(m.stored[name][i]) && m.may() {
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

// isHeldBack reports whether a version is held while a group serves another one. What a group serves itself does not wait.
func (m *reference) isHeldBack(one cache.Meta) bool {
	return m.isHeld(one.Name, one.Version) && slices.ContainsFunc(m.policy.Groups(), func(g string) bool {
		have, ok := m.serves[g][one.Name]
		last, _ := m.lastPart(one.Name, have)
		return ok && have != one.Version && last
	})
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

// onItsWay reports whether a rollout under way brings a secret, and not as an emergency.
func (m *reference) onItsWay(name string) bool {
	return slices.ContainsFunc(m.under(), func(r *refRollout) bool {
		_, ok := r.brings(name)
		return ok && !r.is(Emergency) && !r.is(Add) && !r.is(Remove)
	})
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

// watchOf is shorter where what the later waves serve ends soon.
func (m *reference) watchOf(r *refRollout) time.Duration {
	if r.deadline.IsZero() {
		return m.policy.Watch
	}
	return max(0, min(m.policy.Watch, r.deadline.Sub(m.now)/time.Duration(len(r.waves)-r.wave)*9/10))
}
