package rollout

import (
	"log/slog"
	"maps"
	"slices"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

func (m *model) check(what string) {
	m.t.Helper()
	m.checkDurable(m.claims, what)
	m.checkWaves(what)
	moving := map[string]uint64{}
	for _, r := range m.c.Active() {
		for _, g := range r.occupies() {
			if moving[g] != 0 {
				m.t.Errorf("%s: rollouts %d and %d are both moving group %s", what, moving[g], r.ID, g)
			}
			moving[g] = r.ID
		}
	}
	for _, g := range m.policy.Groups() {
		set := maps.Collect(m.mustAt(g).Secrets.All())
		for name := range m.served[g] {
			if m.claims.broken(3, set[name] == "") {
				m.t.Errorf("%s: %s: %s lost %s", what, invariant(3), g, name)
			}
		}
		for name, v := range set {
			if m.served[g] == nil {
				m.served[g] = map[string]bool{}
			}
			m.served[g][name] = true
			if groups := m.banned[holdID{name, v}]; m.claims.broken(6, groups != nil && !groups[g]) {
				m.t.Errorf("%s: %s: %s moved to %s of %s, which is held", what, invariant(6), g, v.Short(), name)
			}
		}
	}
	for _, h := range m.c.Holds() {
		id := holdID{h.Secret, h.Version}
		if h.Kind == Hard && m.banned[id] == nil {
			m.banned[id] = map[string]bool{}
			for _, g := range m.policy.Groups() {
				m.banned[id][g] = m.at(g, h.Secret) == h.Version
			}
		}
	}
	for _, n := range m.fleet.nodes {
		for name, v := range m.good[n] {
			if m.claims.broken(3, v != "" && n.serves[name] == "") {
				m.t.Errorf("%s: %s: node %s lost %s", what, invariant(3), n.id, name)
			}
		}
		m.good[n] = maps.Clone(n.serves)
	}
}

// checkWaves checks that a group which has got a version it never had, under a name that it had, got it after the earlier waves.
func (m *model) checkWaves(what string) {
	m.t.Helper()
	for _, n := range m.fleet.nodes {
		if m.acks[n] == nil {
			m.acks[n], m.refused[n] = map[holdID]bool{}, map[holdID]bool{}
		}
		for name, versions := range n.nacked {
			for v := range versions {
				m.refused[n][holdID{name, v}] = true
			}
		}
		for name, v := range n.acked {
			m.acks[n][holdID{name, v}] = true
		}
	}
	for _, g := range m.policy.Groups() {
		if m.ever[g] == nil {
			m.ever[g] = map[holdID]bool{}
		}
		now := maps.Collect(m.mustAt(g).Secrets.All())
		for name, v := range now {
			id := holdID{name, v}
			if m.had[g][name] != "" && !m.ever[g][id] && !m.forced[id] && m.by != g {
				m.checkEarlier(what, g, id)
			}
			m.ever[g][id] = true
		}
		m.had[g] = now
	}
}

// checkEarlier checks that each wave before the group's has ACKed a version: one of its nodes at least, and none has refused it.
func (m *model) checkEarlier(what, group string, id holdID) {
	m.t.Helper()
	for _, wave := range m.policy.Waves {
		if slices.Contains(wave, group) {
			return
		}
		there, acked := "", false
		for _, n := range m.fleet.nodes {
			if !slices.Contains(wave, n.group) || !slices.Contains(n.names, id.secret) || m.passed(n.group, id) {
				continue
			}
			acked = acked || m.acks[n][id]
			if n.connected {
				there = n.id
			}
			if m.claims.broken(4, n.nacked[id.secret][id.version]) {
				m.t.Errorf("%s: %s: %s got %s of %s, which %s of %s has refused", what, invariant(4), group, id.version.Short(), id.secret, n.id, n.group)
			}
		}
		if m.claims.broken(4, there != "" && !acked) {
			m.t.Errorf("%s: %s: %s got %s of %s, which no node of %v has ACKed; %s is there", what, invariant(4), group, id.version.Short(), id.secret, wave, there)
		}
	}
}

// passed reports whether a group is at a newer version.
func (m *model) passed(group string, id holdID) bool {
	versions, err := m.cache.Versions(m.ctx(), id.secret)
	if err != nil {
		m.t.Fatal(err)
	}
	at := m.at(group, id.secret)
	place := func(v secret.Version) int {
		return slices.IndexFunc(versions, func(meta cache.Meta) bool { return meta.Version == v })
	}
	return at != id.version && place(at) >= 0 && place(at) < place(id.version)
}

// checkDurable opens what is stored beside what runs, and compares.
func (r *rig) checkDurable(claims claims, what string) {
	r.t.Helper()
	log := slog.New(slog.DiscardHandler)
	stored, err := cache.Open(r.ctx(), cache.Options{Store: r.disk, Log: log})
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	c, err := New(r.ctx(), Options{Cache: stored, Store: r.disk, Fleet: r.fleet, Policy: r.policy, Log: log})
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
	for _, g := range r.cache.Groups() {
		at, ok := stored.At(g)
		same := ok && at.Number == r.mustAt(g).Number && at.Secrets.Equal(r.mustAt(g).Secrets) && len(stored.Moves(g)) == len(r.cache.Moves(g))
		if claims.broken(1, !same) {
			r.t.Errorf("%s: %s: group %s is at %d, the store says %v", what, invariant(1), g, r.mustAt(g).Number, at)
		}
	}
	if claims.broken(1, !slices.Equal(c.Holds(), r.c.Holds())) {
		r.t.Errorf("%s: %s: holds are %v, the store says %v", what, invariant(1), r.c.Holds(), c.Holds())
	}
	have, want := r.c.Active(), c.Active()
	same := slices.EqualFunc(have, want, func(a, b *Rollout) bool {
		return a.ID == b.ID && a.State == b.State && a.Wave == b.Wave && !changed(a, b)
	})
	if claims.broken(1, !same) {
		r.t.Errorf("%s: %s: rollouts are %v, the store says %v", what, invariant(1), have, want)
	}
}
