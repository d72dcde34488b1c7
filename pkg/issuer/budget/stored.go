package budget

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// entry is one bucket, as it is known and as it is stored.
type entry struct {
	bucket
	// issued is when the identifiers of an exact set last had a certificate, in nanoseconds since 1970; 0 for never.
	issued int64
	// label names an exact set for people.
	label string
	// owner, of and scope are the parts of its key: whose it is, and of which limit.
	owner, of, scope string
	// revision is that of the store; 0 where it is not stored.
	revision int64
	// damaged is one that could not be read. It counts as used up at the first look: taking it for full could cross the line.
	damaged bool
}

// stored is an entry in the store, as JSON. Times are nanoseconds since 1970, and durations nanoseconds: they are computed with.
type stored struct {
	Full       int64      `json:"full,omitempty"`
	Slow       int64      `json:"slow,omitempty"`
	FullRefill int64      `json:"full_refill,omitempty"`
	SlowRefill int64      `json:"slow_refill,omitempty"`
	Held       [][2]int64 `json:"held,omitempty"` // time, number
	Until      int64      `json:"until,omitempty"`
	Issued     int64      `json:"issued,omitempty"`
	Label      string     `json:"label,omitempty"`
}

func (e *entry) encode() ([]byte, error) {
	s := stored{
		Full: e.full, Slow: e.slow, FullRefill: e.fullRefill, SlowRefill: e.slowRefill, Until: e.until, Issued: e.issued, Label: e.label,
	}
	for _, h := range e.held {
		s.Held = append(s.Held, [2]int64{h.at, h.n})
	}
	out, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("encode: %w", err)
	}
	return out, nil
}

var errStored = errors.New("not a budget entry")

// decode takes a stored entry apart. What no entry of ours can be is refused, so that nothing that is computed with it overflows.
func decode(value []byte, revision int64) (*entry, error) {
	var s stored
	if err := json.Unmarshal(value, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", errStored, err)
	}
	e := &entry{
		bucket:   bucket{full: s.Full, slow: s.Slow, until: s.Until, fullRefill: s.FullRefill, slowRefill: s.SlowRefill},
		issued:   s.Issued,
		label:    s.Label,
		revision: revision,
	}
	for _, n := range []int64{s.Full, s.Slow, s.FullRefill, s.SlowRefill, s.Until, s.Issued} {
		if n < 0 {
			return nil, fmt.Errorf("%w: a negative time", errStored)
		}
	}
	last, sum := int64(0), int64(0)
	for _, h := range s.Held {
		at, n := h[0], h[1]
		if at < last || n < 1 || n > mostHeld || sum+n > mostHeld {
			return nil, fmt.Errorf("%w: held uses", errStored)
		}
		last, sum = at, sum+n
		e.held = append(e.held, hold{at: at, n: n})
	}
	return e, nil
}

// mostHeld bounds what a stored entry can claim.
const mostHeld = 1 << 31

// at brings the entry to a time.
func (e *entry) at(l *limit, now int64) {
	e.bucket.at(l, now)
	if e.damaged {
		e.refuse(l, now, now, true)
		e.count(l, now, 1)
		e.damaged = false
	}
}

// name is what people call the scope.
func (e *entry) name() string {
	if e.label != "" {
		return e.label
	}
	return e.scope
}

// keep reports whether an entry says anything at a time.
func (e *entry) keep(now int64) bool {
	return e.damaged || e.spent(now) || e.renewal(now, renewalWindow+renewalSpare)
}

// last is the latest time that the entry says anything about, as far as it can be told without its limit.
func (e *entry) last() int64 {
	last := max(e.full, e.slow, e.until)
	if e.issued > 0 {
		last = max(last, add(e.issued, int64(renewalWindow)))
	}
	for _, h := range e.held {
		last = max(last, h.at)
	}
	return last
}

// renewal reports whether the identifiers of an exact set had a certificate lately.
func (e *entry) renewal(now int64, window time.Duration) bool {
	return e != nil && e.issued > 0 && now-e.issued < int64(window) && e.issued-now < int64(renewalSpare)
}

func (e *entry) clone() *entry {
	c := *e
	c.bucket = e.bucket.clone()
	return &c
}
