package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
)

// mostLeft is the greatest part of a life that can be left at a renewal; see issuer.NextRenewal.
const mostLeft = 0.75

// longWindow is how long a planned maintenance may take before it looks like a mistake: an ordinary renewal has at least 15 days of time, or
// half of a short life.
const longWindow = 7 * 24 * time.Hour

// Warnings returns what a valid configuration would run into: limits and rules of its authorities as far as they are known here, and what
// has no effect. None of it keeps a server from starting. In the order of the file.
func (c *Config) Warnings(now time.Time) Problems { return c.warnings(now, "") }

// IssuerWarnings returns the Warnings that concern one issuer and what is ordered there.
func (c *Config) IssuerWarnings(issuer string, now time.Time) Problems {
	return c.warnings(now, issuer)
}

// warner collects them; only is the issuer that they have to concern, or "".
type warner struct {
	*Config
	only  string
	found Problems
}

func (c *Config) warnings(now time.Time, only string) Problems {
	w := &warner{Config: c, only: only}
	for i := range c.Issuers {
		is := &c.Issuers[i]
		if only == "" || is.Name == only {
			w.maintenance(fmt.Sprintf("issuers[%d].maintenance", i), is.Maintenance, now)
		}
	}
	for i := range c.Issuers {
		if only == "" || c.Issuers[i].Name == only {
			w.limits(i)
		}
	}
	for i := range c.Certificates {
		for j, name := range c.Certificates[i].Issuers {
			if only == "" || name == only {
				w.certificate(i, j)
			}
		}
	}
	w.arrange()
	return w.found
}

// arrange puts the warnings into the order of the file. Unlike problems, several about one key all count.
func (w *warner) arrange() {
	for i := range w.found {
		at := w.origin.position(w.found[i].Path)
		w.found[i].Line, w.found[i].column = at.line, at.column
	}
	slices.SortStableFunc(w.found, func(a, b Problem) int { return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.column, b.column)) })
}

func (w *warner) add(path, message, hint string) {
	w.found = append(w.found, Problem{Path: path, Message: message, Hint: hint})
}

// maintenance tells what is over, and what is unlikely to be meant.
func (w *warner) maintenance(path string, windows []Period, now time.Time) {
	for i, m := range windows {
		element := fmt.Sprintf("%s[%d]", path, i)
		switch long := m.To.Sub(m.From); {
		case !m.To.After(now):
			w.add(element, "is over since "+m.To.UTC().Format(time.RFC3339), "take it out of the file")
		case long > longWindow:
			w.add(element, fmt.Sprintf("takes %d days, in which only urgent certificates are ordered", int(long.Hours()/24)), "is the year right?")
		}
	}
}

// certificate tells what the authority of its j-th issuer would not do.
func (w *warner) certificate(i, j int) {
	c, path := &w.Certificates[i], fmt.Sprintf("certificates[%d]", i)
	at := slices.IndexFunc(w.Issuers, func(is Issuer) bool { return is.Name == c.Issuers[j] })
	if at < 0 {
		return
	}
	is := &w.Issuers[at]
	a, known := authorityOf(is)
	if !known {
		return
	}
	w.names(path, c, &a)
	if p, ok := a.profileOf(is, c); ok {
		w.profile(path, c, &a, p)
	}
}

// names tells which kinds of names an authority does not issue for.
func (w *warner) names(path string, c *Certificate, a *authority) {
	for i, name := range c.DNSNames {
		if strings.HasPrefix(name, "*.") && !a.wildcards {
			w.add(fmt.Sprintf("%s.dns_names[%d]", path, i), fmt.Sprintf("%s issues for no wildcard by ACME: it will refuse %q", a.name, name), "use another issuer")
		}
	}
	if len(c.IPAddresses) > 0 && !a.addresses {
		w.add(path+".ip_addresses", a.name+" issues for no IP address by ACME: it will refuse the order", "use another issuer")
	}
	if a.wwwOnly && !isWWWPair(c.DNSNames) {
		w.add(path+".dns_names", fmt.Sprintf("%s issues for one name, and the same name with www, without further charge: it will refuse these %d", a.name, len(c.DNSNames)),
			"make a certificate for each name, or use another issuer")
	}
}

