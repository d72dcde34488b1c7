package acme

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/certificate"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/secret"
)

// identifier is a certificate's for renewal information, made by lego and not by us.
func identifier(t testing.TB, leaf *x509.Certificate) string {
	t.Helper()
	id, err := certificate.MakeARICertID(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// TestIdentifierOfTheRFC is the example of RFC 9773, Section 4.1: what these tests ask with is what a CA expects.
func TestIdentifierOfTheRFC(t *testing.T) {
	t.Parallel()
	keyID, err := hex.DecodeString("69885B6B87464041E1B37B847BA0AE2CDE01C8D4")
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{AuthorityKeyId: keyID, SerialNumber: big.NewInt(0x0087654321)}
	if got, want := identifier(t, leaf), "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestWindowMovedByTheCAIsFollowed(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	s := f.obtain(i, request("a.example"))
	id := identifier(t, s.Leaf())

	first := f.advice(i, id)
	if life := s.NotAfter().Sub(s.NotBefore()); first.Start.Before(s.NotBefore()) || first.End.After(s.NotAfter()) ||
		first.Start.Sub(s.NotBefore()) < life/2 {
		t.Errorf("got the window %v to %v of a certificate from %v to %v", first.Start, first.End, s.NotBefore(), s.NotAfter())
	}
	if first.RetryAfter != 6*time.Hour || first.Explanation != "" {
		t.Errorf("got %+v, want 6 h and no explanation", first)
	}
	now := time.Now().UTC().Truncate(time.Second)
	for _, want := range []struct{ start, end time.Time }{
		{now.Add(24 * time.Hour), now.Add(48 * time.Hour)},
		{now.Add(-time.Hour), now.Add(-30 * time.Minute)}, // revoked
		{now.Add(time.Second), now.Add(2 * time.Second)},
	} {
		if err := f.pebble.SetWindow(t.Context(), s.ChainPEM(), want.start, want.end); err != nil {
			t.Fatal(err)
		}
		if got := f.advice(i, id); !got.Start.Equal(want.start) || !got.End.Equal(want.end) {
			t.Errorf("got %v to %v, want %v to %v", got.Start, got.End, want.start, want.end)
		}
	}
	if err := f.pebble.SetRenewalInfo(t.Context(), s.ChainPEM(), ""); err != nil {
		t.Fatal(err)
	}
	if got := f.advice(i, id); !got.Start.Equal(first.Start) || !got.End.Equal(first.End) {
		t.Errorf("got %+v, want %+v again", got, first)
	}
	if n := testutil.ToFloat64(f.metrics.requests.WithLabelValues("pebble", "renewal_info", "200")); n != 5 {
		t.Errorf("%v requests were counted, want 5", n)
	}
}

// advice fails the test where there is none.
func (f *fixture) advice(i *Issuer, id string) issuer.RenewalInfo {
	f.Helper()
	got, err := i.RenewalInfo(f.Ready(), id)
	if err != nil {
		f.Fatal(err)
	}
	return got
}

func TestAnswersThatAreNoWindow(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	s := f.obtain(i, request("a.example"))
	id := identifier(t, s.Leaf())
	const start, end = `"start":"2026-12-01T00:00:00Z"`, `"end":"2026-12-02T00:00:00Z"`
	for _, answer := range []string{
		"null", "{}", "[]", "text", "{", `"x"`, "0",
		`{"suggestedWindow":null}`, `{"suggestedWindow":{}}`, `{"suggestedWindow":[]}`,
		`{"suggestedWindow":{` + start + `}}`, `{"suggestedWindow":{` + end + `}}`,
		`{"suggestedWindow":{` + start + `,"end":""}}`, `{"suggestedWindow":{` + start + `,"end":"tomorrow"}}`,
		`{"suggestedWindow":{` + start + `,"end":1796083200}}`,
		`{"suggestedWindow":{` + start + `,"end":"2026-12-01T00:00:00Z"}}`,
		`{"suggestedWindow":{"start":"2026-12-02T00:00:00Z","end":"2026-12-01T00:00:00Z"}}`,
		`{"suggestedWindow":{"start":"0001-01-01T00:00:00Z",` + end + `}}`,
		`{"suggestedWindow":{` + start + `,` + end + `}`,
	} {
		if err := f.pebble.SetRenewalInfo(t.Context(), s.ChainPEM(), answer); err != nil {
			t.Fatal(err)
		}
		got, err := i.RenewalInfo(f.Ready(), id)
		wantKind(t, err, issuer.KindTemporary, "renewal information", "cannot be understood")
		if got != (issuer.RenewalInfo{}) {
			t.Errorf("%s: got %+v with the error", answer, got)
		}
	}
}

func TestRefusedRenewalInfoIsNoWindow(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	id := identifier(t, f.obtain(i, request("a.example")).Leaf())
	const window = `{"suggestedWindow":{"start":"2026-12-01T00:00:00Z","end":"2026-12-02T00:00:00Z"}}`
	tests := []struct {
		name       string
		answer     http.HandlerFunc
		kind       issuer.Kind
		retryAfter time.Duration
		text       string
	}{
		{"404 problem", func(w http.ResponseWriter, _ *http.Request) { problem(w, 404, "malformed", "no such certificate") }, issuer.KindTemporary, 0, "no such certificate"},
		{"404 HTML", page(404, "text/html", html), issuer.KindTemporary, 0, "404"},
		{"400 problem", func(w http.ResponseWriter, _ *http.Request) { problem(w, 400, "malformed", "bad identifier") }, issuer.KindTemporary, 0, "bad identifier"},
		{"429 with a time", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "90")
			problem(w, 429, "rateLimited", "slow down")
		}, issuer.KindRateLimited, 90 * time.Second, "slow down"},
		{"503 with a time", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "600")
			w.WriteHeader(503)
		}, issuer.KindTemporary, 10 * time.Minute, "503"},
		{"503 with a window", page(503, "application/json", window), issuer.KindTemporary, 0, "503"},
		{"500 null", page(500, "application/json", "null"), issuer.KindTemporary, 0, "500"},
		{"204", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(204) }, issuer.KindTemporary, 0, "204"},
		{"202 with a window", page(202, "application/json", window), issuer.KindTemporary, 0, "202"},
		{"redirect", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://ca.invalid/", http.StatusFound)
		}, issuer.KindTemporary, 0, "302"},
		{"reset", reset, issuer.KindTemporary, 0, "127.0.0.1"},
		{"too long", page(200, "application/json", strings.Repeat(" ", maxBody)+window), issuer.KindTemporary, 0, "bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.respond(testenv.KindRenewalInfo, 1, tt.answer)
			got, err := i.RenewalInfo(f.Ready(), id)
			e := wantKind(t, err, tt.kind, tt.text)
			if got != (issuer.RenewalInfo{}) || e.RetryAfter != tt.retryAfter {
				t.Errorf("got %+v and Retry-After %v, want no window and %v", got, e.RetryAfter, tt.retryAfter)
			}
		})
	}
	f.advice(i, id)
	f.respond(testenv.KindDirectory, every, page(503, "text/html", html))
	_, err := f.issuer(nil).RenewalInfo(f.Ready(), id)
	wantKind(t, err, issuer.KindTemporary, "503")
}

