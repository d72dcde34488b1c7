package rollout

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// lookBackPause is how long nobody looks back after a look: every ACK of a node wakes the controller.
const lookBackPause = 100 * time.Millisecond

// lookBack looks at the rollouts that ended a short while ago: a late NACK, or a handshake that fails, takes them back. It returns when to look
// again where it was too early.
func (c *Controller) lookBack(ctx context.Context) (time.Time, error) {
	if len(c.recent) == 0 {
		return time.Time{}, nil
	}
	if next := c.lookedAt.Add(lookBackPause); time.Now().Before(next) {
		return next, nil
	}
	c.lookedAt = time.Now()
	var faults []error
	for _, id := range slices.Sorted(maps.Keys(c.recent)) {
		err := c.regret(ctx, c.recent[id])
		if err == nil {
			continue
		}
		faults = append(faults, fmt.Errorf("rollout %d: %w", id, err))
		if err := c.settle(ctx); err != nil {
			return time.Time{}, errors.Join(append(faults, err)...)
		}
	}
	return time.Time{}, errors.Join(faults...)
}

// regret takes a rollout back that has ended well, where something is seen of it now.
func (c *Controller) regret(ctx context.Context, r *Rollout) error {
	t := c.begin()
	if !t.now.Before(r.Finished.Add(t.policy.UndoWindow)) {
		delete(c.recent, r.ID)
		return nil
	}
	r = r.clone()
	culprits := t.complaints(r)
	if len(culprits) == 0 {
		return nil
	}
	names := make([]string, 0, len(culprits))
	for _, one := range culprits {
		names = append(names, one.secret)
		t.put(Hold{Secret: one.secret, Version: one.version, Kind: Hard, Reason: one.reason, Handshake: one.handshake})
	}
	c.slog.ErrorContext(ctx, "taken back after its end", "rollout", r.ID, "secrets", names, "reason", culprits[0].reason)
	if err := t.reopen(ctx, r, Unwind{Secrets: names, Reason: "after its end: " + culprits[0].reason, End: RolledBack}); err != nil {
		return err
	}
	return t.commit(ctx)
}

// complaints are what nodes have refused of a rollout that has ended, and what handshakes show, once for each secret.
func (t *transaction) complaints(r *Rollout) []culprit {
	var d decision
	for _, w := range r.Waves {
		for _, g := range w.Moved {
			want := t.servedOf(r, g)
			if len(want) == 0 {
				continue
			}
			for _, n := range t.c.fleet.Progress(g, want) {
				if n.Nacked != nil && !r.emergency() {
					d.blame(culprit{secret: n.Nacked.Secret, version: n.Nacked.Version, reason: n.refusal()})
				}
			}
			t.mismatches(&d, r, g, want)
		}
	}
	return slices.DeleteFunc(d.culprits, func(c culprit) bool {
		h, held := t.held(c.secret, c.version)
		return held && h.Kind == Hard // it was taken back, or there was nothing to go back to
	})
}

func (t *transaction) mismatches(d *decision, r *Rollout, group string, want map[string]secret.Version) {
	if t.c.prober == nil {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(want)) { // in one order: where several are bad, the same one is named
		v := want[name]
		f, ok := t.c.prober.Mismatch(group, name, v)
		if !ok || f.Unseen || f.Kind == OldLeaf && (r.emergency() || t.passedOver(group, f)) {
			continue
		}
		d.blame(culprit{secret: name, version: v, reason: "handshake: " + f.Message})
	}
}

// passedOver reports whether a finding is about a node that has not ACKed, and need not have: the share that was asked for was reached without it.
func (t *transaction) passedOver(group string, f Finding) bool {
	return t.policy.minAcked() < 100 && slices.ContainsFunc(t.c.fleet.Progress(group, map[string]secret.Version{f.Secret: f.Version}), func(n NodeProgress) bool {
		return n.Node == f.Node && !n.Acked
	})
}

// reopen begins to take a rollout back, in all its groups, whether it has ended or not.
func (t *transaction) reopen(ctx context.Context, r *Rollout, u Unwind) error {
	for _, w := range r.Waves {
		u.Groups = append(u.Groups, w.Moved...)
	}
	t.rollouts[r.ID] = r
	if r.State.Ended() {
		t.reopened[r.ID] = r.Logged
		r.log(t.now, Moving, "taking back: "+u.Reason, u.By)
		r.Finished = time.Time{}
	}
	return t.begins(ctx, r, u)
}
