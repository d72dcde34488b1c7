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
		out = append(out, Availability{Issuer: name, Up: !l.down[name]})
	}
	return out
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
