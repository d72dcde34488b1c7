package acme

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	legolog "github.com/go-acme/lego/v4/log"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
)

// lego's traps (v4.35.2), and what shows that they cannot hurt:
//
//	ARI answers are not checked            TestAnswersThatAreNoWindow, TestRefusedRenewalInfoIsNoWindow
//	an order is placed again without       TestReplacement
//	  "replaces" by itself
//	null with an error status panics       TestAnswerThatMakesLegoPanic
//	no contexts, polls up to 100 times     TestHangIsCut, TestHostileRetryAfterIsCapped
//	  a Retry-After                          (and TestNonceIsReplacedWithoutLegosSleep for lego's own retries)
//	Retry-After is lost but for 429        TestKindsOfErrors
//	no repetition after 5xx and resets     TestIdempotentRequestsAreRepeated, TestLostAnswerToFinalize
//	nothing is verified                    TestBadChainIsRefused
//	the client's transport is wrapped      TestTransportIsNotWrappedAgain
//	  again for each Core
//	the directory is fetched when the      TestDeadCAStopsNoStart
//	  client is made
//	names are solved one after the other   TestNamesAreSolvedInParallel
//	dns-01 globals, rfc2136                not used: HTTP-01 alone
//	a global logger that exits             TestLegoIsSilentAndCannotExit
//	failed authorizations lose the name    TestInvalidOrderNamesIdentifierAndReason

// respond answers the next n requests of a kind in place of the CA.
func (f *fixture) respond(kind testenv.Kind, n int64, answer http.HandlerFunc) {
	var left atomic.Int64
	left.Store(n)
	f.proxy.SetRespond(func(k testenv.Kind, w http.ResponseWriter, r *http.Request) bool {
		if k != kind || left.Add(-1) < 0 {
			return false
		}
		answer(w, r)
		return true
	})
}

// problem writes a problem document of RFC 8555, Section 6.7.
func problem(w http.ResponseWriter, status int, problemType, detail string) {
	w.Header().Set("Content-Type", "application/problem+json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{ // the client sees what is missing
		"type": problemPrefix + problemType, "detail": detail, "status": status,
	})
}

// reset closes the connection without an answer.
func reset(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }

const every = 1 << 40 // requests, for respond

// pausedText is what Let's Encrypt says of a paused account.
const pausedText = "Your account is temporarily prevented from requesting certificates. Please visit: https://portal.example/?jwt=x"

