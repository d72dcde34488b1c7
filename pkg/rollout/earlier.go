package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// before returns the groups of the policy's waves before the first one that holds any of the groups.
func (p Policy) before(groups []string) []string {
	var earlier []string
	for _, w := range p.Waves {
		if slices.ContainsFunc(w, func(g string) bool { return slices.Contains(groups, g) }) {
			return earlier
		}
		earlier = append(earlier, w...)
	}
	return nil
}

// earlier is what keeps a wave from moving: a group of an earlier wave that serves the version and whose nodes do not all have it.
type earlier struct {
	group   string
	reason  string    // empty: nothing
	culprit *culprit  // what was seen of the version there
	late    bool      // ack_timeout has passed
	recheck time.Time // when it will have
}

// askEarlier asks the nodes of every group of an earlier wave that is at the rollout's version, whichever rollout brought it there.
// A NACK, also one that came long after the group's own wave, is worth more than a node that is late.
func (t *transaction) askEarlier(r *Rollout, w *Wave) earlier {
	var found earlier
	if r.addition() || r.removal() {
		return found
	}
	unsent := t.c.unsent[r.ID]
	if unsent == nil {
		unsent = map[string]time.Time{}
		t.c.unsent[r.ID] = unsent
	}
	j := jury{policy: t.policy, now: t.now, unsent: unsent}
	for _, g := range t.policy.before(w.Groups) {
		want := t.servedOf(r, g)
		if len(want) == 0 {
			continue
		}
		nodes := t.c.fleet.Progress(g, want)
		enough := t.enough(nodes)
		for _, n := range nodes {
			if n.Nacked != nil {
				one := culprit{secret: n.Nacked.Secret, version: n.Nacked.Version, reason: n.refusal()}
				return earlier{group: g, culprit: &one, reason: one.reason}
			}
			if !enough && !w.Ahead {
				j.hurry(&found, g, n)
			}
		}
		var d decision
		if t.mismatches(&d, r, g, want); len(d.culprits) > 0 {
			return earlier{group: g, culprit: &d.culprits[0], reason: d.culprits[0].reason}
		}
	}
	return found
}

// enough reports whether the share of nodes that lets a wave go on has ACKed, where that is not all of them.
func (t *transaction) enough(nodes []NodeProgress) bool {
	acked, expected := 0, 0
	for _, n := range nodes {
		switch {
		case n.Unsubscribed:
		case n.Acked && n.Nacked == nil:
			acked++
			expected++
		case n.Nacked != nil || t.counts(n):
			expected++
		}
	}
	return t.policy.minAcked() < 100 && acked > 0 && acked*100 >= expected*t.policy.minAcked()
}

// servedOf returns the versions of a rollout that a group serves.
func (t *transaction) servedOf(r *Rollout, group string) map[string]secret.Version {
	want := map[string]secret.Version{}
	for c := range r.live() {
		if have, ok := t.has(group, c.Secret); ok && have == c.To {
			want[c.Secret] = c.To
		}
	}
	return want
}

// hurry notes a connected node that has not ACKed.
func (j jury) hurry(e *earlier, group string, n NodeProgress) {
	key := memberKey(group, n.Identity, n.Node)
	if !n.Connected || n.Acked {
		delete(j.unsent, key)
		return
	}
	limit := j.since(key, n).Add(j.policy.AckTimeout)
	switch {
	case e.late:
	case !j.now.Before(limit):
		*e = earlier{group: group, late: true, reason: fmt.Sprintf("%s did not answer within %s", n.Node, j.policy.AckTimeout)}
	default:
		e.group, e.reason, e.recheck = group, "until every node of "+group+" has ACKed", sooner(e.recheck, limit)
	}
}

// refusal says who refused which version, and why.
func (n NodeProgress) refusal() string {
	return fmt.Sprintf("%s (%s) refused %s version %s: %s", n.Node, n.Identity, n.Nacked.Secret, n.Nacked.Version.Short(), n.Nacked.Message)
}

// giveUp takes secrets out of a rollout between two waves, and takes the group back that has a complaint.
func (t *transaction) giveUp(ctx context.Context, r *Rollout, group string, secrets []string, reason string) error {
	return t.begins(ctx, r, Unwind{Secrets: secrets, Groups: []string{group}, Reason: reason, End: RolledBack})
}

// holdRefused holds what nodes have refused of a secret that leaves a rollout for another reason.
func (t *transaction) holdRefused(r *Rollout, name string) {
	to, _ := r.brings(name)
	for _, w := range r.Waves[:min(r.Wave+1, len(r.Waves))] {
		for _, g := range w.Moved {
			for _, n := range t.c.fleet.Progress(g, map[string]secret.Version{name: to}) {
				if n.Nacked != nil {
					t.hold(n.Nacked.Secret, n.Nacked.Version, Hard, n.refusal())
				}
			}
		}
	}
}
