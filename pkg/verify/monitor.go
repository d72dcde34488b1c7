package verify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	// maxPairs is how many pairs of secret and group are probed by themselves and have metrics: those that end first.
	maxPairs = 5000
	// Handshakes under way at once, of an operator's commands and in the background.
	commandSlots    = 64
	backgroundSlots = 8
	// DefaultInterval is the time between two rounds in the background.
	DefaultInterval = time.Minute
	// jitter is by which part of the interval a pause may be shorter or longer.
	jitter = 0.1
)

// ErrNotConfigured is returned for a group that is not to be probed.
var ErrNotConfigured = errors.New("the group has no verify")

// Options configure a Monitor. Source, Log and Registerer are required.
type Options struct {
	// Source says what is wanted where.
	Source Source
	// Log gets a line when a secret is found not to be served as wanted, and when it is again.
	Log *slog.Logger
	// Registerer gets the metrics.
	Registerer prometheus.Registerer
	// Interval is the time from the end of a round in the background to the begin of the next, give or take a tenth. Default DefaultInterval.
	Interval time.Duration
	// Random is where the jitter comes from, in [0,1). Default: that of the program.
	Random func() float64
	// Wake is called when a round that Look asked for has ended, and when something else has found what Mismatch tells. It must not block. Default:
	// nothing.
	Wake func()
}

// Monitor probes what is served, on demand and by itself, and knows what it saw last. All methods are safe for concurrent use.
type Monitor struct {
	options    Options
	command    runner
	background runner
	metrics    *metrics
	rounds     *rounds
	early      *early

	mu     sync.Mutex
	pairs  map[pair]state        // guarded by mu; what the last round of the group saw
	served map[servedKey]*Served // guarded by mu
}

// pair is a secret in a group.
type pair struct{ group, secret string }

// state is what was seen of a pair.
type state struct {
	notAfter time.Time // the earliest end; zero: no leaf was seen
	mismatch *Failure  // nil: all that was seen is as wanted
	finding  Finding   // what it is, for a rollout
}

type servedKey struct {
	group, secret string
	node          NodeKey
}

// Served is what the last handshake with a node showed.
type Served struct {
	Serial  string
	Version secret.Version // empty: of no known version
	At      time.Time

	mismatch bool
}

// New returns a Monitor that has seen nothing yet. The error is that of a metric that cannot be registered.
func New(o Options) (*Monitor, error) {
	o.Interval = cmp.Or(o.Interval, DefaultInterval)
	if o.Random == nil {
		o.Random = rand.Float64
	}
	if o.Wake == nil {
		o.Wake = func() {}
	}
	m := &Monitor{
		options:    o,
		command:    runner{source: o.Source, slots: slots{make(chan struct{}, commandSlots)}},
		background: runner{source: o.Source, slots: slots{make(chan struct{}, backgroundSlots)}},
		rounds:     newRounds(), early: newEarly(),
		pairs: map[pair]state{}, served: map[servedKey]*Served{},
	}
	var err error
	if m.metrics, err = newMetrics(o.Registerer, m); err != nil {
		return nil, fmt.Errorf("register metrics: %w", err)
	}
	return m, nil
}

// Run probes in the background, and makes the rounds that Look asks for, until ctx ends.
func (m *Monitor) Run(ctx context.Context) error {
	var parts sync.WaitGroup
	parts.Go(func() { m.runRounds(ctx) })
	parts.Go(func() { m.runEarly(ctx) })
	m.runBackground(ctx)
	parts.Wait()
	return nil
}

func (m *Monitor) runBackground(ctx context.Context) {
	timer := time.NewTimer(m.pause())
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		groups := m.options.Source.Groups(ctx)
		m.round(ctx, groups)
		timer.Reset(m.pause())
	}
}

// round looks at all groups, each by itself: one that takes long delays no other.
func (m *Monitor) round(ctx context.Context, groups []Group) {
	m.forget(groups)
	var looking sync.WaitGroup
	for _, checks := range soonest(groups) {
		looking.Go(func() {
			_ = m.probe(ctx, &m.background, checks, func(Result) {}) // it is the end of ctx, which ends Run
		})
	}
	looking.Wait()
}

func (m *Monitor) pause() time.Duration {
	return time.Duration(float64(m.options.Interval) * (1 - jitter + 2*jitter*m.options.Random()))
}

// soonest returns the checks of each group, of the pairs that end first where there are many.
func soonest(groups []Group) [][]Check {
	ends := map[pair]time.Time{}
	for _, g := range groups {
		for _, t := range g.Targets {
			for _, w := range t.Secrets {
				ends[pair{g.Name, w.Secret}] = w.NotAfter
			}
		}
	}
	pairs := make([]pair, 0, len(ends))
	for p := range ends {
		pairs = append(pairs, p)
	}
	slices.SortFunc(pairs, func(a, b pair) int {
		return cmp.Or(ends[a].Compare(ends[b]), strings.Compare(a.group, b.group), strings.Compare(a.secret, b.secret))
	})
	chosen := map[pair]bool{}
	for _, p := range pairs[:min(len(pairs), maxPairs)] {
		chosen[p] = true
	}
	var all [][]Check
	for _, g := range groups {
		checks := slices.DeleteFunc(Plan(g), func(c Check) bool {
			return !slices.ContainsFunc(c.Wanted, func(w Leaf) bool { return chosen[pair{g.Name, w.Secret}] })
		})
		if len(checks) > 0 {
			all = append(all, checks)
		}
	}
	return all
}

