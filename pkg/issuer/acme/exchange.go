package acme

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"
)

// maxBody is the most that is read of an answer; longer ones are an error.
const maxBody = 1 << 20

// errBadNonce is what lego sees of a badNonce problem (RFC 8555, Section 6.5), so that it does not sleep and try again by
// itself, where no context can cut it.
var errBadNonce = errors.New("the CA refused the nonce")

// exchange is one lego call: the http.RoundTripper of a Core that lives as long as the call. So it can bind the call's context
// to each request, which lego cannot, and knows which answer belongs to the call. What calls share (connections, directory,
// nonces) is in conn.
type exchange struct {
	ctx      context.Context //nolint:containedctx // lego passes none: this type exists to carry it to the request
	conn     *conn
	endpoint endpoint

	// last is what was asked for last: a call for a nonce or for the directory may come before the call's own request. status and
	// retryAfter are those of the last answer; 0 where there was none.
	last       endpoint
	status     int
	retryAfter time.Duration
	// own is the last answer to the call's own request.
	own rawAnswer
}

// RoundTrip sends one request of lego and reads the whole answer, so that the deadline covers the body and the connection can
// be used again even where lego forgets to close the body.
func (x *exchange) RoundTrip(req *http.Request) (*http.Response, error) {
	at := x.endpoint
	switch {
	case req.Method == http.MethodHead: // lego sends HEAD for a nonce alone
		at = endpointNonce
		if nonce := x.conn.popNonce(); nonce != "" {
			return answer(req, http.Header{"Replay-Nonce": {nonce}}, nil), nil
		}
	case req.Method == http.MethodGet && req.URL.String() == x.conn.directoryURL:
		at = endpointDirectory
		if body := x.conn.cachedDirectory(time.Now()); body != nil {
			return answer(req, http.Header{}, body), nil
		}
	}
	x.last, x.status, x.retryAfter = at, 0, 0
	resp, err := x.conn.send(x.ctx, req)
	if err != nil {
		x.conn.count(at, failureCode(err))
		return nil, err
	}
	x.conn.count(at, statusCode(resp.status))
	x.conn.keepDate(resp.header, time.Now())
	x.status, x.retryAfter = resp.status, parseRetryAfter(resp.header.Get("Retry-After"), time.Now())
	if at == endpointDirectory && resp.status == http.StatusOK {
		x.conn.keepDirectory(resp.body, time.Now())
	}
	if at != endpointNonce {
		x.conn.pushNonce(resp.header.Get("Replay-Nonce"))
	}
	if at == x.endpoint {
		x.own = resp
	}
	switch p := problemOf(resp); {
	case p == nil:
	case p.Type == problemBadNonce && resp.status == http.StatusBadRequest:
		return nil, errBadNonce
	case p.Type == problemAlreadyReplaced:
		// Lego would send the order again without "replaces", by itself and unseen (v4.35.2, OrderService.NewWithOptions): an error
		// of the transport is none that it knows.
		return nil, p
	}
	r := answer(req, resp.header, resp.body)
	r.StatusCode, r.Status = resp.status, strconv.Itoa(resp.status)
	return r, nil
}

// rawAnswer is an answer that was read to its end.
type rawAnswer struct {
	status int
	header http.Header
	body   []byte
}

// send sends one request, and reads the answer to its end.
func (c *conn) send(ctx context.Context, req *http.Request) (rawAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, c.requestTimeout)
	defer cancel()
	resp, err := c.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return rawAnswer{}, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err != nil {
		return rawAnswer{}, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxBody {
		return rawAnswer{}, fmt.Errorf("an answer of more than %d bytes", maxBody)
	}
	return rawAnswer{status: resp.StatusCode, header: resp.Header, body: body}, nil
}

// answer makes a response from memory.
func answer(req *http.Request, header http.Header, body []byte) *http.Response {
	return &http.Response{
		Status: "200 OK", StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: header, Body: io.NopCloser(bytes.NewReader(body)), ContentLength: int64(len(body)), Request: req,
	}
}

// problemOf returns the problem document of an answer, or nil.
func problemOf(r rawAnswer) *legoacme.ProblemDetails {
	if r.status < http.StatusBadRequest {
		return nil
	}
	problem := &legoacme.ProblemDetails{}
	if json.Unmarshal(r.body, problem) != nil || problem.Type == "" {
		return nil
	}
	if problem.HTTPStatus == 0 {
		problem.HTTPStatus = r.status
	}
	return problem
}

