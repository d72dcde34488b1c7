package acme

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"errors"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
)

// fault is something that goes wrong between us and a real CA.
type fault struct {
	name string
	// pebble, options and request change the CA, the issuer and what is ordered; each may be nil.
	pebble  func(*testenv.PebbleOptions)
	options func(*testing.T, *fixture, *Options)
	request func(*issuer.Request)
	// begin makes it go wrong, once the CA runs.
	begin func(*fixture)
	// cause is why the order fails; empty where it succeeds in spite of the fault. The error has its kind and its hint.
	cause cause
	// text is in the message, hint in the hint besides the cause's, retryAfter the error's.
	text, hint string
	retryAfter time.Duration
	// lasts says that it cannot be mended. Otherwise the next order succeeds, and then the CA has accepted this many orders and issued
	// this many certificates (default 1).
	lasts                bool
	orders, certificates int
}

// TestFaultsOfTheCA has the faults that are known of CAs, and of what stands before them.
func TestFaultsOfTheCA(t *testing.T) {
	t.Parallel()
	for _, tt := range slices.Concat(faultsOfAnswers(), faultsOfOrders(), faultsOfChains(t), faultsOfAccounts(), faultsOfNames(t)) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.run(t)
		})
	}
}

func (tt *fault) run(t *testing.T) {
	o := testenv.PebbleOptions{}
	if tt.pebble != nil {
		tt.pebble(&o)
	}
	f := newFixture(t, o)
	i := f.issuer(func(o *Options) {
		o.RequestTimeout, o.OrderTimeout = 2*time.Second, 20*time.Second
		if tt.options != nil {
			tt.options(t, f, o)
		}
	})
	r := request("a.example")
	if tt.request != nil {
		tt.request(&r)
	}
	if tt.begin != nil {
		tt.begin(f)
	}
	s, err := i.Obtain(f.Ready(), r)
	switch {
	case tt.cause == "" && err != nil:
		t.Fatalf("got %v, want a certificate in spite of the fault", err)
	case tt.cause != "":
		if s != nil {
			t.Error("got a certificate")
		}
		e := wantKind(t, err, explanations[tt.cause].kind, tt.text)
		if !strings.HasPrefix(e.Hint, hintOf(tt.cause)) || !strings.Contains(e.Hint, tt.hint) {
			t.Errorf("got hint %q, want that of %q with %q", e.Hint, tt.cause, tt.hint)
		}
		if e.RetryAfter != tt.retryAfter {
			t.Errorf("got Retry-After %v, want %v", e.RetryAfter, tt.retryAfter)
		}
	}
	if tt.lasts {
		return
	}
	f.proxy.SetRespond(nil)
	f.proxy.SetRewrite(nil)
	f.obtain(f.issuer(nil), r)
	if n := f.proxy.Count(testenv.KindNewOrder).Succeeded; n != max(tt.orders, 1) {
		t.Errorf("got %d orders, want %d", n, max(tt.orders, 1))
	}
	if n := f.proxy.Count(testenv.KindFinalize).Succeeded; n != max(tt.certificates, 1) {
		t.Errorf("got %d certificates, want %d", n, max(tt.certificates, 1))
	}
}

// at answers every request of a kind in the CA's place.
func at(kind testenv.Kind, answer http.HandlerFunc) func(*fixture) {
	return func(f *fixture) { f.respond(kind, every, answer) }
}

// times is at for the next n requests.
func times(n int64, kind testenv.Kind, answer http.HandlerFunc) func(*fixture) {
	return func(f *fixture) { f.respond(kind, n, answer) }
}

func says(status int, problemType, detail string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { problem(w, status, problemType, detail) }
}

func after(value string, next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Retry-After", value)
		next(w, r)
	}
}

// trickle sends a byte now and then, for ever.
func trickle(w http.ResponseWriter, r *http.Request) {
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	w.WriteHeader(http.StatusCreated)
	for {
		select {
		case <-r.Context().Done():
			return
		case <-ticker.C:
			_, _ = io.WriteString(w, " ") // the client goes away
			_ = http.NewResponseController(w).Flush()
		}
	}
}

