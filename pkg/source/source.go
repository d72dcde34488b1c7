// Package source is where secrets come from that no CA issues: files (CA certificates, generic secrets), which are watched, and rings of
// session ticket keys, which this server makes and rotates.
//
// It stands beside the issuance loop: what it has judged to be good it hands to a [Sink], which stores it and carries it through the node
// groups. It never takes a secret away; that one left the configuration is the rollout controller's business.
//
// Invariants: what is not good is not handed on, and the last good one stays; a ring's state is in the same commit as the secret that was made
// of it, so that a crash leaves both or neither; nodes know a ticket key before any node encrypts with it.
package source

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/watch"
)

const (
	// debounce is how long changes of files are gathered, and how long a content has to stand before it is taken up: a file may be found half
	// written.
	debounce = 200 * time.Millisecond
	// lookInterval is how often everything is looked at without an event: some file systems tell of no changes.
	lookInterval = time.Minute
	// stepInterval is how often a ring is looked at, at most, whose nodes are being given a key.
	stepInterval = time.Second
)

// ErrHeld is what a Sink returns for a version that an operator or a NACK keeps back.
var ErrHeld = errors.New("held")

// Sink stores secrets and carries them to the nodes. Its methods may be called from several goroutines.
type Sink interface {
	// Version returns the version that the secret has, or would have.
	Version(s *secret.Secret) secret.Version
	// Accept stores a secret as a new version and begins its rollout. When it returns nil, the secret and the proposal's operations are durable,
	// by one commit. Accepting what is stored already begins a rollout for the groups that lack it, if there are any. The error is ErrHeld
	// where the version is held, and store.ErrConflict where a condition did not hold. After another error the outcome is not known; the
	// caller asks again.
	Accept(ctx context.Context, p Proposal) error
	// Standing tells how far a version has come.
	Standing(name string, version secret.Version) Standing
}

// Proposal is a secret that shall be served.
type Proposal struct {
	Secret *secret.Secret
	Made   bool // by this server, not read from files
	Reason string
	// Conditions and Operations go into the same commit.
	Conditions []store.Condition
	Operations []store.Operation
}

// Standing is how far a version of a secret has come.
type Standing struct {
	Everywhere bool   // every group is at it, its nodes have ACKed it, and no change of the secret is under way
	Nowhere    bool   // no group serves the secret, at whatever version, and none is about to
	Held       string // why the version is kept back; empty if it is not
}

// Config is the secrets that there shall be. Names are unique among all of them.
type Config struct {
	ValidationContexts []ValidationContext
	Generics           []Generic
	Rings              []Ring
}

// ValidationContext is a secret of the CA certificates in some files.
type ValidationContext struct {
	Name  string
	Files []string // absolute paths, at least one
}

// Generic is a secret with the content of a file.
type Generic struct {
	Name string
	File string // absolute path
}

// Ring is a secret of session ticket keys that this server makes.
type Ring struct {
	Name string
	// Rotate is the time from the instant at which a key is put first to the instant at which its successor is made; above 0.
	Rotate time.Duration
	// Keep is how many keys are served, the one that encrypts included; 1 to MaxKeep. While nodes learn a new one there is one more.
	Keep int
}

// MaxKeep is the most keys of a ring.
const MaxKeep = secret.MaxTicketKeys - 1

// Options configure a Source. Store, Sink, Log and Registerer are required.
type Options struct {
	// Store is where the rings are. Values must be sealed by it: keys are among them.
	Store store.Store
	Sink  Sink
	Log   *slog.Logger
	// CheckPrivate refuses a file that strangers could read or change; nil refuses none.
	CheckPrivate func(path string) error
	// Signals ask for a look at the files, usually SIGHUP; nil: none.
	Signals    <-chan os.Signal
	Registerer prometheus.Registerer
}

// Source keeps the secrets of a Config up to date. Set, Status and Run are safe for concurrent use; Load comes before Run.
type Source struct {
	Options
	wake chan struct{} // capacity 1: the configuration has changed

	// Used by Load and Run only.
	files map[string]*file
	told  map[string]string // by ring: the failure that was logged

	mu     sync.Mutex
	config Config            // guarded by mu
	status map[string]Status // guarded by mu
}

