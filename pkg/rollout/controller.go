package rollout

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// Where things stand in the store.
const (
	rolloutPrefix = "rollout"
	holdPrefix    = "hold"
)

// Options configure a Controller. All fields are required.
type Options struct {
	Cache  *cache.Cache
	Store  store.Store
	Fleet  Fleet
	Policy Policy
	Log    *slog.Logger
}

// Controller is the only one that moves a group. Its methods are safe for concurrent use; they take turns.
type Controller struct {
	cache   *cache.Cache
	store   store.Store
	fleet   Fleet
	slog    *slog.Logger
	started time.Time

	turn chan struct{} // one token: whoever holds it may plan and commit
	wake chan struct{} // capacity 1: something may have to move

	// Written only by the holder of the turn, under mu; read by anyone under mu.
	mu     sync.Mutex
	policy Policy
	active map[uint64]*Rollout
	holds  map[holdID]Hold
	last   uint64 // id of the newest rollout
	ended  map[State]uint64
}

type holdID struct {
	secret  string
	version secret.Version
}

// New reads the stored rollouts and holds. Groups move only when Run runs.
func New(ctx context.Context, opts Options) (*Controller, error) {
	c := &Controller{
		cache: opts.Cache, store: opts.Store, fleet: opts.Fleet, slog: opts.Log, policy: opts.Policy, started: time.Now(),
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		active: map[uint64]*Rollout{}, holds: map[holdID]Hold{}, ended: map[State]uint64{},
	}
	rollouts, err := c.History(ctx)
	if err != nil {
		return nil, err
	}
	for _, r := range rollouts {
		c.last = max(c.last, r.ID)
		if !r.State.Ended() {
			c.active[r.ID] = r
		}
	}
	entries, _, err := c.store.List(ctx, holdPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("list holds: %w", err)
	}
	for _, e := range entries {
		var h Hold
		if err := json.Unmarshal(e.Value, &h); err != nil {
			return nil, fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		c.holds[holdID{h.Secret, h.Version}] = h
	}
	return c, nil
}

// Wake makes the controller look again; it never blocks. The SDS edge calls it after every ACK, NACK, connect and disconnect.
func (c *Controller) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// Run carries rollouts on until ctx ends. It first heals what a crash or a changed configuration left behind.
func (c *Controller) Run(ctx context.Context) error {
	if err := c.Reconfigure(ctx, c.currentPolicy()); err != nil && ctx.Err() == nil {
		return err
	}
	for ctx.Err() == nil {
		next, err := c.step(ctx)
		if err != nil && ctx.Err() == nil {
			// The store is the only thing that fails here. Nothing was moved; the fault may pass (a full disk), so it is tried again.
			c.slog.ErrorContext(ctx, "rollout step", "err", err)
			next = time.Now().Add(time.Second)
		}
		c.wait(ctx, next)
	}
	return nil
}

// wait returns when there may be something to do.
func (c *Controller) wait(ctx context.Context, until time.Time) {
	var alarm <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case <-ctx.Done():
	case <-c.wake:
	case <-alarm:
	}
}

// take waits for the turn.
func (c *Controller) take(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *Controller) leave() { <-c.turn }

func (c *Controller) currentPolicy() Policy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy
}

// transaction is one commit under way: a plan and the rollouts and holds that change with it.
type transaction struct {
	*cache.Plan
	c        *Controller
	now      time.Time
	policy   Policy
	rollouts map[uint64]*Rollout
	holds    map[holdID]*Hold // nil: released
	last     uint64
}

// begin starts a transaction. The caller holds the turn.
func (c *Controller) begin() *transaction {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &transaction{
		Plan: c.cache.Plan(), c: c, now: time.Now().UTC(), policy: c.policy,
		rollouts: map[uint64]*Rollout{}, holds: map[holdID]*Hold{}, last: c.last,
	}
}

