package budget

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Planned is a configured certificate, as far as the limits of its CA are concerned.
type Planned struct {
	Wanted
	// KeyType is that of its key: certificates for the same names with different types are meant so.
	KeyType string
	// Life is how long one is valid, Interval how long after one the next is ordered; 0 where that is not known.
	Life, Interval time.Duration
}

// Warnings says, in sentences, which limits of an issuer the configured certificates would meet: when all of them are ordered for the first
// time, and in the long run. None of it is an error: what does not fit is ordered later. An issuer without limits has none.
func Warnings(o Options, certificates []Planned) []string {
	r, err := newRules(o)
	if err != nil {
		return []string{err.Error()}
	}
	w := warner{rules: r, sets: map[string][]Planned{}, domains: map[string][]Planned{}}
	for _, c := range certificates {
		set := setID(identifiers(c.DNSNames, c.IPAddresses))
		w.sets[set] = append(w.sets[set], c)
		for _, d := range registeredDomains(c.DNSNames, c.IPAddresses) {
			w.domains[d] = append(w.domains[d], c)
		}
	}
	w.orders(certificates)
	w.perDomain()
	w.perSet()
	return w.out
}

type warner struct {
	*rules
	sets, domains map[string][]Planned
	out           []string
}

func (w *warner) add(format string, args ...any) {
	w.out = append(w.out, fmt.Sprintf("issuer %q: ", w.Issuer)+fmt.Sprintf(format, args...))
}

// orders is about the account as a whole.
func (w *warner) orders(certificates []Planned) {
	l := w.limits[NewOrders]
	if l == nil {
		return
	}
	if n := int64(len(certificates)); n > l.ordinary.burst {
		w.add("%d certificates are more than the %d orders of %s that ordinary work may place at once: the last is ordered %s after the first",
			n, l.ordinary.burst, NewOrders, days(time.Duration(times(n-l.ordinary.burst, l.ordinary.refill))))
	}
	if !w.renewals {
		w.longRun(NewOrders, "all certificates together", l, certificates)
	}
}

func (w *warner) perDomain() {
	l := w.limits[RegisteredDomain]
	if l == nil {
		return
	}
	for _, domain := range slices.Sorted(maps.Keys(w.domains)) {
		of := w.domains[domain]
		if n := int64(len(of)); n > l.ordinary.burst {
			w.add("%d certificates for %s and the names below it are more than the %d of %s that ordinary work may have at once: the last is issued %s after the first; one certificate for many of the names would need less",
				n, domain, l.ordinary.burst, RegisteredDomain, days(time.Duration(times(n-l.ordinary.burst, l.ordinary.refill))))
		}
		if !w.renewals {
			w.longRun(RegisteredDomain, "the certificates for "+domain, l, of)
		}
	}
}

func (w *warner) perSet() {
	l := w.limits[ExactSet]
	for _, set := range slices.SortedFunc(maps.Keys(w.sets), func(a, b string) int { return strings.Compare(w.sets[a][0].Name, w.sets[b][0].Name) }) {
		of := w.sets[set]
		for _, names := range duplicates(of) {
			text := fmt.Sprintf("the certificates %s are for exactly the same names; one of them would do for all", setLabel(names))
			if l != nil {
				text = fmt.Sprintf("the certificates %s are for exactly the same names and share the %d of %s; one of them would do for all", setLabel(names), l.all.burst, ExactSet)
			}
			w.add("%s", text)
		}
		if l != nil {
			w.longRun(ExactSet, "certificate "+of[0].Name, l, of)
		}
	}
}

// duplicates are the names of certificates that do not differ in the type of their keys either.
func duplicates(of []Planned) [][]string {
	byType := map[string][]string{}
	for _, c := range of {
		byType[c.KeyType] = append(byType[c.KeyType], c.Name)
	}
	var out [][]string
	for _, keyType := range slices.Sorted(maps.Keys(byType)) {
		if names := byType[keyType]; len(names) > 1 {
			out = append(out, names)
		}
	}
	return out
}

// longRun warns where renewals come faster than the limit is refilled for ordinary work. Renewals inside of the window that the CA suggests
// may be exempt; it has to hold without.
func (w *warner) longRun(limit, what string, l *limit, of []Planned) {
	rate, lives := 0.0, map[string]bool{}
	for _, c := range of {
		if c.Interval > 0 {
			rate += 1 / c.Interval.Seconds()
			lives[days(c.Life)] = true
		}
	}
	allowed := 1 / time.Duration(l.ordinary.refill).Seconds()
	if rate <= allowed {
		return
	}
	every := days(time.Duration(float64(time.Second) / rate))
	if len(lives) == 1 {
		every += " (they are valid for " + slices.Collect(maps.Keys(lives))[0] + ")"
	}
	w.add("%s would be ordered every %s in the long run, and %s of %s allows ordinary work one every %s: they could not be kept valid",
		what, every, limit, w.ca, days(time.Duration(l.ordinary.refill)))
}

// days is a duration as people say it.
func days(d time.Duration) string {
	switch {
	case d >= 48*time.Hour:
		return fmt.Sprintf("%.1f days", d.Hours()/24)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%.1f h", d.Hours())
	case d >= 2*time.Minute:
		return fmt.Sprintf("%.0f min", d.Minutes())
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}
