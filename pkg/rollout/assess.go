package rollout

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// assess looks at a wave under way, and makes the transition that follows from what is seen.
func (t *transaction) assess(ctx context.Context, r *Rollout, w *Wave) (time.Time, error) {
	s := t.sight(r, w)
	w.Nodes = s.verdict.nodes
	d := t.policy.decide(r, w, s, t.now)
	if d.pass || d.failed != "" || len(d.culprits) > 0 { // it is stored with the transition
		shown{sight: s, at: t.now}.dress(t.policy, w)
	}
	if n := s.verdict.nack; n != nil && r.emergency() { // reported, and not undone
		if h, held := t.held(n.Secret, n.Version); !held || h.Kind != Hard { // once: a hold is something to store
			t.hold(n.Secret, n.Version, Hard, s.verdict.refusal())
		}
	}
	switch {
	case len(d.culprits) > 0:
		return time.Time{}, t.condemn(ctx, r, w, d.culprits)
	case d.failed != "" && r.emergency():
		return t.pass(ctx, r, w, d.failed)
	case d.failed != "":
		names := r.secrets()
		if d.late {
			names = t.unanswered(r, w)
		}
		for _, name := range names {
			to, _ := r.brings(name)
			t.hold(name, to, Soft, d.failed)
		}
		return time.Time{}, t.takeBack(ctx, r, w, names, d.failed)
	case d.pass:
		return t.pass(ctx, r, w, d.note)
	case d.stall:
		t.stall(r, w)
	}
	if s.verdict.changed {
		w.Members, t.touched = s.verdict.members, true
	}
	return d.recheck, nil
}

// unanswered are the secrets of a train that late nodes have not ACKed: the others do not wait for them. Where that cannot be told, it is all.
func (t *transaction) unanswered(r *Rollout, w *Wave) []string {
	var names []string
	for c := range r.live() {
		for _, g := range w.Groups {
			waits := func(n NodeProgress) bool { return n.Connected && !n.Acked && n.Nacked == nil }
			if slices.ContainsFunc(t.c.fleet.Progress(g, map[string]secret.Version{c.Secret: c.To}), waits) {
				names = append(names, c.Secret)
				break
			}
		}
	}
	if len(names) == 0 {
		return r.secrets()
	}
	return names
}

// lookPaused takes a wave back that is refused while its rollout has no slot; nothing else happens to it.
func (t *transaction) lookPaused(ctx context.Context, r *Rollout, w *Wave) (time.Time, error) {
	if !w.State.moved() {
		return time.Time{}, nil
	}
	t.c.unwatched(r.ID, t.now)
	s := sight{verdict: t.verdict(r, w)}
	if d := t.policy.refused(r, s); len(d.culprits) > 0 {
		return time.Time{}, t.condemn(ctx, r, w, d.culprits)
	}
	if !r.Paused && !w.Stalled {
		r.log(t.now, Waiting, "until another change has left "+some(w.Groups), "")
	}
	return time.Time{}, nil
}

// sight gathers what is seen of a wave. It begins what has to be asked for.
func (t *transaction) sight(r *Rollout, w *Wave) sight {
	s := sight{verdict: t.verdict(r, w)}
	switch w.State {
	case Verifying:
		s.round = t.proof(r, w)
	case Watching:
		o := t.observe(r, w)
		s.watched, s.complete = o.watched, o.complete
		s.round = t.round(r, w, o.looked)
		s.readings = t.readings(o)
		if !o.complete.IsZero() && t.policy.Hook {
			s.hook = t.c.hook.Run(HookWave{Rollout: r.ID, Wave: r.Wave, Groups: w.Groups, Secrets: r.secrets()})
		}
	}
	if t.policy.minAcked() < 100 { // those that have not ACKed were let pass
		s.round.Findings = slices.DeleteFunc(slices.Clone(s.round.Findings), func(f Finding) bool {
			return f.Kind == OldLeaf && slices.Contains(s.verdict.unacked, f.Node)
		})
	}
	t.c.show(r, s)
	return s
}

// proof is the first round of a wave. Nodes that have ACKed, and of which none is connected now, come back in a moment after a restart of this server:
// without them nothing is proven, and they are waited for as long as nodes that go are.
func (t *transaction) proof(r *Rollout, w *Wave) Round {
	since := w.Since
	if at := t.c.nobody[r.ID]; at.After(since) {
		since = at
	}
	round := t.round(r, w, since)
	if round.Targets > 0 || round.Ended.IsZero() || w.Answered == 0 || !t.now.Before(w.Since.Add(min(t.policy.NodeGrace, roundLimit))) {
		return round
	}
	t.c.nobody[r.ID] = t.now
	round.Ended = time.Time{}
	return round
}

func (t *transaction) verdict(r *Rollout, w *Wave) verdict {
	unsent := t.c.unsent[r.ID]
	if unsent == nil {
		unsent = map[string]time.Time{}
		t.c.unsent[r.ID] = unsent
	}
	return jury{policy: t.policy, now: t.now, unsent: unsent}.judge(*w, t.c.progress(r, w))
}

