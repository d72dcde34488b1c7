package verify

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	// maxFindings bounds what a round keeps of what failed.
	maxFindings = 20
	// keepRound is for how long a round is kept, and goes on, that nobody asks for.
	keepRound = time.Minute
	// Handshakes under way at once for one round, and for all: one group whose nodes hang does not take what another one needs.
	roundSlots = 64
	allSlots   = 512
	// lastWord is what the other handshakes of a round get once one has failed for good.
	lastWord = time.Second
)

// Round is what handshakes with a group showed, for one change of it.
type Round struct {
	Began time.Time // zero: none yet
	Ended time.Time // zero: under way; what was found so far is in it
	// Targets is how many addresses were to be looked at; 0 where the group has no verify, or no connected node there subscribes to a wanted secret.
	Targets int
	// OK and Failed count handshakes about the wanted secrets, each once, however often it was repeated. Where another secret's certificate is shown as
	// that secret is wanted, nothing is counted: both may be 0 at the end though Targets is not.
	OK, Failed int
	// Served counts those of OK by secret.
	Served map[string]int
	// Findings are what failed, at most 20, one for each secret, node, kind and address, those that prove something first.
	Findings []Finding
}

// Finding is a handshake that did not show a wanted version.
type Finding struct {
	Secret  string
	Version secret.Version // the wanted one
	Node    string         // id; empty where it is not known which node it is
	Kind    string         // a Kind
	Unseen  bool           // nothing was seen (refused, timeout, broken, moved): no proof either way
	Message string         // what is wrong and where, one line
}

// rounds are those that Look is asked for.
type rounds struct {
	slots chan struct{}
	asked chan struct{} // of capacity 1: some are to begin

	mu    sync.Mutex
	known map[string]*lookout // guarded by mu, with what is in them; by lookKey
}

func newRounds() *rounds {
	return &rounds{slots: make(chan struct{}, allSlots), asked: make(chan struct{}, 1), known: map[string]*lookout{}}
}

// lookout is what is known for one group and what is wanted there.
type lookout struct {
	group string
	want  map[string]secret.Version

	asked   time.Time // when Look was called last
	ahead   time.Time // a time to come that was asked for
	aheadAt time.Time // when it was asked for first
	waiting bool      // a round is to begin, once the one under way has ended
	running bool
	cancel  context.CancelFunc // of the round under way
	round   Round              // the newest
	about   map[string]bool    // what Findings has
}

// Look returns the newest round of handshakes with a group for the wanted versions, by secret, that began at or after since (a time to come is taken as
// the moment when it is asked for first), and begins one if there is none; then, and where an older one is still under way, Began is zero. It never blocks. Run makes the rounds, and
// calls Options.Wake when one has ended. A round that is not asked for for a minute is forgotten.
//
// A round takes at most twice the group's time-out, as long as its nodes are no more than a few hundred: within the time-out an older leaf is looked at
// again, and so is an address that does not answer. It ends a second after an alert or a chain that clients do not accept. A version of a wanted secret
// that the group is not at (any more) is a finding of kind Moved, which proves nothing.
func (m *Monitor) Look(group string, want map[string]secret.Version, since time.Time) Round {
	now, key := time.Now(), lookKey(group, want)
	m.rounds.mu.Lock()
	defer m.rounds.mu.Unlock()
	l := m.rounds.known[key]
	if l == nil {
		l = &lookout{group: group, want: maps.Clone(want)}
		m.rounds.known[key] = l
	}
	l.asked = now
	if since.After(now) { // the clock was set back: the same time asked for again means the same round
		if !since.Equal(l.ahead) {
			l.ahead, l.aheadAt = since, now
		}
		since = l.aheadAt
	}
	if l.round.Began.IsZero() || l.round.Began.Before(since) {
		l.waiting = true
		m.rounds.wake()
		return Round{}
	}
	round := l.round
	round.Served, round.Findings = maps.Clone(round.Served), slices.Clone(round.Findings)
	return round
}

// lookKey is equal for equal questions.
func lookKey(group string, want map[string]secret.Version) string {
	var b strings.Builder
	b.WriteString(group)
	for _, name := range slices.Sorted(maps.Keys(want)) {
		b.WriteString("\x00" + name + "\x00" + string(want[name]))
	}
	return b.String()
}

func (r *rounds) wake() {
	select {
	case r.asked <- struct{}{}:
	default:
	}
}

// runRounds begins rounds until ctx ends.
func (m *Monitor) runRounds(ctx context.Context) {
	var under sync.WaitGroup
	defer under.Wait()
	forget := time.NewTicker(keepRound)
	defer forget.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.rounds.asked:
		case <-forget.C:
		}
		due := m.rounds.due(time.Now())
		if len(due) == 0 {
			continue
		}
		under.Go(func() { // what is wanted is asked for once: the fleet may be large
			groups := m.options.Source.Groups(ctx, groupNames(due)...)
			for _, l := range due {
				i := slices.IndexFunc(groups, func(g Group) bool { return g.Name == l.group })
				if i < 0 {
					i = len(groups)
					groups = append(groups, Group{Name: l.group}) // without verify
				}
				under.Go(func() { m.look(ctx, l, groups[i]) })
			}
		})
	}
}

