package cache

import (
	"context"
	"slices"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// keptVersions is how many versions of a secret are kept, whoever refers to them.
const keptVersions = 3

// Prune deletes the versions of a secret that are neither among the newest three, nor where a group is or its last move would go back
// to, nor wanted by keep (rollouts, holds). What does not fit into the commit is left to the next Prune.
func (p *Plan) Prune(ctx context.Context, name string, keep func(secret.Version) bool) error {
	versions, ok := p.stored[name]
	if !ok {
		var err error
		if versions, err = p.cache.Versions(ctx, name); err != nil {
			return err
		}
	}
	if len(versions) <= keptVersions {
		return nil
	}
	wanted, err := p.wanted(ctx, name)
	if err != nil {
		return err
	}
	for _, m := range versions[keptVersions:] {
		if !keep(m.Version) && !slices.Contains(wanted, m.Version) && !p.Full() {
			p.Add(nil, store.Delete(secretKey(name, m.Version)))
		}
	}
	return nil
}

// wanted lists the versions of a secret that the groups are at, or would be at after taking back their last move.
func (p *Plan) wanted(ctx context.Context, name string) ([]secret.Version, error) {
	var versions []secret.Version
	add := func(v secret.Version) {
		if v != "" && !slices.Contains(versions, v) {
			versions = append(versions, v)
		}
	}
	for _, group := range p.cache.Groups() {
		at, moves := p.standing(group)
		v, _ := at.Secrets.Version(name)
		add(v)
		if len(moves) == 0 {
			continue
		}
		entries, err := p.entries(ctx, moves[len(moves)-1])
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if e.Secret == name {
				add(e.From)
			}
		}
	}
	return versions, nil
}

// standing returns where the plan leaves a group, and the moves that can be taken back then.
func (p *Plan) standing(group string) (*Snapshot, []Move) {
	for _, m := range p.moved {
		if m.group.name == group {
			return m.to, m.record.Moves
		}
	}
	at, _ := p.cache.At(group)
	return at, p.cache.Moves(group)
}

// entries returns what a move changes. One whose snapshots this plan makes is not stored yet.
func (p *Plan) entries(ctx context.Context, m Move) ([]Entry, error) {
	if slices.ContainsFunc(p.made, func(s *Snapshot) bool { return s.Number == m.To }) && len(m.Entries) == 0 {
		return nil, nil
	}
	return p.cache.Entries(ctx, m)
}
