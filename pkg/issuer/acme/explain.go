package acme

import (
	"cmp"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// cause is why an order fails: an error type of RFC 8555, Section 6.7, without its prefix, or a name of our own.
type cause string

// The causes that are no error types of the CA.
const (
	causeUnreachable   cause = "unreachable"
	causeUntrusted     cause = "untrusted https"
	causeHTTPSTime     cause = "https at another time"
	causeNotACME       cause = "not acme"
	causeUnfinished    cause = "unfinished"
	causeNoTime        cause = "rateLimited without a time"
	causePaused        cause = "paused"
	causeAccount       cause = "account refused"
	causeBinding       cause = "binding refused"
	causeOther         cause = "other refusal"
	causeWildcard      cause = "wildcard"
	causeNoChallenge   cause = "no http-01"
	causeRoot          cause = "root"
	causeClock         cause = "clock"
	causeChain         cause = "chain"
	causeOurSide       cause = "our side"
	causeUnknownReason cause = "no reason"
)

// Explanation is what stands behind a failing order, and what a person can do.
type Explanation struct {
	Kind issuer.Kind
	// Cause is the CA's error type (RFC 8555, Section 6.7) where it has one, else a name that stands nowhere else.
	Cause string
	// When says what has happened, Hint is the error's.
	When, Hint string
}

type explanation struct {
	kind       issuer.Kind
	when, hint string
}

// explanations are all causes; docs/operations.md has them as a table.
var explanations = map[cause]explanation{
	causeUnreachable:          {issuer.KindTemporary, "no connection, no answer in time, an answer that breaks off, or a status of 500 and more", "the certificates in use are served on, and the order is tried again; check the network, and the directory of the issuer"},
	"serverInternal":          {issuer.KindTemporary, "the CA says that it has trouble of its own", "the certificates in use are served on, and the order is tried again; see the CA's status page if it lasts"},
	"badNonce":                {issuer.KindTemporary, "the CA refused every nonce, many times in a row", "something between here and the CA may answer from a cache: nonces must come from the CA; otherwise wait"},
	causeUntrusted:            {issuer.KindTemporary, "the HTTPS of the CA is signed by an authority that is not trusted here", "set ca_file of the issuer to the CA certificate of its HTTPS, if that is a private one"},
	causeHTTPSTime:            {issuer.KindTemporary, "the HTTPS certificate of the CA is not valid at this machine's time", "compare this machine's clock with the right time; if it is right, the CA has to renew its own certificate"},
	causeNotACME:              {issuer.KindTemporary, "something answers that is no ACME server, such as a firewall or a load balancer", "check the directory of the issuer: it does not answer as an ACME server does"},
	causeUnfinished:           {issuer.KindTemporary, "the CA has not validated the names, or not issued, in the time of one order", "the same order is taken up again; if that goes on for hours, ask the CA about it"},
	"rateLimited":             {issuer.KindRateLimited, "a limit of the CA, and when it ends", "wait; the CA's limits are for the account or the name, so another issuer may help"},
	causeNoTime:               {issuer.KindRateLimited, "a limit of the CA, without a time", "the CA names no time: wait, it is tried again by itself at growing intervals"},
	causePaused:               {issuer.KindPaused, "the CA has stopped the account or the name after too many failures", "mend what failed, then a person has to follow the CA's link, and `sds-server renew NAME --force`"},
	"connection":              {issuer.KindValidation, "the CA could not connect to the name", "the CA must reach port 80 of the name from the internet: route /.well-known/acme-challenge/ to the http-01 listener"},
	"dns":                     {issuer.KindValidation, "the CA could not look up the name", "the CA could not resolve the name: check its A and AAAA records in the public DNS"},
	"incorrectResponse":       {issuer.KindValidation, "the CA found something else than the answer", "something else answers /.well-known/acme-challenge/ for the name: route it to the http-01 listener"},
	"tls":                     {issuer.KindValidation, "the CA met a TLS error on its way to the answer", "the CA met a TLS error while it validated the name: answer plain HTTP on port 80"},
	"unauthorized":            {issuer.KindValidation, "the CA did not find the answer", "what the CA found at http://NAME/.well-known/acme-challenge/ is not our answer: check where the name's addresses lead, IPv6 as well"},
	causeUnknownReason:        {issuer.KindRejected, "the CA made the order invalid and does not say why", "it is tried again with a new order; if that goes on, ask the CA"},
	"accountDoesNotExist":     {issuer.KindRejected, "the CA forgot the account at once", "the CA does not know the account right after it was registered: ask the CA"},
	causeAccount:              {issuer.KindRejected, "the CA does not let the account do this", "the CA may have deactivated the account, or takes it for another one's: ask the CA; another name for the issuer gets a new account"},
	causeBinding:              {issuer.KindRejected, "the CA refuses the external account binding", "check eab.kid and the key in eab.hmac_key_file of the issuer: some CAs let a pair be used once, or for a few days only, then get a new one"},
	"alreadyReplaced":         {issuer.KindRejected, "the certificate was replaced before", "it is placed once more as an ordinary order by itself; if the CA refuses that as well, ask it"},
	"badCSR":                  {issuer.KindRejected, "the CA refuses the certificate request", "the CA does not accept such a request: try another key_type, or fewer names"},
	"badPublicKey":            {issuer.KindRejected, "the CA refuses the key", "the CA does not accept this key type: set another key_type"},
	"caa":                     {issuer.KindRejected, "CAA records", "the CAA records of the name forbid this CA: add it to them, or use another issuer"},
	"externalAccountRequired": {issuer.KindRejected, "the CA wants a binding", "the CA wants an external account binding: set eab.kid and eab.hmac_key_file of the issuer"},
	"invalidContact":          {issuer.KindRejected, "the email of the issuer", "the CA does not accept the address: set another email for the issuer"},
	"unsupportedContact":      {issuer.KindRejected, "the email of the issuer", "the CA does not accept the address: set another email for the issuer"},
	"invalidProfile":          {issuer.KindRejected, "a profile that the CA does not have", "the CA has no such profile: set profile to one of its directory's, or leave it empty"},
	"malformed":               {issuer.KindRejected, "the CA does not understand the request", "see the CA's words: most often a name is not one that it issues for, or the issuer's account is at another CA"},
	"rejectedIdentifier":      {issuer.KindRejected, "a name that the CA does not issue for", "the CA issues nothing for this name: check the spelling, or use another issuer"},
	"unsupportedIdentifier":   {issuer.KindRejected, "a kind of name that the CA does not issue for", "the CA does not issue for this kind of identifier: IP addresses often need a profile of their own"},
	"userActionRequired":      {issuer.KindRejected, "new terms, for example", "the CA wants the account's owner to act, such as to accept new terms: see the link in the message"},
	causeOther:                {issuer.KindRejected, "any other refusal", "see the CA's words; the certificate in use is served on"},
	causeWildcard:             {issuer.KindRejected, "a wildcard name", "list the names one by one"},
	causeNoChallenge:          {issuer.KindRejected, "the CA offers no http-01 challenge", "use an issuer that does"},
	causeRoot:                 {issuer.KindRejected, "the chain of the new certificate does not reach a trusted root (`untrusted`)", "if that root is right, set roots_file of the issuer to it (or roots: unchecked, for a CA that is only for tests)"},
	causeClock:                {issuer.KindRejected, "the new certificate is not valid now (`not_yet_valid`, `expired`)", "compare this machine's clock with the right time"},
	causeChain:                {issuer.KindRejected, "the new certificate breaks another rule, which the message names", "the certificate in use is served on; tell the CA, or use another issuer"},
	causeOurSide:              {issuer.KindInternal, "the store, a file of the issuer, or the server itself", "see the message; nothing was ordered twice, and the order is taken up again"},
}

// Explanations lists every cause of a failing order that this package tells apart, by kind and cause.
func Explanations() []Explanation {
	out := make([]Explanation, 0, len(explanations))
	for c, e := range explanations {
		out = append(out, Explanation{Kind: e.kind, Cause: string(c), When: e.when, Hint: e.hint})
	}
	slices.SortFunc(out, func(a, b Explanation) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Cause, b.Cause))
	})
	return out
}

