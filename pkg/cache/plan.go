package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// MaxMoves is the most groups that one Plan may move. Full may be reached before.
const MaxMoves = 30

const (
	// fullCount and fullBytes are where a Plan is full. One more Move adds at most 4 conditions and operations, the record of a
	// snapshot and that of a group; the rest of the store's limits is for what the caller adds.
	fullCount = store.MaxOperations - 40
	fullBytes = 256 << 10
)

// Plan collects what one commit changes: new versions, moved groups, and the caller's own operations. Nothing is visible before
// Commit returns. Only the rollout controller makes Plans, one at a time; a Plan that is dropped has changed nothing.
type Plan struct {
	cache      *Cache
	now        time.Time
	conditions []store.Condition
	operations []store.Operation
	bytes      int // of operations
	pages      []store.Operation
	resources  map[string]map[secret.Version]resource // new or read for this plan
	stored     map[string][]Meta                      // the versions of the secrets that were put, newest first
	moved      []*moved
	made       []*Snapshot
}

// moved is a group that the plan moves.
type moved struct {
	group  *group
	record groupRecord
	value  []byte // the encoded record
	from   *Snapshot
	to     *Snapshot
	fresh  bool
}

// Plan begins a change.
func (c *Cache) Plan() *Plan {
	return &Plan{cache: c, now: now(), resources: map[string]map[secret.Version]resource{}, stored: map[string][]Meta{}}
}

// Add puts the caller's own conditions and operations into the same commit.
func (p *Plan) Add(conditions []store.Condition, operations ...store.Operation) {
	p.conditions = append(p.conditions, conditions...)
	p.operations = append(p.operations, operations...)
	for _, o := range operations {
		p.bytes += len(o.Key) + len(o.Value)
	}
}

// Full reports whether one more Move might not fit into the commit: then this Plan is committed, and another one goes on.
func (p *Plan) Full() bool {
	count, bytes := len(p.conditions)+len(p.operations), p.bytes
	groups := 0
	for _, m := range p.moved {
		if m.changed() {
			groups++
			count += 2
			bytes += len(m.value)
		}
	}
	return groups >= MaxMoves || count > fullCount || bytes > fullBytes
}

// PutSecret stores a validated secret as a new version and returns its description, and true. A version that is stored already is
// described, and false returned; if newer ones were stored since, it becomes the newest again.
func (p *Plan) PutSecret(ctx context.Context, s *secret.Secret, from Origin) (Meta, bool, error) {
	version := p.cache.Version(s)
	stored, err := p.cache.Versions(ctx, s.Name())
	if err != nil {
		return Meta{}, false, err
	}
	known := slices.IndexFunc(stored, func(m Meta) bool { return m.Version == version })
	if known == 0 {
		p.stored[s.Name()] = stored
		return stored[0], false, nil
	}
	meta := describe(s, version, from, p.now)
	if len(stored) > 0 && !meta.Created.After(stored[0].Created) { // the clock was set back
		meta.Created = stored[0].Created.Add(1)
	}
	r := newRecord(meta, s)
	res, err := p.cache.encode(r)
	if err != nil {
		return Meta{}, false, err
	}
	res.dnsNames = meta.DNSNames
	p.keep(resource{Resource: res, meta: meta})
	key := secretKey(s.Name(), version)
	var conditions []store.Condition
	if known < 0 {
		conditions = []store.Condition{{Key: key}}
	} else {
		stored = slices.Delete(stored, known, known+1)
	}
	p.Add(conditions, store.Put(key, mustJSON(r)))
	p.stored[s.Name()] = slices.Insert(stored, 0, meta)
	return meta, known < 0, nil
}

func (p *Plan) keep(res resource) {
	if p.resources[res.Name] == nil {
		p.resources[res.Name] = map[secret.Version]resource{}
	}
	p.resources[res.Name][res.Version] = res
}

