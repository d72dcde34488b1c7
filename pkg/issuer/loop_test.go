package issuer_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// world is a loop with a scripted issuer and a sink that stores, under a fake clock. It can be stopped and started again on the
// same store.
type world struct {
	*testing.T
	store    *issuertest.Store
	ca       *scriptedIssuer
	sink     *storingSink
	certs    []issuer.Certificate
	workers  int
	registry *prometheus.Registry
	loop     *issuer.Loop
	stop     func()
}

func newWorld(t *testing.T, certs ...issuer.Certificate) *world {
	t.Helper()
	authority, err := issuertest.NewAuthority()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, store: issuertest.NewStore(), certs: certs}
	w.ca = &scriptedIssuer{authority: authority, life: 6 * day, orders: make(map[string]int), running: make(map[string]int)}
	w.sink = &storingSink{store: w.store, accepted: make(map[string]int)}
	return w
}

// start runs a new loop; the world before it must have been stopped.
func (w *world) start() {
	w.Helper()
	w.registry = prometheus.NewRegistry()
	loop, err := issuer.New(issuer.Options{
		Store: w.store, Sink: w.sink, Logger: slog.New(slog.DiscardHandler), Registerer: w.registry, Workers: w.workers,
		Random: constant(0.5),
	})
	if err != nil {
		w.Fatal(err)
	}
	loop.SetIssuers(map[string]issuer.Issuer{"ca": w.ca})
	loop.SetCertificates(w.certs)
	ctx, cancel := context.WithCancel(w.Context())
	done := make(chan error, 1)
	go func() { done <- loop.Run(ctx) }()
	w.loop = loop
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			w.Errorf("run: %v", err)
		}
	})
	w.Cleanup(w.stop)
	synctest.Wait()
}

// pass lets fake time pass and waits until everything rests.
func pass(d time.Duration) {
	time.Sleep(d) //nolint:forbidigo // fake time of a synctest bubble
	synctest.Wait()
}

func (w *world) status(name string) issuer.Status {
	w.Helper()
	for _, s := range w.loop.Status() {
		if s.Name == name {
			return s
		}
	}
	w.Fatalf("no status of %q", name)
	return issuer.Status{}
}

func (w *world) wantOrders(name string, want int) {
	w.Helper()
	if got := w.ca.count(name); got != want {
		w.Errorf("%s: got %d orders, want %d", name, got, want)
	}
}

func certificate(name string) issuer.Certificate {
	return issuer.Certificate{Name: name, DNSNames: []string{name}, Issuer: "ca", KeyType: "ecdsa-p256"}
}

// scriptedIssuer signs at once, unless its hook says otherwise.
type scriptedIssuer struct {
	authority *issuertest.Authority
	life      time.Duration

	mu      sync.Mutex
	orders  map[string]int                                    // guarded by mu
	running map[string]int                                    // guarded by mu
	most    int                                               // guarded by mu; most orders at once
	hook    func(ctx context.Context, r issuer.Request) error // guarded by mu
	twice   bool                                              // guarded by mu; two orders for one name were under way
}

func (s *scriptedIssuer) setHook(hook func(context.Context, issuer.Request) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook = hook
}

func (s *scriptedIssuer) fail(err error) {
	s.setHook(func(context.Context, issuer.Request) error { return err })
}

func (s *scriptedIssuer) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.orders[name]
}

func (s *scriptedIssuer) begin(name string) func(context.Context, issuer.Request) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.orders[name]++
	s.running[name]++
	s.twice = s.twice || s.running[name] > 1
	all := 0
	for _, n := range s.running {
		all += n
	}
	s.most = max(s.most, all)
	return s.hook
}

func (s *scriptedIssuer) Obtain(ctx context.Context, r issuer.Request) (*secret.Secret, error) {
	hook := s.begin(r.Secret)
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.running[r.Secret]--
	}()
	r.Progress(issuer.StepOrdering)
	if hook != nil {
		if err := hook(ctx, r); err != nil {
			return nil, err
		}
	}
	return s.authority.Secret(issuertest.Leaf{
		Name: r.Secret, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, NotBefore: time.Now(), NotAfter: time.Now().Add(s.life),
	})
}

