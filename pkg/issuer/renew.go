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
	// Reason is why, for the log; empty is none.
	Reason string
	// Progress is told each step; a slow one misses steps. Nil tells nobody.
	Progress func(Step)
}

// Renew orders a certificate now and waits until the sink has it. Without force one that is not due is left alone: *NotDueError.
// Everybody who asks for the same certificate at the same time shares one order, and thousands may wait at once: what is most urgent
// is ordered first. ctx bounds the wait alone, not the order. Other errors are ErrUnknown, ErrStopped, and *Error for a failed order.
func (l *Loop) Renew(ctx context.Context, name string, r Renewal) (Accepted, error) {
	for {
		accepted, err := l.renewOnce(ctx, name, r)
		e, failed := errors.AsType[*Error](err)
		if !failed || e.Kind != KindBudget || !r.Wait {
			return accepted, err
		}
		room := time.NewTimer(max(e.RetryAfter, time.Second))
		select {
		case <-room.C:
		case <-ctx.Done():
			room.Stop()
			return Accepted{}, fmt.Errorf("certificate %q: waits for the budget: %w", name, context.Cause(ctx))
		}
	}
}

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
