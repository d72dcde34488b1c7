package issuer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// job is one order of one certificate, from the request or the due time to the sink. All who ask for the certificate meanwhile
// wait for the same job.
type job struct {
	done  chan struct{} // closed by finish
	force bool

	// Guarded by the loop's mu: whether a worker has it, and what ends its context then.
	started bool
	cancel  context.CancelCauseFunc

	mu sync.Mutex
	// All of these are guarded by mu; changed is closed and replaced at each step.
	step     Step
	changed  chan struct{}
	accepted Accepted
	err      error
}

func newJob(force bool) *job {
	return &job{force: force, done: make(chan struct{}), step: StepQueued, changed: make(chan struct{})}
}

// cut ends a job that has started.
func (j *job) cut(cause error) {
	if j.cancel != nil {
		j.cancel(cause)
	}
}

func (j *job) setStep(s Step) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.step = s
	close(j.changed)
	j.changed = make(chan struct{})
}

// current returns the step, and what is closed when there is another.
func (j *job) current() (Step, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.step, j.changed
}

// finish is called once.
func (j *job) finish(a Accepted, err error) {
	j.mu.Lock()
	j.accepted, j.err = a, err
	j.mu.Unlock()
	close(j.done)
}

func (j *job) result() (Accepted, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.accepted, j.err
}

// Renewal says how Renew renews.
type Renewal struct {
	// Force orders a certificate that is not due, and does not wait for the end of a back-off.
	Force bool
	// Progress is told each step; a slow one misses steps. Nil tells nobody.
	Progress func(Step)
}

// Renew orders a certificate now and waits until the sink has it. Without force one that is not due is left alone: *NotDueError.
// Everybody who asks for the same certificate at the same time shares one order. ctx bounds the wait alone, not the order. Other
// errors are ErrUnknown, ErrStopped, and *Error for a failed order.
func (l *Loop) Renew(ctx context.Context, name string, r Renewal) (Accepted, error) {
	j, err := l.request(name, r.Force)
	if err != nil {
		return Accepted{}, err
	}
	var told Step
	for {
		step, changed := j.current()
		if step != told && r.Progress != nil {
			r.Progress(step)
		}
		told = step
		select {
		case <-j.done:
			return j.result()
		case <-ctx.Done():
			return Accepted{}, fmt.Errorf("certificate %q: still %s: %w", name, step, context.Cause(ctx))
		case <-changed:
		}
	}
}

// request returns the job of a certificate, a new one if there is none.
func (l *Loop) request(name string, force bool) (*job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[name]
	switch {
	case e == nil, e.removed:
		return nil, fmt.Errorf("certificate %q: %w", name, ErrUnknown)
	case l.stopped:
		return nil, fmt.Errorf("certificate %q: %w", name, ErrStopped)
	case e.job != nil:
		return e.job, nil
	case !force && e.loaded && e.due.After(now()):
		return nil, &NotDueError{Name: name, Until: e.due}
	}
	e.job = newJob(force)
	if e.loaded {
		l.schedule(e)
	}
	l.poke()
	return e.job, nil
}

// start begins the order of a certificate that is not in the queue; mu is held.
func (l *Loop) start(ctx context.Context, e *entry) {
	if e.job == nil {
		e.job = newJob(false)
	}
	j := e.job
	ctx, j.cancel = context.WithCancelCause(ctx)
	j.started = true
	l.running++
	task := task{loop: l, job: j, cert: e.cert, issuer: l.issuers[e.cert.Issuer], state: e.state, revision: e.revision}
	l.jobs.Go(func() {
		defer j.cancel(nil)
		task.run(ctx)
		l.end(e, &task)
	})
}

// end takes over what a task found out.
func (l *Loop) end(e *entry, t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	e.job = nil
	e.state, e.revision, e.loaded, e.unfinished = t.state, t.revision, t.known, t.unfinished
	switch {
	case e.removed:
		delete(l.entries, e.cert.Name)
	case e.loaded:
		l.schedule(e)
	}
	l.count(t)
	t.job.finish(t.accepted, t.err)
	l.poke()
}

// count takes an order into the metrics, unless it was cut or its issuer has gone meanwhile; mu is held.
func (l *Loop) count(t *task) {
	name := t.cert.Issuer
	if t.cut || l.issuers[name] == nil {
		return
	}
	l.metrics.result(name, t.took, t.failure)
	if t.failure == nil {
		l.observe(name, now(), "")
	} else {
		l.observe(name, now(), t.failure.Kind)
	}
}

// task is the work of a job: what it needs, and what it found out. No lock is held while it runs.
type task struct {
	loop     *Loop
	job      *job
	cert     Certificate
	issuer   Issuer
	state    State
	revision int64

	// known reports whether state and revision are those in the store.
	known bool
	// unfinished reports whether the order is still in the store after a failure.
	unfinished bool
	cut        bool // ended from outside: no failure
	took       time.Duration
	failure    *Error
	profile    *string // that the certificate was ordered with; nil: not told
	accepted   Accepted
	err        error
}

