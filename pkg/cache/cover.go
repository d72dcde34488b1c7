package cache

import (
	"cmp"
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
	host := strings.ToLower(strings.TrimSuffix(asked, "."))
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
	if _, rest, more := strings.Cut(host, "."); more {
		wild = "*." + rest
	}
	return host, wild, true
}

func notInHost(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

// coverage says which secrets of a group have a DNS name in their certificates: the best one first. It follows the group from snapshot to
// snapshot, and a move costs the names of the secrets that it changes. The lists are never modified, only replaced.
type coverage map[string][]string

// better orders the secrets that cover a name: the one that is called like it, then by name. So the choice depends on the names in the
// snapshot alone: a renewal never changes it, it is the same in each group and on each replica, and an operator sees it in advance and can
// change it by naming.
func better(dnsName string) func(a, b string) int {
	return func(a, b string) int {
		switch {
		case a == b:
			return 0
		case a == dnsName:
			return -1
		case b == dnsName:
			return 1
		}
		return cmp.Compare(a, b)
	}
}

func (c coverage) add(dnsName, secretName string) {
	list := c[dnsName]
	if i, found := slices.BinarySearchFunc(list, secretName, better(dnsName)); !found {
		c[dnsName] = slices.Insert(slices.Clone(list), i, secretName)
	}
}

func (c coverage) remove(dnsName, secretName string) {
	list := slices.DeleteFunc(slices.Clone(c[dnsName]), func(name string) bool { return name == secretName })
	if len(list) == 0 {
		delete(c, dnsName)
		return
	}
	c[dnsName] = list
}

// dnsNames returns the names that a version of a secret covers, in lower case: none unless it is a TLS certificate that some group is at.
// The caller holds mu.
func (c *Cache) dnsNames(name string, version secret.Version) []string {
	r, ok := c.resources[name][version]
	if !ok || r.meta.Kind != secret.KindTLSCertificate {
		return nil
	}
	names := make([]string, len(r.meta.DNSNames))
	for i, n := range r.meta.DNSNames {
		names[i] = strings.ToLower(n)
	}
	return names
}

// cover brings the coverage of a group from one set to another, and returns the DNS names of everything that changed: what was covered by
// them, or is now. The caller holds mu; the versions of both sets are in memory.
func (c *Cache) cover(g *group, from *Set, diff map[string]secret.Version) []string {
	var touched []string
	for name, version := range diff {
		if before, ok := from.Version(name); ok {
			names := c.dnsNames(name, before)
			for _, n := range names {
				g.coverage.remove(n, name)
			}
			touched = append(touched, names...)
		}
		names := c.dnsNames(name, version)
		for _, n := range names {
			g.coverage.add(n, name)
		}
		touched = append(touched, names...)
	}
	slices.Sort(touched)
	return slices.Compact(touched)
}

// Covering returns the certificates that a group serves under a host name that is no secret's own: those with the name itself before those
// with a wildcard, the best one first in both. Nothing covers the name of a secret, whether a node may have that or not.
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
	if _, own := at.Secrets.Version(asked); own {
		return nil
	}
	lists := [2][]string{g.coverage[exact], g.coverage[wild]}
	found := make([]*Resource, 0, len(lists[0])+len(lists[1]))
	for _, list := range lists {
		for _, name := range list {
			version, _ := at.Secrets.Version(name)
			if r, ok := c.resources[name][version]; ok {
				found = append(found, r.Resource)
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
	return c.dnsNames(name, version)
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
func (h *Hosts) CoveredBy(dnsName string) func(yield func(asked string) bool) {
	return func(yield func(string) bool) {
		for asked := range h.byDNSName[dnsName] {
			if !yield(asked) {
				return
			}
		}
	}
}
