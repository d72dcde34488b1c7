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
	// Watch is how long a wave is watched after it was proven; 0: not at all.
	Watch time.Duration
	// MinAcked is the share of counted nodes that lets a wave go on, in per cent; 0 means 100.
	MinAcked int
	// EmptyWait makes a wave wait for a node that subscribes to a changed secret, in each of its groups.
	EmptyWait bool
	// UndoWindow is how long after its end a rollout is taken back by a NACK or a failed handshake, and may be by an operator.
	UndoWindow time.Duration
	// Gates are values that have to stay low while a wave is watched.
	Gates []Gate
	// Calendar says when a wave may begin; nil: always.
	Calendar Calendar
	// Hook is whether a command has to agree when a wave was watched.
	Hook bool
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

// Gate is a bound for a value that [Options.Gates] reads.
type Gate struct {
	Name string
	// Max is the highest value that passes; nil: any.
	Max *float64
	// MaxIncrease is by how much the value may exceed that before the wave; nil: by any.
	MaxIncrease *float64
	// Percent is whether MaxIncrease is in per cent of the value before.
	Percent bool
	// Timeout is how long a wave waits for a value that cannot be had.
	Timeout time.Duration
}

// bound returns the highest value that passes after a wave; nil: any does.
func (g Gate) bound(before *float64) *float64 {
	limit := g.Max
	if g.MaxIncrease != nil && before != nil {
		increase := *g.MaxIncrease
		if g.Percent {
			increase *= *before / 100
		}
		if most := *before + increase; limit == nil || most < *limit {
			limit = &most
		}
	}
	return limit
}

// minAcked is the share of nodes that lets a wave go on, in per cent.
func (p Policy) minAcked() int {
	if p.MinAcked == 0 {
		return 100
	}
	return p.MinAcked
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