// isWWWPair reports whether the names are one, or one and the same with www.
func isWWWPair(names []string) bool {
	switch len(names) {
	case 0, 1:
		return true
	case 2:
		return names[0] == "www."+names[1] || names[1] == "www."+names[0]
	}
	return false
}

// profile tells what does not fit the profile that is ordered.
func (w *warner) profile(path string, c *Certificate, a *authority, p profile) {
	of := a.name
	if p.name != "" {
		of += ", profile " + p.name
	}
	n := len(c.DNSNames) + len(c.IPAddresses)
	if n > p.names {
		w.add(path+".dns_names", fmt.Sprintf("%d names, but %s takes %d: it will refuse the order", n, of, p.names), "make several certificates, or choose another profile")
	}
	if len(c.IPAddresses) > 0 && a.addresses && p.name != "" && !p.addresses {
		w.add(path+".ip_addresses", of+" issues for no IP address: it will refuse the order", "set profile: shortlived, or make a certificate of its own for the addresses")
	}
	if most := time.Duration(mostLeft * float64(p.life)); c.RenewBefore.Of(p.life) > most {
		w.add(path+".renew_before", fmt.Sprintf("%s before the end is more than 3/4 of the life (%s) at %s: it is renewed when 3/4 of its life are left, each time",
			c.RenewBefore, days(p.life), of), "leave it out: the rule is 1/3 of the life, and 1/2 under 10 days")
	}
}

// limits tells which limits of an issuer the certificates that are ordered there would meet.
func (w *warner) limits(at int) {
	is := &w.Issuers[at]
	a, _ := authorityOf(is) // without one, no life is known
	var planned []budget.Planned
	for i := range w.Certificates {
		c := &w.Certificates[i]
		if len(c.Issuers) == 0 || c.Issuers[0] != is.Name {
			continue
		}
		one := budget.Planned{Wanted: budget.Wanted{Name: c.Name, DNSNames: c.DNSNames}, KeyType: c.KeyType}
		for _, text := range c.IPAddresses {
			if ip, err := netip.ParseAddr(text); err == nil { // it is: the configuration is valid
				one.IPAddresses = append(one.IPAddresses, ip)
			}
		}
		if p, ok := a.profileOf(is, c); ok {
			one.Life, one.Interval = p.life, interval(c, p.life)
		}
		planned = append(planned, one)
	}
	for _, text := range budget.Warnings(is.budgetOptions(), planned) {
		w.add(fmt.Sprintf("issuers[%d]", at), strings.TrimPrefix(text, fmt.Sprintf("issuer %q: ", is.Name)), "what does not fit is ordered later; `sds-server budget` shows what is left")
	}
}

func (is *Issuer) budgetOptions() budget.Options {
	o := budget.Options{Issuer: is.Name, Directory: is.Directory, Share: is.Budget.Share}
	for _, l := range is.Budget.Limits {
		o.Limits = append(o.Limits, budget.Limit{Name: l.Name, Burst: l.Burst, Refill: l.Refill})
	}
	return o
}

// interval is how long after a certificate the next one is ordered by our rule.
func interval(c *Certificate, life time.Duration) time.Duration {
	before := issuer.RenewBefore{Duration: c.RenewBefore.Duration, Fraction: c.RenewBefore.Percent / 100}
	from := time.Unix(0, 0)
	return issuer.NextRenewal(from, from, from.Add(life), before, func() float64 { return 0 }).Sub(from)
}

// days writes a life as people do.
func days(d time.Duration) string {
	if d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return fmt.Sprintf("%d hours", int(d.Hours()))
}
