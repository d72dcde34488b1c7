package rollout

import (
	"fmt"
	"time"
)

// observation is a watch under way. It stands in memory: time in which nobody looked is not watched time.
type observation struct {
	wave     int
	last     time.Time     // of the last look
	watched  time.Duration // altogether
	looked   time.Time     // handshakes that began before count no more
	read     time.Time     // readings that began before count no more
	complete time.Time     // when the watch was complete; zero: it is not
}

const (
	// storeWatched is how much watched time a crash may lose, or a 60th of the watch.
	storeWatched = 10 * time.Second
	// lookAgain is the longest time between two looks by handshakes and gates.
	lookAgain = 30 * time.Second
)

// observe goes on with the watch of a wave.
func (t *transaction) observe(r *Rollout, w *Wave) *observation {
	o := t.c.watches[r.ID]
	if o == nil || o.wave != r.Wave {
		before := seconds(w.Watched)
		o = &observation{wave: r.Wave, last: t.now, watched: before, looked: t.now, read: t.now}
		t.c.watches[r.ID] = o
	}
	o.watched += min(t.now.Sub(o.last), 2*w.tick()) // no more than the pause between two looks: a machine may have slept
	o.last = t.now
	switch {
	case !o.complete.IsZero():
	case o.watched >= seconds(w.Watch):
		o.complete, o.looked, o.read = t.now, t.now, t.now
	case t.now.Sub(o.looked) >= min(max(seconds(w.Watch)/4, w.tick()), lookAgain):
		o.looked, o.read = t.now, t.now
	}
	if o.watched-seconds(w.Watched) >= max(storeWatched, seconds(w.Watch)/60) { // where a commit fails, the next one stores it
		w.Watched, t.touched = o.watched.Seconds(), true
	}
	return o
}

// unwatched takes the time up to now out of a watch under way.
func (c *Controller) unwatched(id uint64, now time.Time) {
	if o := c.watches[id]; o != nil {
		o.last = now
	}
}

// watchLength is how long a wave is watched: shorter where what the later waves serve ends soon.
func (t *transaction) watchLength(r *Rollout) time.Duration {
	if r.Deadline.IsZero() {
		return t.policy.Watch
	}
	left := r.Deadline.Sub(t.now) / time.Duration(len(r.Waves)-r.Wave)
	return max(0, min(t.policy.Watch, left*9/10))
}

// show keeps what was seen last for those who ask.
func (c *Controller) show(r *Rollout, s sight) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sights[r.ID] = shown{wave: r.Wave, sight: s, at: time.Now()}
}

// shown is what was seen last of a rollout.
type shown struct {
	wave  int
	sight sight
	at    time.Time
}

// dress puts what was seen last into the copy of a wave. The caller holds no lock.
func (s shown) dress(p Policy, w *Wave) {
	if s.sight.round.Targets > 0 {
		w.Handshakes = Handshakes{OK: s.sight.round.OK, Failed: s.sight.round.Failed}
		if len(s.sight.round.Findings) > 0 {
			w.Handshakes.LastError = s.sight.round.Findings[0].Message
		}
	}
	if w.State != Watching {
		return
	}
	w.Gates = p.gateResults(*w, s.sight.readings)
	w.Watched = s.sight.watched.Seconds()
	w.Ends = s.at.Add(max(0, seconds(w.Watch)-s.sight.watched)).UTC()
}

// before asks the gates for their values before a wave begins. It says why the wave waits for them, or has failed.
func (t *transaction) before(r *Rollout, w *Wave) (reason string, recheck time.Time, failed bool) {
	if len(t.policy.Gates) == 0 || !t.watches(r) || w.Promoted && !t.needsMove(r, w) {
		return "", time.Time{}, false
	}
	asked, ok := t.c.asked[r.ID]
	if !ok {
		asked = &question{since: t.now, read: t.now}
		t.c.asked[r.ID] = asked
	}
	readings := t.c.gates.Read(asked.read)
	results := t.policy.gateResults(Wave{}, readings)
	for i, result := range results {
		if result.OK {
			continue
		}
		problem := fmt.Sprintf("gate %q has no value: %s", result.Name, result.Error)
		if result.Error == "" {
			problem = fmt.Sprintf("gate %q is over %g before the wave begins", result.Name, *result.Max)
		}
		for _, one := range readings {
			if !one.At.Before(asked.read) && t.now.Sub(one.At) >= time.Second { // it is asked again
				asked.read = one.At.Add(1)
			}
		}
		limit := asked.since.Add(t.policy.Gates[i].Timeout)
		if !t.now.Before(limit) { // it is forgotten when the end of the rollout is stored
			return problem, time.Time{}, true
		}
		if again := t.now.Add(time.Second); again.Before(limit) {
			limit = again
		}
		return "for the gates: " + problem, limit, false
	}
	delete(t.c.asked, r.ID)
	for i := range results {
		results[i].Before = results[i].Value
	}
	w.Gates = results
	return "", time.Time{}, false
}

// question is when the gates were asked for their values before a wave.
type question struct{ since, read time.Time }
