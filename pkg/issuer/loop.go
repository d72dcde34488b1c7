package issuer

import (
	"container/heap"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
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
	// Workers is how many certificates are ordered at once; default 4.
	Workers int
	// Observer is told how each order ended, from several goroutines; it must not block for long. Default: nobody.
	Observer func(ctx context.Context, o Outcome)
	// Random returns numbers in [0,1) for jitter, from several goroutines; default rand.Float64.
	Random func() float64
}

// Loop orders the configured certificates when they are due. SetIssuers, SetCertificates, Renew and Status may be called at any
// time, from any goroutine.
type Loop struct {
	options Options
	metrics *metrics
	wake    chan struct{} // capacity 1: look again
	jobs    sync.WaitGroup

	mu sync.Mutex
	// All of these are guarded by mu.
	issuers map[string]Issuer
	health  map[string]health // by issuer, what its last order showed; also of issuers that are not configured any more
	entries map[string]*entry
	queue   queue
	running int
	stopped bool
}

// entry is one configured certificate.
type entry struct {
	cert     Certificate
	state    State
	revision int64 // of the state in the store
	loaded   bool  // the state was read since the certificate was configured
	// unfinished reports whether an order for it is in the store.
	unfinished bool
	due        time.Time
	position   int  // in the queue; -1 outside of it
	job        *job // nil unless an order waits for a worker or is under way
	// removed is set while the order of a certificate that is not configured any more is still ending, so that the name cannot be
	// ordered a second time beside it.
	removed bool
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
		options: o, metrics: m, wake: make(chan struct{}, 1),
		issuers: make(map[string]Issuer), health: make(map[string]health), entries: make(map[string]*entry),
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
		wait := heartbeat
		if err := l.load(ctx); err != nil && ctx.Err() == nil {
			if first {
				return fmt.Errorf("issuance loop: %w", err)
			}
			l.options.Logger.ErrorContext(ctx, "state of certificates not read", "err", err)
			wait = reloadAfter
		}
		wait = min(wait, l.startDue(jobs, now()))
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
	for name := range l.issuers {
		if issuers[name] == nil {
			l.metrics.forgetIssuer(name)
			delete(l.health, name)
		}
	}
	for name := range issuers {
		if l.issuers[name] == nil {
			l.metrics.setUp(name, !l.health[name].down)
		}
	}
	for _, e := range l.entries {
		f, name := e.state.Failure, e.cert.Issuer
		if e.loaded && f != nil && f.Kind != KindRateLimited && issuers[name] != nil && issuers[name] != l.issuers[name] {
			again := *f
			again.NotBeforeTry = time.Time{}
			e.state.Failure = &again
			l.schedule(e)
		}
	}
	l.issuers = maps.Clone(issuers)
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
			l.entries[c.Name] = &entry{cert: c, position: -1}
			continue
		}
		if reflect.DeepEqual(e.cert, c) && !e.removed {
			continue
		}
		if e.job != nil && (wanted(&e.cert) != wanted(&c) || e.cert.Profile != c.Profile) {
			e.job.cut(errReconfigured)
		}
		e.cert, e.removed = c, false
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
	if e.position >= 0 {
		heap.Remove(&l.queue, e.position)
	}
	l.metrics.forgetCertificate(e.cert.Name)
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

// load reads the state of certificates that were configured since the last look, in one request.
func (l *Loop) load(ctx context.Context) error {
	if !l.unloaded() {
		return nil
	}
	entries, _, err := l.options.Store.List(ctx, StateKey("")) // the key of an empty name is the common prefix
	if err != nil {
		return err
	}
	orders, _, err := l.options.Store.List(ctx, OrderKey(""))
	if err != nil {
		return err
	}
	found := make(map[string]store.Entry, len(entries)+len(orders))
	for _, e := range slices.Concat(entries, orders) {
		found[e.Key] = e
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if e.loaded || e.job != nil && e.job.started {
			continue
		}
		stored, ok := found[StateKey(e.cert.Name)]
		e.state, e.revision = State{}, 0
		if ok {
			e.revision = stored.Revision
			if e.state, err = decodeState(stored); err != nil {
				// Ordering it anew repairs it, while an error would stop every certificate.
				l.options.Logger.ErrorContext(ctx, "state of a certificate not understood: it is ordered anew", "secret", e.cert.Name, "err", err)
			}
		}
		e.loaded = true
		l.recall(e)
		_, e.unfinished = found[OrderKey(e.cert.Name)]
		if due := e.next(); e.job != nil && !e.job.renewal.Force && due.After(now()) {
			e.job.finish(Accepted{}, &NotDueError{Name: e.cert.Name, Until: due})
			e.job = nil
		}
		l.schedule(e)
	}
	return nil
}

func (l *Loop) unloaded() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.entries {
		if !e.loaded && (e.job == nil || !e.job.started) {
			return true
		}
	}
	return false
}

// next returns when the certificate is to be ordered: when it is due, or, where an order for it is under way (a crash cut it off, or a try
// failed half way), as soon as its back-off allows, so that the order is not left to die at the CA.
func (e *entry) next() time.Time {
	due := e.state.due(&e.cert)
	if !e.unfinished {
		return due
	}
	if retry := e.state.retry(&e.cert); retry.Before(due) {
		return retry
	}
	return due
}

// schedule puts a loaded certificate at its place in the queue; mu is held. One whose order is under way comes back by itself.
func (l *Loop) schedule(e *entry) {
	e.due = e.next()
	if e.removed {
		return
	}
	if e.job != nil {
		if e.job.started {
			l.metrics.certificate(e)
			return
		}
		e.due = time.Time{} // asked for by Renew
	}
	if e.position < 0 {
		heap.Push(&l.queue, e)
	} else {
		heap.Fix(&l.queue, e.position)
	}
	l.metrics.certificate(e)
}

// startDue gives what is due to free workers, the longest due first, and returns the time until the next one is due.
func (l *Loop) startDue(ctx context.Context, at time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(l.queue) > 0 {
		e := l.queue[0]
		if wait := e.due.Sub(at); wait > 0 {
			return wait
		}
		if l.running == l.options.Workers {
			break // a worker that ends pokes
		}
		heap.Pop(&l.queue)
		l.start(ctx, e)
	}
	return heartbeat
}

// queue is a heap of certificates, the first due on top.
type queue []*entry

func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].position, q[j].position = i, j
}

// Push is for container/heap.
func (q *queue) Push(x any) {
	e := x.(*entry) // nothing else is pushed
	e.position = len(*q)
	*q = append(*q, e)
}

// Pop is for container/heap.
func (q *queue) Pop() any {
	last := len(*q) - 1
	e := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	e.position = -1
	return e
}
