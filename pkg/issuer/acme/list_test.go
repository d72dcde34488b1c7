package acme

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	legoacme "github.com/go-acme/lego/v4/acme"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
)

// loseURL places an order that the CA has accepted, and whose URL does not reach the store.
func (f *fixture) loseURL(r issuer.Request) {
	f.Helper()
	requested := false
	f.store.Hook(func(operations []store.Operation) error {
		for _, o := range operations {
			if o.Key != issuer.OrderKey(r.Secret) {
				continue
			}
			if requested {
				return issuertest.ErrFault
			}
			requested = true
		}
		return nil
	}, nil)
	defer f.store.Hook(nil, nil)
	if _, err := f.issuer(nil).Obtain(f.Ready(), r); !errors.Is(err, issuertest.ErrFault) {
		f.Fatalf("got %v, want the store's error", err)
	}
}

// TestOrderIsFoundAmongMany has orders of other certificates on the pages before and after, in every state.
func TestOrderIsFoundAmongMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{OrdersPerPage: 2, Profiles: map[string]testenv.PebbleProfile{profile: {}, "other": {}}})
	i := f.issuer(nil)
	other := func(n int, names ...string) issuer.Request {
		r := request(names...)
		r.Secret = fmt.Sprintf("other-%d", n)
		return r
	}
	f.obtain(i, other(0, "a.example", "b.example")) // issued
	f.loseURL(other(1, "a.example"))                // another set
	r := other(2, "a.example", "b.example")
	r.Profile = "other"
	f.loseURL(r) // another profile
	_, err := f.issuer(func(o *Options) { o.Responder = &Responder{} }).Obtain(f.Ready(), other(3, "a.example", "b.example"))
	wantKind(t, err, issuer.KindValidation) // invalid
	if _, err := f.store.Commit(t.Context(), nil, []store.Operation{store.Delete(issuer.OrderKey("other-2"))}); err != nil {
		t.Fatal(err)
	}
	f.loseURL(request("b.example", "a.example"))
	key := f.storedOrder().Key
	for n := range 3 {
		f.obtain(i, other(10+n, "a.example", fmt.Sprintf("n%d.example", n)))
	}

	orders, pages := f.proxy.Count(testenv.KindNewOrder).Succeeded, f.proxy.Count(testenv.KindOrders).Succeeded
	s := f.obtain(f.issuer(nil), request("a.example", "b.example"))
	if n := f.proxy.Count(testenv.KindNewOrder).Succeeded - orders; n != 0 {
		t.Errorf("%d orders were placed, want the one from before to be found", n)
	}
	if n := f.proxy.Count(testenv.KindOrders).Succeeded - pages; n < 4 {
		t.Errorf("%d pages were read, want all of 7 orders", n)
	}
	if string(s.KeyPEM()) != key {
		t.Error("the certificate has another key than the order was stored with")
	}
}

func TestOrderOfATwinIsLeftAlone(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	twin := request("a.example")
	twin.Secret = "twin"
	f.loseURL(twin)
	f.loseURL(request("a.example"))
	// Nobody can say whose each of the two is: one more is placed, and then there is no doubt left.
	f.obtain(f.issuer(nil), request("a.example"))
	f.obtain(f.issuer(nil), twin)
	if n := f.proxy.Count(testenv.KindNewOrder).Succeeded; n != 3 {
		t.Errorf("got %d orders, want 3", n)
	}
	if n := f.proxy.Count(testenv.KindFinalize).Succeeded; n != 2 {
		t.Errorf("got %d certificates, want 2", n)
	}
}

