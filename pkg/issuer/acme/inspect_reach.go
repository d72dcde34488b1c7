package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"
)

const (
	// inspectTimeout bounds one request of an inspection: a person waits for it.
	inspectTimeout = 10 * time.Second
	// The bounds of the difference between the CA's clock and ours: above the first, logs are hard to compare; above the second,
	// certificates are judged wrongly, as CAs date them an hour back.
	clockWarn, clockFail = time.Minute, time.Hour
	// endsSoon is how long before the end of the CA's own HTTPS certificate that is told, but no longer than 1/10 of its life.
	endsSoon = 3 * 24 * time.Hour
)

// directory fetches the directory, past what is kept of it, and judges what the connection shows as well.
func (x *inspector) directory(ctx context.Context) bool {
	c := x.issuer.conn
	began := time.Now()
	resp, err := x.send(ctx, http.MethodGet, c.directoryURL, endpointDirectory)
	if err != nil {
		x.unreachable(err)
		return false
	}
	x.tls(resp.tls)
	switch {
	case resp.status >= 300 && resp.status < 400:
		x.add("directory", CheckFail, "set directory of the issuer to where it leads", "%s: a redirect to %s", c.directoryURL, resp.header.Get("Location"))
		return false
	case resp.status >= http.StatusInternalServerError:
		x.add("directory", CheckFail, "the CA or something before it is in trouble: see its status page", "%s: HTTP status %d", c.directoryURL, resp.status)
		return false
	case resp.status != http.StatusOK:
		x.add("directory", CheckFail, hintOf(causeNotACME), "%s: HTTP status %d", c.directoryURL, resp.status)
		return false
	}
	if x.found, err = parseDirectory(resp.body); err != nil {
		x.add("directory", CheckFail, hintOf(causeNotACME), "%s: %v", c.directoryURL, err)
		return false
	}
	c.keepDirectory(resp.body, time.Now())
	x.result.Directory = readDirectory(x.found, time.Now())
	x.add("directory", CheckOK, "", "%s, %d ms", c.directoryURL, time.Since(began).Milliseconds())
	x.clock(resp.header.Get("Date"), began)
	return true
}

// inspected is an answer that was read to its end.
type inspected struct {
	rawAnswer

	tls *tls.ConnectionState
}

// send makes a request without lego, to see what lego hides.
func (x *inspector) send(ctx context.Context, method, address string, at endpoint) (inspected, error) {
	c := x.issuer.conn
	ctx, cancel := context.WithTimeout(ctx, min(inspectTimeout, c.requestTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, address, http.NoBody)
	if err != nil {
		return inspected{}, err
	}
	req.Header.Set("User-Agent", c.userAgent)
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		c.count(at, failureCode(err))
		return inspected{}, err
	}
	defer resp.Body.Close()
	c.count(at, statusCode(resp.StatusCode))
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	if err != nil {
		return inspected{}, fmt.Errorf("read the answer: %w", err)
	}
	return inspected{rawAnswer{status: resp.StatusCode, header: resp.Header, body: body}, resp.TLS}, nil
}

// unreachable says why there is no directory.
func (x *inspector) unreachable(err error) {
	host := x.issuer.host()
	trust, isTrust := errors.AsType[*tls.CertificateVerificationError](err)
	name, isName := errors.AsType[*net.DNSError](err)
	timeout, isNet := errors.AsType[net.Error](err)
	switch {
	case isTrust:
		x.distrusted(trust)
	case isName:
		x.add("directory", CheckFail, "check the spelling of directory, and the resolver of this machine", "%s: %v", host, name)
	case errors.Is(err, context.DeadlineExceeded), isNet && timeout.Timeout():
		x.add("directory", CheckFail, "check the way there: routes, firewalls, and the proxy in HTTPS_PROXY", "%s: no answer within %s", host, min(inspectTimeout, x.issuer.conn.requestTimeout))
	default:
		x.add("directory", CheckFail, "check that the CA is up, and the way there", "%s: %v", host, err)
	}
}

// distrusted says why the HTTPS of the CA is not believed, and what it has shown.
func (x *inspector) distrusted(err *tls.CertificateVerificationError) {
	shown, hint := "", ""
	if chain := err.UnverifiedCertificates; len(chain) > 0 {
		shown = fmt.Sprintf("; it shows a certificate of %s", chain[len(chain)-1].Issuer)
	}
	_, unknown := errors.AsType[x509.UnknownAuthorityError](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case unknown && x.issuer.options.CAFile != "":
		hint = "ca_file of the issuer does not have the CA certificate of its HTTPS: take that of the authority shown, after a look at whose it is"
	case unknown:
		hint = hintOf(causeUntrusted)
	case isInvalid && invalid.Reason == x509.Expired:
		hint = "is the clock of this machine right? Otherwise the CA has to renew it"
	}
	x.add("tls", CheckFail, hint, "%s: %v%s", x.issuer.host(), err.Err, shown)
}

func (x *inspector) tls(state *tls.ConnectionState) {
	if state == nil || len(state.PeerCertificates) == 0 {
		return // by a proxy that speaks for it, which the transport has verified
	}
	leaf, roots := state.PeerCertificates[0], "the system's roots"
	if x.issuer.options.CAFile != "" {
		roots = x.issuer.options.CAFile
	}
	message := fmt.Sprintf("%s, verified by %s, until %s", tls.VersionName(state.Version), roots, leaf.NotAfter.UTC().Format(time.RFC3339))
	if time.Until(leaf.NotAfter) < min(endsSoon, leaf.NotAfter.Sub(leaf.NotBefore)/10) {
		x.add("tls", CheckWarn, "tell the CA that its own certificate ends", "%s", message)
		return
	}
	x.add("tls", CheckOK, "", "%s", message)
}

// clock compares our clock with the CA's, which is told in whole seconds.
func (x *inspector) clock(header string, began time.Time) {
	date, err := http.ParseTime(header)
	if err != nil {
		x.add("clock", CheckOK, "", "the CA does not tell its time")
		return
	}
	middle := began.Add(time.Since(began) / 2)
	off := middle.Sub(date).Round(time.Second)
	message := "ours is that of the CA, to the second or two that it tells"
	switch {
	case off > 2*time.Second:
		message = fmt.Sprintf("ours is %s ahead of the CA's", off)
	case off < -2*time.Second:
		message = fmt.Sprintf("ours is %s behind the CA's", -off)
	}
	switch {
	case off.Abs() > clockFail:
		x.add("clock", CheckFail, "set the clock of this machine; certificates are judged by it", "%s", message)
	case off.Abs() > clockWarn:
		x.add("clock", CheckWarn, "set the clock of this machine", "%s", message)
	default:
		x.add("clock", CheckOK, "", "%s", message)
	}
}

func (x *inspector) nonce(ctx context.Context) {
	resp, err := x.send(ctx, http.MethodHead, x.found.NewNonceURL, endpointNonce)
	switch {
	case err != nil:
		x.add("nonce", CheckFail, hintOf(causeUnreachable), "%v", err)
	case resp.status >= 300 || resp.header.Get("Replay-Nonce") == "":
		x.add("nonce", CheckFail, hintOf(causeNotACME), "the CA gives no nonce: HTTP status %d", resp.status)
	default:
		x.issuer.conn.pushNonce(resp.header.Get("Replay-Nonce"))
		x.add("nonce", CheckOK, "", "the CA gives nonces")
	}
}
