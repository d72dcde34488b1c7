// Package maintenance knows when a CA is better left alone: in the windows that the operator has planned, and while the CA's status page
// says that it is in trouble.
//
// It stands beside the issuance loop, which asks [Monitor.Hold] before it orders. It holds ordinary renewals alone: what is urgent is
// ordered all the same, and the loop decides what that is.
//
// Invariants: Hold answers from memory; a status page is a hint, so one that cannot be read, or answers something else, holds nothing,
// and one that reports trouble holds no longer than [MaxHold] in a row.
package maintenance

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"sync"
	"time"
)

const (
	// DefaultInterval is the time between two looks at a status page.
	DefaultInterval = 5 * time.Minute
	// MaxHold is the longest time for which a status page can hold renewals in a row; after that it is ignored until it has reported
	// that all is well. Planned windows have no such bound.
	MaxHold = 24 * time.Hour

	// jitter is by which part of the interval a look may come earlier or later.
	jitter = 0.2
	// believedLooks is for how many intervals an answer counts when no other comes.
	believedLooks = 4
	// requestTime bounds one look.
	requestTime = 20 * time.Second
	// idle is how long Run sleeps where there is nothing to look at.
	idle = time.Hour
)

// Options configure a Monitor. Logger is required.
type Options struct {
	// Logger gets a line when a page begins to report trouble or ends to, and when it cannot be read any more or can be again.
	Logger *slog.Logger
	// UserAgent of the requests; default "sds-server".
	UserAgent string
	// Interval is the time between two looks at a page, give or take a fifth; default DefaultInterval.
	Interval time.Duration
	// Random returns numbers in [0,1) for the jitter, from several goroutines; default rand.Float64.
	Random func() float64
	// Transport sends the requests; default one of its own, with the system's roots and proxy.
	Transport http.RoundTripper
}

// Issuer is a CA as the configuration describes it.
type Issuer struct {
	Name string
	// Windows are the planned ones; they may overlap.
	Windows []Window
	// StatusURL is the JSON of its status page (see ParsePage); empty if there is none.
	StatusURL string
}

// Window is a span of time.
type Window struct {
	// Name is what the status page calls it; empty for one that the operator has planned.
	Name string
	// From is before To.
	From, To time.Time
}

// Contains reports whether at is inside.
func (w Window) Contains(at time.Time) bool { return !at.Before(w.From) && at.Before(w.To) }

// Page is what is known of a status page.
type Page struct {
	URL string
	// At is when it was last understood; zero if it never was.
	At time.Time
	// Trouble is what it says is wrong; empty if nothing.
	Trouble string
	// Since is when that began: by the page where it says so, otherwise when it was seen first.
	Since time.Time
	// Announced are the maintenances that the page announces.
	Announced []Window
	// Failure is why the last look failed; empty if it did not.
	Failure string
}

// Monitor knows the windows and looks at the status pages. All methods may be called from several goroutines.
type Monitor struct {
	options Options
	client  *http.Client
	wake    chan struct{} // capacity 1: look again
	looks   sync.WaitGroup

	mu sync.Mutex
	// Both are guarded by mu: issuers by name, pages by URL.
	issuers map[string]Issuer
	pages   map[string]*watched
}

// watched is one status page; the monitor's mu guards it.
type watched struct {
	Page
	next    time.Time // of the next look
	looking bool
	ignored bool // that it is ignored was said
}

// New returns a Monitor that knows no issuer.
func New(o Options) *Monitor {
	o.UserAgent = cmp.Or(o.UserAgent, "sds-server")
	o.Interval = cmp.Or(o.Interval, DefaultInterval)
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Transport == nil {
		o.Transport = &http.Transport{
			Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, TLSHandshakeTimeout: requestTime, DisableKeepAlives: true, // a look is rare
		}
	}
	return &Monitor{
		options: o, client: &http.Client{Transport: o.Transport, Timeout: requestTime}, wake: make(chan struct{}, 1),
		issuers: map[string]Issuer{}, pages: map[string]*watched{},
	}
}