// hang answers nothing.
func hang(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }

func faultsOfAnswers() []fault {
	const token = "x.y.z"
	long := "https://portal.example/sfe/v1/unpause?jwt=" + strings.Repeat(token, 300)
	return []fault{
		{name: "503 HTML", begin: at(testenv.KindNewOrder, after("600", page(503, "text/html", html))), cause: causeUnreachable, text: "503", retryAfter: 10 * time.Minute},
		{name: "503 JSON", begin: at(testenv.KindNewOrder, after("600", says(503, "serverInternal", "maintenance"))), cause: "serverInternal", text: "maintenance", retryAfter: 10 * time.Minute},
		{name: "500 null", begin: at(testenv.KindNewOrder, page(500, "application/json", "null")), cause: causeUnreachable, text: "500"},
		{name: "502 empty", begin: at(testenv.KindNewOrder, page(502, "", "")), cause: causeUnreachable, text: "502"},
		{name: "429 with Retry-After", begin: at(testenv.KindNewOrder, after("120", says(429, "rateLimited", "too many new orders"))), cause: "rateLimited", text: "too many new orders", retryAfter: 2 * time.Minute},
		{name: "429 without Retry-After", begin: at(testenv.KindNewOrder, says(429, "rateLimited", "too many new orders")), cause: causeNoTime, text: "too many new orders"},
		{name: "paused account", begin: at(testenv.KindNewOrder, says(429, "rateLimited", pausedText)), cause: causePaused, text: "temporarily prevented", hint: "https://portal.example/?jwt=x"},
		{
			name:  "paused name, with a link longer than a message",
			begin: at(testenv.KindNewOrder, says(429, "rateLimited", "Your account is temporarily prevented from requesting certificates for a.example and possibly others. Please visit: "+long+".")),
			cause: causePaused, text: "a.example", hint: ": " + long,
		},
		{name: "badNonce at 50 %", pebble: func(o *testenv.PebbleOptions) { o.NonceReject = 50 }},
		{name: "badNonce always", begin: at(testenv.KindNewOrder, says(400, "badNonce", "stale")), cause: "badNonce", text: "times in a row"},
		{name: "reset at newOrder", begin: at(testenv.KindNewOrder, reset), cause: causeUnreachable},
		{name: "reset at finalize", begin: times(1, testenv.KindFinalize, reset)},
		{name: "hang", begin: at(testenv.KindNewOrder, hang), cause: causeUnreachable, text: "no answer in time"},
		{name: "slow", begin: at(testenv.KindNewOrder, trickle), cause: causeUnreachable, text: "no answer in time"},
		{name: "firewall", begin: at(testenv.KindNewOrder, page(403, "text/html", html)), cause: causeNotACME, text: "403"},
	}
}

// status makes all answers about an order say this.
func status(value string) func(*fixture) {
	return func(f *fixture) {
		f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
			if kind != testenv.KindOrder && kind != testenv.KindFinalize {
				return nil
			}
			body, err := io.ReadAll(resp.Body)
			for _, was := range []string{"pending", "ready", "processing", "valid"} {
				body = bytes.Replace(body, []byte(`"status": "`+was+`"`), []byte(`"status": "`+value+`"`), 1)
			}
			testenv.ReplaceBody(resp, body)
			return err
		})
	}
}