// TestListThatCannotBeUsed answers the requests for account and list by what no CA should answer: a new order is placed, but not while there
// is no answer at all.
func TestListThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	next := func(w http.ResponseWriter, r *http.Request) { // an endless list
		w.Header().Add("Link", `<https://`+r.Host+`/dir>;rel="index"`)
		w.Header().Add("Link", `<https://`+r.Host+r.URL.Path+`x>;rel="next"`)
		_ = json.NewEncoder(w).Encode(map[string]any{"orders": []string{}})
	}
	same := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Add("Link", `<https://`+r.Host+r.URL.Path+`>;rel="next"`)
		_ = json.NewEncoder(w).Encode(map[string]any{"orders": []string{"https://" + r.Host + "/my-order/unknown", "http://x/", ":"}})
	}
	tests := []struct {
		name   string
		kind   testenv.Kind
		answer http.HandlerFunc
		fails  bool
		most   int // requests for the list
	}{
		{"no such account", testenv.KindAccount, func(w http.ResponseWriter, _ *http.Request) { problem(w, 401, "unauthorized", "no") }, false, 0},
		{"account page", testenv.KindAccount, page(403, "text/html", html), false, 0},
		{"account null", testenv.KindAccount, page(200, "application/json", "null"), false, 0},
		{"account 500 null", testenv.KindAccount, page(500, "application/json", "null"), false, 0},
		{"no such list", testenv.KindOrders, func(w http.ResponseWriter, _ *http.Request) { problem(w, 404, "malformed", "no") }, false, 1},
		{"list null", testenv.KindOrders, page(200, "application/json", "null"), false, 1},
		{"list of numbers", testenv.KindOrders, page(200, "application/json", `{"orders":[1]}`), false, 1},
		{"list HTML", testenv.KindOrders, page(200, "text/html", html), false, 1},
		{"endless list", testenv.KindOrders, next, false, maxPages},
		{"list that leads to itself", testenv.KindOrders, same, false, 1},
		{"no account", testenv.KindAccount, reset, true, 0},
		{"no list", testenv.KindOrders, reset, true, 1},
		{"no order", testenv.KindOrder, reset, true, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			f.loseURL(request("a.example"))
			f.respond(tt.kind, every, tt.answer)
			_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
			want := 2
			if tt.fails {
				wantKind(t, err, issuer.KindTemporary, "list the orders")
				f.proxy.SetRespond(nil)
				f.obtain(f.issuer(nil), request("a.example"))
				want = 1
			} else if err != nil {
				t.Error(err)
			}
			if n := f.proxy.Count(testenv.KindNewOrder).Succeeded; n != want {
				t.Errorf("got %d orders, want %d", n, want)
			}
			if n := f.proxy.Count(testenv.KindFinalize).Succeeded; n != 1 {
				t.Errorf("got %d certificates, want 1", n)
			}
			if n := f.proxy.Count(testenv.KindOrders).Received; !tt.fails && n > tt.most {
				t.Errorf("the list was asked for %d times, want at most %d", n, tt.most)
			}
		})
	}
}

func TestOrderThatFits(t *testing.T) {
	t.Parallel()
	o := &order{Identifiers: []string{"127.0.0.1", "a.example"}, Profile: "p"}
	id := func(values ...string) (ids []legoacme.Identifier) {
		for _, v := range values {
			ids = append(ids, legoacme.Identifier{Value: v})
		}
		return ids
	}
	tests := []struct {
		got  legoacme.Order
		want bool
	}{
		{legoacme.Order{Status: "pending", Identifiers: id("A.example", "127.0.0.1")}, true},
		{legoacme.Order{Status: "ready", Identifiers: id("127.0.0.1", "a.example"), Profile: "p"}, true},
		{legoacme.Order{Status: "ready", Identifiers: id("127.0.0.1", "a.example"), Profile: "q"}, false},
		{legoacme.Order{Status: "processing", Identifiers: id("127.0.0.1", "a.example")}, false},
		{legoacme.Order{Status: "valid", Identifiers: id("127.0.0.1", "a.example")}, false},
		{legoacme.Order{Status: "invalid", Identifiers: id("127.0.0.1", "a.example")}, false},
		{legoacme.Order{Status: "pending", Identifiers: id("a.example")}, false},
		{legoacme.Order{Status: "pending", Identifiers: id("127.0.0.1", "a.example", "b.example")}, false},
	}
	for _, tt := range tests {
		if got := o.fits(&tt.got); got != tt.want {
			t.Errorf("%+v: got %t, want %t", tt.got, got, tt.want)
		}
	}
}

func TestNextPage(t *testing.T) {
	t.Parallel()
	for value, want := range map[string]string{
		`<https://ca/2>;rel="next"`:                               "https://ca/2",
		`<https://ca/2>; rel=next`:                                "https://ca/2",
		`<https://ca/2>; title="x"; rel="next"`:                   "https://ca/2",
		`<https://ca/dir>;rel="index", <https://ca/2>;rel="next"`: "https://ca/2",
		`<https://ca/dir>;rel="index"`:                            "",
		`<https://ca/2>;rel="prev"`:                               "",
		`https://ca/2;rel="next"`:                                 "",
		``:                                                        "",
	} {
		if got := nextPage(http.Header{"Link": {`<https://ca/dir>;rel="index"`, value}}); got != want {
			t.Errorf("%s: got %q, want %q", value, got, want)
		}
	}
}
