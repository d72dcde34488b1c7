package issuer

import (
	"context"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Outcome is how an order ended.
type Outcome struct {
	Secret   string
	Issuer   string
	Renewed  bool // there was a version before
	Attempts int  // failed ones in a row, with this one; 0 for a success

	// Where it was issued.
	Version  secret.Version
	Serial   string
	NotAfter time.Time

	// Failure is nil where it was issued.
	Failure *Error
}

// observeEnd tells the observer how an order ended. One that was cut from outside has not ended, and
// one that the budget refused has not begun.
func (t *task) observeEnd(ctx context.Context, renewed bool) {
	observer := t.loop.options.Observer
	if observer == nil || t.cut || t.refused != nil {
		return
	}
	o := Outcome{Secret: t.cert.Name, Issuer: t.name, Renewed: renewed, Failure: t.failure}
	if t.failure == nil {
		o.Version, o.Serial, o.NotAfter = t.accepted.Version, t.state.Serial, t.state.NotAfter
	} else if f := t.state.Failure; f != nil {
		o.Attempts = f.Attempts
	}
	observer(ctx, o)
}