func (t *task) run(ctx context.Context) {
	began, renewed := time.Now(), t.state.issued()
	defer func() { t.observeEnd(ctx, renewed) }()
	log := t.loop.options.Logger.With("secret", t.cert.Name, "issuer", t.cert.Issuer)
	err := t.renew(ctx)
	t.took = time.Since(began)
	if err == nil {
		log.InfoContext(ctx, "certificate issued", "version", t.accepted.Version.Short(), "serial", t.state.Serial,
			"not_after", t.state.NotAfter, "next_renewal", t.state.NextRenewal, "took", t.took)
		return
	}
	// Where the store fails, the next start finds the order.
	_, missing := t.loop.options.Store.Get(context.WithoutCancel(ctx), OrderKey(t.cert.Name))
	t.unfinished = missing == nil
	if ctx.Err() != nil {
		// By the end of the process or another configuration: no failure of the issuer, and no back-off.
		t.cut, t.err = true, fmt.Errorf("certificate %q: %w", t.cert.Name, context.Cause(ctx))
		log.InfoContext(ctx, "order interrupted", "err", context.Cause(ctx))
		return
	}
	e, ok := errors.AsType[*Error](err)
	if !ok {
		e = &Error{Kind: KindInternal, Issuer: t.cert.Issuer, Message: err.Error(), Err: err}
	}
	t.failure, t.err = e, e
	t.fail(ctx, e)
	f := t.state.Failure
	log.WarnContext(ctx, "certificate not issued", "kind", e.Kind, "err", e, "hint", e.Hint, "attempts", f.Attempts,
		"next_try", f.NotBeforeTry, "not_after", t.state.NotAfter)
}

// renew orders and hands over. It sets state, revision and known. A panic of the issuer or the sink costs this order, not the
// loop.
func (t *task) renew(ctx context.Context) (err error) {
	t.known = true
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	s, err := t.obtain(ctx)
	if err != nil {
		return err
	}
	t.job.setStep(StepStoring)
	next := renewed(&t.cert, s, now(), t.loop.options.Random)
	value := encodeState(&next)
	key := StateKey(t.cert.Name)
	accepted, err := t.loop.options.Sink.Accept(ctx, Issued{
		Secret: s, Issuer: t.cert.Issuer, Profile: t.profile,
		Conditions: []store.Condition{{Key: key, Revision: t.revision}},
		Operations: []store.Operation{store.Put(key, value), store.Delete(OrderKey(t.cert.Name))},
	})
	t.look(ctx)
	if err != nil && (!t.known || t.state.Serial != next.Serial) {
		return fmt.Errorf("store the certificate: %w", err)
	}
	t.accepted, t.state = accepted, next
	return nil
}

func (t *task) obtain(ctx context.Context) (*secret.Secret, error) {
	if t.issuer == nil {
		return nil, &Error{
			Kind: KindInternal, Issuer: t.cert.Issuer, Message: "no such issuer is configured", Hint: "add it to issuers, or name another one",
		}
	}
	return t.issuer.Obtain(ctx, Request{
		Secret: t.cert.Name, DNSNames: t.cert.DNSNames, IPAddresses: t.cert.IPAddresses,
		KeyType: t.cert.KeyType, Profile: t.cert.Profile, Progress: t.job.setStep,
		Profiled: func(profile string) { t.profile = &profile },
	})
}

// look reads the state as it is in the store after the sink's answer, whatever that was. Where it has not changed, what is known
// here counts: it may hold failures that could not be stored.
func (t *task) look(ctx context.Context) {
	entry, err := t.loop.options.Store.Get(ctx, StateKey(t.cert.Name))
	switch {
	case errors.Is(err, store.ErrNotFound):
		if t.revision != 0 {
			t.state, t.revision = State{}, 0
		}
	case err != nil:
		t.known = false // the loop reads it again
	case entry.Revision != t.revision:
		t.revision = entry.Revision
		if t.state, err = decodeState(entry); err != nil {
			t.known = false
		}
	}
}

// fail records a failure. When it cannot be stored, it counts in memory alone: a restart tries again earlier.
func (t *task) fail(ctx context.Context, e *Error) {
	t.state = t.state.failed(&t.cert, e, now(), t.loop.options.Random)
	key := StateKey(t.cert.Name)
	revision, err := t.loop.options.Store.Commit(ctx,
		[]store.Condition{{Key: key, Revision: t.revision}}, []store.Operation{store.Put(key, encodeState(&t.state))})
	if err != nil {
		t.loop.options.Logger.ErrorContext(ctx, "failure of a certificate not stored", "secret", t.cert.Name, "err", err)
		if errors.Is(err, store.ErrConflict) {
			t.known = false // somebody else's state counts
		}
		return
	}
	t.revision, t.known = revision, true
}
