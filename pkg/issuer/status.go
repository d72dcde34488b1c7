package issuer

import (
	"maps"
	"slices"
	"strings"
	"time"
)

// CertificateState is how a certificate stands, as people see it.
type CertificateState string

// The states of a certificate.
const (
	// StatePending was never issued.
	StatePending CertificateState = "pending"
	// StateOK waits for its renewal.
	StateOK CertificateState = "ok"
	// StateRenewing is being ordered, while a valid version is there.
	StateRenewing CertificateState = "renewing"
	// StateFailing failed at the last try; a valid version may be there.
	StateFailing CertificateState = "failing"
	// StateExpired was issued, and its last version is not valid any more.
	StateExpired CertificateState = "expired"
)

// Status is what is known about one certificate. Times are zero where there is none.
type Status struct {
	Name  string
	State CertificateState
	// Issuer is where the last version comes from, or will come from if there is none.
	Issuer              string
	NotBefore, NotAfter time.Time
	LastRenewal         time.Time
	// NextRenewal is when it is ordered next, after a failure as well.
	NextRenewal time.Time
	// Step is where its order stands; empty if there is none.
	Step Step
	// Failure is nil unless the last try failed.
	Failure *Failure
	// Waiting is nil unless it is due and something keeps it from being ordered.
	Waiting *Waiting
	// Advice is what the CA suggests for the last version.
	Advice Advice
}

// Waiting is why a certificate that is due is not ordered. It has not failed by that.
type Waiting struct {
	// Kind is KindBudget for a limit, KindTemporary for a CA that is down, and empty for a pause such as a maintenance.
	Kind Kind
	// Message says why.
	Message string
	// Until is when it is tried again at the earliest; others may be more urgent.
	Until time.Time
}

// Status returns all configured certificates by name.
func (l *Loop) Status() []Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Status, 0, len(l.entries))
	for _, e := range l.entries {
		if !e.removed {
			out = append(out, l.status(e, now()))
		}
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Availability is what is known about one issuer.
type Availability struct {
	// Issuer is its name.
	Issuer string
	// Up is false while the last order there failed because the CA did not answer or was in trouble.
	Up bool
	// Due counts the certificates that are due there and not being ordered yet, OverBudget those among them that wait for a limit.
	Due, OverBudget int
	// Budget is the limit that has room again first, nil if none is in the way: nobody waits for one.
	Budget *Waiting
	// Stopped is why nothing ordinary is ordered there, because it is down or paused; nil if nothing stops it.
	Stopped *Waiting
}

// Issuers returns all configured issuers by name.
func (l *Loop) Issuers() []Availability {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now()
	out := make([]Availability, 0, len(l.lanes))
	for _, name := range slices.Sorted(maps.Keys(l.lanes)) {
		n := l.lanes[name]
		if n.issuer == nil {
			continue
		}
		a := Availability{Issuer: name, Up: !n.health.down, Due: n.ready.Len(), Stopped: n.stopped(at)}
		for _, g := range n.gates {
			a.OverBudget += g.waiting.Len()
		}
		a.Due += a.OverBudget
		if g, shut := n.closed.top(); shut {
			a.Budget = g.status(at)
		}
		out = append(out, a)
	}
	return out
}

// stopped says what keeps ordinary certificates from being ordered.
func (n *lane) stopped(at time.Time) *Waiting {
	if why, until := n.breaker.stops(2*longestBreak, false, at); until.After(at) {
		return &Waiting{Kind: KindTemporary, Message: why, Until: until}
	}
	if n.hold.reason != "" {
		return &Waiting{Message: n.hold.reason, Until: n.hold.until}
	}
	return nil
}

func (g *gate) status(at time.Time) *Waiting {
	e := g.error(at)
	return &Waiting{Kind: KindBudget, Message: e.Message, Until: g.until}
}

// health is what an order showed of an issuer's CA.
type health struct {
	at   time.Time
	down bool
}

// observe takes over what an order showed of an issuer: the kind of its failure, or "" for a success; mu is held.
func (l *Loop) observe(n *lane, at time.Time, kind Kind) {
	if kind == KindInternal {
		return // it says nothing about the CA
	}
	n.health = health{at: at, down: kind == KindTemporary} // with the other kinds, the CA has answered
	if n.issuer != nil {
		l.metrics.setUp(n.name, !n.health.down)
	}
}

func (l *Loop) status(e *entry, at time.Time) Status {
	s := Status{
		Name: e.cert.Name, State: StateOK, Issuer: e.state.Issuer,
		NotBefore: e.state.NotBefore, NotAfter: e.state.NotAfter,
		LastRenewal: e.state.LastRenewal, NextRenewal: e.due, Advice: e.state.Advice, Waiting: l.waiting(e, at),
	}
	if w := s.Waiting; w != nil && w.Until.After(s.NextRenewal) {
		s.NextRenewal = w.Until
	}
	if s.Issuer == "" {
		s.Issuer = e.cert.Issuer
	}
	if e.job != nil {
		s.Step, _ = e.job.current()
	}
	if e.state.Failure != nil {
		s.Failure = new(*e.state.Failure)
	}
	switch {
	case e.state.issued() && at.After(e.state.NotAfter):
		s.State = StateExpired
	case e.state.issued() && e.running():
		s.State = StateRenewing
	case s.Failure != nil:
		s.State = StateFailing
	case !e.state.issued():
		s.State = StatePending
	}
	return s
}

// waiting says what keeps a certificate that is due from being ordered; nil if nothing does.
func (l *Loop) waiting(e *entry, at time.Time) *Waiting {
	n := l.lanes[e.issuer()]
	switch {
	case e.waiting == nil || n == nil:
		return nil
	case e.parked != nil:
		return e.parked.status(at)
	}
	w := n.stopped(at)
	if w == nil || !e.presses() {
		return w
	}
	if _, until := n.stops(e, at); until.After(at) {
		w.Until = until
		return w
	}
	return nil
}