// Set replaces the issuers. What is known of a page that stays is kept.
func (m *Monitor) Set(issuers []Issuer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	pages := map[string]*watched{}
	m.issuers = make(map[string]Issuer, len(issuers))
	for _, i := range issuers {
		i.Windows = slices.Clone(i.Windows)
		m.issuers[i.Name] = i
		if i.StatusURL == "" || pages[i.StatusURL] != nil {
			continue
		}
		pages[i.StatusURL] = m.pages[i.StatusURL]
		if pages[i.StatusURL] == nil {
			pages[i.StatusURL] = &watched{Page: Page{URL: i.StatusURL}}
		}
	}
	m.pages = pages
	select {
	case m.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// Hold says why ordinary renewals at an issuer should wait at an instant, and until when: at that time it is to be asked again. The
// reason is empty where they need not. It answers from memory.
func (m *Monitor) Hold(issuer string, now time.Time) (reason string, until time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i, ok := m.issuers[issuer]
	if !ok {
		return "", time.Time{}
	}
	if until = end(i.Windows, now); until.After(now) {
		return "a maintenance is planned until " + stamp(until), until
	}
	p := m.pages[i.StatusURL]
	if p == nil || !now.Before(m.believed(p)) {
		return "", time.Time{}
	}
	if reason, until = p.hold(now); reason == "" {
		return "", time.Time{}
	}
	return reason, earliest(until, m.believed(p))
}

// believed is until when the last answer of a page counts.
func (m *Monitor) believed(p *watched) time.Time {
	if p.At.IsZero() {
		return time.Time{}
	}
	return p.At.Add(believedLooks * m.options.Interval)
}

// hold says what the page itself holds for.
func (p *Page) hold(now time.Time) (reason string, until time.Time) {
	if last := p.Since.Add(MaxHold); p.Trouble != "" && now.Before(last) {
		return "the status page of the CA says: " + p.Trouble, last
	}
	for _, w := range p.Announced {
		if last := earliest(w.To, w.From.Add(MaxHold)); w.Contains(now) && now.Before(last) {
			return fmt.Sprintf("the status page of the CA announces: %s until %s", w.Name, stamp(w.To)), last
		}
	}
	return "", time.Time{}
}

// end is when the windows that cover an instant are over, with those that follow without a gap; zero where none covers it.
func end(windows []Window, now time.Time) time.Time {
	var until time.Time
	for again := true; again; {
		again = false
		for _, w := range windows {
			if w.Contains(now) && w.To.After(until) {
				until, now, again = w.To, w.To, true
			}
		}
	}
	return until
}

// Next returns the first window of an issuer that begins after an instant, planned or announced.
func (m *Monitor) Next(issuer string, now time.Time) (next Window, ok bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	i := m.issuers[issuer]
	windows := i.Windows
	if p := m.pages[i.StatusURL]; p != nil && now.Before(m.believed(p)) {
		windows = slices.Concat(windows, p.Announced)
	}
	for _, w := range windows {
		if w.From.After(now) && (!ok || w.From.Before(next.From)) {
			next, ok = w, true
		}
	}
	return next, ok
}

// Page returns what is known of the status page of an issuer; false where it has none.
func (m *Monitor) Page(issuer string) (Page, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pages[m.issuers[issuer].StatusURL]
	if p == nil {
		return Page{}, false
	}
	out := p.Page
	out.Announced = slices.Clone(out.Announced)
	return out, true
}

// Run looks at the status pages until ctx ends, each by itself: one that does not answer delays no other.
func (m *Monitor) Run(ctx context.Context) error {
	defer m.looks.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		case <-timer.C:
		}
		timer.Reset(m.lookAtDue(ctx))
	}
}

// lookAtDue begins the looks that are due, and returns the time until the next one is.
func (m *Monitor) lookAtDue(ctx context.Context) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now, wait := time.Now(), idle
	for _, p := range m.pages {
		switch {
		case p.looking: // it wakes when it has ended
		case !p.next.After(now):
			p.looking = true
			m.looks.Go(func() { m.look(ctx, p) })
		default:
			wait = min(wait, p.next.Sub(now))
		}
	}
	return wait
}

// look asks a page once and takes over what it says.
func (m *Monitor) look(ctx context.Context, p *watched) {
	now := time.Now()
	said, err := m.ask(ctx, p.URL, now)
	if ctx.Err() != nil {
		return
	}
	for _, say := range m.learn(ctx, p, said, err) {
		say()
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// learn takes over an answer, or that there was none, and returns what is to be said about it when the lock is free: each change once.
func (m *Monitor) learn(ctx context.Context, p *watched, said Report, err error) (say []func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now().Round(0)
	p.looking = false
	p.next = now.Add(time.Duration(float64(m.options.Interval) * (1 + jitter*(2*m.options.Random()-1))))
	log := m.options.Logger.With("issuers", m.users(p.URL), "url", redacted(p.URL))
	if err != nil {
		if p.Failure == "" {
			say = append(say, func() {
				log.WarnContext(ctx, "the status page of a CA cannot be read: it holds no renewals", "err", err)
			})
		}
		p.Failure = err.Error()
		return say
	}
	if p.Failure != "" {
		say = append(say, func() { log.InfoContext(ctx, "the status page of a CA can be read again") })
	}
	before := p.Trouble
	p.Failure, p.At, p.Trouble, p.Announced = "", now, said.Trouble, said.Announced
	if p.Trouble == "" {
		p.Since, p.ignored = time.Time{}, false
		if before != "" {
			say = append(say, func() { log.InfoContext(ctx, "the status page of a CA reports no trouble any more") })
		}
		return say
	}
	if before == "" {
		p.Since = now
	}
	if !said.Since.IsZero() && said.Since.Before(p.Since) {
		p.Since = said.Since
	}
	since, trouble := p.Since, p.Trouble
	switch old := !now.Before(since.Add(MaxHold)); {
	case old && !p.ignored:
		p.ignored = true
		say = append(say, func() {
			log.WarnContext(ctx, "the status page of a CA has reported trouble for too long: it is ignored until it reports that all is well",
				"trouble", trouble, "since", since, "longest", MaxHold)
		})
	case !old && before != trouble:
		say = append(say, func() {
			log.WarnContext(ctx, "the status page of a CA reports trouble: ordinary renewals there wait", "trouble", trouble, "since", since,
				"at_most_until", since.Add(MaxHold))
		})
	}
	return say
}

// users are the issuers of a page; mu is held.
func (m *Monitor) users(page string) []string {
	var names []string
	for name, i := range m.issuers {
		if i.StatusURL == page {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

func redacted(text string) string {
	u, err := url.Parse(text)
	if err != nil {
		return "a URL that cannot be parsed"
	}
	return u.Redacted()
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }
