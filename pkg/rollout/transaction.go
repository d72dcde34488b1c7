package rollout

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// transaction is one commit under way: a plan and the rollouts and holds that change with it. The caller of begin holds the turn.
type transaction struct {
	*cache.Plan
	c        *Controller
	now      time.Time
	policy   Policy
	rollouts map[uint64]*Rollout
	holds    map[holdID]*Hold // nil: released
	last     uint64
	touched  bool                    // a rollout changed in a way that only its members show
	versions map[string][]cache.Meta // that were read
	reopened map[uint64]uint64       // rollouts that had ended, with how many events there were
	quieted  string                  // a secret whose deadlines were just looked at
}

func (c *Controller) begin() *transaction {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &transaction{
		Plan: c.cache.Plan(), c: c, now: time.Now().UTC(), policy: c.policy,
		rollouts: map[uint64]*Rollout{}, holds: map[holdID]*Hold{}, last: c.last, versions: map[string][]cache.Meta{}, reopened: map[uint64]uint64{},
	}
}

// edit returns the transaction's own copy of an active rollout.
func (t *transaction) edit(id uint64) *Rollout {
	if r, ok := t.rollouts[id]; ok {
		return r
	}
	r := t.look(id).clone()
	t.rollouts[id] = r
	return r
}

// activeIDs returns the rollouts under way, oldest first, as the transaction leaves them so far.
func (t *transaction) activeIDs() []uint64 {
	t.c.mu.Lock()
	ids := slices.Collect(maps.Keys(t.c.active))
	t.c.mu.Unlock()
	ids = slices.AppendSeq(ids, maps.Keys(t.rollouts))
	slices.Sort(ids)
	return slices.DeleteFunc(slices.Compact(ids), func(id uint64) bool { return t.look(id).State.Ended() })
}

// look returns a rollout for reading, as the transaction leaves it so far; nil if it had ended before.
func (t *transaction) look(id uint64) *Rollout {
	if r, ok := t.rollouts[id]; ok {
		return r
	}
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	return t.c.active[id]
}

// has returns what a group serves under a name, as the transaction leaves it so far.
func (t *transaction) has(group, name string) (secret.Version, bool) {
	at := t.Target(group)
	if at == nil {
		return "", false
	}
	return at.Secrets.Version(name)
}

