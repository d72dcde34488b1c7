package acme

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
)

// page is an answer of something between us and the CA.
func page(status int, contentType, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body) // the client sees what is missing
	}
}

const html = "<html><body>no</body></html>"

// pages are what load balancers, firewalls and gateways answer.
var pages = map[string]http.HandlerFunc{
	"400 HTML":          page(400, "text/html", html),
	"403 HTML":          page(403, "text/html", html),
	"404 HTML":          page(404, "text/html", html),
	"410 HTML":          page(410, "text/html", html),
	"429 HTML":          page(429, "text/html", html),
	"500 HTML":          page(500, "text/html", html),
	"502 without body":  page(502, "text/html", ""),
	"503 HTML":          page(503, "text/html", html),
	"200 HTML":          page(200, "text/html", html),
	"200 other JSON":    page(200, "application/json", `{"ok":true}`),
	"403 other JSON":    page(403, "application/json", `{"error":"denied"}`),
	"403 JSON null":     page(403, "application/json", "null"),
	"404 other problem": page(404, "application/problem+json", `{"type":"about:blank","title":"Not Found","status":404}`),
}

// Every request that follows newOrder meets each page once: there is one order and one certificate.
func TestPageInBetweenCostsNeitherOrderNorCertificate(t *testing.T) {
	t.Parallel()
	const lost = "answer to finalize"
	for _, at := range []testenv.Kind{
		testenv.KindAuthz, testenv.KindChallenge, testenv.KindOrder, testenv.KindFinalize, lost, testenv.KindCert,
	} {
		for _, late := range []bool{false, true} {
			if late && at != testenv.KindOrder {
				continue // the others come once
			}
			t.Run(fmt.Sprintf("%s, after finalize %t", at, late), func(t *testing.T) {
				t.Parallel()
				f := newFixture(t, testenv.PebbleOptions{})
				i := f.issuer(nil)
				n := 0
				for name, answer := range pages {
					n++
					var met atomic.Bool
					orders, finalized := f.proxy.Count(testenv.KindNewOrder).Succeeded, f.proxy.Count(testenv.KindFinalize).Succeeded
					f.proxy.SetRespond(func(kind testenv.Kind, w http.ResponseWriter, r *http.Request) bool {
						if kind != at || late && f.proxy.Count(testenv.KindFinalize).Succeeded == finalized || !met.CompareAndSwap(false, true) {
							return false
						}
						answer(w, r)
						return true
					})
					f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
						if at == lost && kind == testenv.KindFinalize && met.CompareAndSwap(false, true) {
							resp.StatusCode, resp.Header = http.StatusForbidden, http.Header{"Content-Type": {"text/html"}}
							testenv.ReplaceBody(resp, []byte(html))
						}
						return nil
					})
					r := request(fmt.Sprintf("a%d.example", n))
					_, err := i.Obtain(f.Ready(), r)
					if e, ok := errors.AsType[*issuer.Error](err); ok && e.Kind != issuer.KindTemporary && e.Kind != issuer.KindRateLimited {
						t.Errorf("%s: got kind %s, want temporary or rate_limited: %v", name, e.Kind, err)
					}
					f.obtain(i, r)
					if !met.Load() {
						t.Errorf("%s: nothing was in between", name)
					}
					if got := f.proxy.Count(testenv.KindNewOrder).Succeeded - orders; got != 1 {
						t.Errorf("%s: got %d orders, want 1", name, got)
					}
					if got := f.proxy.Count(testenv.KindFinalize).Succeeded - finalized; got != 1 {
						t.Errorf("%s: got %d certificates, want 1", name, got)
					}
					f.accept(r)
				}
			})
		}
	}
}

// A firewall blocks one kind of request for as long as an Obtain lasts, and the process ends before it opens.
func TestBlockedRequestLeavesTheOrderToTheNextProcess(t *testing.T) {
	t.Parallel()
	for _, at := range []testenv.Kind{testenv.KindAuthz, testenv.KindChallenge, testenv.KindOrder, testenv.KindFinalize, testenv.KindCert} {
		t.Run(string(at), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.respond(at, every, page(http.StatusForbidden, "text/html", html))
			_, err := f.issuer(func(o *Options) { o.OrderTimeout = 5 * time.Second }).Obtain(f.Ready(), request("a.example"))
			e := wantKind(t, err, issuer.KindTemporary, "403")
			if want := hintOf(causeNotACME); e.Hint != want {
				t.Errorf("got hint %q, want %q", e.Hint, want)
			}
			o := f.storedOrder()
			f.proxy.SetRespond(nil)
			s := f.obtain(f.issuer(nil), request("a.example"))
			f.wantOneCertificate(s)
			if now := f.storedOrder(); now.URL != o.URL || now.Key != o.Key || string(s.KeyPEM()) != o.Key {
				t.Error("the certificate comes from another order")
			}
		})
	}
}

// finalized leaves an order whose certificate waits at the CA.
func (f *fixture) finalized() *order {
	f.Helper()
	f.respond(testenv.KindCert, every, page(http.StatusForbidden, "text/html", html))
	_, err := f.issuer(func(o *Options) { o.OrderTimeout = 5 * time.Second }).Obtain(f.Ready(), request("a.example"))
	if err == nil {
		f.Fatal("got a certificate through a firewall")
	}
	f.proxy.SetRespond(nil)
	return f.storedOrder()
}