func TestKindsOfErrors(t *testing.T) {
	t.Parallel()
	type answer = http.HandlerFunc
	withRetryAfter := func(value string, next answer) answer {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Retry-After", value)
			next(w, r)
		}
	}
	text := func(status int, body string) answer {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	says := func(status int, problemType, detail string) answer {
		return func(w http.ResponseWriter, _ *http.Request) { problem(w, status, problemType, detail) }
	}
	tests := []struct {
		name       string
		kind       testenv.Kind
		answer     answer
		want       issuer.Kind
		retryAfter time.Duration
		text, hint string
	}{
		{name: "429 with a time", kind: testenv.KindNewOrder, answer: withRetryAfter("120", says(429, "rateLimited", "too many")), want: issuer.KindRateLimited, retryAfter: 2 * time.Minute, text: "too many", hint: "wait"},
		{name: "429 paused", kind: testenv.KindNewOrder, answer: says(429, "rateLimited", pausedText), want: issuer.KindPaused, text: "temporarily prevented", hint: "https://portal.example/?jwt=x"},
		{name: "429 HTML", kind: testenv.KindNewOrder, answer: withRetryAfter("60", text(429, "<html>")), want: issuer.KindRateLimited, retryAfter: time.Minute},
		{name: "503 HTML with a time", kind: testenv.KindNewOrder, answer: withRetryAfter("600", text(503, "<html>busy</html>")), want: issuer.KindTemporary, retryAfter: 10 * time.Minute, text: "503"},
		{name: "503 JSON with a time", kind: testenv.KindNewOrder, answer: withRetryAfter("600", says(503, "serverInternal", "maintenance")), want: issuer.KindTemporary, retryAfter: 10 * time.Minute, text: "maintenance"},
		{name: "503 JSON rateLimited", kind: testenv.KindNewOrder, answer: withRetryAfter("5", says(503, "rateLimited", "slow down")), want: issuer.KindRateLimited, retryAfter: 5 * time.Second},
		{name: "500 at the directory", kind: testenv.KindDirectory, answer: text(500, ""), want: issuer.KindTemporary},
		{name: "404 at the directory", kind: testenv.KindDirectory, answer: text(404, "<html>"), want: issuer.KindTemporary, hint: "directory"},
		{name: "HTML with 200", kind: testenv.KindDirectory, answer: text(200, "<html>"), want: issuer.KindTemporary, hint: "directory"},
		{name: "empty directory", kind: testenv.KindDirectory, answer: text(200, "{}"), want: issuer.KindTemporary, hint: "directory"},
		{name: "503 for a nonce", kind: testenv.KindNonce, answer: text(503, ""), want: issuer.KindTemporary},
		{name: "reset", kind: testenv.KindNewOrder, answer: reset, want: issuer.KindTemporary},
		{name: "rejectedIdentifier", kind: testenv.KindNewOrder, answer: says(400, "rejectedIdentifier", "policy forbids"), want: issuer.KindRejected, text: "policy forbids (rejectedIdentifier)", hint: "spelling"},
		{name: "caa at finalize", kind: testenv.KindFinalize, answer: says(403, "caa", "CAA record forbids"), want: issuer.KindRejected, text: "CAA record forbids", hint: "CAA"},
		{name: "badCSR", kind: testenv.KindFinalize, answer: says(400, "badCSR", "weak"), want: issuer.KindRejected, text: "badCSR", hint: "key_type"},
		{name: "orderNotReady for ever", kind: testenv.KindFinalize, answer: says(403, "orderNotReady", "not yet"), want: issuer.KindTemporary, text: "not yet"},
		{name: "429 at finalize", kind: testenv.KindFinalize, answer: withRetryAfter("3600", says(429, "rateLimited", "duplicates")), want: issuer.KindRateLimited, retryAfter: time.Hour},
		{name: "unauthorized account", kind: testenv.KindNewOrder, answer: says(403, "unauthorized", "account is deactivated"), want: issuer.KindRejected, text: "deactivated"},
		{name: "userActionRequired", kind: testenv.KindNewOrder, answer: says(403, "userActionRequired", "new terms"), want: issuer.KindRejected, hint: "terms"},
		{name: "account unknown again and again", kind: testenv.KindNewOrder, answer: says(400, "accountDoesNotExist", "who"), want: issuer.KindRejected, text: "accountDoesNotExist"},
		{name: "badNonce again and again", kind: testenv.KindNewAccount, answer: says(400, "badNonce", "stale"), want: issuer.KindTemporary},
		{name: "a problem with line breaks", kind: testenv.KindNewOrder, answer: says(403, "unauthorized", "a\r\nlevel=ERROR \x1b[31m"), want: issuer.KindRejected, text: "a  level=ERROR"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.respond(tt.kind, every, tt.answer)
			i := f.issuer(nil)
			_, err := i.Obtain(f.Ready(), request("a.example"))
			e := wantKind(t, err, tt.want, tt.text)
			if e.RetryAfter != tt.retryAfter {
				t.Errorf("got Retry-After %v, want %v", e.RetryAfter, tt.retryAfter)
			}
			if !strings.Contains(e.Hint, tt.hint) || e.Issuer != "pebble" {
				t.Errorf("got issuer %q and hint %q, want pebble and %q in it", e.Issuer, e.Hint, tt.hint)
			}
			f.proxy.SetRespond(nil)
			f.obtain(i, request("a.example"))
			if n := f.proxy.Count(testenv.KindFinalize).Succeeded; n != 1 {
				t.Errorf("got %d certificates after the fault, want 1", n)
			}
		})
	}
}

func TestAnswerThatMakesLegoPanic(t *testing.T) {
	t.Parallel()
	for _, kind := range []testenv.Kind{testenv.KindDirectory, testenv.KindNewAccount, testenv.KindNewOrder, testenv.KindFinalize, testenv.KindNonce} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.respond(kind, every, func(w http.ResponseWriter, _ *http.Request) {
				w.WriteHeader(http.StatusInternalServerError)
				_, _ = io.WriteString(w, "null")
			})
			_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
			wantKind(t, err, issuer.KindTemporary, "500")
		})
	}
}

