package issuer

import (
	"context"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

// load reads the state of certificates that were configured since the last look, in one request.
func (l *Loop) load(ctx context.Context) error {
	if !l.unread() {
		return nil
	}
	if err := l.read(ctx); err != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.behind = true
		return err
	}
	return nil
}

func (l *Loop) read(ctx context.Context) error {
	entries, _, err := l.options.Store.List(ctx, StateKey("")) // the key of an empty name is the common prefix
	if err != nil {
		return err
	}
	orders, _, err := l.options.Store.List(ctx, OrderKey(""))
	if err != nil {
		return err
	}
	found := make(map[string]store.Entry, len(entries)+len(orders))
	for _, e := range slices.Concat(entries, orders) {
		found[e.Key] = e
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if !e.loaded && !e.running() {
			l.take(ctx, e, found)
		}
	}
	if !l.recalled {
		l.recallBreakers()
		l.recalled = true
	}
	return nil
}

// unread reports whether there are certificates whose state has to be read, and notes that it will be.
func (l *Loop) unread() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	behind := l.behind
	l.behind = false
	return behind
}

// take gives a certificate the state that was found in the store; mu is held.
func (l *Loop) take(ctx context.Context, e *entry, found map[string]store.Entry) {
	stored, ok := found[StateKey(e.cert.Name)]
	e.state, e.revision = State{}, 0
	if ok {
		var err error
		e.revision = stored.Revision
		if e.state, err = decodeState(stored); err != nil {
			// Ordering it anew repairs it, while an error would stop every certificate.
			l.options.Logger.ErrorContext(ctx, "state of a certificate not understood: it is ordered anew", "secret", e.cert.Name, "err", err)
		}
	}
	e.state = e.state.corrected(now())
	e.loaded = true
	l.recall(e)
	_, e.unfinished = found[OrderKey(e.cert.Name)]
	if due := e.next(); e.job != nil && !e.wish.Force && due.After(now()) {
		e.job.finish(Accepted{}, &NotDueError{Name: e.cert.Name, Until: due})
		e.job, e.wish = nil, Renewal{}
	}
	l.schedule(e)
}

// recall takes over what the stored state of a certificate tells of its issuers, so that a restart does not make a dead CA look
// alive; mu is held.
func (l *Loop) recall(e *entry) {
	if s := &e.state; s.issued() && s.LastRenewal.After(l.lane(s.Issuer).health.at) {
		l.observe(l.lane(s.Issuer), s.LastRenewal, "")
	}
	if f, n := e.state.Failure, l.lane(e.cert.Issuer); f != nil && f.Tried == e.want && f.At.After(n.health.at) {
		l.observe(n, f.At, f.Kind)
	}
}

// recallBreakers opens the breakers that would be open if there had been no restart, so that it does not hammer a CA that is down;
// mu is held. How long it has been down is told by how many tries have failed since the last success.
func (l *Loop) recallBreakers() {
	type outage struct {
		certificates, tries int
		last                time.Time
	}
	at := now()
	outages := make(map[*lane]outage)
	working := make(map[*lane]time.Time)
	for _, e := range l.entries {
		if n := l.lanes[e.state.Issuer]; n != nil {
			working[n] = latest(working[n], e.state.LastRenewal)
		}
		if f, n := e.state.Failure, l.lanes[e.cert.Issuer]; f != nil && n != nil && f.Tried == e.want && f.Kind != KindTemporary && f.Kind != KindInternal {
			working[n] = latest(working[n], f.At) // it has answered
		}
	}
	for _, e := range l.entries {
		f, n := e.state.Failure, l.lanes[e.cert.Issuer]
		if f == nil || n == nil || f.Tried != e.want || f.Kind != KindTemporary || !f.At.After(working[n]) || f.At.After(at) {
			continue
		}
		o := outages[n]
		o.certificates++
		o.tries += f.Attempts
		o.last = latest(o.last, f.At)
		outages[n] = o
	}
	for n, o := range outages {
		if o.certificates >= breakerFailures && !n.breaker.open() {
			n.breaker.trips = min(o.tries-breakerFailures, mostTrips-1)
			n.breaker.trip(o.last, 0, l.options.Random())
			l.hurry(n, o.last)
		}
	}
}
