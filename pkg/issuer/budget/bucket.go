package budget

import (
	"math"
	"slices"
	"time"
)

// rate is a token bucket's: burst tokens at most, and one more each refill.
type rate struct {
	burst  int64
	refill int64 // nanoseconds
}

// limit is one limit of a CA as the two kinds of work see it.
type limit struct {
	name string
	// all is the CA's own; only urgent work may use all of it. ordinary is the share of it that any work may use: no larger, and refilled
	// no faster.
	all, ordinary rate
	// grace is how long after Spend the CA may count a use, or the use may still be given back.
	grace int64
}

// bucket is what was used up of one limit, for one scope. The zero value is full.
//
// It is two queues of work (GCRA, the generic cell rate algorithm): a use adds one token of work to both, and time takes it away, in one at
// the rate of the CA, in the other at that of ordinary work. What is left in a queue is its debt; a use fits while the debt and one token
// more are within the burst. Because ordinary work is refilled no faster and both begin with nothing, the debt of the ordinary queue, in
// tokens, is never below that of the other. A use that fits the ordinary bucket therefore fits the CA's as well, and together the two kinds
// of work never cross the line of the CA.
//
// The CA counts a use later than it is recorded here, at an unknown time within limit.grace, or not at all. Until that has passed the use
// is held: it is one whole token of debt that time does not reduce. Only then does it enter the queues, as if it had been counted that
// late. So the debt here is never below that of the CA, and a use that was not counted is given back exactly.
type bucket struct {
	full, slow int64  // when the queues are empty, all and ordinary: nanoseconds since 1970
	held       []hold // by time
	until      int64  // nothing fits before: the CA has refused
	// refills are the rates that full and slow were computed with.
	fullRefill, slowRefill int64
}

// hold is a number of uses that are counted at one time, at the latest.
type hold struct {
	at int64
	n  int64
}

const (
	// holdSteps is into how many groups the grace of a limit divides the held uses: it bounds what is stored of them.
	holdSteps = 8
	// longestRefusal bounds what a CA can ask for.
	longestRefusal = 31 * 24 * time.Hour
)

// at brings the bucket to a time: uses that have been counted by then enter the queues. A clock that was wrong leaves no bucket shut for
// longer than it takes to fill it, and a limit that was changed keeps the number of tokens that are missing.
func (b *bucket) at(l *limit, now int64) {
	b.full = rescale(b.full, now, b.fullRefill, l.all.refill)
	b.slow = rescale(b.slow, now, b.slowRefill, l.ordinary.refill)
	b.fullRefill, b.slowRefill = l.all.refill, l.ordinary.refill
	b.until = min(b.until, now+int64(longestRefusal))
	latest := now + l.grace + l.step()
	for len(b.held) > 0 && b.held[0].at <= now {
		b.count(l, b.held[0].at, b.held[0].n)
		b.held = b.held[1:]
	}
	if n := len(b.held); n > 0 && b.held[n-1].at > latest {
		b.held = slices.Clone(b.held) // copies of the bucket share it
		for i := range b.held {
			b.held[i].at = min(b.held[i].at, latest)
		}
	}
	b.bound(l, max(now, b.until))
}

// bound keeps the queues within the burst at a time: the CA has never used up more either, it does not count what it lets pass beyond that.
func (b *bucket) bound(l *limit, at int64) {
	b.full = min(b.full, add(at, times(l.all.burst, l.all.refill)))
	b.slow = min(b.slow, add(at, times(l.all.burst, l.ordinary.refill)))
}

func rescale(end, now, was, is int64) int64 {
	if was == is || was == 0 || end <= now {
		return end
	}
	return add(now, int64(min(math.Ceil(float64(end-now)/float64(was)*float64(is)), math.MaxInt64/2)))
}

// count enters n uses into the queues, as counted at one time.
func (b *bucket) count(l *limit, at, n int64) {
	b.full = add(max(b.full, at), times(n, l.all.refill))
	b.slow = add(max(b.slow, at), times(n, l.ordinary.refill))
	b.bound(l, max(at, b.until))
}

func (l *limit) step() int64 { return max(l.grace/holdSteps, 1) }

// view is the rate and the end of the queue that a kind of work is measured by.
func (b *bucket) view(l *limit, urgent bool) (r rate, end int64) {
	if urgent {
		return l.all, b.full
	}
	return l.ordinary, b.slow
}

