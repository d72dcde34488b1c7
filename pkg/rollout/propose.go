package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// ErrHeld is returned for a version that an operator or a NACK keeps back.
var ErrHeld = errors.New("held")

// Proposal is a validated secret that shall be served.
type Proposal struct {
	Secret *secret.Secret
	Source cache.Source
	Issuer string // configured name; empty for imports
	// Profile is the one that the issuer was asked for; see [cache.Meta].
	Profile *string
	By      string // operator, or "" for the server itself
	Reason  string

	// Conditions and Operations go into the same commit as the version, so that a crash leaves both or neither.
	Conditions []store.Condition
	Operations []store.Operation
}

// Accepted tells what became of a proposal.
type Accepted struct {
	Meta     cache.Meta
	Rollout  uint64 // 0: every group serves the version already
	Snapshot uint64 // of the first wave's first group
}

// Accept stores a new version and begins its rollout: groups that do not have the secret get it at once, the others go by waves.
// When it returns nil, everything is durable and the first wave is on its way.
func (c *Controller) Accept(ctx context.Context, p Proposal) (Accepted, error) {
	if err := c.take(ctx); err != nil {
		return Accepted{}, err
	}
	defer c.leave()
	t := c.begin()
	meta, _, err := t.PutSecret(ctx, p.Secret, cache.Origin{Source: p.Source, Issuer: p.Issuer, Profile: p.Profile})
	if err != nil {
		return Accepted{}, err
	}
	if h, ok := t.held(meta.Name, meta.Version); ok {
		return Accepted{}, fmt.Errorf("secret %q version %s is %w (%s): %s", meta.Name, meta.Version.Short(), ErrHeld, h.Kind, h.Reason)
	}
	t.Add(p.Conditions, p.Operations...)
	id, err := t.propose(ctx, intent{secret: meta.Name, version: meta.Version, reason: p.Reason, by: p.By})
	if err != nil {
		return Accepted{}, err
	}
	if err := t.Prune(ctx, meta.Name, t.refersTo(meta.Name)); err != nil {
		return Accepted{}, err
	}
	accepted := Accepted{Meta: meta, Rollout: id}
	if groups := t.policy.Groups(); len(groups) > 0 {
		accepted.Snapshot = t.Target(groups[0]).Number
	}
	if err := t.commit(ctx); err != nil {
		return Accepted{}, err
	}
	c.Wake()
	return accepted, nil
}

// refersTo reports which versions of a secret rollouts under way, holds and nodes speak of.
func (t *transaction) refersTo(name string) func(secret.Version) bool {
	needed := func(secret.Version) bool { return false }
	if t.c.refers != nil {
		needed = t.c.refers(name)
	}
	return func(v secret.Version) bool {
		if _, held := t.held(name, v); held || needed(v) {
			return true
		}
		return slices.ContainsFunc(t.activeIDs(), func(id uint64) bool {
			return slices.ContainsFunc(t.look(id).Change, func(c Change) bool { return c.Secret == name && (c.From == v || c.To == v) })
		})
	}
}

// intent is a version of a secret that every group shall get.
type intent struct {
	secret     string
	version    secret.Version // empty: removal
	reason, by string
	leave      map[string]bool // groups that stay as they are
	now        bool            // to all groups at once
	alone      bool            // in no train
}

// propose begins what an intent needs. It supersedes what was under way for the secret, and returns the rollout that brings the version,
// or 0 if every group serves it.
func (t *transaction) propose(ctx context.Context, in intent) (uint64, error) {
	name, version := in.secret, in.version
	id, covered := t.carriers(name, version)
	in.now = version != "" && (in.now || t.due(name, version, t.policy.Groups()))
	if in.now { // whatever carries it is too slow
		id, covered = t.hurriers(name, version)
	}
	t.supersede(in)
	given := maps.Clone(covered)
	maps.Copy(covered, in.leave)
	lacking, behind := t.sort(name, version, covered)
	if len(lacking) > 0 {
		r := t.create(in, []Change{{Secret: name, To: version, Kind: Add}}, [][]string{lacking})
		if _, err := t.advance(ctx, r); err != nil {
			return 0, err
		}
		id = r.ID
	}
	if len(behind) == 0 {
		return id, nil
	}
	kind, err := t.kind(ctx, in, behind)
	if err != nil {
		return 0, err
	}
	waves := [][]string{behind}
	if kind != Emergency {
		waves = t.wavesOf(name, version, behind, given)
	}
	from, _ := t.has(behind[len(behind)-1], name)
	r := t.create(in, []Change{{Secret: name, From: from, To: version, Kind: kind}}, waves)
	if kind != Emergency && kind != Remove {
		r.Deadline, _ = t.soonest(name, version, behind)
	}
	_, err = t.advance(ctx, r)
	return r.ID, err
}

