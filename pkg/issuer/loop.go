package issuer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// heartbeat is the longest time between two looks of the loop; the metric promises 30 s.
	heartbeat = 20 * time.Second
	// reloadAfter is the wait after the store could not be read.
	reloadAfter = 10 * time.Second
)

var (
	// ErrUnknown is the answer to a renewal of a certificate that is not configured, or no more.
	ErrUnknown = errors.New("no such certificate is configured")
	// ErrUnknownIssuer is the answer to a renewal at an issuer that is not configured.
	ErrUnknownIssuer = errors.New("no such issuer is configured")
	// ErrStopped is the answer to a renewal when the loop has ended before it.
	ErrStopped = errors.New("the issuance loop has stopped")

	// errReconfigured ends an order whose certificate was changed or removed.
	errReconfigured = errors.New("the configuration of the certificate has changed")
)

// Options are what a Loop is made of.
type Options struct {
	// Store keeps the state of the certificates. Required.
	Store store.Store
	// Sink takes what was issued. Required.
	Sink Sink
	// Logger gets every renewal and every failure. Required.
	Logger *slog.Logger
	// Registerer takes the metrics. Required.
	Registerer prometheus.Registerer
	// Workers is how many certificates are ordered at once at each issuer, so that one that hangs delays no other; default 4.
	Workers int
	// Hold says why ordinary renewals at an issuer wait now, such as its maintenance, and until when; "" if they do not. What is
	// urgent, or asked for by force, does not wait. It is asked at each look, at least every 30 s, and must not block. Default:
	// never.
	Hold func(issuer string, now time.Time) (reason string, until time.Time)
	// Observer is told how each order ended, from several goroutines; it must not block for long. Default: nobody.
	Observer func(ctx context.Context, o Outcome)
	// Random returns numbers in [0,1) for jitter, from several goroutines; default rand.Float64.
	Random func() float64
}

// Loop orders the configured certificates when they are due. SetIssuers, SetCertificates, Renew and Status may be called at any
// time, from any goroutine.
type Loop struct {
	options   Options
	metrics   *metrics
	heartbeat time.Duration // the longest time between two looks
	wake      chan struct{} // capacity 1: look again
	jobs      sync.WaitGroup

	mu sync.Mutex
	// All of these are guarded by mu.
	lanes    map[string]*lane // by issuer, also of issuers that are not configured while something waits for them
	entries  map[string]*entry
	clock    queue[*entry] // what waits for its time
	behind   bool          // there are certificates whose state was not read
	recalled bool          // the breakers were set by what the store tells of the time before
	looked   time.Time     // the last look
	stopped  bool
}

// New makes a Loop without certificates.
func New(o Options) (*Loop, error) {
	if o.Workers <= 0 {
		o.Workers = 4
	}
	if o.Random == nil {
		o.Random = rand.Float64
	}
	m, err := newMetrics(o.Registerer)
	if err != nil {
		return nil, err
	}
	return &Loop{
		options: o, metrics: m, heartbeat: heartbeat, wake: make(chan struct{}, 1), lanes: make(map[string]*lane), entries: make(map[string]*entry),
		clock: queue[*entry]{
			before: func(a, b *entry) bool { return a.wake.Before(b.wake) },
			place:  func(e *entry) *int { return &e.clockPlace },
		},
	}, nil
}

// Run orders what is due until ctx ends. Orders that are under way then are cut, and are taken up again by the next Run. It
// returns an error only if the store cannot be read at the start.
func (l *Loop) Run(ctx context.Context) error {
	l.begin()
	defer l.stop()
	jobs, cut := context.WithCancelCause(ctx)
	defer cut(ErrStopped)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for first := true; ctx.Err() == nil; first = false {
		wait := l.heartbeat
		if err := l.load(ctx); err != nil && ctx.Err() == nil {
			if first {
				return fmt.Errorf("issuance loop: %w", err)
			}
			l.options.Logger.ErrorContext(ctx, "state of certificates not read", "err", err)
			wait = reloadAfter
		}
		at := now()
		wait = min(wait, l.look(jobs, at, l.holds(at)))
		l.metrics.heartbeat.SetToCurrentTime()
		timer.Reset(wait)
		select {
		case <-ctx.Done():
		case <-l.wake:
		case <-timer.C:
		}
	}
	return nil
}