func faultsOfOrders() []fault {
	short := func(_ *testing.T, _ *fixture, o *Options) { o.OrderTimeout = 2 * time.Second }
	valid := func(o *testenv.PebbleOptions) { o.AlwaysValid = true } // whatever becomes of our answers
	unavailable := page(503, "text/html", html)
	return []fault{
		{name: "order stuck in processing", pebble: valid, options: short, begin: status("processing"), cause: causeUnfinished, text: "taken up again"},
		{name: "order stuck in pending", pebble: valid, options: short, begin: status("pending"), cause: causeUnfinished, text: "taken up again"},
		{name: "order invalid without a reason", begin: status("invalid"), cause: causeUnknownReason, orders: 2},
		{name: "authorization 503 while polling", begin: times(2, testenv.KindAuthz, unavailable)},
		{name: "order 503 while polling", begin: times(2, testenv.KindOrder, unavailable)},
		{name: "certificate 404 once", begin: times(1, testenv.KindCert, says(404, "malformed", "no such certificate"))},
		{name: "no http-01", begin: func(f *fixture) {
			f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
				if kind != testenv.KindAuthz {
					return nil
				}
				body, err := io.ReadAll(resp.Body)
				testenv.ReplaceBody(resp, bytes.ReplaceAll(body, []byte(`"http-01"`), []byte(`"odd-01"`)))
				return err
			})
		}, cause: causeNoChallenge, orders: 2},
		{name: "alreadyReplaced", request: func(r *issuer.Request) { r.Replaces, r.InWindow = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", true }, begin: times(1, testenv.KindNewOrder, says(409, "alreadyReplaced", "there is a replacement"))},
		{name: "alreadyReplaced, whatever is sent", request: func(r *issuer.Request) { r.Replaces = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE" }, begin: at(testenv.KindNewOrder, says(409, "alreadyReplaced", "there is a replacement")), cause: "alreadyReplaced"},
		{name: "replaces a certificate that the CA does not know", request: func(r *issuer.Request) { r.Replaces, r.InWindow = "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE", true }},
	}
}

// chain makes the CA's chains into others. ahead is how far its clock is ahead of ours.
func chain(ahead time.Duration, change func(chain []byte, o *order) []byte) func(*fixture) {
	return func(f *fixture) {
		f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
			resp.Header.Set("Date", time.Now().Add(ahead).UTC().Format(http.TimeFormat))
			if kind != testenv.KindCert {
				return nil
			}
			body, err := io.ReadAll(resp.Body)
			testenv.ReplaceBody(resp, change(body, f.storedOrder()))
			return err
		})
	}
}

func faultsOfChains(t *testing.T) []fault {
	t.Helper()
	authority, err := issuertest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	// foreign signs our key by another CA, with a life that begins and ends then.
	foreign := func(from, to time.Duration) func([]byte, *order) []byte {
		return func(_ []byte, o *order) []byte {
			key, err := decodeKey(o.Key)
			public, ok := key.Public().(*ecdsa.PublicKey)
			if err != nil || !ok {
				t.Errorf("key of the order: %v", err)
				return nil
			}
			out, err := authority.Sign(issuertest.Leaf{
				Name: "www", DNSNames: []string{"a.example"}, NotBefore: time.Now().Add(from), NotAfter: time.Now().Add(to),
			}, public)
			if err != nil {
				t.Error(err)
			}
			return out
		}
	}
	anyRoot := func(_ *testing.T, _ *fixture, o *Options) { o.RootsFile, o.RootsUnchecked = "", true }
	const day = 24 * time.Hour
	return []fault{
		{name: "leaf-only chain", begin: chain(0, func(c []byte, _ *order) []byte { return blocks(c)[0] }), cause: causeChain, text: "chain_incomplete", orders: 2, certificates: 2},
		{name: "reordered chain", begin: chain(0, func(c []byte, _ *order) []byte {
			b := blocks(c)
			return bytes.Join([][]byte{b[1], b[0]}, nil)
		}), cause: causeChain, text: "leaf_not_first", orders: 2, certificates: 2},
		{name: "foreign chain", begin: chain(0, foreign(-day, 90*day)), cause: causeRoot, text: "untrusted", orders: 2, certificates: 2},
		{name: "clock skew, ours behind", options: anyRoot, begin: chain(2*time.Hour, foreign(2*time.Hour, 90*day)), cause: causeClock, text: "not_yet_valid", hint: "it is about 2h0m0s behind the CA's", orders: 2, certificates: 2},
		{name: "clock skew, ours ahead", options: anyRoot, begin: chain(-3*day, foreign(-9*day, -2*day)), cause: causeClock, text: "expired", hint: "it is about 72h0m0s ahead of the CA's", orders: 2, certificates: 2},
		{name: "certificate of tomorrow, clocks agree", options: anyRoot, begin: chain(0, foreign(day, 90*day)), cause: causeClock, text: "not_yet_valid", hint: "it agrees with the CA's", orders: 2, certificates: 2},
		{name: "clock skew and a foreign chain", begin: chain(2*time.Hour, foreign(2*time.Hour, 90*day)), cause: causeClock, hint: "behind", orders: 2, certificates: 2},
	}
}