// Status is how one secret stands.
type Status struct {
	Name    string
	Kind    secret.Kind
	Version secret.Version // of the last good content; empty: none yet
	// Err is why the files are not taken up, or the ring does not move on; nil if all is well.
	Err error
	// Held says why the version is kept back; empty if it is not.
	Held string
	// CAEnd is when the next CA certificate of a validation context ends, or when the last one ended. Zero for the other kinds.
	CAEnd time.Time
	// Learning: nodes are given a new ticket key, and none encrypts with it yet.
	Learning bool
	// Switched is when the ticket key that encrypts was put first, Next when its successor is due.
	Switched, Next time.Time
}

// New returns a Source that does nothing yet.
func New(o Options, c Config) (*Source, error) {
	s := &Source{
		Options: o, wake: make(chan struct{}, 1), files: map[string]*file{}, told: map[string]string{}, config: c, status: map[string]Status{},
	}
	if err := o.Registerer.Register(newCollector(s)); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return s, nil
}

// Set puts a configuration in force; Run takes it up. Secrets that are not in it are left alone from now on.
func (s *Source) Set(c Config) {
	s.mu.Lock()
	s.config = c
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Status returns how every secret stands, sorted by name. Before Load it is empty.
func (s *Source) Status() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.status))
	for _, st := range s.status {
		all = append(all, st)
	}
	slices.SortFunc(all, byName)
	return all
}

// Load looks at everything once, so that what is new is on its way before any node is answered. What fails is tried again by Run.
func (s *Source) Load(ctx context.Context) { s.look(ctx, time.Now()) }

// Run keeps looking until ctx ends; it returns nil then.
func (s *Source) Run(ctx context.Context) error {
	watching, err := watch.New(s.paths())
	if err != nil {
		s.Log.WarnContext(ctx, "files of secrets are not watched; they are looked at every minute, and on SIGHUP", "err", err)
		s.loop(ctx, nil)
		return nil
	}
	defer watching.Close()
	s.loop(ctx, watching)
	return nil
}

// loop is Run, without a watch where that is nil.
func (s *Source) loop(ctx context.Context, watching *watch.Paths) {
	var events <-chan fsnotify.Event
	var failures <-chan error
	if watching != nil {
		events, failures = watching.Events(), watching.Errors()
	}
	for soon := time.Duration(0); ; { // what changed since Load
		timer := time.NewTimer(soon)
		changed := false
		for !changed {
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
				changed = true
				continue
			case <-events:
			case err := <-failures: // events were lost
				s.Log.WarnContext(ctx, "watching the files of secrets", "err", err)
			case <-s.Signals:
			case <-s.wake:
			}
			if soon > debounce { // later changes do not put it off
				soon = debounce
				timer.Reset(soon)
			}
		}
		if watching != nil {
			watching.Follow(s.paths())
		}
		next := s.look(ctx, time.Now())
		soon = min(lookInterval, max(time.Until(next), 0))
	}
}

func (s *Source) current() Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// look takes up what has changed, and returns when something is due without an event.
func (s *Source) look(ctx context.Context, now time.Time) time.Time {
	next := now.Add(lookInterval)
	sooner := func(t time.Time) {
		if t.Before(next) {
			next = t
		}
	}
	config := s.current()
	status := map[string]Status{}
	files := map[string]*file{}
	for _, f := range configured(config) {
		if old := s.files[f.name]; old != nil && old.same(f) {
			f = old
		}
		files[f.name] = f
		sooner(s.lookFile(ctx, f, now))
		status[f.name] = s.fileStatus(f, now)
	}
	s.files = files
	for _, r := range config.Rings {
		st, due := s.lookRing(ctx, r, now)
		sooner(due)
		status[r.Name] = st
	}
	s.dropRings(ctx, config.Rings)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.status = status
	return next
}
