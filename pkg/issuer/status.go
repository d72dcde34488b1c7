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
}

// Status returns all configured certificates by name.
func (l *Loop) Status() []Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Status, 0, len(l.entries))
	for _, e := range l.entries {
		if !e.removed {
			out = append(out, e.status(now()))
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
}

// Issuers returns all configured issuers by name.
func (l *Loop) Issuers() []Availability {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Availability, 0, len(l.issuers))
	for _, name := range slices.Sorted(maps.Keys(l.issuers)) {
		out = append(out, Availability{Issuer: name, Up: !l.health[name].down})
	}
	return out
}

// health is what an order showed of an issuer's CA.
type health struct {
	at   time.Time
	down bool
}

// observe takes over what an order showed: the kind of its failure, or "" for a success; mu is held.
func (l *Loop) observe(name string, at time.Time, kind Kind) {
	if kind == KindInternal {
		return // it says nothing about the CA
	}
	h := health{at: at, down: kind == KindTemporary} // with the other kinds, the CA has answered
	l.health[name] = h
	if l.issuers[name] != nil {
		l.metrics.setUp(name, !h.down)
	}
}

// recall takes over what the stored state of a certificate tells of its issuers, so that a restart does not make a dead CA look
// alive; mu is held.
func (l *Loop) recall(e *entry) {
	if s := &e.state; s.issued() && s.LastRenewal.After(l.health[s.Issuer].at) {
		l.observe(s.Issuer, s.LastRenewal, "")
	}
	if f, name := e.state.Failure, e.cert.Issuer; f != nil && f.Tried == wanted(&e.cert) && f.At.After(l.health[name].at) {
		l.observe(name, f.At, f.Kind)
	}
}

func (e *entry) status(at time.Time) Status {
	s := Status{
		Name: e.cert.Name, State: StateOK, Issuer: e.state.Issuer,
		NotBefore: e.state.NotBefore, NotAfter: e.state.NotAfter,
		LastRenewal: e.state.LastRenewal, NextRenewal: e.due,
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
	case e.state.issued() && e.job != nil && e.job.started:
		s.State = StateRenewing
	case s.Failure != nil:
		s.State = StateFailing
	case !e.state.issued():
		s.State = StatePending
	}
	return s
}
