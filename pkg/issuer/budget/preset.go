package budget

import (
	"fmt"
	"math"
	"net/url"
	"slices"
	"time"
)

// The names of the limits.
const (
	// NewOrders counts the orders of an account.
	NewOrders = "new_orders"
	// RegisteredDomain counts the certificates for a domain that somebody has registered, with all names below it; an IPv4 address and an
	// IPv6 network of 64 bits are such a domain.
	RegisteredDomain = "registered_domain"
	// ExactSet counts the certificates for the very same identifiers.
	ExactSet = "exact_set"
	// FailedAuthorizations counts the failed validations of one identifier by an account. It stops new orders.
	FailedAuthorizations = "failed_authorizations"
	// ConsecutiveFailures counts the same, from the last certificate on. When it is used up, the CA stops the identifier until a person acts.
	ConsecutiveFailures = "consecutive_failures"
	// NewAccounts counts the accounts that are made from one address.
	NewAccounts = "new_accounts"
)

// Names returns the names of all limits, in the order in which people read them.
func Names() []string {
	return []string{NewOrders, RegisteredDomain, ExactSet, FailedAuthorizations, ConsecutiveFailures, NewAccounts}
}

// Limit is one token bucket of a CA.
type Limit struct {
	// Name is one of Names.
	Name string
	// Burst is how many uses it holds, 1 or more.
	Burst int
	// Refill is the time for one more, above 0, and at most LongestFill by Burst.
	Refill time.Duration
}

// LongestFill is how long it may take at the most to fill a limit: Burst times Refill.
const LongestFill = 100 * 365 * 24 * time.Hour

// certificateGrace is how long an order may take from its request to the last finalize: one that is found after a crash is gone on with for
// 6 hours. requestGrace is the same for a single request with its repetitions.
const (
	certificateGrace = 8 * time.Hour
	requestGrace     = 5 * time.Minute
)

// grace is how long after Spend the CA may count the use.
func grace(name string) time.Duration {
	switch name {
	case RegisteredDomain, ExactSet:
		return certificateGrace
	case NewOrders, NewAccounts:
		return requestGrace
	}
	return 0 // the CA has counted the failure already
}

// wholeCA reports whether all accounts at the CA share the limit; the others are each account's own.
func wholeCA(name string) bool {
	return name == RegisteredDomain || name == ExactSet || name == NewAccounts
}

// preset is what is known of a CA.
type preset struct {
	name   string
	limits []Limit
	// renewals says that the rules of Let's Encrypt for renewals hold; see rules.touches.
	renewals bool
}

// presetFor returns what is known of the CA with a directory. Limits of Let's Encrypt: https://letsencrypt.org/docs/rate-limits/ and
// https://letsencrypt.org/docs/staging-environment/, of August 2026. Limits on requests a second are not among them: the CA answers those
// with 503 and Retry-After, and they are not a budget.
func presetFor(directory string) preset {
	const week, day = 7 * 24 * time.Hour, 24 * time.Hour
	u, err := url.Parse(directory)
	if err != nil {
		return preset{name: directory}
	}
	switch u.Host {
	case "acme-v02.api.letsencrypt.org":
		return preset{name: "Let's Encrypt", renewals: true, limits: []Limit{
			{NewOrders, 300, 3 * time.Hour / 300},
			{RegisteredDomain, 50, 202 * time.Minute}, // a week by 50, rounded up as the page does
			{ExactSet, 5, 34 * time.Hour},             // likewise: 33 h 36 min
			{FailedAuthorizations, 5, time.Hour / 5},
			{ConsecutiveFailures, 1152, day},
			{NewAccounts, 10, 3 * time.Hour / 10}, // from an IPv4 address, the smaller one
		}}
	case "acme-staging-v02.api.letsencrypt.org":
		return preset{name: "Let's Encrypt (staging)", renewals: true, limits: []Limit{
			{NewOrders, 1500, 3 * time.Hour / 1500},
			{RegisteredDomain, 30000, time.Second / 30000},
			{ExactSet, 30000, week / 30000},
			{FailedAuthorizations, 200, time.Hour / 200},
			{ConsecutiveFailures, 3600, 6 * time.Hour / 3600},
		}}
	}
	return preset{name: u.Host}
}

// rules are the limits of one issuer.
type rules struct {
	Options
	ca       string // for people
	renewals bool
	limits   map[string]*limit
}

func newRules(o Options) (*rules, error) {
	p := presetFor(o.Directory)
	if o.Share == 0 {
		o.Share = defaultShare
	}
	if o.Share < 0 || o.Share > 1 || math.IsNaN(o.Share) {
		return nil, fmt.Errorf("budget of issuer %q: share %v is not above 0 and at most 1", o.Issuer, o.Share)
	}
	r := &rules{Options: o, ca: p.name, renewals: p.renewals, limits: map[string]*limit{}}
	for _, l := range slices.Concat(p.limits, o.Limits) { // the later one holds
		if !slices.Contains(Names(), l.Name) || l.Burst < 1 || l.Refill <= 0 || l.Refill > LongestFill/time.Duration(l.Burst) {
			return nil, fmt.Errorf("budget of issuer %q: limit %q with burst %d and refill %v", o.Issuer, l.Name, l.Burst, l.Refill)
		}
		r.limits[l.Name] = newLimit(l, o.Share)
	}
	return r, nil
}

// newLimit divides a limit. Ordinary work gets the share of its burst, rounded down but at least one, and the share of its refill.
func newLimit(l Limit, share float64) *limit {
	out := &limit{name: l.Name, all: rate{burst: int64(l.Burst), refill: int64(l.Refill)}, grace: int64(grace(l.Name))}
	out.ordinary = rate{
		burst:  min(out.all.burst, max(1, int64(float64(l.Burst)*share+1e-9))),
		refill: max(out.all.refill, int64(min(math.Ceil(float64(l.Refill)/share), math.MaxInt64/4))),
	}
	return out
}