// kind says what a change does to the groups that are behind.
func (t *transaction) kind(ctx context.Context, in intent, behind []string) (Kind, error) {
	switch {
	case in.version == "":
		return Remove, nil
	case in.now:
		return Emergency, nil
	}
	versions, err := t.stored(ctx, in.secret)
	if err != nil {
		return "", err
	}
	find := func(v secret.Version) *cache.Meta {
		if i := slices.IndexFunc(versions, func(m cache.Meta) bool { return m.Version == v }); i >= 0 {
			return &versions[i]
		}
		return nil
	}
	var asked []secret.Version
	for _, g := range behind {
		have, _ := t.has(g, in.secret)
		if slices.Contains(asked, have) {
			continue
		}
		asked = append(asked, have)
		if have == "" || chainChanges(find(have), find(in.version)) {
			return Chain, nil
		}
	}
	return Renewal, nil
}

// hurriers is carriers, for emergencies alone.
func (t *transaction) hurriers(name string, version secret.Version) (id uint64, covered map[string]bool) {
	covered = map[string]bool{}
	for _, active := range t.activeIDs() {
		if r := t.look(active); r.carries(name, version) && (r.emergency() || r.addition()) {
			id = active
			for _, w := range r.Waves[r.Wave:] {
				for _, g := range w.Groups {
					covered[g] = true
				}
			}
		}
	}
	return id, covered
}

// wavesOf returns the waves of the groups that are behind. Before the last of them stand also the groups that serve the version already,
// or are being given it: their nodes have to ACK it before a later wave moves.
func (t *transaction) wavesOf(name string, version secret.Version, behind []string, given map[string]bool) [][]string {
	last := 0
	for i, groups := range t.policy.Waves {
		if slices.ContainsFunc(groups, func(g string) bool { return slices.Contains(behind, g) }) {
			last = i
		}
	}
	var waves [][]string
	for i, groups := range t.policy.Waves[:last+1] {
		without := func(g string) bool {
			have, ok := t.has(g, name)
			asked := i < last && version != "" && (ok && have == version || given[g])
			return !asked && !slices.Contains(behind, g)
		}
		if w := slices.DeleteFunc(slices.Clone(groups), without); len(w) > 0 {
			waves = append(waves, w)
		}
	}
	return waves
}

// carriers returns the groups to which rollouts under way bring exactly this version, and the newest of these rollouts.
func (t *transaction) carriers(name string, version secret.Version) (id uint64, covered map[string]bool) {
	covered = map[string]bool{}
	for _, active := range t.activeIDs() {
		r := t.look(active)
		if !r.carries(name, version) {
			continue
		}
		id = active
		for _, w := range r.Waves[r.Wave:] {
			for _, g := range w.Groups {
				covered[g] = true
			}
		}
	}
	return id, covered
}

// carries reports whether the rollout brings exactly this version, and is not being taken back.
func (r *Rollout) carries(name string, version secret.Version) bool {
	to, ok := r.brings(name)
	return ok && to == version
}

// sort tells which groups lack the secret, and which have another version of it, leaving out those that are covered.
func (t *transaction) sort(name string, version secret.Version, covered map[string]bool) (lacking, behind []string) {
	for _, g := range t.policy.Groups() {
		switch have, ok := t.has(g, name); {
		case covered[g]:
		case !ok && version != "" && !t.displaces(g, name, version):
			lacking = append(lacking, g)
		case have != version:
			behind = append(behind, g)
		}
	}
	return lacking, behind
}

// displaces reports whether a secret that a group does not have would take names from others there: then it can make something worse, and is no
// addition.
func (t *transaction) displaces(group, name string, version secret.Version) bool {
	m, ok := t.Meta(name, version)
	return ok && t.c.fleet.Displaces(group, name, m.DNSNames)
}

// supersede takes a secret out of the rollouts under way that bring another version of it, or that are too slow.
func (t *transaction) supersede(in intent) {
	for _, id := range t.activeIDs() {
		r := t.look(id)
		if _, ok := r.brings(in.secret); !ok || r.carries(in.secret, in.version) && (!in.now || r.emergency() || r.addition()) {
			continue
		}
		r = t.edit(id)
		t.holdRefused(r, in.secret)
		why := "another version of " + in.secret + " took over: " + in.reason
		if r.carries(in.secret, in.version) {
			why = in.secret + " goes to all groups at once: " + in.reason
		}
		r.leave(in.secret, why)
		switch {
		case !r.empty():
			t.goesOn(r, why, "")
		case r.Unwind == nil:
			if w := r.current(); w != nil {
				w.Members = nil
			}
			r.log(t.now, Superseded, why, "")
		}
	}
}

func (t *transaction) create(in intent, change []Change, waves [][]string) *Rollout {
	t.last++
	r := &Rollout{ID: t.last, Started: t.now, Change: change, Alone: in.alone}
	for _, groups := range waves {
		r.Waves = append(r.Waves, Wave{Groups: groups, State: Pending})
	}
	r.log(t.now, Waiting, in.reason, in.by)
	t.rollouts[r.ID] = r
	return r
}