// parseRetryAfter returns the time until the instant that a Retry-After header names (RFC 9110, Section 10.2.3), between 0 and
// maxRetryAfter; 0 also for what cannot be read.
func parseRetryAfter(value string, now time.Time) time.Duration {
	after, _ := readRetryAfter(value, now)
	return after
}

// readRetryAfter is parseRetryAfter, and reports whether the header could be read.
func readRetryAfter(value string, now time.Time) (time.Duration, bool) {
	if seconds, err := strconv.ParseInt(value, 10, 64); err == nil {
		return time.Duration(min(max(seconds, 0), int64(maxRetryAfter/time.Second))) * time.Second, true
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0, false
	}
	return min(max(at.Sub(now), 0), maxRetryAfter), true
}

// maxRetryAfter is the refill time of the slowest known limit (5 certificates for an exact set in 7 days). A CA that asks for
// more is believed only so far.
const maxRetryAfter = 7 * 24 * time.Hour

// asFailure returns the failed call in err, or nil.
func asFailure(err error) *failure {
	f, _ := errors.AsType[*failure](err)
	return f
}

// failure is a call that did not succeed, with what is known of the answer. endpoint is whose answer it is.
type failure struct {
	err        error
	endpoint   endpoint
	status     int
	retryAfter time.Duration
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// problem returns the ACME problem of the answer (RFC 8555, Section 6.7), or nil: gateways answer with JSON too, also with problem
// documents (RFC 7807), and do not speak for the CA.
func (f *failure) problem() *legoacme.ProblemDetails {
	p, ok := errors.AsType[*legoacme.ProblemDetails](f.err)
	if !ok || !strings.HasPrefix(p.Type, problemPrefix) {
		return nil
	}
	return p
}

// badNonceTries is how often a request is signed again with a new nonce. At a CA that refuses every second nonce (Pebble can be
// told to), sixteen failures in a row come once in 65,000 requests.
const badNonceTries = 16

// call is ask without the Retry-After.
func (c *conn) call(ctx context.Context, key accountKey, at endpoint, do func(*api.Core) error) error {
	_, err := c.ask(ctx, key, at, do)
	return err
}

// ask is run without the answer itself, but for its Retry-After.
func (c *conn) ask(ctx context.Context, key accountKey, at endpoint, do func(*api.Core) error) (time.Duration, error) {
	x, err := c.run(ctx, key, at, do)
	if err != nil {
		return 0, err
	}
	return x.retryAfter, nil
}

// post sends a POST-as-GET (RFC 8555, Section 6.3) for which lego has no method; the answer is a JSON object.
func (c *conn) post(ctx context.Context, key accountKey, at endpoint, address string) (rawAnswer, error) {
	x, err := c.run(ctx, key, at, func(core *api.Core) error {
		_, err := core.Orders.Get(address) // any object has the form of an order without fields
		return err
	})
	if err != nil {
		return rawAnswer{}, err
	}
	return x.own, nil
}

// run makes one lego call with a Core of its own; errors are *failure. A refused nonce is replaced here, because it says nothing
// about the request (RFC 8555, Section 6.5).
func (c *conn) run(ctx context.Context, key accountKey, at endpoint, do func(*api.Core) error) (*exchange, error) {
	wait := 10 * time.Millisecond
	for try := 1; ; try++ {
		x := &exchange{ctx: ctx, conn: c, endpoint: at, last: at}
		err := x.run(key, do)
		if err == nil {
			return x, nil
		}
		if errors.Is(err, errBadNonce) && try < badNonceTries && sleep(ctx, wait) == nil {
			wait = min(2*wait, 500*time.Millisecond)
			continue
		}
		return nil, &failure{err: err, endpoint: x.last, status: x.status, retryAfter: x.retryAfter}
	}
}

// run makes the Core and calls. lego dereferences nil when an answer with an error status is the JSON value null (v4.35.2,
// sender.checkError): no answer of a CA may end the process.
func (x *exchange) run(key accountKey, do func(*api.Core) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", errUnreadable, r)
		}
	}()
	// The client is as short-lived as the Core, because lego wraps its transport once more at each api.New.
	core, err := api.New(&http.Client{Transport: x}, x.conn.userAgent, x.conn.directoryURL, key.kid, key.signer)
	if err != nil {
		x.conn.forgetDirectory()
		return err
	}
	return do(core)
}

// errUnreadable is an answer that cannot be understood.
var errUnreadable = errors.New("the CA's answer cannot be understood")

// sleep waits for d, or returns the cause of ctx earlier.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
