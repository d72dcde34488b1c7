package issuer

import (
	"context"
	"time"
)

// shortestShut is how long a gate is shut at least.
const shortestShut = time.Second

// gateKey names what a budget has refused: a limit, what it counts for, and whether the part for emergencies was asked as well.
type gateKey struct {
	limit, identifier string
	urgent            bool
}

// gate holds the certificates that one limit of a budget has refused. Each one is tried once, because only the budget knows which
// limits an order counts against; from then on, when there is room again, the most urgent one asks, and the others only when it was
// let through: O(log n) for each order, however many wait.
type gate struct {
	key     gateKey
	lane    *lane
	refusal *Error    // the last one
	until   time.Time // when there may be room again
	place   int       // in lane.closed; 0 while it is open
	waiting queue[*entry]
	// inside counts those that were let in and have not ended, width how many may be at once: one more with each that gets through.
	inside, width int
}

// park makes a certificate that a budget has refused wait for its turn; mu is held.
func (l *Loop) park(ctx context.Context, e *entry, t *task, at time.Time) {
	n := t.lane
	key := gateKey{limit: t.refused.Limit, identifier: t.refused.Identifier, urgent: t.urgent}
	if key.limit == "" { // nobody knows who else it concerns
		key.identifier = e.cert.Name
	}
	g := n.gates[key]
	if g == nil {
		g = &gate{key: key, lane: n, waiting: byRank()}
		n.gates[key] = g
		l.options.Logger.InfoContext(ctx, "orders wait for the budget", "issuer", n.name, "limit", key.limit, "identifier", key.identifier,
			"urgent", key.urgent, "err", t.refused, "hint", t.refused.Hint)
	}
	g.refusal, g.width = t.refused, 1
	g.until = at.Add(max(t.refused.RetryAfter, shortestShut))
	n.closed.put(g)
	e.rank = e.rankAt(at)
	e.parked = g
	e.await(&g.waiting)
	if !t.urgent {
		l.watch(e, at)
	}
	l.metrics.certificate(e)
}

// release lets in who has waited for an open gate, as many as it is wide.
func (g *gate) release() {
	for g.place == 0 && g.inside < max(g.width, 1) {
		e, ok := g.waiting.top()
		if !ok {
			break
		}
		g.waiting.remove(e)
		g.inside++
		e.parked, e.turn = nil, g
		e.await(&g.lane.ready)
	}
	g.left()
}

// pass ends the turn of one that was let in; through reports whether the budget had room for it.
func (g *gate) pass(through bool) {
	g.inside--
	if through {
		g.width = min(g.width+1, g.lane.workers)
	}
	g.release()
}

// left forgets the gate when nobody waits for it.
func (g *gate) left() {
	if g.inside == 0 && g.waiting.Len() == 0 {
		g.lane.closed.remove(g)
		delete(g.lane.gates, g.key)
	}
}

// error is the refusal as it reads now.
func (g *gate) error(at time.Time) *Error {
	e := *g.refusal
	e.RetryAfter = max(g.until.Sub(at), shortestShut)
	return &e
}

// openGates lets everybody try again, because the issuer is another one; mu is held.
func (l *Loop) openGates(n *lane, at time.Time) {
	for _, g := range n.gates {
		for e, ok := g.waiting.top(); ok; e, ok = g.waiting.top() {
			l.enter(e, at)
		}
	}
}
