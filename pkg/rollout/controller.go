package rollout

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
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

// Options configure a Controller. All fields up to Log are required.
type Options struct {
	Cache  *cache.Cache
	Store  store.Store
	Fleet  Fleet
	Policy Policy
	Log    *slog.Logger
	// Prober makes handshakes; nil: none are asked for.
	Prober Prober
	// Gates reads the values of the policy's gates, and Hook runs its command; nil where the policy never has any.
	Gates Gates
	Hook  Hook
	// Released is called before a hard hold ends, so that the fleet forgets the NACKs that led to it; it must not call back.
	Released func(name string, version secret.Version)
	// Refers reports which versions of a secret the fleet still needs besides those that groups are at, before others are pruned; it must not
	// call back.
	Refers func(name string) func(secret.Version) bool
	// Audit is told what each commit did, right after it, in the order of the commits; it must neither block nor call back.
	Audit func(ctx context.Context, records []Record)
	// Announce is told, before a commit, what it puts into groups, and returns those of it of which a record is made from now on, beside the commit. Retract is
	// told which of these were not stored after all. Neither may block nor call back.
	Announce func([]cache.Placement) []cache.Placement
	Retract  func([]cache.Placement)
}

// Controller is the only one that moves a group. Its methods are safe for concurrent use; they take turns.
type Controller struct {
	cache    *cache.Cache
	store    store.Store
	fleet    Fleet
	slog     *slog.Logger
	released func(string, secret.Version)
	refers   func(string) func(secret.Version) bool
	prober   Prober
	gates    Gates
	hook     Hook
	audit    func(context.Context, []Record)
	announce func([]cache.Placement) []cache.Placement
	retract  func([]cache.Placement)

	turn chan struct{} // one token: whoever holds it may plan and commit
	wake chan struct{} // capacity 1: something may have to move

	// Used by the holder of the turn only.
	doubt    bool                            // a commit failed: what the store holds is not known
	prepared bool                            // the groups and waves are those of the policy
	unhealed bool                            // heal has something left to do
	unsent   map[uint64]map[string]time.Time // by rollout and member; see jury
	nobody   map[uint64]time.Time            // by rollout: when no node was there last that a wave could be proven by; see proof
	suspects []uint64                        // rollouts of commits that failed
	unsure   []cache.Placement               // that were announced for these
	watches  map[uint64]*observation         // by rollout: watches under way
	asked    map[uint64]*question            // by rollout: since when the gates are asked before a wave
	recent   map[uint64]*Rollout             // that are done, and may still be taken back; never written to
	ailing   map[string]bool                 // secrets of rollouts that were taken back: another version may wait
	lookedAt time.Time                       // when these were looked at last
	history  []uint64                        // stored rollouts that have ended, the oldest first

	// Written only by the holder of the turn, under mu; read by anyone under mu.
	mu        sync.Mutex
	policy    Policy
	active    map[uint64]*Rollout // never written to, but replaced
	slots     map[string]uint64   // by group: the rollout that is moving it
	holds     map[holdID]Hold
	last      uint64 // id of the newest rollout
	ended     map[State]uint64
	sights    map[uint64]shown // by rollout: what was seen last
	overrides uint64
}

type holdID struct {
	secret  string
	version secret.Version
}

func (id holdID) compare(other holdID) int {
	return cmp.Or(strings.Compare(id.secret, other.secret), strings.Compare(string(id.version), string(other.version)))
}

// New reads the stored rollouts and holds. Groups move only when Run runs, or a method is called that moves them.
func New(ctx context.Context, opts Options) (*Controller, error) {
	c := &Controller{
		cache: opts.Cache, store: opts.Store, fleet: opts.Fleet, slog: opts.Log, policy: opts.Policy, released: opts.Released, refers: opts.Refers,
		audit: opts.Audit, announce: opts.Announce, retract: opts.Retract,
		turn: make(chan struct{}, 1), wake: make(chan struct{}, 1), unhealed: true, unsent: map[uint64]map[string]time.Time{}, nobody: map[uint64]time.Time{},
		prober: opts.Prober, gates: opts.Gates, hook: opts.Hook,
		watches: map[uint64]*observation{}, asked: map[uint64]*question{}, recent: map[uint64]*Rollout{}, ailing: map[string]bool{},
		ended: map[State]uint64{}, sights: map[uint64]shown{},
	}
	return c, c.load(ctx)
}

// load takes over the stored rollouts and holds.
func (c *Controller) load(ctx context.Context) error {
	rollouts, err := c.History(ctx)
	if err != nil {
		return err
	}
	return c.adopt(ctx, rollouts)
}

// reload takes over what is stored of the rollouts under way and of those that a failed commit may have left, and the holds. Those that
// ended long ago stay unread.
func (c *Controller) reload(ctx context.Context) error {
	c.mu.Lock()
	ids := slices.AppendSeq(slices.Clone(c.suspects), maps.Keys(c.active))
	last := c.last
	c.mu.Unlock()
	slices.Sort(ids)
	ids = slices.Compact(ids)
	var rollouts []*Rollout
	for _, id := range ids {
		r, err := c.Rollout(ctx, id)
		if errors.Is(err, ErrNoRollout) {
			continue
		}
		if err != nil {
			return err
		}
		rollouts = append(rollouts, r)
	}
	for next := max(last, slices.Max(append(ids, 0))) + 1; ; next++ { // of somebody else, who was first
		r, err := c.Rollout(ctx, next)
		if errors.Is(err, ErrNoRollout) {
			break
		}
		if err != nil {
			return err
		}
		rollouts = append(rollouts, r)
	}
	c.mu.Lock()
	before := maps.Clone(c.active)
	c.mu.Unlock()
	if err := c.adopt(ctx, rollouts); err != nil {
		return err
	}
	c.suspects = nil
	c.tell(ctx, untold(rollouts, before, last))
	return nil
}

