package issuer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// task is the work of a job: what it needs, and what it found out. No lock is held while it runs.
type task struct {
	loop     *Loop
	job      *job
	lane     *lane
	name     string // of the issuer that is asked
	issuer   Issuer // nil if it is not configured
	cert     Certificate
	want     string
	wish     Renewal
	urgent   bool // what is kept back for emergencies may be used
	probe    bool // it is to show whether the CA works again
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
	refused    *Error  // by the budget: nothing was tried, and nothing has failed
	accepted   Accepted
	err        error
}

// start begins the order of a certificate that is in no queue; mu is held.
func (l *Loop) start(ctx context.Context, n *lane, e *entry, at time.Time) {
	if e.job == nil {
		e.job = newJob()
	}
	j := e.job
	ctx, j.cancel = context.WithCancelCause(ctx)
	j.started = true
	n.running++
	n.breaker.probing = n.breaker.open()
	t := &task{
		loop: l, job: j, lane: n, name: n.name, issuer: n.issuer, cert: e.cert, want: e.want, wish: e.wish,
		urgent: e.urgent(at), probe: n.breaker.probing, state: e.state, revision: e.revision,
	}
	l.jobs.Go(func() {
		defer j.cancel(nil)
		l.refresh(e, t)
		t.run(ctx)
		l.end(ctx, e, t)
	})
}

// refresh waits until the answer to a question about the certificate has been stored, and takes that state.
func (l *Loop) refresh(e *entry, t *task) {
	l.mu.Lock()
	saving := e.saving
	l.mu.Unlock()
	if saving == nil {
		return
	}
	<-saving
	l.mu.Lock()
	defer l.mu.Unlock()
	t.state, t.revision = e.state, e.revision
}

// end takes over what a task found out.
func (l *Loop) end(ctx context.Context, e *entry, t *task) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := now()
	t.lane.running--
	e.job = nil
	e.state, e.revision, e.loaded, e.unfinished = t.state.corrected(at), t.revision, t.known, t.unfinished
	switch {
	case t.err == nil:
		e.wish = Renewal{}
	case t.failure != nil && (t.failure.ends() || e.state.urgent(at)):
		e.wish.Issuer = "" // that was asked for once: it must not keep the certificate from its own issuer
	}
	switch {
	case e.removed:
		delete(l.entries, e.cert.Name)
	case e.loaded && t.refused != nil && l.lanes[t.name] == t.lane && e.issuer() == t.name && e.want == t.want && t.urgent == e.urgent(at):
		l.park(ctx, e, t, at)
	case !e.loaded:
		l.behind = true
	default:
		turn := e.turn
		e.turn = nil
		l.schedule(e)
		e.turn = turn
	}
	if g := e.turn; g != nil {
		e.turn = nil
		g.pass(t.err == nil)
	}
	l.judge(ctx, t, at)
	t.job.finish(t.accepted, t.err)
	l.poke()
}

// judge takes what an order showed of its CA into the breaker and the metrics, unless it was cut or its issuer has gone meanwhile;
// mu is held.
func (l *Loop) judge(ctx context.Context, t *task, at time.Time) {
	n := t.lane
	if t.probe {
		n.breaker.probing = false
	}
	if t.cut || t.refused != nil || n.issuer == nil || n.issuer != t.issuer {
		return
	}
	l.metrics.result(t.name, t.took, t.failure)
	switch {
	case t.failure == nil:
		n.breaker.close()
		l.observe(n, at, "")
		return
	case t.failure.Kind == KindInternal: // it says nothing about the CA
	case t.failure.Kind != KindTemporary:
		n.breaker.close() // the CA has answered
	case n.breaker.fail(t.cert.Name, t.probe, at, t.failure.RetryAfter, l.options.Random()):
		l.hurry(n, at)
		l.options.Logger.WarnContext(ctx, "the issuer is left alone for a while: its CA does not answer or is in trouble",
			"issuer", n.name, "waiting", n.ready.Len(), "wait", n.breaker.wait, "trips", n.breaker.trips)
	}
	l.observe(n, at, t.failure.Kind)
}

func (t *task) run(ctx context.Context) {
	began, renewed := time.Now(), t.state.issued()
	defer func() { t.observeEnd(ctx, renewed) }()
	log := t.loop.options.Logger.With("secret", t.cert.Name, "issuer", t.name)
	if why := t.wish.Reason; why != "" {
		log = log.With("reason", why)
	}
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
		e = &Error{Kind: KindInternal, Issuer: t.name, Message: err.Error(), Err: err}
	}
	if e.Kind == KindBudget {
		t.refused, t.err = e, e // said once for all that wait, see park
		log.DebugContext(ctx, "order waits for the budget", "err", e)
		return
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
	next := t.renewed(s, now())
	value := encodeState(&next)
	key := StateKey(t.cert.Name)
	accepted, err := t.loop.options.Sink.Accept(ctx, Issued{
		Secret: s, Issuer: t.name, Profile: t.profile,
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
			Kind: KindInternal, Issuer: t.name, Message: "no such issuer is configured", Hint: "add it to issuers, or name another one",
		}
	}
	request := Request{
		Secret: t.cert.Name, DNSNames: t.cert.DNSNames, IPAddresses: t.cert.IPAddresses,
		KeyType: t.cert.KeyType, Profile: t.cert.Profile, Urgent: t.urgent, Progress: t.job.setStep,
		Profiled: func(profile string) { t.profile = &profile },
	}
	if t.state.Issuer == t.name {
		request.Replaces, request.InWindow = t.state.Advice.ID, t.state.Advice.inside(now())
	}
	return t.issuer.Obtain(ctx, request)
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
	t.state = t.state.failed(t.want, e, now(), t.loop.options.Random)
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
