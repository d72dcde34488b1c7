package issuer

import (
	"iter"
	"maps"
	"slices"
	"strings"
	"time"
)

// Selection says which certificates a plan is about. The zero value selects all.
type Selection struct {
	// Names are the certificates; empty is all. A name that is not configured selects nothing.
	Names []string
	// IssuedBy is the issuer of the current version; empty is any, also none.
	IssuedBy string
	// Before leaves out what was issued then or later; zero leaves out nothing. Whoever renews many notes when that began, and after
	// an interruption renews only what is left.
	Before time.Time
}

// Planned is one certificate of a plan. Times are zero where there is no version.
type Planned struct {
	Name string
	// Issuer is where it is ordered, IssuedBy where the current version comes from; empty if there is none.
	Issuer, IssuedBy string
	DNSNames         []string
	NotAfter         time.Time
	LastRenewal      time.Time
	// Due is when it is ordered if nobody asks for it: a plan without force has only those that are due now.
	Due time.Time
	// Urgent reports whether less than 1/20 of its life is left, or none.
	Urgent bool
}

// Plan returns the selected certificates in the order in which Renew would order them if it were called for all at once: those that
// have less than 1/20 of their life left first, then those that were never issued, then the others. It changes nothing. What is not
// due is in it as well, as Renew with force would have it; see Planned.Due.
func (l *Loop) Plan(s Selection) []Planned {
	at := now()
	l.mu.Lock()
	defer l.mu.Unlock()
	var selected []*entry
	for e := range l.chosen(s.Names) {
		switch {
		case e.removed:
		case s.IssuedBy != "" && e.state.Issuer != s.IssuedBy:
		case !s.Before.IsZero() && !e.state.LastRenewal.Before(s.Before):
		default:
			selected = append(selected, e)
		}
	}
	ranks := make(map[*entry]rank, len(selected))
	for _, e := range selected {
		ranks[e] = e.rankAt(at)
	}
	slices.SortFunc(selected, func(a, b *entry) int {
		if c := ranks[a].compare(ranks[b]); c != 0 {
			return c
		}
		return strings.Compare(a.cert.Name, b.cert.Name)
	})
	out := make([]Planned, 0, len(selected))
	for _, e := range selected {
		out = append(out, Planned{
			Name: e.cert.Name, Issuer: e.cert.Issuer, IssuedBy: e.state.Issuer, DNSNames: slices.Clone(e.cert.DNSNames),
			NotAfter: e.state.NotAfter, LastRenewal: e.state.LastRenewal, Due: e.due, Urgent: e.state.urgent(at),
		})
	}
	return out
}

// chosen returns the configured certificates with these names, all where there is none; mu is held.
func (l *Loop) chosen(names []string) iter.Seq[*entry] {
	if len(names) == 0 {
		return maps.Values(l.entries)
	}
	return func(yield func(*entry) bool) {
		seen := make(map[string]bool, len(names))
		for _, name := range names {
			if e := l.entries[name]; e != nil && !seen[name] && !yield(e) {
				return
			}
			seen[name] = true
		}
	}
}
