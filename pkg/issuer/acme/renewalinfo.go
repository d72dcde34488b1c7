package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/pkg/issuer"
)

const (
	// defaultAdvice is when to ask again where the CA did not say, and what Let's Encrypt says.
	defaultAdvice = 6 * time.Hour
	// shortestAdvice and longestAdvice bound what the CA says: none is asked all the time, and a window that moves is seen within a day
	// (RFC 9773, Section 4.3.2).
	shortestAdvice = time.Minute
	longestAdvice  = 24 * time.Hour
)

var _ issuer.Advisor = (*Issuer)(nil)

// RenewalInfo asks the CA once when the certificate with this identifier is to be renewed; see [issuer.Advisor]. Lego's own request
// checks neither status nor window, and takes every failure for "renew now" (v4.35.2).
func (i *Issuer) RenewalInfo(ctx context.Context, id string) (issuer.RenewalInfo, error) {
	info, err := i.renewalInfo(ctx, id)
	switch {
	case err == nil, errors.Is(err, issuer.ErrNoAdvice):
		return info, err
	case ctx.Err() != nil:
		return issuer.RenewalInfo{}, fmt.Errorf("issuer %q: %w", i.options.Name, context.Cause(ctx))
	}
	err = i.classify(ctx, "renewal information", err)
	if e, ok := errors.AsType[*issuer.Error](err); ok && e.Kind != issuer.KindRateLimited && e.Kind != issuer.KindTemporary {
		e.Kind, e.Hint = issuer.KindTemporary, "the certificate is renewed by its life, without the CA's advice"
	}
	return issuer.RenewalInfo{}, err
}

func (i *Issuer) renewalInfo(ctx context.Context, id string) (issuer.RenewalInfo, error) {
	directory, err := i.conn.fetchDirectory(ctx)
	if err != nil {
		return issuer.RenewalInfo{}, err
	}
	if directory.RenewalInfo == "" {
		return issuer.RenewalInfo{}, issuer.ErrNoAdvice
	}
	got, err := i.conn.get(ctx, endpointRenewalInfo, directory.RenewalInfo+"/"+url.PathEscape(id))
	if err != nil {
		return issuer.RenewalInfo{}, err
	}
	info, err := parseRenewalInfo(got, time.Now())
	if err != nil {
		return issuer.RenewalInfo{}, &failure{err: err, endpoint: endpointRenewalInfo, status: got.status}
	}
	return info, nil
}

// parseRenewalInfo reads an answer (RFC 9773, Section 4.2). A window that is not one is an error, because there is no time at which
// it would be right to renew by it.
func parseRenewalInfo(got rawAnswer, now time.Time) (issuer.RenewalInfo, error) {
	var body struct {
		SuggestedWindow struct {
			Start time.Time `json:"start"`
			End   time.Time `json:"end"`
		} `json:"suggestedWindow"`
		ExplanationURL string `json:"explanationURL"`
	}
	if err := json.Unmarshal(got.body, &body); err != nil {
		return issuer.RenewalInfo{}, fmt.Errorf("%w: %w", errUnreadable, err)
	}
	window := body.SuggestedWindow
	if window.Start.IsZero() || window.End.IsZero() || !window.End.After(window.Start) {
		return issuer.RenewalInfo{}, fmt.Errorf("%w: the suggested window is from %s to %s", errUnreadable,
			window.Start.Format(time.RFC3339), window.End.Format(time.RFC3339))
	}
	info := issuer.RenewalInfo{
		Start: window.Start.UTC(), End: window.End.UTC(), Explanation: webPage(body.ExplanationURL), RetryAfter: defaultAdvice,
	}
	if after, ok := readRetryAfter(got.header.Get("Retry-After"), now); ok {
		info.RetryAfter = min(max(after, shortestAdvice), longestAdvice)
	}
	return info, nil
}

// webPage returns a URL of the CA if a person can be shown it, or "".
func webPage(text string) string {
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || printable(text) != text {
		return ""
	}
	return text
}

// fetchDirectory returns the CA's directory (RFC 8555, Section 7.1.1); errors are *failure.
func (c *conn) fetchDirectory(ctx context.Context) (directory legoacme.Directory, err error) {
	err = c.call(ctx, accountKey{}, endpointDirectory, func(core *api.Core) error {
		directory = core.GetDirectory()
		return nil
	})
	return directory, err
}

// get sends one GET without a signature; every status but 200 is a *failure, as is no answer.
func (c *conn) get(ctx context.Context, at endpoint, address string) (rawAnswer, error) {
	fail := func(err error, status int, header http.Header) (rawAnswer, error) {
		return rawAnswer{}, &failure{err: err, endpoint: at, status: status, retryAfter: parseRetryAfter(header.Get("Retry-After"), time.Now())}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return fail(fmt.Errorf("%w: %w", errUnreadable, err), http.StatusOK, nil) // the directory's fault
	}
	if req.URL.Scheme != "https" {
		return fail(fmt.Errorf("%w: HTTPS is required: %s", errUnreadable, req.URL.Redacted()), http.StatusOK, nil)
	}
	req.Header.Set("User-Agent", c.userAgent)
	got, err := c.send(ctx, req)
	if err != nil {
		c.count(at, failureCode(err))
		return fail(err, 0, nil)
	}
	c.count(at, statusCode(got.status))
	if got.status == http.StatusOK {
		return got, nil
	}
	if p := problemOf(got); p != nil {
		return fail(p, got.status, got.header)
	}
	return fail(fmt.Errorf("HTTP status %d", got.status), got.status, got.header)
}