func TestCertificateThatWaitsOutlivesRefusals(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		at     testenv.Kind
		n      int64
		answer http.HandlerFunc
	}{
		{"order unknown to one server of the CA", testenv.KindOrder, 1, func(w http.ResponseWriter, _ *http.Request) {
			problem(w, http.StatusNotFound, "malformed", "no such order")
		}},
		{"new terms", testenv.KindOrder, every, func(w http.ResponseWriter, _ *http.Request) {
			problem(w, http.StatusForbidden, "userActionRequired", "agree to the new terms")
		}},
		{"certificate unknown", testenv.KindCert, every, func(w http.ResponseWriter, _ *http.Request) {
			problem(w, http.StatusNotFound, "malformed", "no such certificate")
		}},
		{"directory moved", testenv.KindDirectory, every, func(w http.ResponseWriter, _ *http.Request) {
			problem(w, http.StatusNotFound, "malformed", "no such page")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			want := f.finalized()
			f.respond(tt.at, tt.n, tt.answer)
			if _, err := f.issuer(nil).Obtain(f.Ready(), request("a.example")); (err == nil) != (tt.n == 1) {
				t.Errorf("got %v after %d refusals", err, tt.n)
			}
			f.proxy.SetRespond(nil)
			s := f.obtain(f.issuer(nil), request("a.example"))
			f.wantOneCertificate(s)
			if string(s.KeyPEM()) != want.Key || f.proxy.Count(testenv.KindNewOrder).Succeeded != 1 {
				t.Error("the certificate comes from another order")
			}
		})
	}
}

func TestOrderThatIsRefusedForDaysIsReplaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	old := f.finalized()
	f.changeOrder(func(o *order) { o.Created = time.Now().Add(-longestFinalizing - time.Hour) })
	f.respond(testenv.KindOrder, 1, func(w http.ResponseWriter, _ *http.Request) {
		problem(w, http.StatusForbidden, "userActionRequired", "agree to the new terms")
	})
	if s := f.obtain(f.issuer(nil), request("a.example")); string(s.KeyPEM()) == old.Key {
		t.Error("the old order is still there")
	}
}

func TestWhatEndsAnOrder(t *testing.T) {
	t.Parallel()
	const old = longestFinalizing + time.Hour
	answer := func(at endpoint, status int, problemType string) *failure {
		f := &failure{err: errUnreadable, endpoint: at, status: status}
		if problemType != "" {
			f.err = &legoacme.ProblemDetails{Type: problemPrefix + problemType, HTTPStatus: status}
		}
		return f
	}
	tests := []struct {
		name       string
		err        error // *failure, or nil for our own refusal
		age        time.Duration
		placed     bool // whether it ends an order that was placed,
		finalizing bool // or one that may have a certificate
	}{
		{"order unknown", answer(endpointOrder, 404, "malformed"), 0, true, true},
		{"order gone", answer(endpointOrder, 410, "malformed"), 0, true, true},
		{"order of another account", answer(endpointOrder, 403, "unauthorized"), 0, true, true},
		{"order of no account", answer(endpointOrder, 400, "accountDoesNotExist"), 0, true, true},
		{"order request malformed", answer(endpointOrder, 400, "malformed"), 0, true, false},
		{"terms", answer(endpointOrder, 403, "userActionRequired"), 0, true, false},
		{"certificate unknown", answer(endpointCertificate, 404, "malformed"), 0, true, false},
		{"challenge refused", answer(endpointChallenge, 403, "unauthorized"), 0, true, false},
		{"authorization unknown", answer(endpointAuthorization, 404, "malformed"), 0, true, false},
		{"limit", answer(endpointOrder, 429, "rateLimited"), old, false, false},
		{"trouble", answer(endpointOrder, 500, "serverInternal"), old, false, false},
		{"directory unknown", answer(endpointDirectory, 404, "malformed"), 0, false, false},
		{"403 of a firewall", answer(endpointOrder, 403, ""), 0, false, false},
		{"404 of a load balancer", answer(endpointOrder, 404, ""), 0, false, false},
		{"404 of a load balancer for days", answer(endpointOrder, 404, ""), old, false, true},
		{"terms for days", answer(endpointOrder, 403, "userActionRequired"), old, true, true},
		{"429 of a load balancer for days", answer(endpointOrder, 429, ""), old, false, false},
		{"502 for days", answer(endpointOrder, 502, ""), old, false, false},
		{"no answer for days", answer(endpointOrder, 0, ""), old, false, false},
		{"nonsense of the CA", nil, 0, true, false},
		{"nonsense of the CA for days", nil, old, true, true},
	}
	i, err := New(Options{Name: "ca", Directory: "https://ca.invalid/dir", Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range tests {
		e := &issuer.Error{Kind: issuer.KindRejected, Issuer: "ca"}
		if tt.err != nil {
			var ok bool
			if e, ok = errors.AsType[*issuer.Error](i.classify(t.Context(), "order", tt.err)); !ok {
				t.Fatalf("%s: no issuer error", tt.name)
			}
		}
		for step, want := range map[string]bool{orderPlaced: tt.placed, orderFinalizing: tt.finalizing} {
			d := &driver{Issuer: i, order: &order{Step: step, Created: time.Now().Add(-tt.age)}}
			if got := d.ends(e); got != want {
				t.Errorf("%s, order %s: got ended %t, want %t", tt.name, step, got, want)
			}
		}
	}
}
