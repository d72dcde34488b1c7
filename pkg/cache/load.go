package cache

import (
	"context"
	"fmt"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Refresh takes over what the store holds. It is called after a commit whose outcome is not known, because the answer got lost, or
// that met the change of another writer; no Plan that was begun before may be committed after it.
func (c *Cache) Refresh(ctx context.Context) error {
	if _, err := c.snapshots.load(ctx); err != nil {
		return err
	}
	return c.loadGroups(ctx)
}

// loadGroups takes over every group whose stored record is not the known one.
func (c *Cache) loadGroups(ctx context.Context) error {
	entries, _, err := c.store.List(ctx, groupPrefix+"/")
	if err != nil {
		return fmt.Errorf("list groups: %w", err)
	}
	at := map[uint64]*Snapshot{}
	for _, e := range entries {
		var r groupRecord
		if err := decode(e, &r); err != nil {
			return err
		}
		if e.Key != groupKey(r.Name) {
			return fmt.Errorf("stored value at %s: it is that of group %q", e.Key, r.Name)
		}
		if err := c.loadGroup(ctx, r, e.Revision, at); err != nil {
			return fmt.Errorf("group %q: %w", r.Name, err)
		}
	}
	c.publish(nil, nil) // the newest snapshot's number
	return nil
}

// loadGroup takes over one group; at keeps the snapshots that were read.
func (c *Cache) loadGroup(ctx context.Context, r groupRecord, revision int64, at map[uint64]*Snapshot) error {
	g, known := c.group(r.Name)
	if known {
		if have, _ := g.stored(); have == revision {
			return nil
		}
	}
	if at[r.Snapshot] == nil {
		s, err := c.snapshots.get(ctx, r.Snapshot)
		if err != nil {
			return err
		}
		at[r.Snapshot] = s
	}
	to := at[r.Snapshot]
	resources, err := c.loadResources(ctx, to.Secrets)
	if err != nil {
		return err
	}
	if !known {
		g = newGroup(r.Name, to)
	}
	c.publish(resources, []target{{group: g, record: r, to: to, revision: revision}})
	return nil
}

// loadResources encodes the versions of a set that are not in memory yet.
func (c *Cache) loadResources(ctx context.Context, set *Set) ([]resource, error) {
	var loaded []resource
	for name, version := range set.All() {
		if _, ok := c.resource(name, version); ok {
			continue
		}
		res, err := c.read(ctx, name, version)
		if err != nil {
			return nil, err
		}
		loaded = append(loaded, res)
	}
	return loaded, nil
}

func (c *Cache) resource(name string, version secret.Version) (resource, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	r, ok := c.resources[name][version]
	return r, ok
}

// Stored returns one version, encoded: that in memory if a group is at it, else from the store. The error is store.ErrNotFound if it was
// pruned or never there.
func (c *Cache) Stored(ctx context.Context, name string, version secret.Version) (*Resource, error) {
	if r, ok := c.resource(name, version); ok {
		return r.Resource, nil
	}
	r, err := c.read(ctx, name, version)
	return r.Resource, err
}

// read loads one version from the store.
func (c *Cache) read(ctx context.Context, name string, version secret.Version) (resource, error) {
	e, err := c.store.Get(ctx, secretKey(name, version))
	if err != nil {
		return resource{}, fmt.Errorf("secret %q version %s: %w", name, version.Short(), err)
	}
	var r record
	if err := decode(e, &r); err != nil {
		return resource{}, err
	}
	if r.Name != name || r.Version != version {
		return resource{}, fmt.Errorf("stored value at %s: it is that of secret %q version %s", e.Key, r.Name, r.Version.Short())
	}
	res, err := c.encode(r)
	if err != nil {
		return resource{}, err
	}
	res.dnsNames = r.DNSNames
	return resource{Resource: res, meta: r.Meta}, nil
}
