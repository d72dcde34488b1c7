package issuer

import (
	"math"
	"time"
)

// firstBackoff are the waits after the failures of a certificate that was never issued, or has expired. The first are short,
// because a new CA or network often needs a moment.
var firstBackoff = []time.Duration{
	10 * time.Second, time.Minute, 10 * time.Minute,
	15 * time.Minute, 15 * time.Minute, 15 * time.Minute, 15 * time.Minute,
	30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour,
}

// validationBackoff are the same where the CA could not validate a name: at most four tries in any hour, so that one of the five
// failures an hour that Let's Encrypt allows for a name is left to people, and after a day few enough to stay below what leads to a
// paused name (1,152 in a row, which 4 a day reach after 9 months).
var validationBackoff = []time.Duration{
	time.Minute, 10 * time.Minute, 100 * time.Minute, 2 * time.Hour, 4 * time.Hour, 6 * time.Hour,
}

const (
	// longestBackoff is the most that a renewal is put off after a failure.
	longestBackoff = 24 * time.Hour
	// urgentBackoff is the same in the last part of the life.
	urgentBackoff = time.Hour
	// backoffJitter is how far a wait is moved at random, to both sides.
	backoffJitter = 0.2
	// unnamedLimit is the wait after a rate limit that came without a Retry-After.
	unnamedLimit = time.Hour
	// pausedBackoff is the wait until a certificate is tried again whose account or name was paused: only a person can end that.
	pausedBackoff = 24 * time.Hour
	// validationPause is the least wait after the third failed validation and later ones, whatever the end of the life: 4 an hour.
	validationPause = 30 * time.Minute
	// validationLife is the shortest life for which that holds: below, no CA with such a limit gives certificates.
	validationLife = 24 * time.Hour
)

// Backoff returns how long a certificate waits after its n-th failure in a row (from 1). A certificate that is still valid waits
// min(1 min, life/60), then ten times as long each time, up to a day, and never more than 1/10 of the life that is left; in the last
// 1/20 of its life at most an hour, and no wait reaches further into it than its beginning. One that was never issued (both times
// zero) or has expired waits as a new user would want: 10 s, 1 min, 10 min, 15 min and so on, up to 6 h, after an
// expiry up to an hour and 1/10 of the life.
//
// A failed validation (KindValidation) waits 1 min, 10 min, 100 min and so on, so that a name fails at most four times an hour. After
// KindPaused it is a day. The wait is moved by up to 20 % at random, and not shorter than the Retry-After of err, except where that
// would let a certificate expire for nothing: see heed. random returns numbers in [0,1).
func Backoff(n int, now, notBefore, notAfter time.Time, err *Error, random func() float64) time.Duration {
	if err.Kind == KindPaused {
		return max(jitter(pausedBackoff, 0.5+random()/2), err.RetryAfter) // not earlier
	}
	wait, longest := backoff(max(n, 1), now, notBefore, notAfter, err.Kind)
	if err.Kind == KindRateLimited && err.RetryAfter == 0 {
		wait = min(max(wait, unnamedLimit), longest)
	}
	wait = min(jitter(wait, random()), longest)
	if err.Kind == KindValidation && n > 2 && (notAfter.IsZero() || notAfter.Sub(notBefore) >= validationLife) {
		wait = max(wait, validationPause)
	}
	return max(wait, heed(err, now, notBefore, notAfter))
}

// heed returns how much of the Retry-After of err is waited for. The end of a limit that has a name is known, and asking earlier
// costs more. But an outage, and a 429 of whoever stands in front of the CA, may name days that nobody has thought about: then
// the deadline beats the politeness (invariant 11 overrules "never before Retry-After"), and the certificate is tried again when the
// last part of its life begins, in it after a quarter of what is left, and after its end as if nothing had been said.
func heed(err *Error, now, notBefore, notAfter time.Time) time.Duration {
	known := err.Kind != KindTemporary && (err.Kind != KindRateLimited || err.Limit != "")
	if known || notAfter.IsZero() {
		return err.RetryAfter
	}
	left, life := notAfter.Sub(now), notAfter.Sub(notBefore)
	longest := left / 4
	switch calm := left - time.Duration(lastPart*float64(life)); {
	case left <= 0:
		longest = min(urgentBackoff, life/10)
	case calm > 0:
		longest = calm
	}
	return min(err.RetryAfter, max(longest, min(time.Minute, life/60)))
}

// backoff returns the wait before it is moved at random, and the longest it may be.
func backoff(n int, now, notBefore, notAfter time.Time, kind Kind) (wait, longest time.Duration) {
	left, life := notAfter.Sub(now), notAfter.Sub(notBefore)
	if left <= 0 {
		waits, longest := firstBackoff, time.Duration(math.MaxInt64)
		switch {
		case kind == KindValidation:
			waits = validationBackoff
		case life > 0:
			longest = max(min(urgentBackoff, life/10), firstBackoff[0])
		}
		return min(waits[min(n, len(waits))-1], longest), longest
	}
	first := min(time.Minute, life/60)
	longest = min(longestBackoff, left/10)
	if calm := left - time.Duration(lastPart*float64(life)); calm > 0 {
		longest = min(longest, calm)
	} else {
		longest = min(longest, urgentBackoff)
	}
	longest = max(longest, first, time.Second)
	if ten := math.Pow10(n - 1); ten < float64(longest/max(first, 1))+1 {
		return min(time.Duration(float64(first)*ten), longest), longest
	}
	return longest, longest
}

// jitter moves a wait at random to both sides; random is in [0,1).
func jitter(wait time.Duration, random float64) time.Duration {
	return time.Duration(float64(wait) * (1 + backoffJitter*(2*random-1)))
}