func TestHangIsCut(t *testing.T) {
	t.Parallel()
	for _, kind := range []testenv.Kind{
		testenv.KindDirectory, testenv.KindNewAccount, testenv.KindNewOrder, testenv.KindAuthz, testenv.KindChallenge,
		testenv.KindOrder, testenv.KindFinalize, testenv.KindCert,
	} {
		t.Run(string(kind), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			hold := f.proxy.Hold(kind, testenv.Before)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			i := f.issuer(nil)
			go func() {
				_, err := i.Obtain(ctx, request("a.example"))
				done <- err
			}()
			<-hold.Reached()
			cancel()
			select {
			case err := <-done:
				if err == nil {
					t.Error("got a certificate")
				}
			case <-time.After(10 * time.Second):
				t.Fatal("still hanging 10 s after the context has ended")
			}
			hold.Release()

			// By itself, a hang ends with the time of a request, and the order is taken up again.
			hold = f.proxy.Hold(kind, testenv.Before)
			defer hold.Release()
			i = f.issuer(func(o *Options) { o.RequestTimeout, o.OrderTimeout = 300*time.Millisecond, 2*time.Second })
			began := time.Now()
			if _, err := i.Obtain(t.Context(), request("a.example")); err != nil {
				wantKind(t, err, issuer.KindTemporary)
			}
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("Obtain took %v with an order time of 2 s", took)
			}
		})
	}
}

func TestHostileRetryAfterIsCapped(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{RetryAfterOrder: 86400, RetryAfterAuthz: 86400})
	i := f.issuer(func(o *Options) { o.OrderTimeout = 500 * time.Millisecond })
	began := time.Now()
	_, err := i.Obtain(t.Context(), request("a.example"))
	if err != nil {
		wantKind(t, err, issuer.KindTemporary, "taken up again")
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("took %v with an order time of 0.5 s", took)
	}
	for value, want := range map[string]time.Duration{
		"": 0, "120": 2 * time.Minute, "-5": 0, "99999999999999": maxRetryAfter, "99999999999999999999": 0, "soon": 0,
		"Sun, 01 Nov 2026 00:01:00 GMT": time.Minute, "Sun, 01 Nov 2026 00:00:00 GMT": 0, "Fri, 01 Jan 2100 00:00:00 GMT": maxRetryAfter,
	} {
		if got := parseRetryAfter(value, time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)); got != want {
			t.Errorf("Retry-After %q: got %v, want %v", value, got, want)
		}
	}
}

func TestNonceIsReplacedWithoutLegosSleep(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{NonceReject: 30})
	f.obtain(f.issuer(nil), request("a.example"))
}

func TestIdempotentRequestsAreRepeated(t *testing.T) {
	t.Parallel()
	for _, kind := range []testenv.Kind{testenv.KindAuthz, testenv.KindChallenge, testenv.KindOrder, testenv.KindFinalize, testenv.KindCert} {
		for name, answer := range map[string]http.HandlerFunc{
			"reset": reset,
			"503":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) },
		} {
			t.Run(fmt.Sprintf("%s %s", kind, name), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, testenv.PebbleOptions{})
				f.respond(kind, 2, answer)
				s := f.obtain(f.issuer(nil), request("a.example"))
				f.wantOneCertificate(s)
				if n := f.proxy.Count(testenv.KindNewOrder).Succeeded; n != 1 {
					t.Errorf("got %d orders, want 1", n)
				}
			})
		}
	}
}

func TestLostAnswerToFinalize(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	var lost atomic.Bool
	f.proxy.SetRewrite(func(kind testenv.Kind, _ *http.Response) error {
		if kind == testenv.KindFinalize && lost.CompareAndSwap(false, true) {
			return io.ErrUnexpectedEOF
		}
		return nil
	})
	s := f.obtain(f.issuer(nil), request("a.example"))
	if !lost.Load() {
		t.Fatal("no answer got lost")
	}
	f.wantOneCertificate(s)
	if n := f.proxy.Count(testenv.KindFinalize).Received; n != 1 {
		t.Errorf("finalize was sent %d times, want once", n)
	}
}

func TestCertificateThatIsNotThereYet(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	f.respond(testenv.KindCert, 1, func(w http.ResponseWriter, _ *http.Request) { problem(w, 404, "malformed", "no such certificate") })
	f.wantOneCertificate(f.obtain(f.issuer(nil), request("a.example")))
}

