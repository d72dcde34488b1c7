package gate

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	v1 "github.com/prometheus/client_golang/api/prometheus/v1"
	"github.com/prometheus/common/model"
)

const (
	// maxBody bounds an answer, unpacked.
	maxBody = 1 << 20
	// maxAge is how far the time of a value may be from that of its request. It is Prometheus' own look-back: an older sample counts as none there.
	maxAge = 5 * time.Minute
	// maxText bounds what is kept of the words of others, in bytes.
	maxText = 300
)

// errTooLong is the error of a body over maxBody.
var errTooLong = errors.New("the answer is over 1 MiB: make it one number, for instance by sum()")

// redirectError says where a redirect leads. None is followed: a POST would lose its query on most of them.
type redirectError struct{ location string }

func (e *redirectError) Error() string {
	return fmt.Sprintf("the answer is a redirect to %s: name the address that it leads to", e.location)
}

func refuseRedirect(req *http.Request, _ []*http.Request) error {
	u := *req.URL
	u.RawQuery = ""
	return &redirectError{u.Redacted()}
}

// bounded ends bodies that are too long.
type bounded struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (b bounded) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := b.next.RoundTrip(req)
	if err == nil {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxBody}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

// Read implements io.Reader.
func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errTooLong
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left)])
	b.left -= n
	return n, err
}

// ask makes one request and returns the number in the answer. The query is evaluated at Prometheus' own time.
func (g *gate) ask(ctx context.Context, at time.Time) (float64, error) {
	if g.err != nil {
		return 0, g.err
	}
	value, warnings, _, err := g.api.Query(ctx, g.Query, time.Time{}, v1.WithTimeout(g.Timeout))
	if err != nil {
		return 0, g.explain(ctx, err)
	}
	if text := serious(warnings); text != "" {
		return 0, fmt.Errorf("the value may be wrong, Prometheus warns: %s", text)
	}
	return number(value, at)
}

// serious returns the first warning that says that something may be missing. Up to Prometheus 2.5x remarks on style came as warnings, for
// instance that a counter's name does not end in _total, and no name of Envoy's does.
func serious(warnings v1.Warnings) string {
	for _, w := range warnings {
		if !strings.HasPrefix(w, "PromQL info:") {
			return w
		}
	}
	return ""
}

// number returns the one finite number in an answer.
func number(value model.Value, at time.Time) (float64, error) {
	switch v := value.(type) {
	case *model.Scalar:
		return finite(float64(v.Value), v.Timestamp, at)
	case model.Vector:
		switch {
		case len(v) == 0:
			return 0, errors.New("no data: the query returns no series; are the targets scraped, and has each metric had a sample in the last 5 minutes?")
		case len(v) > 1:
			return 0, fmt.Errorf("the query returns %d series: wrap it in sum() or max()", len(v))
		case v[0].Histogram != nil:
			return 0, errors.New("the query returns a histogram: take a number from it, for instance by histogram_quantile()")
		}
		return finite(float64(v[0].Value), v[0].Timestamp, at)
	case model.Matrix:
		return 0, errors.New("the query returns a range of samples: take one number from it, for instance by rate() or max_over_time(), and sum()")
	}
	return 0, errors.New("the answer holds no result: is this the address of a Prometheus?")
}

func finite(value float64, sampled model.Time, at time.Time) (float64, error) {
	switch {
	case math.IsNaN(value):
		return 0, errors.New("the value is NaN, as 0/0 is: is there any traffic to measure?")
	case math.IsInf(value, 0):
		return 0, fmt.Errorf("the value is %v: is something divided by 0?", value)
	}
	if age := at.Sub(sampled.Time()); age.Abs() > maxAge {
		return 0, fmt.Errorf("the value is of %s, that is %s from now: are the clocks of both machines right?",
			sampled.Time().UTC().Format(time.RFC3339), age.Abs().Round(time.Second))
	}
	return value, nil
}

// explain says in one line why there is no answer, and what to do.
func (g *gate) explain(ctx context.Context, err error) error {
	if redirect, ok := errors.AsType[*redirectError](err); ok {
		return redirect
	}
	if errors.Is(err, errTooLong) {
		return errTooLong
	}
	if problem, ok := errors.AsType[*v1.Error](err); ok {
		return g.refused(problem)
	}
	timeout, ok := errors.AsType[interface {
		error
		Timeout() bool
	}](err)
	if ctx.Err() != nil || ok && timeout.Timeout() {
		return fmt.Errorf("%s: no answer within %s", g.Prometheus, g.Timeout)
	}
	// The error of package http begins with the method and the whole address.
	if inner := errors.Unwrap(err); inner != nil {
		err = inner
	}
	return fmt.Errorf("%s cannot be reached: %w", g.Prometheus, err)
}

// refused says what an answer means that is none.
func (g *gate) refused(problem *v1.Error) error {
	detail := ""
	if problem.Detail != "" {
		detail = ": " + cut(problem.Detail, 100)
	}
	switch problem.Type {
	case v1.ErrBadData:
		return fmt.Errorf("the query is refused by Prometheus: %s", problem.Msg)
	case v1.ErrTimeout, v1.ErrCanceled:
		return fmt.Errorf("the query takes too long: %s", problem.Msg)
	case v1.ErrExec:
		return fmt.Errorf("the query cannot be evaluated by Prometheus: %s", problem.Msg)
	case v1.ErrClient:
		return fmt.Errorf("%s: %s%s; is it the base address of a Prometheus that asks for no credentials?", g.Prometheus, problem.Msg, detail)
	case v1.ErrBadResponse:
		return fmt.Errorf("%s: no answer of a Prometheus with a number: %s%s", g.Prometheus, problem.Msg, detail)
	}
	return fmt.Errorf("%s: %s%s", g.Prometheus, problem.Msg, detail)
}

// oneLine makes one line of the words of others, without control characters and not too long.
func oneLine(text string) string {
	return cut(strings.Join(strings.FieldsFunc(strings.ToValidUTF8(text, "?"), func(r rune) bool {
		return unicode.IsSpace(r) || unicode.IsControl(r)
	}), " "), maxText)
}

// cut returns the first bytes of text, whole characters.
func cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n] + "..."
}