// AddGroup makes a group at snapshot 1, unless there is one of that name.
func (p *Plan) AddGroup(ctx context.Context, name string) error {
	if _, ok := p.cache.group(name); ok {
		return nil
	}
	at, err := p.cache.snapshots.get(ctx, firstSnapshot)
	if err != nil {
		return err
	}
	m := &moved{group: newGroup(name, at), record: groupRecord{Name: name, Snapshot: firstSnapshot, Moved: p.now}, from: at, to: at, fresh: true}
	m.value = mustJSON(m.record)
	p.moved = append(p.moved, m)
	return nil
}

// Direction says how a move is remembered.
type Direction int

// The directions of a move.
const (
	Forward Direction = iota // can be taken back later
	Back                     // takes forward moves back
	Beside                   // an addition: it is not part of what can be taken back
)

// Why is the reason of a move.
type Why struct {
	Reason    string // as the snapshot shows it
	Rollout   uint64 // 0: none
	Direction Direction
	Keep      int // for Back: how many of the group's moves stay, counted from the oldest
}

// Move derives the group's next snapshot from the one that it is at, plus changes (an empty version removes the name), and moves it
// there. It returns what really changed for this group; nothing is planned when that is empty.
func (p *Plan) Move(ctx context.Context, groupName string, changes map[string]secret.Version, why Why) ([]Entry, error) {
	m, err := p.target(groupName)
	if err != nil {
		return nil, err
	}
	entries, next, err := p.effect(ctx, m.to.Secrets, changes)
	if err != nil || len(entries) == 0 {
		return nil, err
	}
	to, err := p.snapshot(ctx, m.to, m.to.Secrets.With(next), why.Reason)
	if err != nil {
		return nil, err
	}
	switch why.Direction {
	case Forward:
		move := Move{Rollout: why.Rollout, From: m.to.Number, To: to.Number, At: p.now}
		if len(entries) <= keptEntries {
			move.Entries = entries
		}
		m.record.Moves = append(m.record.Moves, move)
		m.record.Moves = m.record.Moves[max(0, len(m.record.Moves)-keptMoves):]
	case Back:
		m.record.Moves = m.record.Moves[:min(why.Keep, len(m.record.Moves))]
	case Beside:
	}
	m.to, m.record.Snapshot, m.record.Moved = to, to.Number, p.now
	m.value = mustJSON(m.record)
	return entries, nil
}

// target returns the group as this plan leaves it so far.
func (p *Plan) target(name string) (*moved, error) {
	for _, m := range p.moved {
		if m.group.name == name {
			return m, nil
		}
	}
	g, ok := p.cache.group(name)
	if !ok {
		return nil, fmt.Errorf("group %q: unknown", name)
	}
	at := g.at()
	m := &moved{group: g, from: at, to: at, record: groupRecord{Name: name, Snapshot: at.Number, Moves: p.cache.Moves(name)}}
	p.moved = append(p.moved, m)
	return m, nil
}

// effect reduces changes to those that differ from the set, and reads the versions that are not in memory.
func (p *Plan) effect(ctx context.Context, set *Set, changes map[string]secret.Version) ([]Entry, map[string]secret.Version, error) {
	var entries []Entry
	next := map[string]secret.Version{}
	for _, name := range slices.Sorted(maps.Keys(changes)) {
		to := changes[name]
		from, _ := set.Version(name)
		if from == to {
			continue
		}
		if to != "" {
			if err := p.need(ctx, name, to); err != nil {
				return nil, nil, err
			}
		}
		next[name] = to
		entries = append(entries, Entry{Secret: name, From: from, To: to})
	}
	return entries, next, nil
}

// need makes sure that a version can be served once the plan is committed.
func (p *Plan) need(ctx context.Context, name string, version secret.Version) error {
	if _, ok := p.resources[name][version]; ok {
		return nil
	}
	if _, ok := p.cache.resource(name, version); ok {
		return nil
	}
	res, err := p.cache.read(ctx, name, version)
	if err != nil {
		return err
	}
	p.keep(res)
	return nil
}

