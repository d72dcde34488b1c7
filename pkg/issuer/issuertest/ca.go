package issuertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/secret"
)

// The profiles of a CA, with the lives of Let's Encrypt's in 2026.
const (
	ProfileClassic    = "classic"    // 90 days
	ProfileTLSServer  = "tlsserver"  // 45 days
	ProfileShortLived = "shortlived" // 160 hours
)

var lives = map[string]time.Duration{
	ProfileClassic: 90 * 24 * time.Hour, ProfileTLSServer: 45 * 24 * time.Hour, ProfileShortLived: 160 * time.Hour,
}

// Latency is how long an order takes at a CA.
const Latency = 5 * time.Second

// CA simulates Let's Encrypt for an issuance loop under a fake clock: it signs, suggests windows as Boulder does, can be down and can
// revoke, and counts what it is asked for by limits of its own. Its methods may be called from several goroutines.
type CA struct {
	// Budget is asked before each order, as package acme does; nil: none.
	Budget issuer.Budget
	// AskAgain is the Retry-After of its renewal information; default 6 hours.
	AskAgain time.Duration
	// Limits are what it allows; nil: everything.
	Limits *Limits

	authority *Authority
	key       *ecdsa.PrivateKey // of all that it issues, because making one takes longer than all the rest

	mu sync.Mutex
	// All of these are guarded by mu.
	down   bool
	issued map[string]*issued // by renewal information identifier
	latest map[string]string  // identifier of the last one by name of the secret, the others are forgotten
	times  []time.Time        // of all that was issued
	asked  int
}

type issued struct {
	names               []string
	notBefore, notAfter time.Time
	replaced, revoked   bool
}

var (
	_ issuer.Issuer  = (*CA)(nil)
	_ issuer.Advisor = (*CA)(nil)
)

// NewCA makes a CA without limits.
func NewCA() (*CA, error) {
	authority, err := NewAuthority()
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return &CA{authority: authority, key: key, AskAgain: 6 * time.Hour, issued: make(map[string]*issued), latest: make(map[string]string)}, nil
}

// SetDown makes it answer 503 to everything, or work again.
func (c *CA) SetDown(down bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.down = down
}

// RevokeAll revokes everything that it has issued.
func (c *CA) RevokeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, i := range c.issued {
		i.revoked = true
	}
}

// Issued returns when it has issued, in order, and how often it was asked for advice.
func (c *CA) Issued() (times []time.Time, asked int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append(times, c.times...), c.asked
}

func (c *CA) isDown() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.down
}

func (c *CA) unavailable() *issuer.Error {
	return &issuer.Error{Kind: issuer.KindTemporary, Issuer: "ca", Message: "503 Service Unavailable"}
}

// Obtain implements issuer.Issuer.
func (c *CA) Obtain(ctx context.Context, r issuer.Request) (*secret.Secret, error) {
	use := issuer.Use{
		Kind: issuer.UseOrder, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, Replaces: r.Replaces != "" && r.InWindow, Urgent: r.Urgent,
	}
	if c.Budget != nil {
		if err := c.Budget.Spend(ctx, use); err != nil {
			return nil, err
		}
	}
	r.Progress(issuer.StepOrdering)
	if c.isDown() { // where there was no answer, it may have counted the order
		return nil, c.unavailable()
	}
	exempt, err := c.order(r)
	if err != nil {
		return nil, err
	}
	select {
	case <-time.After(Latency):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	return c.sign(r, exempt)
}

// order decides about a new order, and returns whether it replaces a certificate inside of its window.
func (c *CA) order(r issuer.Request) (exempt bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := time.Now()
	if old := c.issued[r.Replaces]; old != nil && !old.replaced {
		start, end := old.window(at)
		exempt = !at.Before(start) && !at.After(end)
		old.replaced = true
	}
	if c.Limits == nil {
		return exempt, nil
	}
	if err := c.Limits.order(r.DNSNames, exempt, at); err != nil {
		return false, &issuer.Error{Kind: issuer.KindRateLimited, Issuer: "ca", Message: err.Error(), RetryAfter: time.Hour}
	}
	return exempt, nil
}

func (c *CA) sign(r issuer.Request, exempt bool) (*secret.Secret, error) {
	at := time.Now().Truncate(time.Second)
	life := lives[r.Profile]
	if life == 0 {
		return nil, &issuer.Error{Kind: issuer.KindRejected, Issuer: "ca", Message: fmt.Sprintf("invalidProfile: %q", r.Profile)}
	}
	leaf := Leaf{Name: r.Secret, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, NotBefore: at, NotAfter: at.Add(life)}
	s, err := c.authority.secret(leaf, c.key)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.issued, c.latest[r.Secret])
	c.latest[r.Secret] = s.RenewalInfoID()
	c.issued[s.RenewalInfoID()] = &issued{names: r.DNSNames, notBefore: leaf.NotBefore, notAfter: leaf.NotAfter}
	c.times = append(c.times, time.Now())
	if c.Limits != nil {
		c.Limits.issue(r.DNSNames, exempt, time.Now())
	}
	return s, nil
}