// adopt replaces the rollouts and holds in memory by stored ones.
func (c *Controller) adopt(ctx context.Context, rollouts []*Rollout) error {
	entries, _, err := c.store.List(ctx, holdPrefix+"/")
	if err != nil {
		return fmt.Errorf("list holds: %w", err)
	}
	holds := make(map[holdID]Hold, len(entries))
	for _, e := range entries {
		var h Hold
		if err := json.Unmarshal(e.Value, &h); err != nil {
			return fmt.Errorf("stored value at %s: %w", e.Key, err)
		}
		holds[holdID{h.Secret, h.Version}] = h
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.active
	c.active, c.slots, c.holds = map[uint64]*Rollout{}, map[string]uint64{}, holds
	for _, r := range rollouts {
		c.last = max(c.last, r.ID)
		r.wayBack()
		c.set(r)
		if before[r.ID] != nil && r.State.Ended() {
			c.ended[r.State]++
		}
		c.remember(r)
	}
	return nil
}

// keptRollouts is how many ended rollouts stay in the store.
const keptRollouts = 1000

// remember notes a rollout that has ended and is stored.
func (c *Controller) remember(r *Rollout) {
	if i, known := slices.BinarySearch(c.history, r.ID); r.State.Ended() && !known {
		c.history = slices.Insert(c.history, i, r.ID)
	}
	if r.State == Done && !r.addition() {
		c.recent[r.ID] = r
	} else {
		delete(c.recent, r.ID)
	}
}

// set takes over the state of a rollout. The caller holds mu.
func (c *Controller) set(r *Rollout) {
	if old := c.active[r.ID]; old != nil {
		for _, g := range old.occupies() {
			if c.slots[g] == r.ID {
				delete(c.slots, g)
			}
		}
	}
	delete(c.active, r.ID)
	if r.State.Ended() {
		delete(c.sights, r.ID)
		return
	}
	if i, ended := slices.BinarySearch(c.history, r.ID); ended { // it is being taken back
		c.history = slices.Delete(c.history, i, i+1)
	}
	c.active[r.ID] = r
	for _, g := range r.occupies() {
		c.slots[g] = r.ID
	}
}

// Wake makes the controller look again; it never blocks. The SDS edge calls it after every ACK, NACK, connect and disconnect.
func (c *Controller) Wake() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// The pauses of a controller whose store fails.
const (
	firstPause = time.Second
	lastPause  = 30 * time.Second
)

// Run carries rollouts on until ctx ends. It first heals what a crash or a changed configuration left behind. A store that fails (a
// full disk) moves nothing meanwhile; it is tried again.
func (c *Controller) Run(ctx context.Context) error {
	var pause time.Duration
	var told string
	for ctx.Err() == nil {
		next, err := c.step(ctx)
		if err == nil || ctx.Err() != nil {
			pause, told = 0, ""
			c.wait(ctx, next, c.wake)
			continue
		}
		if told != err.Error() {
			told = err.Error()
			c.slog.ErrorContext(ctx, "rollout step", "err", err)
		}
		pause = min(max(2*pause, firstPause), lastPause)
		c.wait(ctx, time.Now().Add(firstPause), nil) // whatever the nodes say
		c.wait(ctx, time.Now().Add(pause-firstPause), c.wake)
	}
	return nil
}

// wait returns when there may be something to do.
func (c *Controller) wait(ctx context.Context, until time.Time, wake <-chan struct{}) {
	var alarm <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		alarm = t.C
	}
	select {
	case <-ctx.Done():
	case <-wake:
	case <-alarm:
	}
}

// take waits for the turn, and makes sure that the holder knows what the store holds and that all groups exist.
func (c *Controller) take(ctx context.Context) error {
	if err := c.takeTurn(ctx); err != nil {
		return err
	}
	if err := c.prepare(ctx); err != nil {
		c.leave()
		return err
	}
	return nil
}

func (c *Controller) takeTurn(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	if err := c.settle(ctx); err != nil {
		c.leave()
		return err
	}
	return nil
}

func (c *Controller) leave() { <-c.turn }

// settle reads what the store holds after a commit that failed: the answer may have got lost, or somebody else was first.
func (c *Controller) settle(ctx context.Context) error {
	if !c.doubt {
		return nil
	}
	if err := c.cache.Refresh(ctx); err != nil {
		return err
	}
	if err := c.reload(ctx); err != nil {
		return err
	}
	c.doubt = false
	c.reconsider()
	return nil
}

func (c *Controller) currentPolicy() Policy {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy
}

func rolloutKey(id uint64) string { return store.Key(rolloutPrefix, fmt.Sprintf("%020d", id)) }

// ErrNoRollout is returned for an id that was never given.
var ErrNoRollout = errors.New("no such rollout")
