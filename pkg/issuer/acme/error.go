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

// problemHints says what a person can do about an error type.
var problemHints = map[string]string{
	"accountDoesNotExist":     "the CA does not know the account right after it was registered: ask the CA",
	"badCSR":                  "the CA does not accept such a request: try another key_type, or fewer names",
	"badPublicKey":            "the CA does not accept this key type: set another key_type",
	"caa":                     "the CAA records of the name forbid this CA: add it to them, or use another issuer",
	"connection":              "the CA must reach port 80 of the name from the internet: route /.well-known/acme-challenge/ to the http-01 listener",
	"dns":                     "the CA could not resolve the name: check its A and AAAA records in the public DNS",
	"externalAccountRequired": "the CA wants an external account binding: set eab.kid and eab.hmac_key_file of the issuer",
	"incorrectResponse":       "something else answers /.well-known/acme-challenge/ for the name: route it to the http-01 listener",
	"invalidContact":          "the CA does not accept the address: set another email for the issuer",
	"invalidProfile":          "the CA has no such profile: set profile to one of its directory's, or leave it empty",
	"rejectedIdentifier":      "the CA issues nothing for this name: check the spelling, or use another issuer",
	"tls":                     "the CA met a TLS error while it validated the name: answer plain HTTP on port 80",
	"unauthorized":            "what the CA found at http://NAME/.well-known/acme-challenge/ is not our answer: check where the name's addresses lead, IPv6 as well",
	"unsupportedContact":      "the CA does not accept the address: set another email for the issuer",
	"unsupportedIdentifier":   "the CA does not issue for this kind of identifier: IP addresses often need a profile of their own",
	"userActionRequired":      "the CA wants the account's owner to act, such as to accept new terms: see the link in the message",
}

const (
	hintUnreachable = "the certificates in use are served on, and the order is tried again; check the network, and the directory of the issuer"
	hintTrust       = "set ca_file of the issuer to the CA certificate of its HTTPS, if that is a private one"
	hintNotACME     = "check the directory of the issuer: it does not answer as an ACME server does"
	hintNoTime      = "the CA names no time: if its message speaks of a paused account or name, follow the link in it, otherwise wait"
	hintStore       = "see the message; nothing was ordered twice, and the order is taken up again"
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
		e.Kind, e.Hint, e.Message = issuer.KindTemporary, hintUnreachable, fmt.Sprintf("%s: %v, %d times in a row", doing, errBadNonce, badNonceTries)
	case problem != nil:
		i.fromProblem(e, doing, problem)
	case f.status == 0:
		i.fromNetwork(ctx, e, doing, err)
	default:
		fromStatus(e, doing, f.status)
	}
	return e
}

// internal is a fault on our side.
func (i *Issuer) internal(doing string, err error) *issuer.Error {
	return &issuer.Error{
		Kind: issuer.KindInternal, Issuer: i.options.Name, Message: fmt.Sprintf("%s: %v", doing, err), Hint: hintStore, Err: err,
	}
}

// fromProblem judges a problem document (RFC 7807), also one that stands for a whole order.
func (i *Issuer) fromProblem(e *issuer.Error, doing string, p *legoacme.ProblemDetails) {
	e.Kind, e.Hint = kindOf(p)
	e.Message = fmt.Sprintf("%s: %s", doing, describe(p))
	var names []string
	for _, sub := range p.SubProblems {
		if v := sub.Identifier.Value; v != "" && !slices.Contains(names, v) {
			names = append(names, printable(v))
		}
		e.Message += fmt.Sprintf("; %s: %s (%s)", printable(sub.Identifier.Value), printable(sub.Detail), printable(problemName(sub.Type)))
	}
	e.Identifier = strings.Join(names, ", ")
	if e.Kind == issuer.KindRateLimited && e.RetryAfter == 0 {
		e.Hint = hintNoTime
	}
}

// kindOf maps a problem to a kind and a hint.
func kindOf(p *legoacme.ProblemDetails) (issuer.Kind, string) {
	switch {
	case p.Type == problemRateLimited, p.HTTPStatus == http.StatusTooManyRequests:
		return issuer.KindRateLimited, "wait; the CA's limits are for the account or the name, so another issuer may help"
	case p.Type == problemServerInternal, p.Type == problemBadNonce, p.Type == problemOrderNotReady,
		p.HTTPStatus >= http.StatusInternalServerError, p.HTTPStatus == http.StatusRequestTimeout:
		return issuer.KindTemporary, hintUnreachable
	}
	return issuer.KindRejected, problemHints[problemName(p.Type)]
}

// kindOfValidation maps the problem of an authorization: unlike elsewhere, a refusal says that the CA did not find what it was told to
// look for. What the CA will not issue for whatever it finds is another CA's chance.
func kindOfValidation(p *legoacme.ProblemDetails) (issuer.Kind, string) {
	kind, hint := kindOf(p)
	switch {
	case kind != issuer.KindRejected, p.Type == problemPrefix+"caa", p.Type == problemPrefix+"rejectedIdentifier":
		return kind, hint
	}
	return issuer.KindValidation, hint
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
	case status == http.StatusTooManyRequests:
		e.Kind = issuer.KindRateLimited
		if e.RetryAfter == 0 {
			e.Hint = hintNoTime
		}
	case status >= http.StatusInternalServerError, status == http.StatusRequestTimeout:
		e.Kind, e.Hint = issuer.KindTemporary, hintUnreachable
	case status >= http.StatusBadRequest:
		e.Kind, e.Hint = issuer.KindTemporary, hintNotACME
	default:
		e.Kind, e.Hint = issuer.KindTemporary, hintNotACME
		e.Message = fmt.Sprintf("%s: the CA's answer cannot be understood: %s", doing, printable(e.Err.Error()))
	}
}

// fromNetwork judges that there was no answer.
func (i *Issuer) fromNetwork(ctx context.Context, e *issuer.Error, doing string, err error) {
	e.Kind, e.Hint = issuer.KindTemporary, hintUnreachable
	cause := err
	if u, ok := errors.AsType[*url.Error](err); ok {
		cause = u.Err // the URL is long, and it is the order's
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case unknown:
		e.Hint = hintTrust
	case ctx.Err() != nil, isNet && timeout.Timeout():
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