// edit returns the transaction's own copy of an active rollout.
func (t *transaction) edit(id uint64) *Rollout {
	if r, ok := t.rollouts[id]; ok {
		return r
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	r := t.c.active[id].clone()
	t.rollouts[id] = r
	return r
}

// activeIDs returns the rollouts under way, oldest first, as the transaction leaves them so far.
func (t *transaction) activeIDs() []uint64 {
	t.c.mu.Lock()
	ids := maps.Clone(t.c.active)
	t.c.mu.Unlock()
	maps.Copy(ids, t.rollouts)
	var open []uint64
	for id, r := range ids {
		if !r.State.Ended() {
			open = append(open, id)
		}
	}
	slices.Sort(open)
	return open
}

// look returns a rollout for reading, as the transaction leaves it so far.
func (t *transaction) look(id uint64) *Rollout {
	if r, ok := t.rollouts[id]; ok {
		return r
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.c.active[id]
}

// held returns the hold on a version, as the transaction leaves it so far.
func (t *transaction) held(name string, version secret.Version) (Hold, bool) {
	id := holdID{name, version}
	if h, ok := t.holds[id]; ok {
		if h == nil {
			return Hold{}, false
		}
		return *h, true
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	h, ok := t.c.holds[id]
	return h, ok
}

// hold keeps a version back. A hard hold is not weakened by a later one.
func (t *transaction) hold(name string, version secret.Version, kind HoldKind, reason string) {
	if version == "" {
		return
	}
	if h, ok := t.held(name, version); ok && (h.Kind == Hard || h.Kind == kind) {
		return
	}
	t.holds[holdID{name, version}] = &Hold{Secret: name, Version: version, Kind: kind, Reason: reason, Since: t.now}
}

// release ends the hold on a version, if there is one.
func (t *transaction) release(name string, version secret.Version) {
	if _, ok := t.held(name, version); ok {
		t.holds[holdID{name, version}] = nil
	}
}

// commit stores everything in one step and then makes it visible. A transaction without effect is dropped.
func (t *transaction) commit(ctx context.Context) error {
	for id, r := range t.rollouts {
		b, err := json.Marshal(r)
		if err != nil {
			return fmt.Errorf("encode rollout %d: %w", id, err)
		}
		t.Add(nil, store.Put(rolloutKey(id), b))
	}
	for id, h := range t.holds {
		key := store.Key(holdPrefix, id.secret, string(id.version))
		if h == nil {
			t.Add(nil, store.Delete(key))
			continue
		}
		b, err := json.Marshal(h)
		if err != nil {
			return fmt.Errorf("encode hold: %w", err)
		}
		t.Add(nil, store.Put(key, b))
	}
	if t.Empty() {
		return nil
	}
	if err := t.Plan.Commit(ctx); err != nil {
		return err
	}
	t.publish(ctx)
	return nil
}

func (t *transaction) publish(ctx context.Context) {
	c := t.c
	c.mu.Lock()
	c.last = t.last
	for id, r := range t.rollouts {
		if r.State.Ended() {
			delete(c.active, id)
			c.ended[r.State]++
		} else {
			c.active[id] = r
		}
	}
	for id, h := range t.holds {
		if h == nil {
			delete(c.holds, id)
		} else {
			c.holds[id] = *h
		}
	}
	c.mu.Unlock()
	for id, r := range t.rollouts {
		c.slog.InfoContext(ctx, "rollout", "rollout", id, "state", r.State, "wave", r.Wave, "reason", r.Reason)
	}
	for id, h := range t.holds {
		if h != nil {
			c.slog.WarnContext(ctx, "version held", "secret", id.secret, "version", id.version.Short(), "kind", h.Kind, "reason", h.Reason)
		}
	}
}

func rolloutKey(id uint64) string { return store.Key(rolloutPrefix, fmt.Sprintf("%020d", id)) }

// History returns every stored rollout, oldest first.
func (c *Controller) History(ctx context.Context) ([]*Rollout, error) {
	entries, _, err := c.store.List(ctx, rolloutPrefix+"/")
	if err != nil {
		return nil, fmt.Errorf("list rollouts: %w", err)
	}
	all := make([]*Rollout, 0, len(entries))
	for _, e := range entries {
		var r Rollout
		if err := json.Unmarshal(e.Value, &r); err != nil {
			return nil, fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		all = append(all, &r)
	}
	return all, nil
}

// ErrNoRollout is returned for an id that was never given.
var ErrNoRollout = errors.New("no such rollout")

// Rollout returns one rollout, whatever its state.
func (c *Controller) Rollout(ctx context.Context, id uint64) (*Rollout, error) {
	e, err := c.store.Get(ctx, rolloutKey(id))
	if errors.Is(err, store.ErrNotFound) {
		return nil, fmt.Errorf("rollout %d: %w", id, ErrNoRollout)
	}
	if err != nil {
		return nil, fmt.Errorf("rollout %d: %w", id, err)
	}
	var r Rollout
	if err := json.Unmarshal(e.Value, &r); err != nil {
		return nil, fmt.Errorf("stored value at %s: %w", e.Key, err)
	}
	return &r, nil
}

// Active returns the rollouts that have not ended, oldest first.
func (c *Controller) Active() []*Rollout {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]*Rollout, 0, len(c.active))
	for _, id := range slices.Sorted(maps.Keys(c.active)) {
		all = append(all, c.active[id].clone())
	}
	return all
}

// Holds returns the held versions, sorted by secret.
func (c *Controller) Holds() []Hold {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := slices.Collect(maps.Values(c.holds))
	slices.SortFunc(all, func(a, b Hold) int {
		return compare(a.Secret, b.Secret, string(a.Version), string(b.Version))
	})
	return all
}

// Ended counts the rollouts that ended since this server started, by their last state.
func (c *Controller) Ended() map[State]uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.ended)
}
