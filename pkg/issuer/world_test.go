package issuer_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"slices"
	"strings"
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
	slow     bool     // the loop looks only once an hour of its own accord, for tests in which months pass
	advisor  *advisor // nil: the CA gives no advice
	hold     func(string, time.Time) (string, time.Time)
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
		Random: constant(0.5), Hold: w.hold,
	})
	if err != nil {
		w.Fatal(err)
	}
	if w.slow {
		loop.SetHeartbeat(time.Hour)
	}
	loop.SetIssuers(map[string]issuer.Issuer{"ca": w.issuer()})
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

func (w *world) issuer() issuer.Issuer {
	if w.advisor != nil {
		return w.advisor
	}
	return w.ca
}

// advise makes the CA give advice.
func (w *world) advise(answer func(id string) (issuer.RenewalInfo, error)) *advisor {
	w.advisor = &advisor{scriptedIssuer: w.ca, asked: make(map[string][]time.Time)}
	w.advisor.set(answer)
	return w.advisor
}

// give stores the state of a certificate that is valid and has this part of its life left, and configures it. It is due if its
// part is under a half.
func (w *world) give(name string, life time.Duration, part float64) {
	w.Helper()
	c := certificate(name)
	end := time.Now().Add(time.Duration(part * float64(life)))
	w.setState(c, issuer.State{NotBefore: end.Add(-life), NotAfter: end, NextRenewal: end.Add(-life / 2)})
	w.certs = append(w.certs, c)
}

// stateOf reads the state of a certificate from the store.
func (w *world) stateOf(c issuer.Certificate) (s issuer.State) {
	w.Helper()
	e, err := w.store.Get(w.Context(), issuer.StateKey(c.Name))
	if err != nil {
		w.Fatal(err)
	}
	if err := json.Unmarshal(e.Value, &s); err != nil {
		w.Fatal(err)
	}
	return s
}

// setState stores a state of a certificate that fits its configuration.
func (w *world) setState(c issuer.Certificate, s issuer.State) {
	w.Helper()
	s.Issuer, s.Wanted, s.LastRenewal = c.Issuer, issuer.Wanted(c), s.NotBefore
	value, err := json.Marshal(s)
	if err != nil {
		w.Fatal(err)
	}
	if _, err := w.store.Commit(w.Context(), nil, []store.Operation{store.Put(issuer.StateKey(c.Name), value)}); err != nil {
		w.Fatal(err)
	}
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
	host := strings.NewReplacer(" ", "-", ",", "").Replace(name)
	return issuer.Certificate{Name: name, DNSNames: []string{host}, Issuer: "ca", KeyType: "ecdsa-p256"}
}

// scriptedIssuer signs at once, unless its hook says otherwise.
type scriptedIssuer struct {
	authority *issuertest.Authority
	life      time.Duration
	age       time.Duration // of what it issues

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
		Name: r.Secret, DNSNames: r.DNSNames, IPAddresses: r.IPAddresses, NotBefore: time.Now().Add(-s.age), NotAfter: time.Now().Add(s.life - s.age),
	})
}

// advisor is a scripted issuer whose CA gives advice.
type advisor struct {
	*scriptedIssuer

	mu     sync.Mutex
	answer func(id string) (issuer.RenewalInfo, error) // guarded by mu
	asked  map[string][]time.Time                      // guarded by mu
	now    int                                         // guarded by mu; questions under way
	most   int                                         // guarded by mu
}

func (a *advisor) set(answer func(string) (issuer.RenewalInfo, error)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.answer = answer
}

// times returns when the CA was asked, whatever about.
func (a *advisor) times() (all []time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, times := range a.asked {
		all = append(all, times...)
	}
	slices.SortFunc(all, time.Time.Compare)
	return all
}

func (a *advisor) RenewalInfo(_ context.Context, id string) (issuer.RenewalInfo, error) {
	a.mu.Lock()
	a.asked[id] = append(a.asked[id], time.Now())
	a.now++
	a.most = max(a.most, a.now)
	answer := a.answer
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.now--
	}()
	return answer(id)
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