// RenewalInfo implements issuer.Advisor.
func (c *CA) RenewalInfo(_ context.Context, id string) (issuer.RenewalInfo, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked++
	i := c.issued[id]
	switch {
	case c.down:
		return issuer.RenewalInfo{}, c.unavailable()
	case i == nil:
		return issuer.RenewalInfo{}, errors.New("no such certificate")
	}
	start, end := i.window(time.Now())
	return issuer.RenewalInfo{Start: start, End: end, RetryAfter: c.AskAgain}, nil
}

// window is what Boulder suggests (core.RenewalInfoSimple and RenewalInfoImmediate).
func (i *issued) window(at time.Time) (start, end time.Time) {
	if i.revoked {
		return at.Add(-time.Hour), at.Add(-30 * time.Minute)
	}
	life := i.notAfter.Sub(i.notBefore)
	left := life / 3
	if life < 10*24*time.Hour {
		left = life / 2
	}
	ideal := i.notAfter.Add(-left)
	return ideal.Add(-life / 100), ideal.Add(life / 100)
}

// Limits are those of Let's Encrypt's production (rate-limits page of 2026-08-05), counted as Boulder does and written without a look at
// package budget.
type Limits struct {
	mu         sync.Mutex
	buckets    map[string]*bucket   // guarded by mu
	sets       map[string]time.Time // guarded by mu; when a set was issued last
	violations []string             // guarded by mu
}

// bucket holds a number of tokens, of which one comes back after each refill.
type bucket struct {
	burst  int
	refill time.Duration
	level  float64 // tokens
	at     time.Time
}

// NewLimits returns limits that nothing has used up.
func NewLimits() *Limits {
	return &Limits{buckets: make(map[string]*bucket), sets: make(map[string]time.Time)}
}

// Violations returns what was asked for although a limit had no room.
func (l *Limits) Violations() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string(nil), l.violations...)
}

// bucket returns a bucket as it is now; mu is held.
func (l *Limits) bucket(name string, burst int, period time.Duration, at time.Time) *bucket {
	b := l.buckets[name]
	if b == nil {
		b = &bucket{burst: burst, refill: period / time.Duration(burst), level: float64(burst), at: at}
		l.buckets[name] = b
	}
	b.level = min(float64(b.burst), b.level+float64(at.Sub(b.at))/float64(b.refill))
	b.at = at
	return b
}

// of returns the buckets that an order for names is counted in: when it is placed, and when it is issued; mu is held.
func (l *Limits) of(names []string, exempt bool, at time.Time) (placed, issued []*bucket) {
	const week = 7 * 24 * time.Hour
	set := strings.Join(names, ",")
	if exempt { // a replacement inside of its window counts nowhere
		return nil, nil
	}
	issued = append(issued, l.bucket("set "+set, 5, week, at))
	if last, known := l.sets[set]; known && at.Sub(last) < 120*24*time.Hour {
		return nil, issued // a renewal
	}
	placed = append(placed, l.bucket("orders", 300, 3*time.Hour, at))
	domains := make(map[string]bool)
	for _, name := range names {
		labels := strings.Split(name, ".")
		domains[strings.Join(labels[max(len(labels)-2, 0):], ".")] = true
	}
	for domain := range domains {
		issued = append(issued, l.bucket("domain "+domain, 50, week, at))
	}
	return placed, issued
}

func (l *Limits) order(names []string, exempt bool, at time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	placed, issued := l.of(names, exempt, at)
	for _, b := range append(placed, issued...) {
		if b.level < 1 {
			l.violations = append(l.violations, fmt.Sprintf("%v: %v: %d in %v", at, names, b.burst, b.refill*time.Duration(b.burst)))
			return errors.New("too many")
		}
	}
	for _, b := range placed {
		b.level--
	}
	return nil
}

func (l *Limits) issue(names []string, exempt bool, at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, issued := l.of(names, exempt, at)
	for _, b := range issued {
		b.level--
	}
	l.sets[strings.Join(names, ",")] = at
}

// Adopt makes it the CA of a certificate that it has not issued, and returns its renewal information identifier.
func (c *CA) Adopt(name string, dnsNames []string, notBefore, notAfter time.Time) (id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	id = "adopted." + name
	c.latest[name] = id
	c.issued[id] = &issued{names: dnsNames, notBefore: notBefore, notAfter: notAfter}
	return id
}