// hintOf returns what to do about a cause.
func hintOf(c cause) string { return explanations[c].hint }

// because makes an error of a cause.
func (i *Issuer) because(c cause, message string) *issuer.Error {
	e := &issuer.Error{Issuer: i.options.Name, Message: message}
	setCause(e, c)
	return e
}

func setCause(e *issuer.Error, c cause) {
	e.Kind, e.Hint = explanations[c].kind, explanations[c].hint
}

// causeOf maps a problem that is the answer of an endpoint; "" stands for an authorization or a pending order, whose problem says
// what the CA met when it validated a name.
func (i *Issuer) causeOf(p *legoacme.ProblemDetails, at endpoint, retryAfter time.Duration) cause {
	name := cause(problemName(p.Type))
	_, explained := explanations[name]
	switch {
	case paused(p):
		return causePaused
	case limit(p) && retryAfter > 0:
		return "rateLimited"
	case limit(p):
		return causeNoTime
	case trouble(p):
		return "serverInternal"
	case at == validation:
		if !explained || explanations[name].kind == issuer.KindRejected && name != "caa" && name != "rejectedIdentifier" {
			return "unauthorized" // whatever it is called: it was not found
		}
		return name
	case at == endpointNewAccount && i.options.EAB != nil && (name == "unauthorized" || name == "malformed"):
		return causeBinding
	case name == "unauthorized" && at != endpointFinalize:
		return causeAccount
	case name == "unauthorized": // an authorization has ended
		return causeOther
	case explained && strings.HasPrefix(p.Type, problemPrefix):
		return name
	}
	return causeOther
}

// validation is where a problem comes from that is not the answer to a request, but what the CA met when it validated a name.
const validation endpoint = ""

// limit reports whether a problem is a limit of the CA.
func limit(p *legoacme.ProblemDetails) bool {
	return p.Type == problemRateLimited || p.HTTPStatus == http.StatusTooManyRequests
}

// trouble reports whether a problem is the CA's own, so that the same request may succeed later.
func trouble(p *legoacme.ProblemDetails) bool {
	switch p.Type {
	case problemServerInternal, problemBadNonce, problemOrderNotReady:
		return true
	}
	return p.HTTPStatus >= http.StatusInternalServerError || p.HTTPStatus == http.StatusRequestTimeout
}

// paused reports whether the CA has stopped the account or a name until a person acts. Let's Encrypt has no error type of its own for that
// (Boulder, WebFrontEndImpl.NewOrder): it is a rateLimited with these words, and no Retry-After.
func paused(p *legoacme.ProblemDetails) bool {
	text := strings.ToLower(p.Detail)
	return limit(p) && (strings.Contains(text, "temporarily prevented") || strings.Contains(text, "please visit") || strings.Contains(text, "unpause"))
}

// maxLink is the longest link that is shown: those of paused names carry a token that grows with the names.
const maxLink = 8 << 10

var httpsLink = regexp.MustCompile(`https://[!-~]+`)

// portal returns the link in the CA's words, or "". It is not shortened as messages are.
func portal(p *legoacme.ProblemDetails) string {
	link := strings.TrimRight(httpsLink.FindString(p.Detail), `.,;:!)>"'`)
	if len(link) > maxLink {
		return ""
	}
	return link
}
