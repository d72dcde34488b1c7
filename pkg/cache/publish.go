package cache

import (
	"maps"
	"slices"

	"github.com/sds-server/sds-server/pkg/secret"
)

// target is where a group shall be, as it is stored already.
type target struct {
	group    *group
	record   groupRecord
	to       *Snapshot
	revision int64
}

// publish makes what is stored visible: all groups switch at once, then the streams that subscribe to a changed name are woken.
func (c *Cache) publish(resources []resource, targets []target) {
	changed, dnsNames := make([][]string, len(targets)), make([][]string, len(targets))
	var stale []string // names of which a version may have gone out of use
	c.mu.Lock()
	c.latest = c.snapshots.last
	for _, res := range resources {
		c.keep(res)
		stale = append(stale, res.Name)
	}
	for i, t := range targets {
		from := t.group.at()
		diff := from.Secrets.Diff(t.to.Secrets)
		dnsNames[i] = c.touched(from.Secrets, diff)
		for name := range diff {
			changed[i] = append(changed[i], name)
			if _, left := from.Secrets.Version(name); left {
				stale = append(stale, name)
			}
		}
		t.group.set(t.record, t.to, t.revision)
		c.groups[t.group.name] = t.group
	}
	slices.Sort(stale)
	c.forget(slices.Compact(stale))
	c.mu.Unlock()
	for i, t := range targets {
		t.group.wake(changed[i], dnsNames[i])
	}
}

// keep adds an encoded version to those in memory. The caller holds mu.
func (c *Cache) keep(res resource) {
	if c.resources[res.Name] == nil {
		c.resources[res.Name] = map[secret.Version]resource{}
	}
	c.resources[res.Name][res.Version] = res
	c.coverage.add(res.meta)
}

// forget drops the encoded versions that no group is at; they stay in the store. The caller holds mu.
func (c *Cache) forget(names []string) {
	for _, name := range names {
		maps.DeleteFunc(c.resources[name], func(version secret.Version, res resource) bool {
			unused := !c.inUse(name, version)
			if unused {
				c.coverage.remove(res.meta)
			}
			return unused
		})
		if len(c.resources[name]) == 0 {
			delete(c.resources, name)
		}
	}
}

// inUse reports whether a group is at the version. The caller holds mu.
func (c *Cache) inUse(name string, version secret.Version) bool {
	for _, g := range c.groups {
		if v, ok := g.at().Secrets.Version(name); ok && v == version {
			return true
		}
	}
	return false
}
