package rollout

import (
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// sight is what is seen of a wave under way: with the wave and the policy, all that a decision depends on.
type sight struct {
	verdict  verdict
	round    Round     // of all groups together
	readings []Reading // at the last look
	hook     HookResult
	watched  time.Duration
	complete time.Time // when the watch was complete; zero: it is not
}

// culprit is a version that something was seen of.
type culprit struct {
	secret    string
	version   secret.Version
	reason    string
	handshake bool
}

// decision is what follows from a sight.
type decision struct {
	pass     bool   // this state of the wave is over
	stall    bool   // the wave goes on, but holds no slot
	note     string // for the log, where it passes
	culprits []culprit
	failed   string // without a culprit
	late     bool   // because a node did not answer
	recheck  time.Time
}

// decide says what follows from what is seen of a wave. It is pure.
func (p Policy) decide(r *Rollout, w *Wave, s sight, now time.Time) decision {
	if d := p.refused(r, s); len(d.culprits) > 0 {
		return d
	}
	switch w.State {
	case Moving:
		return p.moving(r, w, s)
	case Verifying:
		return p.verifying(w, s, now)
	default:
		return p.watching(w, s, now)
	}
}

// refused looks for NACKs, and for handshakes that prove that something else is served.
func (p Policy) refused(r *Rollout, s sight) decision {
	var d decision
	if n := s.verdict.nack; n != nil && !r.emergency() { // a node that refuses keeps what it has; an emergency helps all the others
		d.blame(culprit{secret: n.Secret, version: n.Version, reason: s.verdict.refusal()})
	}
	for _, f := range s.round.Findings {
		if !f.Unseen && (!r.emergency() || f.Kind != OldLeaf) { // likewise
			d.blame(culprit{secret: f.Secret, version: f.Version, reason: "handshake: " + f.Message, handshake: f.Kind != OldLeaf && s.round.Served[f.Secret] == 0})
		}
	}
	return d
}

func (d *decision) blame(c culprit) {
	if !slices.ContainsFunc(d.culprits, func(have culprit) bool { return have.secret == c.secret }) {
		d.culprits = append(d.culprits, c)
	}
}

// moving weighs the ACKs.
func (p Policy) moving(r *Rollout, w *Wave, s sight) decision {
	n := s.verdict.nodes
	enough := n.Acked > 0 && n.Acked*100 >= n.Expected*p.minAcked()
	switch {
	case w.Forced:
		return decision{pass: true}
	case s.verdict.late != "" && r.emergency():
		return decision{pass: true, note: s.verdict.late + " did not answer within " + p.AckTimeout.String()}
	case s.verdict.late != "" && !enough:
		return decision{failed: fmt.Sprintf("%s did not answer within %s", s.verdict.late, p.AckTimeout), late: true}
	case r.emergency() && n.Acked+n.Nacked == n.Expected:
		return decision{pass: true}
	case n.Acked < n.Expected && !enough:
		return decision{recheck: s.verdict.recheck}
	case len(s.verdict.members) > 0 && n.Acked == 0 && !r.addition() && !r.removal() && !r.emergency():
		return decision{stall: true, recheck: s.verdict.recheck}
	default:
		return decision{pass: true}
	}
}

// roundLimit is for how long handshakes may take, whatever the prober says.
const roundLimit = 5 * time.Minute

// verifying weighs the first round of handshakes.
func (p Policy) verifying(w *Wave, s sight, now time.Time) decision {
	limit := w.Since.Add(roundLimit)
	switch {
	case len(s.round.Findings) > 0 && !s.round.Ended.IsZero():
		return decision{failed: s.round.Findings[0].Message}
	case !s.round.Ended.IsZero():
		return decision{pass: true}
	case !now.Before(limit):
		return decision{failed: fmt.Sprintf("the handshakes did not end within %s", roundLimit)}
	default:
		return decision{recheck: limit}
	}
}

// watching weighs what is seen while the wave is watched; at its end, something has to be seen of everything.
func (p Policy) watching(w *Wave, s sight, now time.Time) decision {
	for _, result := range p.gateResults(*w, s.readings) {
		if !result.OK && result.Error == "" {
			return decision{failed: fmt.Sprintf("gate %q is at %g, over %g", result.Name, *result.Value, *result.Max)}
		}
	}
	if s.complete.IsZero() {
		return decision{recheck: now.Add(w.tick())}
	}
	if d, over := p.lastRound(s, now); !over {
		return d
	}
	if d, over := p.lastReadings(w, s, now); !over {
		return d
	}
	switch {
	case !p.Hook:
		return decision{pass: true}
	case s.hook.Failed != "":
		return decision{failed: "the hook refused: " + s.hook.Failed}
	case s.hook.Err != "":
		return decision{failed: "the hook failed: " + s.hook.Err}
	case s.hook.Done:
		return decision{pass: true}
	default:
		return decision{} // it has a time-out of its own
	}
}

// lastRound weighs the handshakes after the watch.
func (p Policy) lastRound(s sight, now time.Time) (decision, bool) {
	limit := s.complete.Add(roundLimit)
	switch {
	case !s.round.Ended.IsZero() && len(s.round.Findings) > 0:
		return decision{failed: s.round.Findings[0].Message}, false
	case !s.round.Ended.IsZero():
		return decision{}, true
	case !now.Before(limit):
		return decision{failed: fmt.Sprintf("the handshakes did not end within %s", roundLimit)}, false
	default:
		return decision{recheck: limit}, false
	}
}

// lastReadings weighs the gates after the watch: what cannot be had has not passed.
func (p Policy) lastReadings(w *Wave, s sight, now time.Time) (decision, bool) {
	var d decision
	for i, result := range p.gateResults(*w, s.readings) {
		if result.OK {
			continue
		}
		limit := s.complete.Add(p.Gates[i].Timeout)
		if !now.Before(limit) {
			return decision{failed: fmt.Sprintf("gate %q has no value: %s", result.Name, result.Error)}, false
		}
		d.recheck = sooner(d.recheck, limit)
		d.recheck = sooner(d.recheck, now.Add(w.tick()))
	}
	return d, d.recheck.IsZero()
}

// gateResults compares readings with the bounds, in the order of the gates.
func (p Policy) gateResults(w Wave, readings []Reading) []GateResult {
	results := make([]GateResult, 0, len(p.Gates))
	for _, g := range p.Gates {
		result := GateResult{Name: g.Name, Before: w.before(g.Name)}
		result.Max = g.bound(result.Before)
		i := slices.IndexFunc(readings, func(r Reading) bool { return r.Name == g.Name })
		switch {
		case i < 0 || readings[i].At.IsZero():
			result.Error = "no answer yet"
		case readings[i].Err != "":
			result.Error = readings[i].Err
		default:
			result.Value = new(readings[i].Value)
			if result.Before == nil { // the gate is new
				result.Before = result.Value
				result.Max = g.bound(result.Before)
			}
			result.OK = result.Max == nil || readings[i].Value <= *result.Max
		}
		results = append(results, result)
	}
	return results
}

// before is a gate's value before the wave; nil: none.
func (w Wave) before(gate string) *float64 {
	for _, g := range w.Gates {
		if g.Name == gate {
			return g.Before
		}
	}
	return nil
}

// tick is how often a wave is looked at while it is watched.
func (w Wave) tick() time.Duration {
	return min(max(seconds(w.Watch)/20, 50*time.Millisecond), 15*time.Second)
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
