package cache

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/sds-server/sds-server/pkg/store"
)

// Snapshot returns any snapshot that was ever made, or ErrNoSnapshot.
func (c *Cache) Snapshot(ctx context.Context, number uint64) (*Snapshot, error) {
	reader := snapshots{store: c.store}
	return reader.get(ctx, number)
}

// Head is a snapshot without its set.
type Head struct {
	Number, Parent uint64
	Reason         string
	Created        string // RFC 3339, UTC
}

// Heads lists every snapshot without its set, the oldest number first.
func (c *Cache) Heads(ctx context.Context) ([]Head, error) {
	entries, _, err := c.store.List(ctx, snapshotPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	heads := make([]Head, 0, len(entries))
	for _, e := range entries {
		var r struct {
			Number  uint64 `json:"number"`
			Parent  uint64 `json:"parent"`
			Reason  string `json:"reason"`
			Created string `json:"created"`
		}
		if err := json.Unmarshal(e.Value, &r); err != nil {
			return nil, fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		heads = append(heads, Head(r))
	}
	return heads, nil
}

// Versions describes every stored version of a secret, the newest first; an empty list if there is none.
func (c *Cache) Versions(ctx context.Context, name string) ([]Meta, error) {
	return c.list(ctx, store.Key(secretPrefix, name)+"/")
}

// Secrets describes every stored version of every secret, sorted by name, the newest first.
func (c *Cache) Secrets(ctx context.Context) ([]Meta, error) {
	return c.list(ctx, secretPrefix+"/")
}

func (c *Cache) list(ctx context.Context, prefix string) ([]Meta, error) {
	entries, _, err := c.store.List(ctx, prefix)
	if err != nil {
		return nil, fmt.Errorf("list secrets: %w", err)
	}
	metas := make([]Meta, 0, len(entries))
	for _, e := range entries {
		var m Meta
		if err := decode(e, &m); err != nil {
			return nil, err
		}
		metas = append(metas, m)
	}
	slices.SortStableFunc(metas, newestFirst)
	return metas, nil
}
