package budget

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/publicsuffix"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
)

// renewalWindow is how long after a certificate an order for the same identifiers is a renewal at Let's Encrypt: 120 days. It is counted
// with a day to spare: from an order to its end, and from the CA's clock to ours.
const (
	renewalWindow = 120 * 24 * time.Hour
	renewalSpare  = 24 * time.Hour
)

// touch is one bucket that a use is about.
type touch struct {
	limit *limit
	key   string
	// owner and scope are parts of the key. label names the scope of an exact set for people.
	owner, scope, label string
	// check demands that the use fits, spend records it.
	check, spend bool
}

// touches lists what a use is about, each bucket once. renewal reports whether the identifiers were issued lately together.
//
// At Let's Encrypt an order that replaces a certificate inside of its suggested window is not checked against any limit, and one for
// identifiers that had a certificate within 120 days not against new_orders and registered_domain. What is issued then is counted all the
// same, where it would have been without a replacement (Boulder: WebFrontEndImpl.NewOrder, RegistrationAuthorityImpl.countCertificateIssued):
// it leaves less of exact_set for an order that has no exemption. A CA that is not known has no exemptions.
func (r *rules) touches(use issuer.Use, renewal bool) []touch {
	names := identifiers(use.DNSNames, use.IPAddresses)
	replaces, renewal := r.renewals && use.Replaces, r.renewals && renewal
	var out []touch
	add := func(limit, scope, label string, check, spend bool) {
		if l := r.limits[limit]; l != nil && (check || spend) {
			out = append(out, r.touch(l, scope, label, check, spend))
		}
	}
	switch use.Kind {
	case issuer.UseOrder, issuer.UseCertificate:
		if use.Kind == issuer.UseOrder {
			counted := !replaces && !renewal
			add(NewOrders, "", "", counted, counted)
			for _, name := range names {
				add(ConsecutiveFailures, name, "", true, false)
				add(FailedAuthorizations, name, "", !replaces, false)
			}
		}
		for _, domain := range registeredDomains(use.DNSNames, use.IPAddresses) {
			add(RegisteredDomain, domain, "", !replaces && !renewal, !renewal)
		}
		add(ExactSet, setID(names), uniqueLabel(names), !replaces, true)
	case issuer.UseFailedAuthorization:
		for _, name := range names {
			add(FailedAuthorizations, name, "", false, true)
			add(ConsecutiveFailures, name, "", false, true)
		}
	case issuer.UseAccount:
		add(NewAccounts, "", "", true, true)
	}
	return out
}

// owner is whose the buckets of a limit are: what all accounts share is kept for the CA, the rest for the issuer.
func (r *rules) owner(limit string) string {
	if wholeCA(limit) {
		return r.Directory
	}
	return r.Issuer
}

func (r *rules) touch(l *limit, scope, label string, check, spend bool) touch {
	owner := r.owner(l.name)
	return touch{limit: l, key: store.Key(keyPrefix, owner, l.name, scope), owner: owner, scope: scope, label: label, check: check, spend: spend}
}

// setTouch is the bucket of an exact set; its limit may be nil.
func (r *rules) setTouch(dnsNames []string, addresses []netip.Addr) touch {
	names := identifiers(dnsNames, addresses)
	t := touch{limit: r.limits[ExactSet]}
	if t.limit != nil {
		t = r.touch(t.limit, setID(names), uniqueLabel(names), false, false)
	}
	return t
}

// identifiers lists the names and addresses of an order in one order, each once.
func identifiers(dnsNames []string, addresses []netip.Addr) []string {
	out := make([]string, 0, len(dnsNames)+len(addresses))
	for _, name := range dnsNames {
		out = append(out, strings.ToLower(name))
	}
	for _, a := range addresses {
		out = append(out, canonical(a).String())
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func canonical(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// registeredDomains lists what an order is counted for, sorted. Private suffixes of the public suffix list, such as github.io, are suffixes
// as well; a name that is itself a suffix counts for itself.
func registeredDomains(dnsNames []string, addresses []netip.Addr) []string {
	out := make([]string, 0, len(dnsNames)+len(addresses))
	for _, name := range dnsNames {
		name = strings.TrimPrefix(strings.ToLower(name), "*.")
		domain, err := publicsuffix.EffectiveTLDPlusOne(name)
		if err != nil {
			domain = name
		}
		out = append(out, domain)
	}
	for _, a := range addresses {
		a = canonical(a)
		if a.Is4() {
			out = append(out, a.String())
		} else if p, err := a.Prefix(64); err == nil {
			out = append(out, p.String())
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// setID is short whatever the number of identifiers.
func setID(identifiers []string) string {
	sum := sha256.Sum256([]byte(strings.Join(identifiers, "\n")))
	return hex.EncodeToString(sum[:16])
}

// longestLabel bounds the text that is stored to name a set.
const longestLabel = 100

// setLabel names a set for people: its first identifiers, and how many more there are.
func setLabel(identifiers []string) string {
	var b strings.Builder
	for i, name := range identifiers {
		if i > 0 && b.Len()+len(name) > longestLabel {
			fmt.Fprintf(&b, " and %d more", len(identifiers)-i)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(name)
	}
	return b.String()
}

// uniqueLabel is setLabel, with a part of the set's digest where that leaves something out: what waits for one set does not wait for another one
// that begins like it.
func uniqueLabel(identifiers []string) string {
	label := setLabel(identifiers)
	if label != strings.Join(identifiers, ", ") {
		label += " (" + setID(identifiers)[:8] + ")"
	}
	return label
}
