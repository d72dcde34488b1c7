package issuer

import (
	"context"
	"errors"
	"time"
)

// Advisor is an Issuer whose CA may suggest when a certificate is to be renewed (ARI, RFC 9773). It is asked only about
// certificates that it has issued itself.
type Advisor interface {
	// RenewalInfo asks the CA once about the certificate with this identifier (RFC 9773, Section 4.1). Errors are ErrNoAdvice,
	// *Error, or the cause of ctx when that has ended; none of them is a reason to renew.
	RenewalInfo(ctx context.Context, id string) (RenewalInfo, error)
}

// ErrNoAdvice is the answer of a CA whose directory has no renewalInfo.
var ErrNoAdvice = errors.New("the CA gives no renewal information")

// RenewalInfo is what a CA suggests for one certificate (RFC 9773, Section 4.2).
type RenewalInfo struct {
	// Start and End are the suggested window; End is after Start.
	Start, End time.Time
	// Explanation is the URL of a page that says why the window is what it is; empty where there is none.
	Explanation string
	// RetryAfter is when to ask again, from now: 1 minute to 1 day; 6 hours where the CA did not say.
	RetryAfter time.Duration
}
