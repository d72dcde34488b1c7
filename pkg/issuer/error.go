package issuer

import (
	"fmt"
	"strings"
	"time"
)

// Kind says what an issuer error asks for. The values are metric labels.
type Kind string

// The kinds of issuer errors.
const (
	// KindTemporary is an outage, a time-out or a maintenance of the CA: the same request may succeed later.
	KindTemporary Kind = "temporary"
	// KindRateLimited is a limit of the CA; see Error.RetryAfter.
	KindRateLimited Kind = "rate_limited"
	// KindRejected means that the CA refused the request, or that its answer was refused here: a person has to look.
	KindRejected Kind = "rejected"
	// KindValidation means that the CA could not validate a name: our routing, or the name's DNS, has to be mended. No other CA
	// would do better.
	KindValidation Kind = "validation"
	// KindPaused means that the CA has stopped the account or a name until a person acts at the CA; see the link in the message.
	KindPaused Kind = "paused"
	// KindBudget means that nothing was asked of the CA, because it would have crossed one of its limits, or its share of it.
	KindBudget Kind = "budget"
	// KindInternal is a fault on our side: the store, the configuration, a mistake in the program.
	KindInternal Kind = "internal"
)

// Error is why a certificate was not issued. Its text holds what the CA said, and never a key.
type Error struct {
	Kind Kind
	// RetryAfter is how long the CA asked to be left alone, from now; 0 if it did not say.
	RetryAfter time.Duration
	// Issuer is the name of the issuer.
	Issuer string
	// Identifier is the DNS name or IP address at fault; several are separated by ", "; empty if it is none in particular.
	Identifier string
	// Limit is, with KindBudget, the name of the limit that has no room, and Identifier what it counts for: a registered domain, an
	// exact set, a name, or empty for the whole account. What was refused for the same limit and identifier waits together: when there
	// is room again, only the most urgent one asks. With KindRateLimited it is the CA's, if that is known: then RetryAfter is waited for
	// whatever is left of the life.
	Limit string
	// Message says what went wrong, Hint what to do about it; Hint may be empty.
	Message string
	Hint    string
	// Err is the cause; it may be nil. Its text is part of Message already.
	Err error
}

// ends reports whether another try at the same issuer is no better, until somebody acts.
func (e *Error) ends() bool { return e.Kind == KindRejected || e.Kind == KindPaused }

// Error returns the issuer, the identifier and the message in one line.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "issuer %q: ", e.Issuer)
	if e.Identifier != "" {
		b.WriteString(e.Identifier + ": ")
	}
	b.WriteString(e.Message)
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, " (retry after %v)", e.RetryAfter.Round(time.Second))
	}
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