func TestRenewalInfoHasADeadline(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	hold := f.proxy.Hold(testenv.KindRenewalInfo, testenv.Before)
	defer hold.Release()
	i := f.issuer(func(o *Options) { o.RequestTimeout = 300 * time.Millisecond })
	_, err := i.RenewalInfo(f.Ready(), "a.b")
	wantKind(t, err, issuer.KindTemporary, "no answer in time")

	second := f.proxy.Hold(testenv.KindRenewalInfo, testenv.Before)
	defer second.Release()
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	patient := f.issuer(nil)
	go func() {
		_, err := patient.RenewalInfo(ctx, "a.b")
		done <- err
	}()
	<-second.Reached()
	why := errors.New("shutting down")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v, want the cause of the context", err)
	}
}

func TestCAWithoutRenewalInfo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	f.withoutRenewalInfo()
	if _, err := f.issuer(nil).RenewalInfo(f.Ready(), "a.b"); !errors.Is(err, issuer.ErrNoAdvice) {
		t.Errorf("got %v, want ErrNoAdvice", err)
	}
	if n := f.proxy.Count(testenv.KindRenewalInfo).Received; n != 0 {
		t.Errorf("%d requests were sent", n)
	}
}

// withoutRenewalInfo takes the endpoint out of the directory.
func (f *fixture) withoutRenewalInfo() {
	f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
		if kind != testenv.KindDirectory {
			return nil
		}
		var directory map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&directory); err != nil {
			return err
		}
		delete(directory, "renewalInfo")
		body, err := json.Marshal(directory)
		testenv.ReplaceBody(resp, body)
		return err
	})
}

func TestRequestForRenewalInfo(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	seen := make(chan *http.Request, 1)
	f.respond(testenv.KindRenewalInfo, 1, func(w http.ResponseWriter, r *http.Request) {
		seen <- r
		_, _ = io.WriteString(w, `{"suggestedWindow":{"start":"2026-12-01T00:00:00+01:00","end":"2026-12-01T00:00:00Z"},"explanationURL":"https://ca.example/why"}`)
	})
	i := f.issuer(func(o *Options) { o.UserAgent = "sds-server/9" })
	got := f.advice(i, "../a?b#c")
	if got.Start.Location() != time.UTC || got.End.Sub(got.Start) != time.Hour || got.Explanation != "https://ca.example/why" {
		t.Errorf("got %+v", got)
	}
	r := <-seen
	if r.Method != http.MethodGet || r.UserAgent() != "sds-server/9" || r.ContentLength != 0 {
		t.Errorf("got %s with %d bytes from %q", r.Method, r.ContentLength, r.UserAgent())
	}
	if !strings.HasSuffix(r.URL.EscapedPath(), "/..%2Fa%3Fb%23c") {
		t.Errorf("got path %s, want the identifier in one segment", r.URL.EscapedPath())
	}
}

