package rollout

import (
	"slices"
	"time"
)

// Policy is the live configuration of the controller.
type Policy struct {
	// Waves names every group in exactly one wave.
	Waves [][]string
	// Manual makes every wave after the first wait for a promotion.
	Manual bool
	// AckTimeout is how long a connected node may leave a send unanswered.
	AckTimeout time.Duration
	// NodeGrace is how long a disconnected node holds its wave after it was last seen.
	NodeGrace time.Duration
	// RetryAfter is when a soft hold ends and its secret becomes a rollout of its own again.
	RetryAfter time.Duration
	// Managed reports whether a secret is still configured that was issued, read from files, or made by this server; one that is
	// not is removed through the waves. Imported secrets are not asked about.
	Managed func(name string) bool
}

// Groups returns all groups in the order of the waves.
func (p Policy) Groups() []string {
	var all []string
	for _, w := range p.Waves {
		all = append(all, w...)
	}
	return all
}

// first reports whether a group is in the first wave, which never waits for a promotion.
func (p Policy) first(group string) bool {
	return len(p.Waves) > 0 && slices.Contains(p.Waves[0], group)
}

// last returns the groups of the last wave.
func (p Policy) last() []string {
	if len(p.Waves) == 0 {
		return nil
	}
	return p.Waves[len(p.Waves)-1]
}