// now is the wall clock without its monotonic part: due times come from certificates and from the store, and a machine that slept
// has to wake up to them.
func now() time.Time { return time.Now().Round(0) }

func (l *Loop) begin() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = false
}

// stop waits for the jobs and ends the ones that have not begun.
func (l *Loop) stop() {
	l.jobs.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	for _, e := range l.entries {
		if e.job != nil {
			e.job.finish(Accepted{}, ErrStopped)
			e.job = nil
		}
	}
}

// poke makes the loop look.
func (l *Loop) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// SetIssuers replaces the issuers, by name. What failed at one that is new or another one now is tried again at once, unless a
// limit of the CA was the reason; an issuer that has not changed has to be the same value as before, so that its back-offs stay.
func (l *Loop) SetIssuers(issuers map[string]Issuer) {
	l.mu.Lock()
	defer l.mu.Unlock()
	changed := make(map[string]bool)
	for name, n := range l.lanes {
		if n.issuer != nil && issuers[name] == nil {
			l.metrics.forgetIssuer(name)
			n.issuer, n.health, changed[name] = nil, health{}, true
		}
	}
	for name, issuer := range issuers {
		n := l.lane(name)
		if n.issuer == issuer {
			continue
		}
		if n.issuer == nil {
			l.metrics.setUp(name, !n.health.down)
		}
		n.issuer, changed[name] = issuer, true
		n.breaker.close()
		l.openGates(n, now())
	}
	for _, e := range l.entries {
		if !e.loaded {
			continue
		}
		if changed[e.state.Issuer] {
			l.planAsk(e)
		}
		if w := e.wish.Issuer; w != "" && issuers[w] == nil {
			e.wish.Issuer = ""
			l.schedule(e)
		}
		name := e.issuer()
		if f := e.state.Failure; changed[name] && issuers[name] != nil && f != nil && f.Kind != KindRateLimited {
			again := *f
			again.NotBeforeTry = time.Time{}
			e.state.Failure = &again
			l.schedule(e)
		}
	}
	l.poke()
}

// SetCertificates replaces the configured certificates. One whose names, key type or issuer have changed is due now, and an order
// for what it was is cut. The state of one that is gone stays in the store for the case that it comes back.
func (l *Loop) SetCertificates(certificates []Certificate) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keep := make(map[string]bool, len(certificates))
	for _, c := range certificates {
		keep[c.Name] = true
		e := l.entries[c.Name]
		if e == nil {
			l.entries[c.Name], l.behind = &entry{cert: c, want: wanted(&c)}, true
			continue
		}
		if reflect.DeepEqual(e.cert, c) && !e.removed {
			continue
		}
		want := wanted(&c)
		if e.job != nil && (e.want != want || e.cert.Profile != c.Profile) {
			e.job.cut(errReconfigured)
		}
		if e.want != want {
			e.wish.Issuer = "" // another issuer was asked for because of what was configured then
		}
		e.cert, e.want, e.removed = c, want, false
		if e.loaded {
			l.schedule(e)
		}
	}
	for name, e := range l.entries {
		if !keep[name] {
			l.remove(e)
		}
	}
	l.poke()
}

// remove forgets a certificate; mu is held.
func (l *Loop) remove(e *entry) {
	l.unplace(e)
	if e.asks != nil {
		e.asks.remove(e)
	}
	l.metrics.forgetCertificate(e)
	switch {
	case e.job == nil:
		delete(l.entries, e.cert.Name)
	case e.job.started:
		e.removed = true // end deletes it
		e.job.cut(errReconfigured)
	default:
		delete(l.entries, e.cert.Name)
		e.job.finish(Accepted{}, fmt.Errorf("certificate %q: %w", e.cert.Name, ErrUnknown))
	}
}
