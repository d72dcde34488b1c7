package acme

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// profile is the only profile of the CA in these tests; an order without one gets a random one from Pebble.
const profile = "default"

// fixture is a real CA, the proxy before it, and an issuer that goes through the proxy.
type fixture struct {
	*testenv.T
	pebble        *testenv.Pebble
	proxy         *testenv.Proxy
	store         *issuertest.Store
	responder     *Responder
	metrics       *Metrics
	registry      *prometheus.Registry
	pebbleOptions testenv.PebbleOptions
}

func newFixture(tb testing.TB, o testenv.PebbleOptions) *fixture {
	tb.Helper()
	f := &fixture{T: testenv.NewT(tb), store: issuertest.NewStore(), responder: &Responder{}, registry: prometheus.NewRegistry()}
	o.Port, o.ManagementPort = f.Port(), f.Port()
	if o.Profiles == nil {
		o.Profiles = map[string]testenv.PebbleProfile{profile: {}}
	}
	if o.HTTPPort == 0 {
		o.HTTPPort = f.Port()
		f.serveChallenges(o.HTTPPort, f.responder)
	}
	f.pebbleOptions = o
	f.pebble = f.Pebble(o)
	f.proxy = f.Proxy(f.pebble)
	var err error
	if f.metrics, err = NewMetrics(f.registry); err != nil {
		tb.Fatal(err)
	}
	return f
}

// Proxy starts a proxy that ends with the test.
func (f *fixture) Proxy(p *testenv.Pebble) *testenv.Proxy {
	f.Helper()
	proxy, err := p.StartProxy(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			f.Error(err)
		}
	})
	return proxy
}

// serveChallenges stands in for Envoy's port 80.
func (f *fixture) serveChallenges(port int, handler http.Handler) {
	f.Helper()
	l, err := (&net.ListenConfig{}).Listen(f.Context(), "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		f.Fatal(err)
	}
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // ends with Close
	f.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
}

// options are those of an issuer through the proxy that checks the roots.
func (f *fixture) options() Options {
	return Options{
		Name: "pebble", Directory: f.proxy.Directory, CAFile: f.pebble.CAFile, RootsFile: f.pebble.RootsFile,
		Email: "ops@example.com", AcceptTOS: true, Profile: profile,
		Store: f.store, Responder: f.responder, Metrics: f.metrics, Logger: testLogger(),
	}
}

// issuer makes an issuer; change may be nil.
func (f *fixture) issuer(change func(*Options)) *Issuer {
	f.Helper()
	o := f.options()
	if change != nil {
		change(&o)
	}
	i, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(i.Close)
	return i
}

func request(names ...string) issuer.Request {
	r := issuer.Request{Secret: "www", KeyType: "ecdsa-p256"}
	for _, name := range names {
		if a, err := netip.ParseAddr(name); err == nil {
			r.IPAddresses = append(r.IPAddresses, a)
		} else {
			r.DNSNames = append(r.DNSNames, name)
		}
	}
	return r
}

// obtain fails the test where there is no certificate.
func (f *fixture) obtain(i *Issuer, r issuer.Request) *secret.Secret {
	f.Helper()
	s, err := i.Obtain(f.Ready(), r)
	if err != nil {
		f.Fatal(err)
	}
	return s
}

// accept stands in for the sink: it stores the certificate and deletes the order.
func (f *fixture) accept(r issuer.Request) {
	f.Helper()
	if _, err := f.store.Commit(f.Context(), nil, []store.Operation{store.Delete(issuer.OrderKey(r.Secret))}); err != nil {
		f.Fatal(err)
	}
}

// wantKind fails the test unless err is an *issuer.Error of this kind whose text has all parts.
func wantKind(t *testing.T, err error, kind issuer.Kind, parts ...string) issuer.Error {
	t.Helper()
	e, ok := errors.AsType[*issuer.Error](err)
	if !ok {
		t.Fatalf("got %v, want an issuer error", err)
	}
	if e.Kind != kind {
		t.Errorf("got kind %s, want %s: %v", e.Kind, kind, err)
	}
	for _, part := range parts {
		if !strings.Contains(e.Error(), part) {
			t.Errorf("got %q, want it to have %q", e, part)
		}
	}
	if strings.Contains(e.Error()+e.Hint, "PRIVATE KEY") || strings.ContainsAny(e.Error(), "\n\r") {
		t.Errorf("got %q, want one line without a key", e)
	}
	return *e
}

// wantNoOrder fails the test if the store still has the order.
func (f *fixture) wantNoOrder(when string) {
	f.Helper()
	if _, err := f.store.Get(f.Context(), issuer.OrderKey("www")); !errors.Is(err, store.ErrNotFound) {
		f.Errorf("%s: order: got %v, want it deleted", when, err)
	}
}

func writeFile(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func testLogger() *slog.Logger { return slog.New(slog.DiscardHandler) }
