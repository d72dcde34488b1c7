package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

var (
	errCrash = errors.New("crashed")
	hmacKey  = []byte("0123456789abcdef0123456789abcdef")
)

// world is a Source on a real store, and a fleet of two groups behind its Sink that takes up what it is given, one group after the other.
type world struct {
	*Source
	t        *testing.T
	store    store.Store
	log      *lockedBuffer
	registry *prometheus.Registry
	watch    bool // real files; else in a bubble of synctest, which would wait for such a watch
	check    func(string) error
	end      context.CancelFunc
	done     chan error

	mu      sync.Mutex
	lag     time.Duration // from one group to the next
	blocked bool          // the fleet takes up nothing new
	holding bool          // and what is new is held
	groups  [2]map[string]*secret.Secret
	wanted  map[string]*wanted
	count   map[string]int // accepted proposals that made a version
	secrets map[secret.Version]*secret.Secret

	encrypting  map[string]bool // ticket keys that a group has encrypted with
	commits     int
	crashAt     int // commit at which the server crashes; -1: never
	crashBefore bool
	crashed     bool
	wasCrashed  bool
	fail        error // of the next calls of Accept
}

// wanted is what the fleet shall serve under a name.
type wanted struct {
	s    *secret.Secret
	at   [2]time.Time // when each group takes it up
	held bool
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) Bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return bytes.Clone(b.b.Bytes())
}

func (b *lockedBuffer) String() string { return string(b.Bytes()) }

func newWorld(t *testing.T) *world {
	t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &world{
		t: t, store: db, log: &lockedBuffer{}, groups: [2]map[string]*secret.Secret{{}, {}}, wanted: map[string]*wanted{}, count: map[string]int{},
		secrets: map[secret.Version]*secret.Secret{}, encrypting: map[string]bool{}, crashAt: -1,
	}
}

// start begins with a configuration, as the server does.
func (w *world) start(c Config) {
	w.t.Helper()
	w.mu.Lock()
	w.crashed = false
	w.mu.Unlock()
	var err error
	w.registry = prometheus.NewRegistry()
	w.Source, err = New(Options{
		Store: w.store, Sink: w, Log: slog.New(slog.NewTextHandler(w.log, nil)), Registerer: w.registry, CheckPrivate: w.check,
	}, c)
	if err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	w.end, w.done = cancel, make(chan error, 1)
	w.Load(ctx)
	go func(done chan<- error) {
		if w.watch {
			done <- w.Run(ctx)
			return
		}
		w.loop(ctx, nil)
		done <- nil
	}(w.done)
	w.t.Cleanup(w.stop)
}

func (w *world) stop() {
	if w.done == nil {
		return
	}
	w.end()
	if err := <-w.done; err != nil {
		w.t.Error(err)
	}
	w.done = nil
}

func (w *world) restart(c Config) {
	w.t.Helper()
	w.stop()
	w.start(c)
}

// wait lets time pass, and looks at the fleet each second.
func (w *world) wait(d time.Duration) {
	w.t.Helper()
	step := max(time.Second, d/200)
	for end := time.Now().Add(d); time.Now().Before(end); {
		<-time.After(min(step, time.Until(end)))
		synctest.Wait()
		w.mu.Lock()
		w.move()
		w.mu.Unlock()
	}
}

// Version implements Sink.
func (w *world) Version(s *secret.Secret) secret.Version { return s.Version(hmacKey) }

// Accept implements Sink.
func (w *world) Accept(ctx context.Context, p Proposal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.fail != nil {
		return w.fail
	}
	if w.crashed {
		return errCrash
	}
	name, version := p.Secret.Name(), w.Version(p.Secret)
	if have := w.wanted[name]; have != nil && w.Version(have.s) == version {
		if have.held {
			return fmt.Errorf("%w by the test", ErrHeld)
		}
		w.give(name, p.Secret)
		return nil
	}
	w.commits++
	dies := w.commits == w.crashAt+1
	if dies {
		w.crashed, w.wasCrashed = true, true
	}
	if dies && w.crashBefore {
		return errCrash
	}
	if len(p.Operations) > 0 {
		if _, err := w.store.Commit(ctx, p.Conditions, p.Operations); err != nil {
			return err
		}
	}
	w.give(name, p.Secret)
	w.count[name]++
	w.secrets[version] = p.Secret
	if dies {
		return errCrash
	}
	return nil
}

