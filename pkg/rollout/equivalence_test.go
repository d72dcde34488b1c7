package rollout

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// TestControllerDoesWhatTheReferenceDoes runs random histories and compares after each step what is served everywhere, the rollouts and the holds.
func TestControllerDoesWhatTheReferenceDoes(t *testing.T) {
	var sum tally
	var all claimed
	all.in(t, 1, 2, 3, 4, 5, 6, 8, 9, 11)
	t.Cleanup(func() { t.Log(sum.String()) })
	histories(t, 24, func(t *testing.T, seed uint64) {
		h := newHistory(t, seed)
		h.play()
		h.checkKeys(h.check.claims, "the end")
		sum.add(h)
		all.add(h.check.claims)
	}, 1) // with a certificate that ends while a valid one is held: invariant 11
}

// play does one random thing after another, and compares.
func (h *history) play() {
	h.settle()
	for range h.length {
		h.acts = append(h.acts, time.Now().Format("15:04:05.0 ")+h.act())
		h.settle()
		h.check.settled(h)
		h.told = append(h.told, h.acts[len(h.acts)-1]+"\n"+h.picture())
		if h.t.Failed() {
			h.tell()
		}
		if h.t.Failed() || h.undecided {
			return
		}
	}
}

// history is a controller and a reference to which the same things happen.
type history struct {
	*rig
	ref    *reference
	seed   uint64
	random *rand.Rand
	names  []string
	length int
	acts   []string
	told   []string           // what there was after each action
	bad    map[version]string // which nodes refuse a version: a group, or "all"
	gone   map[string]bool    // secrets that left the configuration
	lives  map[string]time.Duration
	short  bool // certificates end, and deadlines pass
	check  invariants

	pictured int64 // revision of the store that image is of
	image    string
	parsed   map[string]parsedRollout // by key

	jumped string // group that an operator has moved with this action

	crashes   int
	faulted   bool // a look failed half-way, and another one went on
	undecided bool
}

func newHistory(t *testing.T, seed uint64) *history {
	random := rand.New(rand.NewPCG(seed, 0))
	p := waves([]string{"auto", "auto", "manual"}[random.IntN(3)], "canary", "eu us", "rest")
	p.Watch = []time.Duration{0, 20 * time.Second, time.Minute}[random.IntN(3)]
	p.UndoWindow = 5 * time.Minute
	p.NodeGrace = 2 * time.Minute
	p.RetryAfter = 10 * time.Minute
	p.EmptyWait = random.IntN(3) == 0
	if random.IntN(4) == 0 {
		p.MinAcked = 50
	}
	if random.IntN(4) == 0 {
		p.Gates = []Gate{{Name: "errors", Max: new(float64(5)), MaxIncrease: new(float64(2)), Timeout: 30 * time.Second}}
	}
	p.Hook = random.IntN(6) == 0
	h := &history{
		seed: seed, random: random, names: []string{"a", "b", "d"}[:1+random.IntN(3)], length: 40,
		bad: map[version]string{}, gone: map[string]bool{}, lives: map[string]time.Duration{},
		parsed: map[string]parsedRollout{},
	}
	h.short = random.IntN(2) == 0
	for _, name := range h.names { // the same for all its versions: finding 8
		if h.lives[name] = 90 * day; h.short {
			h.lives[name] = []time.Duration{90 * day, time.Hour, 20 * time.Minute, 20 * time.Minute}[random.IntN(4)]
		}
	}
	p.Managed = func(name string) bool { return !h.gone[name] }
	h.rig = newRigOn(t, p, seededStore(seed))
	h.refersTo = func(name string, v version) bool { return h.fleet.lastGood(name, v) }
	h.ref = newReference(p)
	h.prober.blinded = random.IntN(2) == 0
	h.prober.bad = map[version]string{}
	h.ref.prober.blinded, h.ref.prober.bad = h.prober.blinded, h.prober.bad
	h.ref.meters, h.ref.hook = h.meters, h.hook
	h.meters.values = map[string]string{"errors": "1"}
	h.hook.result = HookResult{Done: true}
	for _, g := range []string{"canary", "canary", "eu", "us", "rest"} {
		if random.IntN(6) == 0 {
			continue
		}
		names := h.names[:1+random.IntN(len(h.names))]
		id := fmt.Sprintf("n%d", len(h.fleet.nodes))
		h.node(id, g, names...)
		twin := &node{id: id, group: g, names: names, serves: versions{}, received: versions{}}
		twin.reset()
		twin.connect()
		h.ref.fleet.nodes = append(h.ref.fleet.nodes, twin)
	}
	h.both(func(n *node) {
		n.refuses = func(_ string, v version) bool { return h.bad[v] == "all" || h.bad[v] == n.group }
	})
	h.check.init()
	return h
}

// both changes every node, and its twin.
func (h *history) both(change func(*node)) {
	for _, f := range []*fleet{h.fleet, h.ref.fleet} {
		f.edit(func() {
			for _, n := range f.nodes {
				change(n)
			}
		})
	}
}

// twins changes one node, and its twin.
func (h *history) twins(i int, change func(*node)) {
	for _, f := range []*fleet{h.fleet, h.ref.fleet} {
		f.edit(func() { change(f.nodes[i]) })
	}
}

// settle lets both go on until nothing changes any more, and compares.
func (h *history) settle() {
	h.t.Helper()
	for range 3 { // what has ended is looked back at only after a pause
		h.rest()
		time.Sleep(lookBackPause) //nolint:forbidigo // the clock of the bubble
	}
	h.rest()
	h.compare()
}

func (h *history) rest() {
	h.t.Helper()
	last := ""
	for range 200 {
		h.look()
		now := h.String() + "\n" + h.ref.String()
		if now == last {
			return
		}
		last = now
	}
	h.t.Errorf("seed %d: it does not come to rest", h.seed)
}

// look lets both look once, and their nodes answer.
func (h *history) look() {
	h.t.Helper()
	if _, err := h.c.step(h.ctx()); err != nil {
		if !errors.Is(err, errDisk) {
			h.t.Fatalf("seed %d: %v", h.seed, err)
		}
		if h.mend() {
			return
		}
		h.faulted = true
		refs := h.ref.halves(time.Now())
		for range 5 { // the look that went on may have healed what the failed one took back: the same for the reference, so that both do it now
			h.step()
			for _, ref := range refs {
				ref.step(time.Now())
			}
		}
		if !h.choose(refs) {
			h.ref = refs[0]
		}
	}
	h.fleet.deliver(h.cache)
	h.ref.step(time.Now())
	h.ref.fleet.send(func(group, name string) version { return h.ref.serves[group][name] })
	h.check.looked(h)
}

func (h *history) compare() {
	h.t.Helper()
	if h.undecided {
		return
	}
	diff := cmp.Diff(strings.Split(h.ref.String(), "\n"), strings.Split(h.String(), "\n"))
	if h.faulted { // what was taken back before the fault is healed before the rollouts after it are looked at: the reference knows only whole looks
		h.faulted, h.undecided = false, diff != ""
	} else if diff != "" {
		h.t.Errorf("seed %d, after %d actions: the controller is not where the reference is (-reference +controller):\n%s", h.seed, len(h.acts), diff)
	}
}
