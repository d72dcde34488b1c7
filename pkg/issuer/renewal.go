package issuer

import (
	"fmt"
	"math"
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

// firstBackoff are the waits after the failures of a certificate that was never issued. The first are short, because a new
// installation often waits for port 80 to be routed. From then on they keep below Let's Encrypt's 5 failed authorizations an
// hour for a name (one more every 12 minutes: the third wait comes when 2 are left, and 15 minutes never use them up), and after
// half a day below what leads to a paused name (1,152 in a row, which 4 a day reach after 9 months).
var firstBackoff = []time.Duration{
	10 * time.Second, time.Minute, 10 * time.Minute,
	15 * time.Minute, 15 * time.Minute, 15 * time.Minute, 15 * time.Minute,
	30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour,
}

const (
	// longestBackoff is the most that a renewal is put off after a failure.
	longestBackoff = 24 * time.Hour
	// backoffJitter is how far a wait is moved at random, to both sides.
	backoffJitter = 0.2
	// unnamedLimit is the wait after a rate limit that came without a Retry-After.
	unnamedLimit = time.Hour
)

// Backoff returns how long a certificate waits after its n-th failure in a row (from 1). A certificate that is still valid waits
// min(1 min, life/60), then ten times as long each time, up to a day, and never more than 1/10 of the life that is left; one that
// was never issued (both times zero) or has expired waits as a new user would want: 10 s, 1 min, 10 min, 15 min and so on up to
// 6 h. The wait is moved by up to 20 % at random, and is never shorter than the Retry-After of err. random returns numbers in [0,1).
func Backoff(n int, now, notBefore, notAfter time.Time, err *Error, random func() float64) time.Duration {
	n = max(n, 1)
	wait := firstBackoff[min(n, len(firstBackoff))-1]
	longest := time.Duration(math.MaxInt64)
	if left := notAfter.Sub(now); left > 0 {
		first := min(time.Minute, notAfter.Sub(notBefore)/60)
		longest = max(min(longestBackoff, left/10), first, time.Second)
		wait = longest
		if ten := math.Pow10(n - 1); ten < float64(longest/max(first, 1))+1 {
			wait = min(time.Duration(float64(first)*ten), longest)
		}
	}
	if err.Kind == KindRateLimited && err.RetryAfter == 0 {
		wait = min(max(wait, unnamedLimit), longest)
	}
	wait = time.Duration(float64(wait) * (1 + backoffJitter*(2*random()-1)))
	return max(min(wait, longest), err.RetryAfter)
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
