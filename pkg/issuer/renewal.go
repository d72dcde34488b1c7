package issuer

import (
	"fmt"
	"time"
)

// RenewBefore is a time before the end of a certificate's life: at most one of its fields is set, the zero value is none.
type RenewBefore struct {
	// Duration is the life that is left at the renewal.
	Duration time.Duration
	// Fraction is the same as a part of the whole life, above 0 and below 1.
	Fraction float64
}

// left returns the life that is left at the renewal.
func (b RenewBefore) left(life time.Duration) time.Duration {
	return max(b.Duration, time.Duration(b.Fraction*float64(life)))
}

const (
	// shortLife separates the two rules for the life that is left at a renewal: 1/3, and 1/2 below it.
	shortLife = 10 * 24 * time.Hour
	// spread is the part of the life over which renewals are spread before their time.
	spread = 1.0 / 100
	// mostLeft is the greatest part of the life that can be left: a renew_before that is longer than the life must not lead to
	// one renewal after the other.
	mostLeft = 3.0 / 4
)

// NextRenewal returns when a certificate that is valid from notBefore to notAfter is renewed: when 1/3 of its life is left (1/2 if
// the life is under 10 days), or earlier by before; then up to 1/100 of the life earlier at random, so that certificates of one
// day do not stay together. It is never before now and never later than the rule says, unless that has passed. random returns
// numbers in [0,1).
func NextRenewal(now, notBefore, notAfter time.Time, before RenewBefore, random func() float64) time.Time {
	life := notAfter.Sub(notBefore)
	left := life / 3
	if life < shortLife {
		left = life / 2
	}
	left = min(max(left, before.left(life)), time.Duration(mostLeft*float64(life)))
	at := notAfter.Add(-left - time.Duration(spread*random()*float64(life)))
	if at.Before(now) {
		return now
	}
	return at
}

// NotDueError is the answer to a renewal that is not due and not forced.
type NotDueError struct {
	Name string
	// Until is when the certificate is due.
	Until time.Time
}

// Error says when the certificate is due.
func (e *NotDueError) Error() string {
	return fmt.Sprintf("certificate %q: not due until %s", e.Name, e.Until.UTC().Format(time.RFC3339))
}