// round is the newest round of handshakes with all groups of a wave; without a prober there is nothing to be looked at.
func (t *transaction) round(r *Rollout, w *Wave, since time.Time) Round {
	all := Round{Began: t.now, Ended: t.now, Served: map[string]int{}}
	if t.c.prober == nil || r.removal() {
		return all
	}
	ended := true
	for _, g := range w.Groups {
		one := t.c.prober.Look(g, r.wants(), since)
		all.Targets += one.Targets
		all.OK += one.OK
		all.Failed += one.Failed
		for name, n := range one.Served {
			all.Served[name] += n
		}
		all.Findings = append(all.Findings, one.Findings...)
		ended = ended && !one.Ended.IsZero()
	}
	if !ended {
		all.Ended = time.Time{}
	}
	slices.SortStableFunc(all.Findings, func(a, b Finding) int {
		switch {
		case a.Unseen == b.Unseen:
			return 0
		case b.Unseen:
			return -1
		default:
			return 1
		}
	})
	return all
}

// readings are those of the gates at the last look. After the watch, what could not be had is asked for again.
func (t *transaction) readings(o *observation) []Reading {
	if len(t.policy.Gates) == 0 {
		return nil
	}
	readings := t.c.gates.Read(o.read)
	if o.complete.IsZero() {
		return readings
	}
	for _, one := range readings {
		if one.Err != "" && !one.At.Before(o.read) {
			o.read = one.At.Add(1)
		}
	}
	return readings
}

// condemn holds the culprits, and takes them back.
func (t *transaction) condemn(ctx context.Context, r *Rollout, w *Wave, culprits []culprit) error {
	names := make([]string, 0, len(culprits))
	for _, c := range culprits {
		names = append(names, c.secret)
		t.put(Hold{Secret: c.secret, Version: c.version, Kind: Hard, Reason: c.reason, Handshake: c.handshake})
	}
	reason := culprits[0].reason
	if n := len(culprits) - 1; n > 0 {
		reason += fmt.Sprintf(" (and %d more)", n)
	}
	if err := t.takeBack(ctx, r, w, names, reason); err != nil {
		return err
	}
	others := map[string]secret.Version{}
	for _, name := range names {
		others[name] = ""
	}
	t.redate(others) // a version that is held for less may be needed now
	return nil
}

// pass ends a wave's state; the next one begins in the same commit.
func (t *transaction) pass(ctx context.Context, r *Rollout, w *Wave, note string) (time.Time, error) {
	delete(t.c.unsent, r.ID)
	delete(t.c.nobody, r.ID)
	note = dashed(note)
	switch {
	case w.State == Moving && t.provable(r, w):
		w.State, w.Members, w.Stalled, w.Answered = Verifying, nil, false, w.Nodes.Acked
		r.log(t.now, Verifying, fmt.Sprintf("wave %d (%s) has ACKed%s", r.Wave+1, some(w.Groups), note), "")
	case w.State != Watching && t.watches(r):
		length := t.watchLength(r)
		w.State, w.Members, w.Stalled, w.Watch, w.Watched = Watching, nil, false, length.Seconds(), 0
		what := "is watched for " + length.Round(time.Millisecond).String()
		if length < t.policy.Watch {
			what += ", not for " + t.policy.Watch.String() + ": what the later waves serve ends soon"
		}
		r.log(t.now, Watching, fmt.Sprintf("wave %d (%s) %s%s", r.Wave+1, some(w.Groups), what, note), "")
	default:
		w.State, w.Members, w.Stalled = Done, nil, false
		if note != "" {
			r.log(t.now, r.State, fmt.Sprintf("wave %d (%s) is done%s", r.Wave+1, some(w.Groups), note), "")
		}
	}
	w.Since = t.now
	return t.advance(ctx, r)
}

// provable reports whether there is something to be looked at by handshakes.
func (t *transaction) provable(r *Rollout, w *Wave) bool {
	one := t.round(r, w, t.now)
	return one.Targets > 0 || one.Ended.IsZero()
}

func dashed(note string) string {
	if note == "" {
		return ""
	}
	return ", but " + note
}

// watches reports whether the waves of a rollout are watched.
func (t *transaction) watches(r *Rollout) bool {
	return !r.addition() && !r.emergency() && (t.policy.Watch > 0 || len(t.policy.Gates) > 0 || t.policy.Hook)
}

// stall says that a wave goes on only when a node ACKs, or an operator says so: every member went without a word. It lets other changes
// move its groups meanwhile.
func (t *transaction) stall(r *Rollout, w *Wave) {
	w.Stalled = true
	r.log(t.now, Moving, fmt.Sprintf("no node of %s has ACKed, and none is there: it goes on when one does, or when the group is promoted", some(w.Groups)), "")
}