func (b *bucket) heldTokens() int64 {
	var n int64
	for _, h := range b.held {
		n += h.n
	}
	return n
}

// debt is what is used up, as the time in which it is refilled.
func (b *bucket) debt(l *limit, now int64, urgent bool) int64 {
	r, end := b.view(l, urgent)
	return add(max(0, end-now), times(b.heldTokens(), r.refill))
}

// left is how many uses fit now.
func (b *bucket) left(l *limit, now int64, urgent bool) int64 {
	if b.until > now {
		return 0
	}
	r, _ := b.view(l, urgent)
	return max(0, (times(r.burst, r.refill)-b.debt(l, now, urgent))/r.refill)
}

// fits reports whether one more use fits; the bucket has been brought to now. Ordinary work is measured by both bounds, although the first
// follows from the second.
func (b *bucket) fits(l *limit, now int64, urgent bool) bool {
	return b.left(l, now, true) > 0 && (urgent || b.left(l, now, false) > 0)
}

// fitsAt is when one more use fits, if there are no others until then: now, or later.
func (b *bucket) fitsAt(l *limit, now int64, urgent bool) int64 {
	at := b.viewFitsAt(l, max(now, b.until), true)
	if !urgent {
		at = max(at, b.viewFitsAt(l, max(now, b.until), false))
	}
	return at
}

func (b *bucket) viewFitsAt(l *limit, now int64, urgent bool) int64 {
	c := *b
	for {
		c.at(l, now)
		r, end := c.view(l, urgent)
		room := times(r.burst-1-c.heldTokens(), r.refill)
		at := max(now, end-room)
		if len(c.held) == 0 || room >= 0 && at <= c.held[0].at {
			return at
		}
		now = c.held[0].at
	}
}

// fullAt is when nothing is used up any more, if there are no other uses until then; 0 where it is so now.
func (b *bucket) fullAt(l *limit, now int64) int64 {
	c := *b
	for _, h := range c.held {
		c.count(l, h.at, h.n)
	}
	if at := max(c.full, c.until); at > now {
		return at
	}
	return 0
}

// spend records a use; the bucket has been brought to now, and is no copy that shares what is held.
func (b *bucket) spend(l *limit, now int64) {
	if l.grace == 0 {
		b.count(l, now, 1)
		return
	}
	step := l.step()
	at := (now + l.grace + step - 1) / step * step
	if n := len(b.held); n > 0 && b.held[n-1].at >= at { // later, where the clock went back
		b.held[n-1].n++
		return
	}
	b.held = append(b.held, hold{at: at, n: 1})
}

// giveBack removes a use that the CA does not count; the bucket is as for spend. Which one of those held it is, is not known: the
// oldest is the safe one, what remains then is counted later. One that is not held any more stays counted.
func (b *bucket) giveBack() (changed bool) {
	if len(b.held) == 0 {
		return false
	}
	b.held = slices.Clone(b.held)
	if b.held[0].n--; b.held[0].n == 0 {
		b.held = b.held[1:]
	}
	return true
}

// refuse shuts the bucket until a time; the bucket has been brought to now. drained says that the refusal was about this limit: then one
// token alone is there at that time.
func (b *bucket) refuse(l *limit, now, until int64, drained bool) {
	until = min(until, now+int64(longestRefusal))
	b.until = max(b.until, until)
	if !drained {
		return
	}
	n := l.all.burst - 1 - b.heldTokens()
	b.full = max(b.full, add(until, times(n, l.all.refill)))
	b.slow = max(b.slow, add(until, times(n, l.ordinary.refill)))
}

// spent reports whether there is anything to keep; the bucket has been brought to now.
func (b *bucket) spent(now int64) bool {
	return len(b.held) > 0 || b.full > now || b.slow > now || b.until > now
}

func (b *bucket) clone() bucket {
	c := *b
	c.held = slices.Clone(b.held)
	return c
}

// add and times stop at the ends of what a time can be.
func add(a, b int64) int64 {
	if c := a + b; (c > a) == (b > 0) {
		return c
	}
	if b > 0 {
		return math.MaxInt64 / 2
	}
	return math.MinInt64 / 2
}

func times(n, d int64) int64 {
	if n == 0 || d == 0 {
		return 0
	}
	if p := n * d; p/d == n && p < math.MaxInt64/2 && p > math.MinInt64/2 {
		return p
	}
	if (n > 0) == (d > 0) {
		return math.MaxInt64 / 2
	}
	return math.MinInt64 / 2
}