// give has the fleet take up a secret. The caller holds mu.
func (w *world) give(name string, s *secret.Secret) {
	now := time.Now()
	n := &wanted{s: s, at: [2]time.Time{now, now.Add(w.lag)}, held: w.holding}
	for i := range w.groups {
		if w.groups[i][name] == nil { // what a group does not have it gets at once
			w.groups[i][name] = s
		}
	}
	w.wanted[name] = n
	w.move()
}

// move takes up what is due, and checks of each key that encrypts that every group can read it. The caller holds mu.
func (w *world) move() {
	for name, n := range w.wanted {
		for i := range w.groups {
			if !w.blocked && !n.held && w.groups[i][name] != nil && !time.Now().Before(n.at[i]) {
				w.groups[i][name] = n.s
			}
		}
	}
	for i := range w.groups {
		for name, s := range w.groups[i] {
			if s.Kind() != secret.KindSessionTicketKeys {
				continue
			}
			first := s.TicketKeys()[0]
			w.encrypting[string(first)] = true
			for j := range w.groups {
				if other := w.groups[j][name]; other != nil && !slices.ContainsFunc(other.TicketKeys(), func(k []byte) bool { return bytes.Equal(k, first) }) {
					w.t.Errorf("group %d encrypts with a key that group %d does not know", i, j)
				}
			}
		}
	}
}

// Standing implements Sink.
func (w *world) Standing(name string, version secret.Version) Standing {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.move()
	st := Standing{Everywhere: true, Nowhere: true}
	for i := range w.groups {
		s := w.groups[i][name]
		st.Nowhere = st.Nowhere && s == nil
		st.Everywhere = st.Everywhere && s != nil && w.Version(s) == version
	}
	if n := w.wanted[name]; n != nil {
		if n.held && w.Version(n.s) == version {
			st.Held = "manual: by the test"
		}
		st.Everywhere = st.Everywhere && w.Version(n.s) == version
	}
	return st
}

// hold holds what the fleet shall serve under a name; release ends all holds.
func (w *world) hold(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted[name].held = true
}

func (w *world) release() {
	w.mu.Lock()
	defer w.mu.Unlock()
	blocked := w.blocked
	w.blocked = false
	for _, n := range w.wanted {
		n.held = false
	}
	w.move()
	w.blocked = blocked
}

// remove takes a name away from every group.
func (w *world) remove(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.groups {
		delete(w.groups[i], name)
	}
	if n := w.wanted[name]; n != nil && !n.held {
		delete(w.wanted, name)
	}
}

// served is what both groups serve under a name.
func (w *world) served(name string) *secret.Secret {
	w.t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.groups[0][name]
	if s == nil || w.groups[1][name] == nil || w.Version(s) != w.Version(w.groups[1][name]) {
		w.t.Fatalf("%s: the groups serve %v and %v", name, s, w.groups[1][name])
	}
	return s
}

func (w *world) ring(name string) [][]byte { w.t.Helper(); return w.served(name).TicketKeys() }

func (w *world) proposed(name string) [][]byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.wanted[name].s.TicketKeys()
}

func (w *world) hasCrashed() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.crashed
}

// set changes how the fleet takes up what is new: not at all, or by holding it.
func (w *world) set(blocked, holding bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.blocked, w.holding = blocked, holding
}

// encrypted is how many ticket keys a group has encrypted with.
func (w *world) encrypted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.encrypting)
}

func (w *world) versionOf(name string) secret.Version {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.Version(w.wanted[name].s)
}

func (w *world) accepted(name string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count[name]
}

func (w *world) status(name string) Status {
	w.t.Helper()
	for _, st := range w.Status() {
		if st.Name == name {
			return st
		}
	}
	w.t.Fatalf("no status of %s", name)
	return Status{}
}
