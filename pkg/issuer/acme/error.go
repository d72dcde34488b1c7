package acme

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"

	legoacme "github.com/go-acme/lego/v4/acme"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// problemPrefix begins every error type of RFC 8555, Section 6.7.
const problemPrefix = "urn:ietf:params:acme:error:"

// Error types of RFC 8555, Section 6.7, on which this package acts.
const (
	problemAccountDoesNotExist = problemPrefix + "accountDoesNotExist"
	problemAlreadyReplaced     = problemPrefix + "alreadyReplaced"
	problemBadNonce            = problemPrefix + "badNonce"
	problemMalformed           = problemPrefix + "malformed"
	problemOrderNotReady       = problemPrefix + "orderNotReady"
	problemRateLimited         = problemPrefix + "rateLimited"
	problemServerInternal      = problemPrefix + "serverInternal"
	problemUnauthorized        = problemPrefix + "unauthorized"
)

// problemName is an error type without its prefix; foreign types stay whole.
func problemName(t string) string { return strings.TrimPrefix(t, problemPrefix) }

// classify turns any error of this package into what the loop and a person can act on. doing says what was tried, such as
// "new order".
func (i *Issuer) classify(ctx context.Context, doing string, err error) error {
	if err == nil {
		return nil
	}
	if _, done := errors.AsType[*issuer.Error](err); done {
		return err
	}
	f, ok := errors.AsType[*failure](err)
	if !ok {
		return i.internal(doing, err)
	}
	e := &issuer.Error{Issuer: i.options.Name, RetryAfter: f.retryAfter, Err: err}
	problem := f.problem()
	switch {
	case errors.Is(err, errBadNonce):
		setCause(e, "badNonce")
		e.Message = fmt.Sprintf("%s: %v, %d times in a row", doing, errBadNonce, badNonceTries)
	case problem != nil:
		i.fromProblem(e, doing, problem, f.endpoint)
	case f.status == 0:
		i.fromNetwork(ctx, e, doing, err)
	default:
		fromStatus(e, doing, f.status)
	}
	return e
}

// internal is a fault on our side.
func (i *Issuer) internal(doing string, err error) *issuer.Error {
	e := i.because(causeOurSide, fmt.Sprintf("%s: %v", doing, err))
	e.Err = err
	return e
}

const (
	// mostSubproblems is how many problems of single names an error tells of, maxMessage how many bytes its message has at most: it is stored and
	// logged, and an answer of the CA may have 1 MiB.
	mostSubproblems = 10
	maxMessage      = 4 << 10
)

// bounded cuts a message, and says how many problems it leaves out; more may be negative.
func bounded(message string, more int) string {
	rest := ""
	if more > 0 {
		rest = fmt.Sprintf("; and %d more", more)
	}
	if len(message)+len(rest) > maxMessage {
		rest = "..." + rest
		message = strings.ToValidUTF8(message[:maxMessage-len(rest)], "")
	}
	return message + rest
}

// fromProblem judges a problem document (RFC 7807), also one that stands for a whole order; at is as in causeOf.
func (i *Issuer) fromProblem(e *issuer.Error, doing string, p *legoacme.ProblemDetails, at endpoint) {
	why := i.causeOf(p, at, e.RetryAfter)
	setCause(e, why)
	e.Message = fmt.Sprintf("%s: %s", doing, describe(p))
	var names []string
	for _, sub := range p.SubProblems[:min(len(p.SubProblems), mostSubproblems)] {
		if v := printable(sub.Identifier.Value); v != "" && !slices.Contains(names, v) {
			names = append(names, v)
		}
		e.Message += fmt.Sprintf("; %s: %s (%s)", printable(sub.Identifier.Value), printable(sub.Detail), printable(problemName(sub.Type)))
	}
	e.Identifier = strings.Join(names, ", ")
	e.Message = bounded(e.Message, len(p.SubProblems)-mostSubproblems)
	if link := portal(p); why == causePaused && link != "" {
		e.Hint += ": " + link
	}
}

// describe writes a problem for a person: what the CA said, and its type.
func describe(p *legoacme.ProblemDetails) string {
	detail := printable(p.Detail)
	if detail == "" {
		detail = "the CA gave no reason"
	}
	if p.Type == "" {
		return fmt.Sprintf("%s (HTTP status %d)", detail, p.HTTPStatus)
	}
	return fmt.Sprintf("%s (%s)", detail, printable(problemName(p.Type)))
}

// fromStatus judges an answer that is no ACME problem, such as the HTML of a load balancer: whatever its status is, the CA has not
// refused anything.
func fromStatus(e *issuer.Error, doing string, status int) {
	e.Message = fmt.Sprintf("%s: the CA answered with HTTP status %d and no ACME problem", doing, status)
	switch {
	case status == http.StatusTooManyRequests && e.RetryAfter > 0:
		setCause(e, "rateLimited")
	case status == http.StatusTooManyRequests:
		setCause(e, causeNoTime)
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		setCause(e, causeUnreachable)
	case status >= http.StatusBadRequest:
		setCause(e, causeNotACME)
	default:
		setCause(e, causeNotACME)
		why := strings.TrimPrefix(printable(e.Err.Error()), errUnreadable.Error()+": ")
		e.Message = fmt.Sprintf("%s: %v: %s", doing, errUnreadable, why)
	}
}

// fromNetwork judges that there was no answer.
func (i *Issuer) fromNetwork(ctx context.Context, e *issuer.Error, doing string, err error) {
	setCause(e, causeUnreachable)
	cause := err
	if u, ok := errors.AsType[*url.Error](err); ok {
		cause = u.Err // the URL is long, and it is the order's
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case unknown:
		setCause(e, causeUntrusted)
	case isInvalid && invalid.Reason == x509.Expired: // also "not yet valid"
		setCause(e, causeHTTPSTime)
	case ctx.Err() != nil, isNet && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded): // the last one while the answer came
		cause = errors.New("no answer in time")
	}
	e.Message = fmt.Sprintf("%s: %s: %s", doing, i.host(), printable(cause.Error()))
}

// host is the CA's host name, for messages.
func (i *Issuer) host() string {
	if u, err := url.Parse(i.options.Directory); err == nil {
		return u.Host
	}
	return i.options.Directory
}

// printable makes foreign text fit for a log line: one line, no control characters, at most 600 bytes.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == '\u2028' || r == '\u2029' {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	if len(s) > 600 {
		s = strings.ToValidUTF8(s[:600], "") + "..."
	}
	return s
}
