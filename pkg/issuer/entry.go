package issuer

import (
	"time"
)

// entry is one configured certificate. The loop's mu guards it.
type entry struct {
	cert     Certificate
	want     string // digest of cert, see wanted
	state    State
	revision int64 // of the state in the store
	loaded   bool  // the state was read since the certificate was configured
	// unfinished reports whether an order for it is in the store.
	unfinished bool
	due        time.Time
	shown      Kind // of the failure in the metrics; empty if there is none
	job        *job // nil unless an order waits for a worker or is under way
	// wish is what was asked for by Renew and is not there yet; the zero value is nothing.
	wish Renewal
	// removed is set while the order of a certificate that is not configured any more is still ending, so that the name cannot be
	// ordered a second time beside it.
	removed bool

	// Until it is due, and then until it is urgent, it is in the loop's clock.
	wake       time.Time
	clockPlace int
	// When it is due, it is in one queue besides: that of its lane, or that of the gate at which it was refused.
	rank      rank
	waiting   *queue[*entry]
	waitPlace int
	parked    *gate // the gate, if it waits there
	turn      *gate // the gate that has let it through, until its order has ended

	// Where the CA gives advice about its version, it is in the asks of the lane that has issued that.
	ask      time.Time
	asks     *queue[*entry]
	askPlace int
	asking   bool          // the CA is being asked
	saving   chan struct{} // closed when the answer has been stored: an order waits for it; nil if none is being stored
}

// issuer returns the name of the issuer that it is ordered from.
func (e *entry) issuer() string {
	if e.wish.Issuer != "" {
		return e.wish.Issuer
	}
	return e.cert.Issuer
}

// next returns when the certificate is to be ordered: when it is due, or, where an order for it is under way (a crash cut it off, or a
// try failed half way), as soon as its back-off allows, so that the order is not left to die at the CA.
func (e *entry) next() time.Time {
	due := e.state.due(&e.cert, e.want)
	if !e.unfinished {
		return due
	}
	if retry := e.state.retry(e.want); retry.Before(due) {
		return retry
	}
	return due
}

// urgent reports whether what is kept back for emergencies may be used for it.
func (e *entry) urgent(at time.Time) bool { return e.wish.Urgent || e.state.urgent(at) }

// running reports whether its order is under way.
func (e *entry) running() bool { return e.job != nil && e.job.started }

// schedule puts a loaded certificate to where it waits; mu is held. One whose order is under way comes back by itself.
func (l *Loop) schedule(e *entry) {
	e.due = e.next()
	l.unplace(e)
	l.planAsk(e)
	if e.removed {
		return
	}
	l.metrics.certificate(e)
	if e.running() {
		return
	}
	switch e.wake = e.due; {
	case e.job != nil:
		e.wake = time.Time{} // asked for by Renew
	case e.wish.Force:
		e.wake = e.state.retry(e.want)
	}
	l.clock.put(e)
}

// enter moves a certificate whose time has come into the queue of its lane; mu is held. It comes a second time when it becomes
// urgent while it waits.
func (l *Loop) enter(e *entry, at time.Time) {
	l.unplace(e)
	e.rank = e.rankAt(at)
	n := l.lane(e.issuer())
	n.breaker.hurry(e.patience(at), e.presses())
	e.await(&n.ready)
	l.watch(e, at)
}

// await puts it into a queue of what is due, or moves it there after its rank has changed.
func (e *entry) await(q *queue[*entry]) {
	e.waiting = q
	q.put(e)
}

// watch sees to it that a certificate that waits comes back when it becomes urgent; mu is held.
func (l *Loop) watch(e *entry, at time.Time) {
	if line := e.state.line(); line.After(at) {
		e.wake = line
		l.clock.put(e)
	}
}

// unplace takes a certificate out of the clock and of what it waits in, and gives its turn at a gate to the next one, unless its
// order is under way: then the turn lasts until that has ended; mu is held.
func (l *Loop) unplace(e *entry) {
	l.clock.remove(e)
	if e.waiting != nil {
		e.waiting.remove(e)
		e.waiting = nil
	}
	if e.parked != nil {
		e.parked.left()
		e.parked = nil
	}
	if g := e.turn; g != nil && !e.running() {
		e.turn = nil
		g.pass(false)
	}
}