func TestTransportIsNotWrappedAgain(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	before := i.conn.transport
	for range 3 {
		f.obtain(i, request("a.example"))
		f.accept(request("a.example"))
	}
	if i.conn.transport != before {
		t.Error("the transport was replaced")
	}
	// Requests that are not HTTPS are still refused, also where the directory asks for them.
	f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
		if kind == testenv.KindDirectory {
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			testenv.ReplaceBody(resp, bytes.ReplaceAll(body, []byte("https://"), []byte("http://")))
		}
		return nil
	})
	_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary, "HTTPS is required")
}

func TestDeadCAStopsNoStart(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	if err := f.pebble.Stop(); err != nil {
		t.Fatal(err)
	}
	i := f.issuer(func(o *Options) { o.Directory = f.pebble.Directory })
	_, err := i.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary, "connection refused")
	f.pebble = f.Pebble(f.pebbleOptions)
	f.obtain(i, request("a.example"))
}

func TestUntrustedHTTPSNamesTheSetting(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	_, err := f.issuer(func(o *Options) { o.CAFile = "" }).Obtain(f.Ready(), request("a.example"))
	if e := wantKind(t, err, issuer.KindTemporary, "certificate"); !strings.Contains(e.Hint, "ca_file") {
		t.Errorf("got hint %q, want it to name ca_file", e.Hint)
	}
}

func TestLegoIsSilentAndCannotExit(t *testing.T) {
	t.Parallel()
	if _, err := New(Options{Name: "ca", Directory: "https://ca.invalid/dir", Logger: testLogger()}); err != nil {
		t.Fatal(err)
	}
	legolog.Fatalf("this would end the process: %d", 1)
	legolog.Fatal("this, too")
	if _, ok := legolog.Logger.(silentLogger); !ok {
		t.Errorf("lego's logger is %T", legolog.Logger)
	}
}

func TestInvalidOrderNamesIdentifierAndReason(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	other := &Responder{} // nobody routes the challenge to the responder that has the tokens
	i := f.issuer(func(o *Options) { o.Responder = other })
	_, err := i.Obtain(f.Ready(), request("a.example", "b.example"))
	e := wantKind(t, err, issuer.KindValidation, "unauthorized", "could not validate")
	if e.Identifier != "a.example" && e.Identifier != "b.example" && len(strings.Split(e.Identifier, ", ")) != 2 {
		t.Errorf("got identifier %q", e.Identifier)
	}
	if !strings.Contains(e.Hint, "/.well-known/acme-challenge/") {
		t.Errorf("got hint %q, want it to name the path", e.Hint)
	}
	f.wantNoOrder("after an invalid order")
	if n := other.Pending(); n != 0 {
		t.Errorf("%d tokens are still pending", n)
	}
	if n := f.proxy.Count(testenv.KindFinalize).Received; n != 0 {
		t.Errorf("finalize was sent %d times for an order that never was ready", n)
	}
	f.obtain(f.issuer(nil), request("a.example", "b.example"))
}

func TestNothingListensOnPort80(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	options := f.pebbleOptions
	options.Name, options.Port, options.ManagementPort, options.HTTPPort = "deaf", 0, 0, 0
	deaf := f.Pebble(options)
	i := f.issuer(func(o *Options) {
		o.Name, o.Directory, o.CAFile, o.RootsFile = "deaf", deaf.Directory, deaf.CAFile, deaf.RootsFile
	})
	_, err := i.Obtain(f.Ready(), request("a.example"))
	if e := wantKind(t, err, issuer.KindValidation, "a.example", "connection"); !strings.Contains(e.Hint, "port 80") {
		t.Errorf("got hint %q, want it to name port 80", e.Hint)
	}
}

func TestRequestsAreCounted(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	f.respond(testenv.KindNewOrder, 1, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) })
	i := f.issuer(func(o *Options) { o.RequestTimeout = 2 * time.Second })
	_, err := i.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary, "503")
	hold := f.proxy.Hold(testenv.KindNewOrder, testenv.Before)
	_, err = i.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindTemporary, "no answer in time")
	hold.Release()
	f.obtain(i, request("a.example"))
	for code, want := range map[string]float64{"503": 1, "timeout": 1, "201": 1} {
		if got := testutil.ToFloat64(f.metrics.requests.WithLabelValues("pebble", "new_order", code)); got != want {
			t.Errorf("new_order %s: got %v requests, want %v", code, got, want)
		}
	}
}