// stored describes the stored versions of a secret, the newest first.
func (t *transaction) stored(ctx context.Context, name string) ([]cache.Meta, error) {
	if known, ok := t.versions[name]; ok {
		return known, nil
	}
	if put, ok := t.Versions(name); ok {
		return put, nil
	}
	versions, err := t.c.cache.Versions(ctx, name)
	if err == nil {
		t.versions[name] = versions
	}
	return versions, err
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

// hold keeps a version back.
func (t *transaction) hold(name string, version secret.Version, kind HoldKind, reason string) {
	t.put(Hold{Secret: name, Version: version, Kind: kind, Reason: reason})
}

// holdAll keeps back everything that a rollout brings.
func (t *transaction) holdAll(r *Rollout, kind HoldKind, reason string) {
	for c := range r.live() {
		t.hold(c.Secret, c.To, kind, reason)
	}
}

// put keeps a version back. A hold is not weakened by a later one.
func (t *transaction) put(h Hold) {
	if h.Version == "" {
		return
	}
	if have, ok := t.held(h.Secret, h.Version); ok && have.Kind.weight() >= h.Kind.weight() {
		have.Handshake = have.Handshake || h.Handshake && h.Kind == Hard
		if next := t.overruled(have); t.now.Before(next) && !next.Equal(have.Deadline) || have.Handshake && !t.byHandshake(h) { // groups have moved since, or more is known
			t.holds[holdID{h.Secret, h.Version}] = &have
		}
		return
	}
	h.Since = t.now
	if m, ok := t.Meta(h.Secret, h.Version); ok {
		h.NotAfter = m.NotAfter
	}
	t.holds[holdID{h.Secret, h.Version}] = &h
}

// byHandshake reports whether a hold on the version says already that a handshake showed it.
func (t *transaction) byHandshake(h Hold) bool {
	have, ok := t.held(h.Secret, h.Version)
	return ok && have.Handshake
}

// release ends the hold on a version, if there is one.
func (t *transaction) release(name string, version secret.Version) {
	if _, ok := t.held(name, version); ok {
		t.holds[holdID{name, version}] = nil
	}
}

// The most rollouts and holds, and bytes of them, that stand in one commit beside a full plan.
const (
	maxRecords     = 30
	maxRecordBytes = 640 << 10
)

// commit stores everything in one step and then makes it visible. A transaction without effect is dropped. Where an operator's step
// holds or ends more than one commit takes, those come first: a crash in between leaves versions held, and nothing moved.
func (t *transaction) commit(ctx context.Context) error {
	if err := t.dateHolds(ctx); err != nil {
		return err
	}
	records, err := t.records()
	if err != nil {
		return err
	}
	for len(records) > 0 {
		n := fitting(records)
		if n == len(records) {
			break
		}
		if err := t.commitEarly(ctx, records[:n]); err != nil {
			return err
		}
		records = records[n:]
	}
	for _, r := range records {
		t.Add(nil, r.operation)
	}
	forgotten := t.forgotten(records)
	for _, id := range forgotten {
		t.Add(nil, store.Delete(rolloutKey(id)))
	}
	if t.Empty() {
		return nil
	}
	announced := t.announced()
	if err := t.Commit(ctx); err != nil {
		t.suspect()
		t.c.unsure = append(t.c.unsure, announced...)
		return err
	}
	t.c.history = t.c.history[len(forgotten):]
	t.publish(ctx, records)
	return nil
}

// dateHolds completes new holds on versions that no group is at.
func (t *transaction) dateHolds(ctx context.Context) error {
	for id, h := range t.holds {
		if h == nil || !h.NotAfter.IsZero() {
			continue
		}
		versions, err := t.stored(ctx, id.secret)
		if err != nil {
			return err
		}
		for _, m := range versions {
			if m.Version == id.version {
				h.NotAfter = m.NotAfter
			}
		}
	}
	return nil
}

// forgotten returns the ended rollouts that are too many once the records are stored, as many as fit beside them.
func (t *transaction) forgotten(records []record) []uint64 {
	over := len(t.c.history) - keptRollouts
	for _, r := range records {
		if r.rollout != nil && r.rollout.State.Ended() {
			over++
		}
	}
	if over <= 0 || len(records) == 0 {
		return nil
	}
	n := min(over, len(t.c.history), maxRecords-len(records))
	for i, id := range t.c.history[:n] {
		if t.rollouts[id] != nil { // it is being taken back
			n = i
			break
		}
	}
	return t.c.history[:n]
}

// suspect notes that a commit failed, and which rollouts may have become something else.
func (t *transaction) suspect() {
	t.c.doubt = true
	t.c.suspects = slices.AppendSeq(t.c.suspects, maps.Keys(t.rollouts))
}

// fitting returns how many of the records fit into one commit; at least 1.
func fitting(records []record) int {
	size := 0
	for i, r := range records[:min(len(records), maxRecords)] {
		if size += len(r.operation.Key) + len(r.operation.Value); i > 0 && size > maxRecordBytes {
			return i
		}
	}
	return min(len(records), maxRecords)
}

// record is a rollout or a hold on its way into the store.
type record struct {
	operation store.Operation
	rollout   *Rollout
	id        holdID
	hold      *Hold
	again     bool // only its deadline is another one
}

// records encodes what changed: holds first, then rollouts that ended, then the others.
func (t *transaction) records() ([]record, error) {
	var records []record
	for _, id := range slices.SortedFunc(maps.Keys(t.holds), holdID.compare) { // in one order: they may fill several commits
		h := t.holds[id]
		r := record{operation: store.Delete(store.Key(holdPrefix, id.secret, string(id.version))), id: id, hold: h}
		if h != nil {
			h.Deadline = t.overruled(*h)
			if t.stands(id, *h) {
				continue
			}
			b, err := json.Marshal(h)
			if err != nil {
				return nil, fmt.Errorf("encode hold: %w", err)
			}
			r.operation, r.again = store.Put(r.operation.Key, b), t.again(id, *h)
		}
		records = append(records, r)
	}
	for _, ended := range []bool{true, false} {
		for _, id := range slices.Sorted(maps.Keys(t.rollouts)) {
			r := t.rollouts[id]
			if r.State.Ended() != ended {
				continue
			}
			b, err := json.Marshal(r)
			if err != nil {
				return nil, fmt.Errorf("encode rollout %d: %w", id, err)
			}
			records = append(records, record{operation: store.Put(rolloutKey(id), b), rollout: r})
		}
	}
	return records, nil
}

// stands reports whether a hold is stored as it is.
func (t *transaction) stands(id holdID, h Hold) bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	have, ok := t.c.holds[id]
	return ok && have == h
}

// again reports whether a version is held already, for the same reason.
func (t *transaction) again(id holdID, h Hold) bool {
	t.c.mu.Lock()
	defer t.c.mu.Unlock()
	have, ok := t.c.holds[id]
	return ok && have.Kind == h.Kind && have.Since.Equal(h.Since)
}

func (t *transaction) commitEarly(ctx context.Context, records []record) error {
	operations := make([]store.Operation, 0, len(records))
	for _, r := range records {
		operations = append(operations, r.operation)
	}
	if _, err := t.c.store.Commit(ctx, nil, operations); err != nil {
		t.suspect()
		return fmt.Errorf("store the holds: %w", err)
	}
	t.publish(ctx, records)
	return nil
}

func (t *transaction) publish(ctx context.Context, records []record) {
	c := t.c
	c.mu.Lock()
	c.last = t.last
	recorded := t.recorded(records)
	for _, r := range records {
		switch {
		case r.rollout != nil:
			c.set(r.rollout)
			if r.rollout.State.Ended() {
				c.ended[r.rollout.State]++
				c.remember(r.rollout)
				c.over(r.rollout.ID)
			}
		case r.hold == nil:
			delete(c.holds, r.id)
		default:
			c.holds[r.id] = *r.hold
		}
	}
	c.mu.Unlock()
	c.tell(ctx, recorded)
	for _, r := range records {
		switch {
		case r.rollout != nil:
			c.slog.InfoContext(ctx, "rollout", "rollout", r.rollout.ID, "state", r.rollout.State, "wave", r.rollout.Wave, "reason", r.rollout.Reason)
		case r.hold != nil && !r.again:
			c.slog.WarnContext(ctx, "version held", "secret", r.id.secret, "version", r.id.version.Short(), "kind", r.hold.Kind, "reason", r.hold.Reason)
		}
	}
}

// over forgets what was seen of a rollout that has ended. The caller holds mu.
func (c *Controller) over(id uint64) {
	delete(c.unsent, id)
	delete(c.nobody, id)
	delete(c.watches, id)
	delete(c.asked, id)
	if c.hook != nil {
		c.hook.Forget(id)
	}
}