// Report is what a command asked for came to, beside the results.
type Report struct {
	Group   string
	OK      int
	Failed  int
	Skipped []string // what could not be looked at, and why
}

// Verify probes one group now and calls each with every result, one at a time. The error is ErrNotConfigured, or that of ctx.
func (m *Monitor) Verify(ctx context.Context, group string, each func(Result)) (Report, error) {
	groups := m.options.Source.Groups(ctx, group)
	if len(groups) == 0 {
		return Report{}, fmt.Errorf("%q: %w", group, ErrNotConfigured)
	}
	report := Report{Group: group, Skipped: groups[0].Skipped}
	err := m.probe(ctx, &m.command, Plan(groups[0]), func(r Result) {
		if r.Failure == nil {
			report.OK++
		} else {
			report.Failed++
		}
		each(r)
	})
	return report, err
}

// probe runs the checks of one group and takes over what was seen when all are done.
func (m *Monitor) probe(ctx context.Context, r *runner, checks []Check, each func(Result)) error {
	var results []Result
	r.run(ctx, checks, func(one Result) {
		m.metrics.note(one)
		results = append(results, one)
		each(one)
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if len(checks) > 0 {
		m.record(ctx, checks[0].Group, results, nil)
	}
	return nil
}

// record takes over the results of a group, of all its secrets or, where only is not nil, of those.
func (m *Monitor) record(ctx context.Context, group string, results []Result, only map[string]secret.Version) {
	pairs, served := map[pair]state{}, map[servedKey]*Served{}
	for _, r := range results {
		p := pair{group, r.Secret()}
		st := pairs[p]
		if r.Shown != nil && (st.notAfter.IsZero() || r.Shown.NotAfter.Before(st.notAfter)) {
			st.notAfter = r.Shown.NotAfter
		}
		if r.Failure != nil && r.Failure.Kind.Mismatch() && st.mismatch == nil {
			st.mismatch, st.finding = r.Failure, r.finding(r.Secret(), r.Want().Version)
		}
		pairs[p] = st
		if r.Shown == nil {
			continue
		}
		one := &Served{Serial: r.Shown.Serial, Version: r.Shown.Version, At: r.At, mismatch: r.Failure != nil}
		for _, node := range r.Nodes {
			key := servedKey{group, p.secret, node}
			if have := served[key]; have == nil || !have.mismatch { // one name that is wrong is what a person has to see
				served[key] = one
			}
		}
	}
	began, ended := m.replace(group, pairs, served, only)
	for _, p := range began {
		f := pairs[p].mismatch
		m.options.Log.WarnContext(ctx, "certificate is not served as wanted", "secret", p.secret, "group", p.group, "kind", string(f.Kind), "err", f.Message, "hint", f.Hint)
	}
	for _, p := range ended {
		m.options.Log.InfoContext(ctx, "certificate is served as wanted again", "secret", p.secret, "group", p.group)
	}
	for _, st := range pairs {
		if st.mismatch != nil {
			m.options.Wake()
			return
		}
	}
}

// replace puts new states of a group in the place of the old ones, and returns which mismatches began and ended. What a node served stays
// known while nothing newer was seen.
func (m *Monitor) replace(group string, pairs map[pair]state, served map[servedKey]*Served, only map[string]secret.Version) (began, ended []pair) {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := map[pair]state{}
	for p, old := range m.pairs {
		_, asked := only[p.secret]
		if p.group == group && (only == nil || asked) {
			before[p] = old
			delete(m.pairs, p)
		}
	}
	for p, now := range pairs {
		if now.notAfter.IsZero() && now.mismatch == nil {
			continue // nothing was seen of it
		}
		m.pairs[p] = now
		switch was := before[p].mismatch != nil; {
		case now.mismatch != nil && !was:
			began = append(began, p)
		case now.mismatch == nil && was:
			ended = append(ended, p)
		}
	}
	maps.Copy(m.served, served)
	return began, ended
}

// forget drops what is known of groups and secrets that are not probed any more.
func (m *Monitor) forget(groups []Group) {
	live := map[pair]bool{}
	nodes := map[servedKey]bool{}
	for _, g := range groups {
		for _, t := range g.Targets {
			for _, w := range t.Secrets {
				live[pair{g.Name, w.Secret}] = true
				for _, n := range t.Nodes {
					nodes[servedKey{g.Name, w.Secret, n}] = true
				}
			}
		}
	}
	m.metrics.forget(groups)
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := range m.pairs {
		if !live[p] {
			delete(m.pairs, p)
		}
	}
	for k := range m.served {
		if !nodes[k] {
			delete(m.served, k)
		}
	}
}

// Served returns what the last handshake with a node showed of a secret; nil if there was none since the start.
func (m *Monitor) Served(group string, node NodeKey, secretName string) *Served {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.served[servedKey{group, secretName, node}]
}
