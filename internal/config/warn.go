package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
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
	for i := range c.Certificates {
		for j, name := range c.Certificates[i].Issuers {
			if only == "" || name == only {
				w.certificate(i, j)
			}
		}
	}
	if len(w.found) == 0 {
		return nil
	}
	return w.found.arrange(c.origin)
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
	w.sameSet(i, j, &a)
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

// sameSet tells that a certificate shares the limit for its exact set of names with earlier ones at the same authority. Two that differ in
// the type of their keys, for one listener, are meant so and fit.
func (w *warner) sameSet(i, j int, a *authority) {
	c, set := &w.Certificates[i], nameSet(&w.Certificates[i])
	var same []string
	sameKey := false
	for k := range i {
		other := &w.Certificates[k]
		if nameSet(other) == set && slices.ContainsFunc(other.Issuers, func(name string) bool { return w.atSame(name, c.Issuers[j]) }) {
			same, sameKey = append(same, strconv.Quote(other.Name)), sameKey || other.KeyType == c.KeyType
		}
	}
	if a.sameSet == 0 || len(same) == 0 || len(same) == 1 && !sameKey {
		return
	}
	path := fmt.Sprintf("certificates[%d].dns_names", i)
	if len(c.DNSNames) == 0 {
		path = fmt.Sprintf("certificates[%d].ip_addresses", i)
	}
	w.add(path, fmt.Sprintf("the same names as %s: %s issues %d certificates a week for an exact set of names, for all of them together",
		strings.Join(same, " and "), a.name, a.sameSet), "a secret can be used in many places: one certificate for each type of key is enough")
}

// atSame reports whether two issuers have the same directory.
func (w *warner) atSame(one, other string) bool {
	directory := func(name string) string {
		for _, is := range w.Issuers {
			if is.Name == name {
				return is.Directory
			}
		}
		return ""
	}
	return one == other || directory(one) == directory(other)
}

// nameSet is the exact set of names of a certificate, whatever their order.
func nameSet(c *Certificate) string {
	names := slices.Clone(c.DNSNames)
	for _, text := range c.IPAddresses {
		if ip, err := netip.ParseAddr(text); err == nil { // it is: the configuration is valid
			names = append(names, ip.Unmap().String())
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// days writes a life as people do.
func days(d time.Duration) string {
	if d%(24*time.Hour) == 0 {
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
	return fmt.Sprintf("%d hours", int(d.Hours()))
}
