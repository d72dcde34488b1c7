package issuer

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Renewal says how Renew renews. The zero value orders what is due.
type Renewal struct {
	// Force orders a certificate that is not due, and does not wait for the end of a back-off or of a maintenance. It never overrides
	// a budget.
	Force bool
	// Urgent may use what the budgets keep back for emergencies.
	Urgent bool
	// Wait goes on waiting when the budget has no room; otherwise Renew returns the *Error of KindBudget at once, whose RetryAfter
	// says when there is some, and the certificate is ordered then all the same.
	Wait bool
	// Issuer is where to order it this time, instead of its own issuer; empty is its own. The next renewal goes to its own again.
	Issuer string
	// Reason is why, for the log; empty is none.
	Reason string
	// Progress is told each step; a slow one misses steps. Nil tells nobody.
	Progress func(Step)
}

// Renew orders a certificate now and waits until the sink has it. Without force one that is not due is left alone: *NotDueError.
// Everybody who asks for the same certificate at the same time shares one order, and thousands may wait at once: what is most urgent
// is ordered first. ctx bounds the wait alone, not the order. Other errors are ErrUnknown,
// ErrUnknownIssuer, ErrStopped, and *Error for a failed order.
func (l *Loop) Renew(ctx context.Context, name string, r Renewal) (Accepted, error) {
	for {
		accepted, err := l.renewOnce(ctx, name, r)
		if e, failed := errors.AsType[*Error](err); !failed || e.Kind != KindBudget || !r.Wait {
			return accepted, err
		}
	}
}

// renewOnce waits for one job. While its certificate waits for the budget, no other one is made, see request.
func (l *Loop) renewOnce(ctx context.Context, name string, r Renewal) (Accepted, error) {
	j, err := l.request(name, r)
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
func (l *Loop) request(name string, r Renewal) (*job, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.entries[name]
	at := now()
	switch {
	case e == nil, e.removed:
		return nil, fmt.Errorf("certificate %q: %w", name, ErrUnknown)
	case r.Issuer != "" && (l.lanes[r.Issuer] == nil || l.lanes[r.Issuer].issuer == nil):
		return nil, fmt.Errorf("certificate %q: issuer %q: %w", name, r.Issuer, ErrUnknownIssuer)
	case l.stopped:
		return nil, fmt.Errorf("certificate %q: %w", name, ErrStopped)
	case e.running():
		return e.job, nil
	case e.job == nil && e.parked == nil && !r.Force && e.loaded && e.due.After(at):
		return nil, &NotDueError{Name: name, Until: e.due}
	}
	moved := e.wish.take(r)
	parked := e.parked != nil && !moved
	if parked && !r.Wait {
		l.reorder(e, at)
		return nil, e.parked.error(at)
	}
	fresh := e.job == nil
	if fresh {
		e.job = newJob()
	}
	switch {
	case !e.loaded: // load does it
	case !parked && (fresh || moved):
		l.schedule(e)
	default:
		l.reorder(e, at)
	}
	l.poke()
	return e.job, nil
}

// take adds what is asked for to what was asked for before, and reports whether that changes where it has to wait.
func (r *Renewal) take(more Renewal) (moved bool) {
	moved = more.Urgent && !r.Urgent || more.Issuer != "" && more.Issuer != r.Issuer
	r.Force, r.Urgent = r.Force || more.Force, r.Urgent || more.Urgent
	if more.Issuer != "" {
		r.Issuer = more.Issuer
	}
	if more.Reason != "" {
		r.Reason = more.Reason
	}
	return moved
}

// reorder moves a certificate that waits in a queue of what is due, because its rank may have changed; mu is held.
func (l *Loop) reorder(e *entry, at time.Time) {
	if e.waiting == nil {
		return
	}
	e.rank = e.rankAt(at)
	l.lane(e.issuer()).breaker.hurry(e.patience(at), e.presses())
	e.waiting.put(e)
}
