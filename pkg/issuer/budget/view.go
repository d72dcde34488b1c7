package budget

import (
	"cmp"
	"slices"
	"strings"
	"time"
)

// Level is how full one bucket of a limit is.
type Level struct {
	// Limit is one of Names.
	Limit string
	// Scope is the domain, the identifier or the identifiers that the bucket is for; empty where there is one alone, or none in use.
	Scope string
	// Available is how many uses fit now, with the reserve; Ordinary how many of them ordinary work may have.
	Available, Ordinary int
	// Capacity is how many fit when it is full, Reserve how many of these are kept for emergencies.
	Capacity, Reserve int
	// Refill is the time for one more, at the CA.
	Refill time.Duration
	// NextAt is when ordinary work fits again; zero where it does now.
	NextAt time.Time
	// FullAt is when nothing is used up any more, without other uses until then; zero where it is full.
	FullAt time.Time
}

// ratio is how full it is, from 0 to 1.
func (l Level) ratio() float64 { return float64(l.Available) / float64(l.Capacity) }

// CA is the name of the CA, for people: Let's Encrypt, or the host of its directory.
func (l *Ledger) CA() string { return l.rules.ca }

// Limits returns every bucket that is not full, and one full level for each limit that has none, the lowest first.
func (l *Ledger) Limits(now time.Time) []Level {
	var out []Level
	l.each(now, func(one *limit, e *entry) { out = append(out, levelOf(one, e, now)) })
	slices.SortFunc(out, lower)
	return out
}

// Scarcest returns the lowest level of each limit, in the order of Names.
func (l *Ledger) Scarcest(now time.Time) []Level {
	type lowest struct {
		entry
		left, debt int64
	}
	r, at := l.rules, now.UnixNano()
	found := map[string]lowest{}
	l.each(now, func(one *limit, e *entry) {
		c := lowest{*e, e.left(one, at, true), e.debt(one, at, true)}
		if known, ok := found[one.name]; !ok || c.left < known.left || c.left == known.left && c.debt > known.debt {
			found[one.name] = c
		}
	})
	out := make([]Level, 0, len(found))
	for _, name := range Names() {
		if c, ok := found[name]; ok {
			out = append(out, levelOf(r.limits[name], &c.entry, now))
		}
	}
	return out
}

func lower(a, b Level) int {
	return cmp.Or(cmp.Compare(a.ratio(), b.ratio()), b.FullAt.Compare(a.FullAt),
		cmp.Compare(slices.Index(Names(), a.Limit), slices.Index(Names(), b.Limit)), strings.Compare(a.Scope, b.Scope))
}

// each calls found for every bucket that is not full, brought to now, and for each limit that has none. The book's lock is held meanwhile.
func (l *Ledger) each(now time.Time, found func(*limit, *entry)) {
	r := l.rules
	seen := map[string]bool{}
	l.book.mu.Lock()
	defer l.book.mu.Unlock()
	var c entry
	for _, e := range l.book.entries {
		one := r.limits[e.of]
		if one == nil || e.owner != r.owner(e.of) {
			continue
		}
		c = *e
		if c.at(one, now.UnixNano()); c.spent(now.UnixNano()) {
			seen[e.of] = true
			found(one, &c)
		}
	}
	for name, one := range r.limits {
		if !seen[name] {
			found(one, &entry{})
		}
	}
}

// levelOf describes an entry that has been brought to now.
func levelOf(l *limit, e *entry, now time.Time) Level {
	at := now.UnixNano()
	out := Level{
		Limit: l.name, Scope: e.name(), Available: int(e.left(l, at, true)), Capacity: int(l.all.burst),
		Reserve: int(l.all.burst - l.ordinary.burst), Refill: time.Duration(l.all.refill),
	}
	out.Ordinary = min(out.Available, int(e.left(l, at, false)))
	if next := e.fitsAt(l, at, false); next > at {
		out.NextAt = time.Unix(0, next).UTC()
	}
	if full := e.fullAt(l, at); full > at {
		out.FullAt = time.Unix(0, full).UTC()
	}
	return out
}
