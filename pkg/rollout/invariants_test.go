package rollout

import (
	"errors"
	"maps"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// invariants are those of DESIGN 4 that concern this package, each by its name. They look at the controller alone.
type invariants struct {
	accepted map[holdID]time.Time // what was validated, and when it ends
	last     *secret.Secret       // the newest of them
	digest   version              // and its version
	at       map[string]versions  // by group, at the last look

	snapshots map[string]*cache.Snapshot // likewise
	durable   int64                      // revision of the store when it was compared last
	had       map[string]map[holdID]bool // by group, ever
	held      map[holdID]bool            // held hard at the last look
	removed   map[string]bool            // names that left the configuration once
	newest    map[string]version         // by name: the last one of which Accept said that it is stored
	good      map[*node]versions         // what nodes that refuse something serve, where it was stored then
	claims    claims
}

func (i *invariants) init() {
	i.accepted, i.at, i.had = map[holdID]time.Time{}, map[string]versions{}, map[string]map[holdID]bool{}
	i.snapshots = map[string]*cache.Snapshot{}
	i.held, i.removed, i.newest, i.good, i.claims = map[holdID]bool{}, map[string]bool{}, map[string]version{}, map[*node]versions{}, claims{}
}

// accepts notes what is validated before the controller sees it.
func (i *invariants) accepts(h *history, s *secret.Secret, life time.Duration) {
	i.last, i.digest = s, h.cache.Version(s)
	i.accepted[holdID{s.Name(), i.digest}] = time.Now().Add(life).Truncate(time.Second)
}

// broken reports an invariant that does not hold.
func (h *history) broken(number int, format string, args ...any) {
	h.t.Helper()
	h.t.Errorf("seed %d, after %d actions: %s: "+format, append([]any{h.seed, len(h.acts), invariant(number)}, args...)...)
}

// looked checks what has to hold at every moment.
func (i *invariants) looked(h *history) {
	h.t.Helper()
	for name := range h.gone {
		i.removed[name] = i.removed[name] || h.gone[name]
	}
	for _, g := range h.policy.Groups() {
		at := h.mustAt(g)
		if i.snapshots[g] == at {
			continue // nearly always
		}
		i.snapshots[g] = at
		now := versions(maps.Collect(at.Secrets.All()))
		for name := range i.at[g] {
			if i.claims.broken(3, now[name] == "" && !i.removed[name]) {
				h.broken(3, "%s lost %s", g, name)
			}
		}
		if i.had[g] == nil {
			i.had[g] = map[holdID]bool{}
		}
		for name, v := range now {
			id := holdID{name, v}
			if i.claims.broken(2, i.accepted[id].IsZero()) {
				h.broken(2, "%s serves %s %s, which was never accepted", g, name, short(v))
			}
			if i.at[g][name] != v {
				i.moved(h, g, id)
			}
			i.had[g][id] = true
		}
		i.at[g] = now
	}
	clear(i.held)
	for _, one := range h.c.Holds() {
		i.held[holdID{one.Secret, one.Version}] = one.Kind == Hard
	}
	i.alive(h)
}

// moved checks a move of a group to a version. It may go back to one that it served itself, as a last resort.
func (i *invariants) moved(h *history, group string, id holdID) {
	h.t.Helper()
	carried, urgent := false, false
	for _, r := range h.rollouts() {
		w := r.waveOf(group)
		for _, c := range r.Change {
			if c.Secret == id.secret && c.To == id.version && w >= 0 && len(r.Waves[w].Moved) > 0 {
				carried, urgent = true, urgent || c.Kind == Emergency
			}
		}
	}
	if i.claims.broken(4, !carried && !i.had[group][id] && h.jumped != group) {
		h.broken(4, "%s got %s %s, which no rollout brought", group, id.secret, short(id.version))
	}
	if i.claims.broken(6, i.held[id] && !i.had[group][id] && h.held(id.secret, id.version) == Hard && !urgent) {
		h.broken(6, "%s got %s %s, which is held", group, id.secret, short(id.version))
	}
}

// alive checks that the deadline beats the policy.
func (i *invariants) alive(h *history) {
	h.t.Helper()
	for _, g := range h.policy.Groups() {
		for name, v := range i.at[g] {
			if h.gone[name] {
				continue
			}
			if time.Now().Before(i.accepted[holdID{name, v}]) {
				continue
			}
			if waits, ok := waiting(h, must(h.cache.Versions(h.ctx(), name)), v); i.claims.broken(11, ok) {
				h.broken(11, "%s serves %s %s, which has expired, while %s waits", g, name, short(v), short(waits))
			}
		}
	}
}

// waiting returns a newer version that is valid, and that no handshake has rejected.
func waiting(h *history, versions []cache.Meta, than version) (version, bool) {
	shown := map[version]bool{}
	for _, one := range h.c.Holds() {
		shown[one.Version] = one.Handshake
	}
	for _, one := range versions {
		switch {
		case one.Version == than:
			return "", false
		case !one.Ended(time.Now()) && !shown[one.Version]:
			return one.Version, true
		}
	}
	return "", false
}

// settled checks what has to hold when nothing is due.
func (i *invariants) settled(h *history) {
	h.t.Helper()
	i.stored(h)
	if now := h.memory.at(); !h.c.doubt && (now != i.durable || len(h.acts)%4 == 0) {
		i.durable = now
		h.checkDurable(i.claims, "the end of an action")
	}
	moving := map[string]uint64{}
	for _, r := range h.c.Active() {
		for _, g := range r.occupies() {
			if i.claims.broken(4, moving[g] != 0) {
				h.broken(4, "rollouts %d and %d are both moving %s", moving[g], r.ID, g)
			}
			moving[g] = r.ID
		}
	}
}

// stored checks that what was taken in is still there, and what nodes that refuse go on with.
func (i *invariants) stored(h *history) {
	h.t.Helper()
	for _, name := range h.names {
		there := map[version]bool{}
		for _, one := range must(h.cache.Versions(h.ctx(), name)) {
			there[one.Version] = true
		}
		if v := i.newest[name]; i.claims.broken(9, v != "" && !there[v]) {
			h.broken(9, "%s %s was accepted, and is gone", name, short(v))
		}
		for _, n := range h.fleet.nodes {
			v := n.serves[name]
			if i.good[n] == nil {
				i.good[n] = versions{}
			}
			if i.good[n][name] == v && v != "" && i.claims.broken(6, len(n.nacked[name]) > 0 && !there[v]) {
				h.broken(6, "%s has refused a version of %s, and %s, which it serves, is gone", n.id, name, short(v))
			}
			if i.good[n][name] = ""; len(n.nacked[name]) > 0 && there[v] {
				i.good[n][name] = v
			}
		}
	}
}

// restarted checks that a restart finds everything where it was, before anything is healed.
func (i *invariants) restarted(h *history, before string) {
	h.t.Helper()
	if after := h.String(); i.claims.broken(5, before != "" && after != before) {
		h.broken(5, "got\n%s\nwant\n%s", after, before)
	}
	if i.claims.broken(5, i.last != nil && h.cache.Version(i.last) != i.digest) {
		h.broken(5, "got %s, want %s", short(h.cache.Version(i.last)), short(i.digest))
	}
}

// watches checks that a restart loses little of a watch: 10 s at most, and what the look whose commit failed saw. The reference takes over what is left.
func (i *invariants) watches(h *history, ref *reference) {
	h.t.Helper()
	for _, r := range ref.under() {
		w := r.current()
		if w == nil || w.state != Watching {
			continue
		}
		one, err := h.c.Rollout(h.ctx(), r.id64())
		if errors.Is(err, ErrNoRollout) { // what the reference would have done is not done
			continue
		}
		if err != nil {
			h.t.Fatal(err)
		}
		if have := one.current(); have != nil && have.State == Watching && one.Wave == r.wave {
			stored := seconds(have.Watched)
			tick := Wave{Watch: w.watch.Seconds()}.tick()
			w.watched += min(time.Since(w.ticked), 2*tick) // the controller may have looked once more
			if lost := w.watched - stored; i.claims.broken(5, lost < 0 || lost > storeWatched+2*tick) {
				h.broken(5, "of %s, %s are stored", w.watched, stored)
			}
			w.watched, w.ticked = stored, time.Now()
		}
	}
}

func (r *refRollout) id64() uint64 { return uint64(r.id) }
