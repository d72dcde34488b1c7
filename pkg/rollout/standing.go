package rollout

import (
	"fmt"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Standing is how far a version of a secret has come.
type Standing struct {
	// Everywhere: every group is at the version, and no rollout under way changes the secret. So every node that subscribes to it, and
	// was seen within the grace, has ACKed it, or an operator let its wave pass.
	Everywhere bool
	// Nowhere: no group serves the secret, at whatever version, and no rollout under way brings it.
	Nowhere bool
	// Held says why the version is kept back; empty if it is not.
	Held string
}

// Standing tells how far a version has come. It reads memory only.
func (c *Controller) Standing(name string, version secret.Version) Standing {
	c.mu.Lock()
	groups := c.policy.Groups()
	var s Standing
	changing, brought := false, false
	for _, r := range c.active {
		if to, ok := r.brings(name); ok {
			changing, brought = true, brought || to != ""
		}
	}
	if h, ok := c.holds[holdID{name, version}]; ok {
		s.Held = fmt.Sprintf("%s: %s", h.Kind, h.Reason)
	}
	c.mu.Unlock()
	at, serving := 0, 0
	for _, g := range groups {
		snapshot, ok := c.cache.At(g)
		if !ok {
			continue
		}
		if have, ok := snapshot.Secrets.Version(name); ok {
			serving++
			if have == version {
				at++
			}
		}
	}
	s.Everywhere = len(groups) > 0 && at == len(groups) && !changing
	s.Nowhere = len(groups) > 0 && serving == 0 && !brought
	return s
}
