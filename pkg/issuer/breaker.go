package issuer

import (
	"slices"
	"time"
)

const (
	// breakerFailures is how many different certificates have to fail in a row, each because the CA did not answer or was in
	// trouble, until no more are sent: one alone may be the reason itself, and has its own back-off.
	breakerFailures = 3
	// firstBreak is the first wait of an open breaker; each probe that fails doubles it, up to longestBreak.
	firstBreak   = 15 * time.Second
	longestBreak = 15 * time.Minute
	// mostTrips is when the wait is the longest one.
	mostTrips = 7
	// forcedPatience and expiredPatience are the longest waits of an open breaker for what somebody has asked for, and for a name
	// whose certificate has expired.
	forcedPatience  = 5 * time.Second
	expiredPatience = time.Minute
)

// breaker keeps orders from a CA that is down as a whole. Closed, it lets all through; open, none; when its wait is over, one, the
// most urgent: a probe, which closes it or opens it for twice as long. A certificate that waits for it has not failed. The zero
// value is closed.
type breaker struct {
	failed    []string // the different certificates that have failed in a row
	trips     int      // how often it has opened in a row; 0: it is closed
	opened    time.Time
	wait      time.Duration
	notBefore time.Time // what the CA has asked for
	probing   bool
	// patience is the least of those who wait, pressing the same of those who do not wait for notBefore.
	patience, pressing time.Duration
}

// hurry takes in how long somebody who waits can wait.
func (b *breaker) hurry(patience time.Duration, presses bool) {
	b.patience = min(b.patience, patience)
	if presses {
		b.pressing = min(b.pressing, patience)
	}
}

// stops says until when a certificate with this patience is not ordered; zero if it may be. What the CA has asked for holds what is
// ordinary; one that presses, because its end is near or somebody has asked for it, waits for that no longer than its patience.
func (b *breaker) stops(patience time.Duration, presses bool, at time.Time) (why string, until time.Time) {
	if b.trips == 0 {
		return "", time.Time{}
	}
	why = "the CA does not answer or is in trouble"
	if b.probing {
		return why, at.Add(heartbeat) // its end is looked at
	}
	until = latest(b.opened.Add(min(b.wait, b.patience, patience)), b.notBefore)
	if presses {
		until = earlier(until, b.opened.Add(min(b.pressing, patience)))
	}
	if !until.After(at) {
		return "", time.Time{}
	}
	return why, until
}

// open reports whether it is not closed.
func (b *breaker) open() bool { return b.trips > 0 }

// close takes in that the CA works.
func (b *breaker) close() { *b = breaker{} }

// fail takes in that the order of a certificate failed because of the CA, and reports whether the breaker has opened. random is a
// number in [0,1).
func (b *breaker) fail(name string, probe bool, at time.Time, retryAfter time.Duration, random float64) (opened bool) {
	switch {
	case b.open() && !probe: // sent before it opened
	case b.open():
		b.trip(at, retryAfter, random)
		return true
	case !slices.Contains(b.failed, name):
		b.failed = append(b.failed, name)
		if len(b.failed) >= breakerFailures {
			b.trip(at, retryAfter, random)
			return true
		}
	}
	return false
}

func (b *breaker) trip(at time.Time, retryAfter time.Duration, random float64) {
	b.trips++
	b.opened, b.failed, b.probing = at, nil, false
	b.patience, b.pressing = 2*longestBreak, longestBackoff // whoever waits makes them shorter
	b.trips = min(b.trips, mostTrips)
	b.wait = jitter(min(firstBreak<<(b.trips-1), longestBreak), random)
	b.notBefore = at.Add(min(retryAfter, longestBackoff))
}

// patience is the longest that a probe for this certificate waits: the shorter its life, the sooner.
func (e *entry) patience(at time.Time) time.Duration {
	patience := 2 * longestBreak // longer than any wait
	if e.state.issued() {
		patience = expiredPatience
		if left := e.state.NotAfter.Sub(at); left > 0 {
			patience = max(left/10, time.Second)
		}
	}
	if e.wish.Force || e.wish.Urgent {
		patience = min(patience, forcedPatience)
	}
	return patience
}

// presses reports whether what a CA asks for with Retry-After holds it no longer than its patience.
func (e *entry) presses() bool { return e.rank.class <= classForced }

// hurry tells an open breaker who waits for it; mu is held.
func (l *Loop) hurry(n *lane, at time.Time) {
	for _, e := range n.ready.items {
		n.breaker.hurry(e.patience(at), e.presses())
	}
}
