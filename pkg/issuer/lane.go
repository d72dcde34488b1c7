package issuer

import (
	"context"
	"time"
)

// lane is what waits for one issuer, and what keeps it from being ordered. The loop's mu guards it.
type lane struct {
	name   string
	issuer Issuer // nil if it is not configured
	health health
	// breaker and hold stop all that is ordinary, gates only what was refused at them.
	breaker breaker
	hold    hold
	gates   map[gateKey]*gate
	closed  queue[*gate] // the gates that are shut, by the time at which they open

	ready   queue[*entry] // what is due, the most urgent on top
	workers int           // how many orders may be under way at once
	running int           // orders under way
	asks    queue[*entry] // certificates whose issuer is to be asked for advice, by time
	asking  int           // questions under way
}

// hold is a pause of ordinary renewals; the zero value is none.
type hold struct {
	reason string
	until  time.Time
}

// lane returns the lane of an issuer, a new one if there is none; mu is held.
func (l *Loop) lane(name string) *lane {
	if known := l.lanes[name]; known != nil {
		return known
	}
	made := &lane{
		name: name, workers: l.options.Workers, gates: make(map[gateKey]*gate), ready: byRank(),
		closed: queue[*gate]{
			before: func(a, b *gate) bool { return a.until.Before(b.until) },
			place:  func(g *gate) *int { return &g.place },
		},
		asks: queue[*entry]{
			before: func(a, b *entry) bool { return a.ask.Before(b.ask) },
			place:  func(e *entry) *int { return &e.askPlace },
		},
	}
	l.lanes[name] = made
	return made
}

// byRank is a queue of what is due, the most urgent on top.
func byRank() queue[*entry] {
	return queue[*entry]{
		before: func(a, b *entry) bool {
			c := a.rank.compare(b.rank)
			return c < 0 || c == 0 && a.cert.Name < b.cert.Name
		},
		place: func(e *entry) *int { return &e.waitPlace },
	}
}

// idle reports whether nothing of a lane is needed any more.
func (n *lane) idle() bool {
	return n.issuer == nil && n.running == 0 && n.asking == 0 && n.ready.Len() == 0 && n.asks.Len() == 0 && len(n.gates) == 0
}

// holds asks who pauses issuers, without a lock.
func (l *Loop) holds(at time.Time) map[string]hold {
	if l.options.Hold == nil {
		return nil
	}
	l.mu.Lock()
	names := make([]string, 0, len(l.lanes))
	for name := range l.lanes {
		names = append(names, name)
	}
	l.mu.Unlock()
	out := make(map[string]hold, len(names))
	for _, name := range names {
		if reason, until := l.options.Hold(name, at); reason != "" {
			out[name] = hold{reason: reason, until: until}
		}
	}
	return out
}

// look gives what is due to free workers, the most urgent first, and returns the time until there is something to do again, at
// most a heartbeat.
func (l *Loop) look(ctx context.Context, at time.Time, holds map[string]hold) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.turnBack(at)
	for e, ok := l.clock.top(); ok && !e.wake.After(at); e, ok = l.clock.top() {
		l.enter(e, at)
	}
	next := at.Add(l.heartbeat)
	for name, n := range l.lanes {
		n.hold = holds[name]
		next = earlier(next, l.serve(ctx, n, at))
		next = earlier(next, l.serveAsks(ctx, n, at))
		if n.idle() {
			delete(l.lanes, name)
		}
	}
	if e, ok := l.clock.top(); ok {
		next = earlier(next, e.wake)
	}
	return next.Sub(at)
}

// earlier returns the earlier one of two times; zero is none.
func earlier(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

// serve gives what is due at one issuer to its free workers, and returns when the lane is to be looked at again; zero if an order
// that ends is what it waits for. mu is held.
func (l *Loop) serve(ctx context.Context, n *lane, at time.Time) (next time.Time) {
	for g, ok := n.closed.top(); ok; g, ok = n.closed.top() {
		if g.until.After(at) {
			next = g.until
			break
		}
		n.closed.remove(g)
		g.release()
	}
	for n.running < n.workers {
		e, ok := n.ready.top()
		if !ok {
			break
		}
		if _, until := n.stops(e, at); until.After(at) {
			return earlier(until, next)
		}
		turn := e.turn
		e.turn = nil // kept, while it leaves its queues
		l.unplace(e)
		e.turn = turn
		l.start(ctx, n, e, at)
	}
	return next
}

// stops says what keeps a certificate from being ordered now, and until when; zero if nothing does.
func (n *lane) stops(e *entry, at time.Time) (why string, until time.Time) {
	if why, until = n.breaker.stops(e.patience(at), e.presses(), at); until.After(at) {
		return why, until
	}
	if n.hold.reason != "" && !e.presses() {
		return n.hold.reason, latest(n.hold.until, at.Add(time.Second)) // whoever holds may do so a moment longer than it said
	}
	return "", time.Time{}
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