// snapshot returns the one snapshot that holds set: an equal one if there is, else a new one.
func (p *Plan) snapshot(ctx context.Context, parent *Snapshot, set *Set, reason string) (*Snapshot, error) {
	for _, s := range p.made {
		if s.Secrets.Equal(set) {
			return s, nil
		}
	}
	found, err := p.cache.find(ctx, set)
	if err == nil || !errors.Is(err, ErrNoSnapshot) {
		return found, err
	}
	s := &Snapshot{
		Number: p.cache.snapshots.last + uint64(len(p.made)) + 1, Parent: parent.Number, Reason: reason, Created: p.now, Secrets: set,
		depth: (parent.depth + 1) % fullEvery,
	}
	pages, head := s.operations(parent)
	p.pages = append(p.pages, pages...)
	p.Add([]store.Condition{{Key: snapshotKey(s.Number)}}, head)
	p.made = append(p.made, s)
	return s, nil
}

// Target returns the snapshot that a group is at once the plan is committed; nil for an unknown group.
func (p *Plan) Target(groupName string) *Snapshot {
	for _, m := range p.moved {
		if m.group.name == groupName {
			return m.to
		}
	}
	at, _ := p.cache.At(groupName)
	return at
}

// Placement is a version that a plan puts into a group.
type Placement struct {
	Group    string
	Secret   string
	Version  secret.Version
	Snapshot uint64 // of the group, once the plan is committed
}

// Placements returns the versions that the plan puts into groups so far, by group in the order in which it moves them, then by secret.
func (p *Plan) Placements() []Placement {
	var placements []Placement
	for _, m := range p.moved {
		diff := m.from.Secrets.Diff(m.to.Secrets)
		for _, name := range slices.Sorted(maps.Keys(diff)) {
			if diff[name] != "" {
				placements = append(placements, Placement{m.group.name, name, diff[name], m.to.Number})
			}
		}
	}
	return placements
}

// Empty reports whether a Commit would neither change nor check anything.
func (p *Plan) Empty() bool {
	return len(p.conditions)+len(p.operations) == 0 && !slices.ContainsFunc(p.moved, (*moved).changed)
}

func (m *moved) changed() bool { return m.fresh || m.from.Number != m.to.Number }

// Commit makes the plan durable and then visible: first the store, then the groups' pointers, then the streams that subscribe to a
// changed name are woken. On an error nothing is visible and the plan is void; store.ErrConflict means that another writer was first.
// After any error the outcome may be unknown (the store's answer got lost): Refresh before the next Plan.
func (p *Plan) Commit(ctx context.Context) error {
	var targets []target
	for _, m := range p.moved {
		if m.changed() {
			revision, _ := m.group.stored()
			p.Add([]store.Condition{{Key: groupKey(m.group.name), Revision: revision}}, store.Put(groupKey(m.group.name), m.value))
			targets = append(targets, target{group: m.group, record: m.record, to: m.to})
		}
	}
	for _, page := range p.pages { // one commit each: a page is as large as a commit may be
		if _, err := p.cache.store.Commit(ctx, nil, []store.Operation{page}); err != nil {
			return fmt.Errorf("store a snapshot page: %w", err)
		}
	}
	revision, err := p.cache.store.Commit(ctx, p.conditions, p.operations)
	if err != nil {
		return fmt.Errorf("store the change: %w", err)
	}
	for _, s := range p.made {
		p.cache.snapshots.note(s)
	}
	var resources []resource
	for _, versions := range p.resources {
		resources = slices.AppendSeq(resources, maps.Values(versions))
	}
	for i := range targets {
		targets[i].revision = revision
	}
	p.cache.publish(resources, targets)
	for _, m := range p.moved {
		if m.changed() {
			p.cache.log.InfoContext(ctx, "group moved", "group", m.group.name, "from", m.from.Number, "snapshot", m.to.Number, "reason", m.to.Reason)
		}
	}
	return nil
}

// Meta describes a version that a group is at, or that the plan stores or needs; false for any other.
func (p *Plan) Meta(name string, version secret.Version) (Meta, bool) {
	if res, ok := p.resources[name][version]; ok {
		return res.meta, true
	}
	return p.cache.Meta(name, version)
}

// Versions describes the stored versions of a secret that the plan has put, the newest first; false for any other secret.
func (p *Plan) Versions(name string) ([]Meta, bool) {
	versions, ok := p.stored[name]
	return versions, ok
}
