package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// History returns every stored rollout, oldest first.
func (c *Controller) History(ctx context.Context) ([]*Rollout, error) {
	entries, _, err := c.store.List(ctx, rolloutPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("list rollouts: %w", err)
	}
	all := make([]*Rollout, 0, len(entries))
	for _, e := range entries {
		r, err := parse(e)
		if err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, nil
}

// Rollout returns one rollout, whatever its state, as it was stored last.
func (c *Controller) Rollout(ctx context.Context, id uint64) (*Rollout, error) {
	e, err := c.store.Get(ctx, rolloutKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("rollout %d: %w", id, ErrNoRollout)
	}
	if err != nil {
		return nil, fmt.Errorf("rollout %d: %w", id, err)
	}
	return parse(e)
}

func parse(e store.Entry) (*Rollout, error) {
	var r Rollout
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, fmt.Errorf("stored value at %s: %w", e.Key, err)
	}
	return &r, nil
}

// Active returns the rollouts that have not ended, oldest first. The nodes of a wave under way are counted as they are
// now; handshakes and gates are those of the last look.
func (c *Controller) Active() []*Rollout {
	c.mu.Lock()
	policy := c.policy
	all := make([]*Rollout, 0, len(c.active))
	for _, id := range slices.Sorted(maps.Keys(c.active)) {
		r := c.active[id].clone()
		if s, ok := c.sights[id]; ok && r.current() != nil && s.wave == r.Wave {
			s.dress(policy, r.current())
		}
		all = append(all, r)
	}
	c.mu.Unlock()
	for _, r := range all {
		if w := r.current(); w != nil && w.State.moved() {
			w.Nodes = jury{policy: policy, now: time.Now()}.judge(*w, c.progress(r, w)).nodes
		}
	}
	return all
}

// progress asks how the nodes of a wave stand.
func (c *Controller) progress(r *Rollout, w *Wave) map[string][]NodeProgress {
	progress := make(map[string][]NodeProgress, len(w.Groups))
	for _, g := range w.Groups {
		progress[g] = c.fleet.Progress(g, r.wants())
	}
	return progress
}

// Holds returns the held versions, sorted by secret.
func (c *Controller) Holds() []Hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.SortedFunc(maps.Values(c.holds), func(a, b Hold) int {
		return holdID{a.Secret, a.Version}.compare(holdID{b.Secret, b.Version})
	})
}

// Ended counts the rollouts that ended since this server started, by their last state.
func (c *Controller) Ended() map[State]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.ended)
}