func TestWhenToAskAgain(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	body := []byte(`{"suggestedWindow":{"start":"2026-12-01T00:00:00Z","end":"2026-12-02T00:00:00Z"}}`)
	for value, want := range map[string]time.Duration{
		"": 6 * time.Hour, "soon": 6 * time.Hour, "1.5": 6 * time.Hour, "0": time.Minute, "-1": time.Minute, "59": time.Minute,
		"61": 61 * time.Second, "21600": 6 * time.Hour, "86400": 24 * time.Hour, "86401": 24 * time.Hour, "99999999999": 24 * time.Hour,
		"Sun, 01 Nov 2026 02:00:00 GMT": 2 * time.Hour, "Sat, 31 Oct 2026 02:00:00 GMT": time.Minute,
		"Fri, 01 Jan 2100 00:00:00 GMT": 24 * time.Hour,
	} {
		header := http.Header{}
		if value != "" {
			header.Set("Retry-After", value)
		}
		got, err := parseRenewalInfo(rawAnswer{status: 200, header: header, body: body}, now)
		if err != nil || got.RetryAfter != want {
			t.Errorf("Retry-After %q: got %v, %v, want %v", value, got.RetryAfter, err, want)
		}
	}
}

func TestExplanationIsAWebPageOrNothing(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		"https://ca.example/why?x=1": true, "http://ca.example": true, "": false, "javascript:alert(1)": false, "ftp://ca.example/": false,
		"https:": false, "/why": false, "ca.example": false, "https://ca.example/\u0085": false, "https://ca.example/\u2028": false,
		"https://ca.example/" + strings.Repeat("x", 700): false, "https://ca.example/\x1b[31m": false, "https://%zz/": false,
	} {
		got := webPage(text)
		if (got == text) != (want || text == "") || got != "" && got != text {
			t.Errorf("%q: got %q, want it kept %t", text, got, want)
		}
	}
}

func FuzzRenewalInfo(f *testing.F) {
	f.Add([]byte(`{"suggestedWindow":{"start":"2026-12-01T00:00:00Z","end":"2026-12-02T00:00:00Z"},"explanationURL":"https://ca.example/"}`), "60")
	f.Add([]byte("null"), "Sun, 01 Nov 2026 02:00:00 GMT")
	f.Add([]byte(`{"suggestedWindow":{}}`), "")
	f.Fuzz(func(t *testing.T, body []byte, after string) {
		got, err := parseRenewalInfo(rawAnswer{status: 200, header: http.Header{"Retry-After": {after}}, body: body}, time.Now())
		switch {
		case err != nil && got != (issuer.RenewalInfo{}):
			t.Errorf("got %+v with %v", got, err)
		case err == nil && (!got.End.After(got.Start) || got.Start.IsZero() || got.RetryAfter < time.Minute || got.RetryAfter > 24*time.Hour):
			t.Errorf("got %+v", got)
		case printable(got.Explanation) != got.Explanation:
			t.Errorf("got explanation %q", got.Explanation)
		}
	})
}

// orderPayload is what a newOrder says.
type orderPayload struct {
	Replaces string `json:"replaces"`
	Profile  string `json:"profile"`
}

// newOrders collects what the CA is asked for, while answer (which may be nil) may answer in its place.
func (f *fixture) newOrders(answer func(n int, p orderPayload, w http.ResponseWriter) bool) func() []orderPayload {
	seen := make(chan orderPayload, 100)
	n := 0
	f.proxy.SetRespond(func(kind testenv.Kind, w http.ResponseWriter, r *http.Request) bool {
		if kind != testenv.KindNewOrder {
			return false
		}
		var p orderPayload
		if err := readPayload(r, &p); err != nil {
			f.Error(err)
			return false
		}
		n++
		seen <- p
		return answer != nil && answer(n, p, w)
	})
	return func() []orderPayload {
		var all []orderPayload
		for {
			select {
			case p := <-seen:
				all = append(all, p)
			default:
				return all
			}
		}
	}
}

// readPayload decodes what a signed request says, and leaves the request as it is.
func readPayload(r *http.Request, into any) error {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	r.Body = io.NopCloser(strings.NewReader(string(body)))
	var signed struct {
		Payload string `json:"payload"`
	}
	if err := json.Unmarshal(body, &signed); err != nil {
		return fmt.Errorf("signed request: %w", err)
	}
	payload, err := base64.RawURLEncoding.DecodeString(signed.Payload)
	if err != nil {
		return fmt.Errorf("signed request: %w", err)
	}
	return json.Unmarshal(payload, into)
}

// renewal is a request that replaces s, inside of its window.
func renewal(t testing.TB, s *secret.Secret, names ...string) issuer.Request {
	t.Helper()
	r := request(names...)
	r.Replaces, r.InWindow = identifier(t, s.Leaf()), true
	return r
}
