package issuer

import (
	"cmp"
	"time"
)

// lastPart is the part of a certificate's life that is an emergency: when it begins, everything else is overruled.
const lastPart = 1.0 / 20

// class is the coarse part of a rank; the lower one is ordered first.
type class int8

// The classes of what waits for an order. A name that was never issued serves nobody yet, so it waits for those whose users are
// about to lose something, or have lost it already; but people wait for it, while an ordinary renewal has weeks.
const (
	classUrgent  class = iota // less than 1/20 of the life is left, or none; or asked for as an emergency
	classForced               // somebody asked for it
	classNew                  // nothing is served that fits the configuration
	classRenewal              // an ordinary renewal
)

// rank says who is ordered first. It does not change while time passes, except that a certificate becomes urgent at State.line.
type rank struct {
	class class
	// at is when the emergency begins, in an emergency when the certificate ends: who has the least time to lose is first. The part
	// of the life that is left would send a 90-day certificate with 30 % (22 days to lose) before a 60-second one with 50 % (27 s).
	at time.Time
}

func (r rank) compare(other rank) int {
	if c := cmp.Compare(r.class, other.class); c != 0 {
		return c
	}
	return r.at.Compare(other.at)
}

// life is that of the version that was issued last.
func (s *State) life() time.Duration { return s.NotAfter.Sub(s.NotBefore) }

// line is when the last part of its life begins; zero if there is no version.
func (s *State) line() time.Time {
	if !s.issued() {
		return time.Time{}
	}
	return s.NotAfter.Add(-time.Duration(lastPart * float64(s.life())))
}

// urgent reports whether the last part of the life has begun, or is over.
func (s *State) urgent(at time.Time) bool { return s.issued() && !at.Before(s.line()) }

// rankAt returns the rank of a certificate that waits for an order.
func (e *entry) rankAt(at time.Time) rank {
	switch {
	case e.urgent(at):
		return rank{class: classUrgent, at: e.state.NotAfter}
	case e.wish.Force:
		return rank{class: classForced, at: e.state.line()}
	case !e.state.issued(), e.state.Wanted != e.want:
		return rank{class: classNew, at: e.due}
	default:
		return rank{class: classRenewal, at: e.state.line()}
	}
}