// restart ends Pebble and starts another one at the same address, which knows no account and no order and has other roots.
func restart(f *fixture) {
	f.Helper()
	if err := f.pebble.Stop(); err != nil {
		f.Fatal(err)
	}
	f.pebble = f.Pebble(f.pebbleOptions)
}

func faultsOfAccounts() []fault {
	const kid, key = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	binding := func(kid, key string) func(*testing.T, *fixture, *Options) {
		return func(t *testing.T, _ *fixture, o *Options) {
			o.EAB = &EAB{KID: kid, HMACKeyFile: filepath.Join(t.TempDir(), "eab")}
			writeFile(t, o.EAB.HMACKeyFile, key)
		}
	}
	bound := func(o *testenv.PebbleOptions) { o.EAB = map[string]string{kid: key} }
	return []fault{
		{name: "account unknown (Pebble restarted)", begin: func(f *fixture) {
			f.obtain(f.issuer(nil), request("a.example"))
			f.accept(request("a.example"))
			restart(f)
		}, orders: 2, certificates: 2},
		{name: "account and order unknown (Pebble restarted before finalize)", begin: func(f *fixture) {
			hold := f.crashAtRequest(testenv.KindFinalize, testenv.Before, nil)
			f.Cleanup(hold.Release)
			restart(f)
		}, orders: 2},
		{name: "account and order unknown (Pebble restarted before the URL was stored)", begin: func(f *fixture) {
			f.loseURL(request("a.example"))
			restart(f)
		}, orders: 2},
		{name: "account unknown again and again", begin: at(testenv.KindNewOrder, says(400, "accountDoesNotExist", "who")), cause: "accountDoesNotExist", text: "who"},
		{name: "account deactivated", begin: at(testenv.KindNewOrder, says(403, "unauthorized", "account is deactivated")), cause: causeAccount, text: "deactivated"},
		{name: "EAB missing", pebble: bound, cause: "externalAccountRequired", lasts: true},
		{name: "EAB refused: unknown kid", pebble: bound, options: binding("kid-2", key), cause: causeBinding, text: "unauthorized", lasts: true},
		{name: "EAB refused: wrong hmac", pebble: bound, options: binding(kid, strings.Repeat("A", 64)), cause: causeBinding, lasts: true},
		{name: "EAB right", pebble: bound, options: binding(kid, key), lasts: true},
		{name: "EAB file missing", pebble: bound, options: func(_ *testing.T, _ *fixture, o *Options) { o.EAB = &EAB{KID: kid, HMACKeyFile: "/nowhere"} }, cause: causeOurSide, text: "/nowhere", lasts: true},
	}
}