func groupNames(due []*lookout) []string {
	names := map[string]bool{}
	for _, l := range due {
		names[l.group] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// due returns what is to begin now, and drops what nobody asks for.
func (r *rounds) due(now time.Time) []*lookout {
	r.mu.Lock()
	defer r.mu.Unlock()
	var due []*lookout
	for key, l := range r.known {
		if now.Sub(l.asked) >= keepRound {
			if delete(r.known, key); l.running {
				l.cancel()
			}
			continue
		}
		if l.waiting && !l.running {
			l.waiting, l.running, l.cancel = false, true, func() {}
			l.round, l.about = Round{Began: now, Served: map[string]int{}}, map[string]bool{}
			due = append(due, l)
		}
	}
	return due
}

// look makes one round. That it is over is told whatever came of it.
func (m *Monitor) look(ctx context.Context, l *lookout, g Group) {
	roundCtx, cancel := context.WithCancel(ctx)
	defer cancel()
	m.rounds.mu.Lock()
	l.cancel = cancel
	m.rounds.mu.Unlock()

	var results []Result // about the wanted versions
	r := runner{source: m.options.Source, slots: slots{make(chan struct{}, roundSlots), m.rounds.slots}, want: l.want}
	r.run(roundCtx, m.rounds.plan(l, g), func(one Result) {
		m.metrics.note(one)
		if one.Want().Version != l.want[one.Secret()] {
			return // it is about another secret
		}
		f := m.judged(l, &one)
		if f == nil || f.Kind != string(Moved) {
			results = append(results, one)
		}
		if f != nil && (f.Kind == string(Chain) || f.Kind == string(Alert)) { // no waiting mends it
			time.AfterFunc(lastWord, cancel) // to cancel what has ended changes nothing
		}
	})
	if ctx.Err() != nil {
		return // the program ends: nobody is to be told
	}
	m.record(ctx, l.group, results, l.want)
	m.rounds.mu.Lock()
	l.running, l.round.Ended = false, time.Now()
	m.rounds.mu.Unlock()
	m.rounds.wake()
	m.options.Wake()
}

// plan returns the checks of a round, and notes what cannot be looked for.
func (r *rounds) plan(l *lookout, g Group) []Check {
	var checks []Check
	targets, about := map[string]bool{}, newScope(g, l.want)
	for _, t := range g.Targets {
		planned := t.plan(g, about)
		if len(planned) > 0 {
			targets[t.Address] = true
		}
		checks = append(checks, planned...)
		for _, w := range t.Secrets {
			if version := l.want[w.Secret]; version != "" && version != w.Version && len(w.names(t.names(g))) > 0 {
				targets[t.Address] = true
				r.find(l, l.moved(w.Secret, t.Node, w.Version), t.Address)
			}
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l.round.Targets = len(targets)
	return checks
}

// moved says that a group is at another version of a secret than the wanted one.
func (l *lookout) moved(name, node string, at secret.Version) Finding {
	return Finding{
		Secret: name, Version: l.want[name], Node: node, Kind: string(Moved), Unseen: true,
		Message: fmt.Sprintf("%q: group %q is at version %s by now, not at %s", name, l.group, at.Short(), l.want[name].Short()),
	}
}

// judged counts a result about a wanted version, and returns what it found; nil where it is as wanted.
func (m *Monitor) judged(l *lookout, r *Result) *Finding {
	name := r.Secret()
	if r.Failure == nil {
		m.rounds.mu.Lock()
		defer m.rounds.mu.Unlock()
		l.round.OK++
		l.round.Served[name]++
		return nil
	}
	f := r.finding(name, l.want[name])
	if at, ok := m.options.Source.Current(l.group, name); !ok || at.Version != l.want[name] {
		f = l.moved(name, r.Node, at.Version)
	}
	m.rounds.mu.Lock()
	l.round.Failed++
	m.rounds.mu.Unlock()
	m.rounds.find(l, f, r.Address)
	return &f
}

// find adds a finding; address is where.
func (r *rounds) find(l *lookout, f Finding, address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	about := strings.Join([]string{f.Secret, f.Node, f.Kind, address}, "\x00")
	if l.about[about] {
		return
	}
	l.about[about] = true
	findings := &l.round.Findings
	if !f.Unseen {
		i := slices.IndexFunc(*findings, func(have Finding) bool { return have.Unseen })
		if i < 0 {
			i = len(*findings)
		}
		*findings = slices.Insert(*findings, i, f)
	} else {
		*findings = append(*findings, f)
	}
	*findings = (*findings)[:min(len(*findings), maxFindings)]
}

// finding is a failure as a rollout sees it.
func (r *Result) finding(name string, version secret.Version) Finding {
	return Finding{Secret: name, Version: version, Node: r.Node, Kind: string(r.Failure.Kind), Unseen: !r.Failure.Kind.Mismatch(), Message: r.Failure.Message}
}

// Mismatch returns what the last handshakes in the background found wrong with a secret in a group, where what they looked for was the given version.
func (m *Monitor) Mismatch(group, name string, version secret.Version) (Finding, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st, ok := m.pairs[pair{group, name}]
	if !ok || st.mismatch == nil || st.finding.Version != version {
		return Finding{}, false
	}
	return st.finding, true
}
