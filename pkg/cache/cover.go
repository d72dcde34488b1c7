package cache

import (
	"cmp"
	"iter"
	"net/netip"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	maxHost  = 253 // bytes of a host name (RFC 1035, Section 2.3.4, without the length of the root)
	maxLabel = 63
)

// hostKeys returns the two names of certificates that cover a host name, in lower case: itself, and the wildcard in place of its first label,
// which is empty for a name of one label (RFC 9525, Section 6.3: a wildcard is the whole first label, and stands for exactly one). A name that
// no certificate covers has none: what is no host name, and IP addresses, which SNI does not carry (RFC 6066, Section 3). The dot behind a
// name is no part of it.
func hostKeys(asked string) (exact, wild string, ok bool) {
	host := strings.TrimSuffix(asked, ".")
	if len(host) == 0 || len(host) > maxHost {
		return "", "", false
	}
	for label := range strings.SplitSeq(host, ".") {
		if label == "" || len(label) > maxLabel || strings.ContainsFunc(label, notInHost) {
			return "", "", false
		}
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return "", "", false
	}
	host = strings.ToLower(host) // ASCII by now
	if _, rest, more := strings.Cut(host, "."); more {
		wild = "*." + rest
	}
	return host, wild, true
}

func notInHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// coverage says which versions of secrets, of those that groups are at, have a DNS name in their certificates: the best one first. It is one for
// all groups, so that its size does not depend on their number; a change costs the names of what it brings into memory and out of it.
type coverage map[string][]member

// better orders the secrets that cover a name: the one that is called like it, then by name. So the choice depends on the names in the
// snapshot alone: a renewal never changes it, it is the same in each group and on each replica, and an operator sees it in advance and can
// change it by naming.
func better(dnsName string) func(a, b member) int {
	return func(a, b member) int {
		switch {
		case a.name == b.name:
			return cmp.Compare(a.version, b.version)
		case a.name == dnsName:
			return -1
		case b.name == dnsName:
			return 1
		}
		return cmp.Compare(a.name, b.name)
	}
}

// add takes in a version of a secret.
func (c coverage) add(m Meta) {
	for _, dnsName := range dnsNames(m) {
		one := member{m.Name, m.Version}
		if i, found := slices.BinarySearchFunc(c[dnsName], one, better(dnsName)); !found {
			c[dnsName] = slices.Insert(c[dnsName], i, one)
		}
	}
}

// remove takes out a version of a secret.
func (c coverage) remove(m Meta) {
	for _, dnsName := range dnsNames(m) {
		c[dnsName] = slices.DeleteFunc(c[dnsName], func(one member) bool { return one == member{m.Name, m.Version} })
		if len(c[dnsName]) == 0 {
			delete(c, dnsName)
		}
	}
}

// dnsNames returns the names that a version covers, in lower case: none unless it is a TLS certificate.
func dnsNames(m Meta) []string {
	if m.Kind != secret.KindTLSCertificate {
		return nil
	}
	names := make([]string, len(m.DNSNames))
	for i, n := range m.DNSNames {
		names[i] = strings.ToLower(n)
	}
	return names
}

// touched returns the DNS names of everything that a move changes: what was covered by them, or is now. The caller holds mu; the versions of both
// sets are in memory.
func (c *Cache) touched(from *Set, diff map[string]secret.Version) []string {
	var names []string
	for name, version := range diff {
		before, _ := from.Version(name)
		names = append(names, dnsNames(c.resources[name][before].meta)...)
		names = append(names, dnsNames(c.resources[name][version].meta)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Covering returns the certificates of other secrets that a group serves and that cover a host name: those with the name itself before those with a
// wildcard, the best one first in both. Where the name is a secret's own, they are no substitute for that: see Resource.
func (c *Cache) Covering(groupName, asked string) []*Resource {
	exact, wild, ok := hostKeys(asked)
	if !ok {
		return nil
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	g, ok := c.groups[groupName]
	if !ok {
		return nil
	}
	at := g.at()
	var found []*Resource
	for _, dnsName := range []string{exact, wild} {
		for _, m := range c.coverage[dnsName] {
			if version, _ := at.Secrets.Version(m.name); version == m.version && m.name != asked {
				found = append(found, c.resources[m.name][m.version].Resource)
			}
		}
	}
	return found
}

// DNSNames returns the names in the certificate that a group serves as a secret, in lower case; none where that is no certificate.
func (c *Cache) DNSNames(groupName, name string) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	g, ok := c.groups[groupName]
	if !ok {
		return nil
	}
	version, _ := g.at().Secrets.Version(name)
	return dnsNames(c.resources[name][version].meta)
}

// Hosts is a set of names that were asked for, found by the DNS names of certificates that cover them. The zero value is empty. It is not
// safe for concurrent use.
type Hosts struct {
	byDNSName map[string]map[string]struct{}
}

// Add puts a name into the set. One that no certificate can cover is not found again.
func (h *Hosts) Add(asked string) {
	exact, wild, ok := hostKeys(asked)
	if !ok {
		return
	}
	if h.byDNSName == nil {
		h.byDNSName = map[string]map[string]struct{}{}
	}
	for _, key := range []string{exact, wild} {
		if key == "" {
			continue
		}
		if h.byDNSName[key] == nil {
			h.byDNSName[key] = map[string]struct{}{}
		}
		h.byDNSName[key][asked] = struct{}{}
	}
}

// Remove takes a name out of the set.
func (h *Hosts) Remove(asked string) {
	exact, wild, ok := hostKeys(asked)
	if !ok {
		return
	}
	for _, key := range []string{exact, wild} {
		delete(h.byDNSName[key], asked)
		if len(h.byDNSName[key]) == 0 {
			delete(h.byDNSName, key)
		}
	}
}

// CoveredBy yields the names of the set that a certificate with a DNS name, in lower case, covers.
func (h *Hosts) CoveredBy(dnsName string) iter.Seq[string] {
	return func(yield func(string) bool) {
		for asked := range h.byDNSName[dnsName] {
			if !yield(asked) {
				return
			}
		}
	}
}