func faultsOfNames(t *testing.T) []fault {
	t.Helper()
	silent, err := testenv.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	deaf := func(_ *testing.T, _ *fixture, o *Options) { o.Responder = &Responder{} }
	return []fault{
		{name: "rejected identifier", pebble: func(o *testenv.PebbleOptions) { o.BlockedDomains = []string{"a.example"} }, cause: "rejectedIdentifier", text: "a.example", lasts: true},
		{name: "CAA at finalize", begin: at(testenv.KindFinalize, says(403, "caa", "CAA record for a.example prevents issuance")), cause: "caa", text: "CAA record for a.example", orders: 2},
		{name: "CAA at validation", options: deaf, begin: validationProblem("caa"), cause: "caa", text: "a.example", orders: 2},
		{name: "validation: wrong answer", options: deaf, cause: "unauthorized", text: "a.example", orders: 2},
		{name: "validation: incorrectResponse", options: deaf, begin: validationProblem("incorrectResponse"), cause: "incorrectResponse", text: "a.example", orders: 2},
		{name: "validation: dns", options: deaf, begin: validationProblem("dns"), cause: "dns", text: "a.example", orders: 2},
		{name: "validation: tls", options: deaf, begin: validationProblem("tls"), cause: "tls", text: "a.example", orders: 2},
		{name: "validation: an error type that only this CA has", options: deaf, begin: validationProblem("moonPhase"), cause: "unauthorized", text: "moonPhase", orders: 2},
		{name: "validation: the CA's own trouble", options: deaf, begin: validationProblem("serverInternal"), cause: "serverInternal", orders: 2},
		{name: "validation: nothing on port 80", pebble: func(o *testenv.PebbleOptions) { o.HTTPPort = silent }, cause: "connection", text: "a.example", lasts: true},
		{name: "wildcard", request: func(r *issuer.Request) { r.DNSNames = []string{"*.a.example"} }, cause: causeWildcard, text: "*.a.example", lasts: true},
	}
}

// validationProblem makes the problems of failed challenges into this one.
func validationProblem(problemType string) func(*fixture) {
	return func(f *fixture) {
		f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
			if kind != testenv.KindAuthz {
				return nil
			}
			body, err := io.ReadAll(resp.Body)
			testenv.ReplaceBody(resp, bytes.ReplaceAll(body, []byte(problemPrefix+"unauthorized"), []byte(problemPrefix+problemType)))
			return err
		})
	}
}

// TestAnswersStayWhileTheReasonIsLookedFor keeps what the CA says from being our own doing.
func TestAnswersStayWhileTheReasonIsLookedFor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	status("invalid")(f)
	pending := make(chan int, 10)
	f.proxy.SetRespond(func(kind testenv.Kind, _ http.ResponseWriter, _ *http.Request) bool {
		if kind == testenv.KindAuthz {
			pending <- f.responder.Pending()
		}
		return false
	})
	_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindRejected, "no reason")
	if before, then := <-pending, <-pending; before != 0 || then != 1 {
		t.Errorf("got %d answers before the challenge and %d while the reason is looked for, want none and 1", before, then)
	}
	if n := f.responder.Pending(); n != 0 {
		t.Errorf("%d answers are left", n)
	}
}

// TestEveryCauseIsReached counts the causes that the faults above lead to; the others are error types that the CA is asked to explain.
func TestEveryCauseIsReached(t *testing.T) {
	t.Parallel()
	reached := map[cause]bool{"": true}
	for _, f := range slices.Concat(faultsOfAnswers(), faultsOfOrders(), faultsOfChains(t), faultsOfAccounts(), faultsOfNames(t)) {
		reached[f.cause] = true
	}
	i, err := New(Options{Name: "ca", Directory: "https://ca.invalid/dir", Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	classify := func(f *failure) {
		e, ok := errors.AsType[*issuer.Error](i.classify(t.Context(), "test", f))
		if !ok {
			t.Fatal("no issuer error")
		}
		for c, x := range explanations {
			if x.hint == e.Hint && x.kind == e.Kind {
				reached[c] = true
			}
		}
	}
	for _, name := range []string{
		"badCSR", "badPublicKey", "invalidContact", "unsupportedContact", "invalidProfile", "malformed", "unsupportedIdentifier", "userActionRequired", "moonPhase",
	} {
		classify(&failure{err: &legoacme.ProblemDetails{Type: problemPrefix + name, HTTPStatus: 400}, endpoint: endpointNewOrder, status: 400})
	}
	classify(&failure{err: x509.UnknownAuthorityError{}, endpoint: endpointDirectory})
	classify(&failure{err: x509.CertificateInvalidError{Reason: x509.Expired}, endpoint: endpointDirectory})
	for c := range explanations {
		if !reached[c] {
			t.Errorf("no test leads to the cause %q", c)
		}
	}
}