// storingSink commits as the rollout controller does.
type storingSink struct {
	store *issuertest.Store

	mu       sync.Mutex
	accepted map[string]int            // guarded by mu
	last     issuer.Issued             // guarded by mu
	hook     func(issuer.Issued) error // guarded by mu; before the commit
	answer   error                     // guarded by mu; after a commit that worked
}

func (s *storingSink) Accept(ctx context.Context, i issuer.Issued) (issuer.Accepted, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.hook != nil {
		if err := s.hook(i); err != nil {
			return issuer.Accepted{}, err
		}
	}
	name := i.Secret.Name()
	_, err := s.store.Commit(ctx, i.Conditions, append(i.Operations, store.Put(store.Key("secret", name), i.Secret.ChainPEM())))
	if err != nil {
		return issuer.Accepted{}, err
	}
	s.accepted[name]++
	s.last = i
	return issuer.Accepted{Version: i.Secret.Version([]byte("key")), Snapshot: uint64(s.accepted[name]), Rollout: 7}, s.answer
}

func (s *storingSink) count(name string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted[name]
}

func (s *storingSink) set(hook func(issuer.Issued) error, answer error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.hook, s.answer = hook, answer
}

var errCA = &issuer.Error{Kind: issuer.KindTemporary, Issuer: "ca", Message: "the CA is down"}

func TestCertificatesAreRenewedForever(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("long"))
		w.start()
		w.wantOrders("long", 1)
		for range 30 {
			pass(day)
			if s := w.status("long"); s.State != issuer.StateOK || time.Until(s.NotAfter) < 3*day {
				t.Fatalf("got state %s with %v left", s.State, time.Until(s.NotAfter))
			}
		}
		w.wantOrders("long", 11) // at the start and then each 2.97 days
		if got := w.sink.count("long"); got != 11 {
			t.Errorf("got %d certificates stored, want 11", got)
		}
	})
}

func TestRestartNeitherOrdersAgainNorMovesTheRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		next := w.status("a").NextRenewal
		for range 20 {
			w.stop()
			pass(time.Hour)
			w.start()
			if got := w.status("a"); !got.NextRenewal.Equal(next) || got.State != issuer.StateOK || got.LastRenewal.IsZero() {
				t.Fatalf("got %+v, want the same renewal at %v", got, next)
			}
		}
		w.wantOrders("a", 1)
		pass(time.Until(next) - time.Second)
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
	})
}

func TestFailureBacksOffAcrossRestarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(errCA)
		w.start()
		s := w.status("a")
		if s.State != issuer.StateFailing || s.Failure.Attempts != 1 || s.Failure.Kind != issuer.KindTemporary {
			t.Fatalf("got %+v, want one temporary failure", s)
		}
		w.stop()
		pass(9 * time.Second)
		w.start()
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
		w.stop()
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Attempts != 2 {
			t.Errorf("got %+v, want two failures", s.Failure)
		}
		pass(time.Minute)
		w.wantOrders("a", 3)
		w.ca.fail(nil)
		pass(10 * time.Minute)
		w.wantOrders("a", 4)
		if s := w.status("a"); s.State != issuer.StateOK || s.Failure != nil {
			t.Errorf("got %+v, want ok without a failure", s)
		}
	})
}

func TestRetryAfterIsNeverUndercut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.ca.fail(&issuer.Error{Kind: issuer.KindRateLimited, Issuer: "ca", Message: "too many", RetryAfter: 5 * time.Hour})
		w.start()
		pass(5*time.Hour - time.Second)
		w.wantOrders("a", 1)
		pass(time.Second)
		w.wantOrders("a", 2)
	})
}

func TestFailingRenewalLeavesTheValidCertificateAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.start()
		notAfter := w.status("a").NotAfter
		w.ca.fail(errCA)
		pass(6*day - time.Hour)
		s := w.status("a")
		if s.State != issuer.StateFailing || !s.NotAfter.Equal(notAfter) {
			t.Errorf("got %+v, want failing with the old certificate", s)
		}
		if n := w.ca.count("a"); n < 20 || n > 60 {
			t.Errorf("got %d tries in the second half, want each a tenth of what is left", n)
		}
		pass(2 * time.Hour)
		if s := w.status("a"); s.State != issuer.StateExpired || s.Failure == nil {
			t.Errorf("got %+v, want expired", s)
		}
		w.ca.fail(nil)
		pass(7 * time.Hour)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok again", s.State)
		}
	})
}

func TestHungCertificateDelaysNoOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("hung"))
		w.ca.setHook(func(ctx context.Context, r issuer.Request) error {
			if r.Secret == "hung" {
				<-ctx.Done()
				return context.Cause(ctx)
			}
			return nil
		})
		for n := range 20 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("c%d", n)))
		}
		w.workers = 2
		w.start()
		for n := range 20 {
			w.wantOrders(fmt.Sprintf("c%d", n), 1)
		}
		if got := w.status("hung"); got.State != issuer.StatePending || got.Step != issuer.StepOrdering {
			t.Errorf("got %+v, want pending at ordering", got)
		}
		before, _ := w.value("sds_issuance_loop_last_run_timestamp_seconds")
		pass(time.Minute)
		after, _ := w.value("sds_issuance_loop_last_run_timestamp_seconds")
		if after-before < 30 {
			t.Errorf("the heartbeat moved by %v s in a minute, want at least 30", after-before)
		}
		w.stop()
		if w.status("hung").Failure != nil {
			t.Error("an order that was cut by the end counts as a failure")
		}
	})
}

func TestNoMoreOrdersAtOnceThanWorkers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.ca.setHook(func(ctx context.Context, _ issuer.Request) error {
			select {
			case <-time.After(time.Minute):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		for n := range 10 {
			w.certs = append(w.certs, certificate(fmt.Sprintf("c%d", n)))
		}
		w.workers = 3
		w.start()
		pass(4 * time.Minute)
		if w.ca.most != 3 {
			t.Errorf("got %d orders at once, want 3", w.ca.most)
		}
		for n := range 10 {
			if got := w.sink.count(fmt.Sprintf("c%d", n)); got != 1 {
				t.Errorf("c%d: got %d certificates, want 1", n, got)
			}
		}
	})
}

func TestPanicCostsOneOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.workers = 1
		w.ca.setHook(func(context.Context, issuer.Request) error { panic("out of range") })
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindInternal {
			t.Fatalf("got %+v, want an internal failure", s)
		}
		w.ca.setHook(nil)
		pass(10 * time.Second)
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok", s.State)
		}
	})
}

func TestMissingIssuerIsAFailureUntilItIsThere(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := certificate("a")
		c.Issuer = "other"
		w := newWorld(t, c)
		w.start()
		if s := w.status("a"); s.Failure == nil || s.Failure.Kind != issuer.KindInternal || s.Failure.Hint == "" {
			t.Fatalf("got %+v, want an internal failure with a hint", s)
		}
		w.loop.SetIssuers(map[string]issuer.Issuer{"other": w.ca})
		synctest.Wait()
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %s, want ok as soon as the issuer is there", s.State)
		}
	})
}

func TestStoreMustBeReadableAtStart(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		w.store.HookRead(func(string) error { return issuertest.ErrFault })
		loop, err := issuer.New(issuer.Options{
			Store: w.store, Sink: w.sink, Logger: slog.New(slog.DiscardHandler), Registerer: prometheus.NewRegistry(),
		})
		if err != nil {
			t.Fatal(err)
		}
		loop.SetCertificates(w.certs)
		if err := loop.Run(t.Context()); !errors.Is(err, issuertest.ErrFault) {
			t.Errorf("got %v, want the store's error", err)
		}
		w.wantOrders("a", 0)
	})
}

func TestDamagedStateIsOrderedAnew(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, certificate("a"))
		if _, err := w.store.Commit(t.Context(), nil, []store.Operation{store.Put(issuer.StateKey("a"), []byte("{"))}); err != nil {
			t.Fatal(err)
		}
		w.start()
		if s := w.status("a"); s.State != issuer.StateOK {
			t.Errorf("got %+v, want ok", s)
		}
	})
}

// value returns the one series of a metric whose labels include those given as name, value pairs, and whether there is one.
func (w *world) value(metric string, labels ...string) (float64, bool) {
	w.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		w.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != metric {
			continue
		}
		for _, m := range f.GetMetric() {
			have := make(map[string]string)
			for _, l := range m.GetLabel() {
				have[l.GetName()] = l.GetValue()
			}
			fits := true
			for i := 0; i < len(labels); i += 2 {
				fits = fits && have[labels[i]] == labels[i+1]
			}
			if fits {
				return m.GetGauge().GetValue() + m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount()), true
			}
		}
	}
	return 0, false
}
