package issuer

import (
	"context"
	"net/netip"
	"time"
)

// Budget keeps count of what one CA still allows. An issuer asks it before each request that uses up a limit.
type Budget interface {
	// Spend records a use, durably, before the request is sent that uses the limits up. Where it does not fit, nothing is recorded
	// and the error is an *Error of KindBudget whose RetryAfter says when it fits.
	Spend(ctx context.Context, use Use) error
	// Return gives back what Spend has recorded for a use that the CA did not count: a new order that it refused, or a certificate
	// that will not be issued because its order has ended before finalize.
	Return(ctx context.Context, use Use) error
	// Refused corrects the record after the CA has refused a use in spite of it (429): the limits that it may be about are empty
	// until after has passed. message is what the CA said; where it names the limit, that one alone is corrected.
	Refused(ctx context.Context, use Use, after time.Duration, message string) error
}

// Use is what a request uses up.
type Use struct {
	Kind UseKind
	// DNSNames and IPAddresses are all that the order is for; for UseFailedAuthorization the ones whose validation has failed.
	DNSNames    []string
	IPAddresses []netip.Addr
	// Replaces reports whether the order replaces a certificate inside of its suggested window (RFC 9773, Section 5), which some CAs
	// do not count.
	Replaces bool
	// Urgent may use what is kept back for emergencies.
	Urgent bool
}

// UseKind says which request it is.
type UseKind string

// The kinds of uses.
const (
	// UseOrder is a newOrder. It is also when the certificate is counted that it may lead to, although Let's Encrypt does that at
	// finalize: between the two, other orders must not use it up.
	UseOrder UseKind = "order"
	// UseCertificate is only for Return: the order has ended before finalize and its certificate does not count; the order itself does.
	UseCertificate UseKind = "certificate"
	// UseFailedAuthorization is recorded after the CA has said that a validation failed; it always fits.
	UseFailedAuthorization UseKind = "failed_authorization"
	// UseAccount is a newAccount.
	UseAccount UseKind = "account"
)
