package rollout

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/cache"
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
	})
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

// tally is what the histories contained.
type tally struct {
	mu   sync.Mutex
	what map[string]int // guarded by mu
}

func (t *tally) add(h *history) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.what == nil {
		t.what = map[string]int{}
	}
	t.what["histories"]++
	t.what["crashes while something was due"] += h.crashes
	if h.undecided {
		t.what["histories not decided to their end"]++
	}
	for _, act := range h.acts {
		t.what["actions"]++
		for _, word := range []string{"promote to", "rollback to", "the waves are", "starts again", "clients reject", "goes, or comes", "the store fails", "restart", "pause"} {
			if strings.Contains(act, word) && !strings.Contains(act, "not possible") && !strings.Contains(act, "refused:") && !strings.Contains(act, "is held") {
				t.what[word]++
			}
		}
	}
	for _, r := range h.ref.rollouts {
		t.what["rollouts"]++
		t.what["rollouts "+string(r.state)]++
		for _, c := range r.change {
			t.what["changes "+string(c.kind)]++
		}
	}
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for _, word := range slices.Sorted(maps.Keys(t.what)) {
		parts = append(parts, fmt.Sprintf("%d %s", t.what[word], word))
	}
	return strings.Join(parts, ", ")
}

// picture is what is compared, in lines.
type picture struct{ lines []string }

func (p *picture) group(name string, at versions) {
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(at)) {
		parts = append(parts, n+"="+short(at[n]))
	}
	p.lines = append(p.lines, fmt.Sprintf("group %s: %s", name, strings.Join(parts, " ")))
}

func (p *picture) rollout(id int, s State, wave int, waves []string, wants versions) {
	if s.Ended() && s != Done {
		waves, wave = nil, 0
	}
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(wants)) {
		parts = append(parts, n+"->"+short(wants[n]))
	}
	p.lines = append(p.lines, fmt.Sprintf("rollout %03d: %s, wave %d of %q, %s", id, s, wave, waves, strings.Join(parts, " ")))
}

func (p *picture) hold(id holdID, kind HoldKind, handshake bool) {
	p.lines = append(p.lines, fmt.Sprintf("hold %s %s: %s %t", id.secret, short(id.version), kind, handshake))
}

func (p *picture) String() string {
	slices.Sort(p.lines)
	return strings.Join(p.lines, "\n")
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
		for range 5 { // the look that went on may have healed what the failed one took back: the same for the reference, so that both do it now
			h.step()
			h.ref.step(time.Now())
		}
	}
	h.fleet.deliver(h.cache)
	h.ref.step(time.Now())
	h.ref.fleet.send(func(group, name string) version { return h.ref.serves[group][name] })
	h.check.looked(h)
}

// String tells what the controller has, as the reference does. Nearly always nothing has changed since it was asked last.
func (h *history) String() string {
	if now := h.memory.at(); h.pictured != now || h.c.doubt {
		h.pictured, h.image = now, h.draw()
	}
	return h.image
}

func (h *history) draw() string {
	var p picture
	for _, g := range h.policy.Groups() {
		p.group(g, maps.Collect(h.mustAt(g).Secrets.All()))
	}
	for _, r := range h.rollouts() {
		waves := make([]string, 0, len(r.Waves))
		for _, w := range r.Waves {
			waves = append(waves, strings.Join(w.Groups, "+")+" "+string(w.State))
		}
		wave := r.Wave
		p.rollout(int(r.ID), r.State, wave, waves, r.wants())
	}
	for _, one := range h.c.Holds() {
		p.hold(holdID{one.Secret, one.Version}, one.Kind, one.Handshake)
	}
	return p.String()
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

// rollouts are all that are stored, read once each time one is written.
func (h *history) rollouts() []*Rollout {
	entries, _, err := h.memory.List(h.ctx(), rolloutPrefix+"/")
	if err != nil {
		h.t.Fatal(err)
	}
	all := make([]*Rollout, 0, len(entries))
	for _, e := range entries {
		known := h.parsed[e.Key]
		if known.revision != e.Revision {
			known = parsedRollout{must(parse(e)), e.Revision}
			h.parsed[e.Key] = known
		}
		all = append(all, known.rollout)
	}
	return all
}

type parsedRollout struct {
	rollout  *Rollout // never written to
	revision int64
}

// tell prints the history that failed.
func (h *history) tell() {
	p := h.policy
	h.t.Logf("manual %t, watch %s, empty wait %t, min acked %d, gates %d, hook %t, blind %t, now %s", p.Manual, p.Watch, p.EmptyWait, p.MinAcked, len(p.Gates), p.Hook, h.prober.blinded, time.Now().Format("15:04:05.0"))
	for _, n := range h.fleet.nodes {
		h.t.Logf("node %s of %s: %v, connected %t, silent %t", n.id, n.group, n.names, n.connected, n.silent)
	}
	h.t.Logf("history:\n%s", strings.Join(h.acts, "\n"))
	h.t.Logf("controller:\n%s", h.String())
	if history, err := h.c.History(h.ctx()); err == nil {
		for _, r := range history[max(0, len(history)-6):] {
			for _, e := range r.Log {
				h.t.Logf("rollout %d %s: %s %s", r.ID, e.At.Format("15:04:05.0"), e.State, e.Reason)
			}
		}
	}
}

// mend is what happens after a write that failed, or whose answer got lost, while the controller looked: a crash, or not. What was due then
// may be done, or not: what comes after the crash has to be what the reference does in one of the two cases. It returns whether there was a crash.
func (h *history) mend() bool {
	h.t.Helper()
	h.disk.hooks(nil, nil)
	if h.random.IntN(2) == 0 {
		return false // it goes on, and reads what the store holds
	}
	done := h.ref.clone()
	done.step(time.Now())
	h.crashes++
	h.reboot(done)
	for range 100 {
		was := h.String() + h.ref.String() + done.String()
		h.step()
		h.fleet.deliver(h.cache)
		for _, ref := range []*reference{h.ref, done} {
			ref.step(time.Now())
			ref.fleet.send(func(group, name string) version { return ref.serves[group][name] })
		}
		if now := h.String() + h.ref.String() + done.String(); now == was {
			break
		}
	}
	switch now := h.String(); {
	case h.ref.String() == now:
	case done.String() == now:
		h.ref = done
	default: // several things were due, and only some of them are done
		h.undecided = true
	}
	return true
}

// reboot ends the server without a word, and starts it again; Envoys too.
func (h *history) reboot(more ...*reference) {
	h.t.Helper()
	before := h.String()
	if h.c.doubt { // it does not know what the store holds
		before = ""
	}
	refs := append([]*reference{h.ref}, more...)
	again := func(f *fleet) {
		f.forget(true)
		f.edit(func() {
			for _, n := range f.nodes {
				clear(n.received)
			}
		})
	}
	again(h.fleet)
	h.crash()
	h.check.restarted(h, before)
	for _, ref := range refs {
		again(ref.fleet)
		h.check.watches(h, ref)
		ref.restart()
	}
	if err := h.c.Reconfigure(h.ctx(), h.policy); err != nil {
		h.t.Fatal(err)
	}
}

// act does one random thing, as a CA, a node, an operator or a failing machine does.
func (h *history) act() string {
	h.jumped = ""
	name := h.names[h.random.IntN(len(h.names))]
	group := h.policy.Groups()[h.random.IntN(4)]
	id := h.random.IntN(3)
	if n := len(h.ref.rollouts); n > 0 {
		id = max(1, n-id)
	}
	switch k := h.random.IntN(100); {
	case k < 22:
		return h.accept(name)
	case k < 50:
		return h.wait()
	case k < 62:
		return h.nodeAct()
	case k < 84:
		return h.operate(name, group, id)
	case k < 92:
		return h.world()
	case k < 95:
		h.reboot()
		return "restart"
	default:
		n := h.random.IntN(4) + 1
		return h.failing(n, name)
	}
}

// failing makes the n-th commit fail from now on, before or after it.
func (h *history) failing(n int, name string) string {
	at := func(k int) bool { return k >= n }
	base := h.disk.count()
	when := "before"
	if h.random.IntN(2) == 0 {
		h.disk.hooks(func(k int) bool { return at(k - base) }, nil)
	} else {
		when = "after"
		h.disk.hooks(nil, func(k int) bool { return at(k - base) })
	}
	return fmt.Sprintf("the store fails %s commit %d; %s", when, n, h.accept(name))
}

// accept takes in a new version, good or bad.
func (h *history) accept(name string) string {
	if h.gone[name] {
		return "nothing"
	}
	life := h.lives[name]
	p := Proposal{Secret: h.newSecret(name, life), Source: cache.SourceACME, Issuer: []string{"le", "le", "gts"}[h.random.IntN(3)], Reason: "issued"}
	v := h.cache.Version(p.Secret)
	what := ""
	switch h.random.IntN(10) {
	case 0:
		h.bad[v], what = "all", ", that all refuse"
	case 1:
		h.bad[v] = h.policy.Groups()[h.random.IntN(4)]
		what = ", that " + h.bad[v] + " refuses"
	case 2:
		h.prober.bad[v], what = "unknown root", ", that clients reject"
	}
	h.check.accepts(h, p.Secret, life)
	h.do(func() error { _, err := h.c.Accept(h.ctx(), p); return err }, func() {
		h.check.newest[name] = v
		for _, one := range must(h.cache.Versions(h.ctx(), name)) {
			if one.Version == v {
				h.ref.accept(one)
			}
		}
	})
	return fmt.Sprintf("accept %s %s, lives %s%s", name, short(v), life, what)
}

// do lets both do something. What a failing store keeps from being done is done again; what was only not answered is done.
func (h *history) do(wish func() error, reference func()) {
	h.t.Helper()
	lost := h.disk.after != nil
	err := wish()
	if !errors.Is(err, errDisk) {
		reference()
		return
	}
	if lost {
		h.disk.hooks(nil, nil)
		if err := h.c.take(h.ctx()); err != nil { // it reads what the store holds
			h.t.Fatal(err)
		}
		h.c.leave()
		reference()
		h.reboot()
		return
	}
	h.mend()
	if err := wish(); err != nil && errors.Is(err, errDisk) {
		h.t.Fatal(err)
	}
	reference()
}

func (h *history) wait() string {
	d := time.Duration(1+h.random.IntN(100)) * time.Second
	if h.random.IntN(5) == 0 {
		d *= 8
	}
	for end := time.Now().Add(d); time.Now().Before(end) && !h.t.Failed() && !h.undecided; {
		time.Sleep(time.Second) //nolint:forbidigo // the clock of the bubble
		h.look()
	}
	return fmt.Sprintf("%s pass", d)
}

func (h *history) nodeAct() string {
	if len(h.fleet.nodes) == 0 {
		return "nothing"
	}
	i := h.random.IntN(len(h.fleet.nodes))
	id := h.fleet.nodes[i].id
	if h.random.IntN(3) == 0 {
		h.twins(i, func(n *node) { n.silent = !n.silent })
		return id + " is silent, or not"
	}
	h.twins(i, func(n *node) {
		if n.connected {
			n.disconnect()
		} else {
			n.connect()
		}
	})
	return id + " goes, or comes"
}

// operate is what an operator wishes; one of many.
func (h *history) operate(name, group string, id int) string {
	ctx := h.ctx()
	control := func(what string, wish func(id uint64) (Control, error), reference func(int) bool) string {
		var c Control
		var err error
		h.do(func() error { c, err = wish(uint64(id)); return err }, func() {
			if ok := reference(id); ok != (err == nil && !c.Already) && !errors.Is(err, errDisk) {
				h.t.Errorf("seed %d: %s %d: the reference says %t, the controller %+v, %v", h.seed, what, id, ok, c, err)
			}
		})
		return fmt.Sprintf("%s %d: %v", what, id, err)
	}
	switch k := h.random.IntN(20); {
	case k < 4:
		h.do(func() error { _, err := h.c.Promote(ctx, group, 0, alice); return err }, func() { h.ref.promote(group) })
		return "promote " + group
	case k < 5:
		return h.wish("rollback "+group, func() error { _, err := h.c.Rollback(ctx, group, alice); return err }, func() bool { return h.ref.rollback(group) })
	case k < 7:
		return h.jump(group)
	case k < 8:
		h.do(func() error { _, err := h.c.Release(ctx, name, ""); return err }, func() { h.ref.release(name) })
		return "release " + name
	case k < 10:
		return h.wish("hold "+name, func() error { _, err := h.c.Hold(ctx, name, "", alice); return err }, func() bool { return h.ref.keep(name) })
	case k < 13:
		return control("pause", func(id uint64) (Control, error) { return h.c.Pause(ctx, id, alice) }, h.ref.pause)
	case k < 16:
		return control("resume", func(id uint64) (Control, error) { return h.c.Resume(ctx, id, alice) }, h.ref.resume)
	case k < 17:
		return control("abort", func(id uint64) (Control, error) { return h.c.Abort(ctx, id, alice) }, h.ref.abort)
	case k < 18:
		return control("undo", func(id uint64) (Control, error) { return h.c.Undo(ctx, id, alice) }, h.ref.undo)
	default:
		stored := h.ref.stored[name]
		if len(stored) == 0 {
			return "nothing"
		}
		v := stored[h.random.IntN(min(2, len(stored)))].Version
		return h.wish("start "+name+" "+short(v), func() error { _, err := h.c.Start(ctx, name, v, alice); return err }, func() bool { return h.ref.start(name, v) })
	}
}

// jump takes a group to what some snapshot has, forward or back.
func (h *history) jump(group string) string {
	number := 1 + h.random.Uint64N(h.cache.Latest())
	set := versions(maps.Collect(must(h.cache.Snapshot(h.ctx(), number)).Secrets.All()))
	h.jumped = group
	what, wish, direction := "promote to", (*Controller).PromoteTo, cache.Forward
	if h.random.IntN(2) == 0 {
		what, wish, direction = "rollback to", (*Controller).RollbackTo, cache.Beside
	}
	what = fmt.Sprintf("%s %d, %s", what, number, group)
	return h.wish(what, func() error { _, err := wish(h.c, h.ctx(), group, number, alice); return err }, func() bool { return h.ref.toSnapshot(group, set, direction) })
}

// wish lets both do what an operator wishes; one that is refused has to be refused by both.
func (h *history) wish(what string, wish func() error, reference func() bool) string {
	var err error
	h.do(func() error { err = wish(); return err }, func() {
		if ok := reference(); ok != (err == nil) && !errors.Is(err, errDisk) {
			h.t.Errorf("seed %d: %s: the reference says %t, the controller %v", h.seed, what, ok, err)
		}
	})
	return fmt.Sprintf("%s: %v", what, err)
}

// world changes what is around: gates, handshakes, the hook, the configuration.
func (h *history) world() string {
	switch h.random.IntN(9) {
	case 6, 7, 8:
		return h.complain()
	case 0:
		h.meters.values["errors"] = []string{"0", "1", "2.5", "9"}[h.random.IntN(4)]
		return "errors are at " + h.meters.values["errors"]
	case 1:
		if delete(h.meters.values, "errors"); h.random.IntN(2) == 0 {
			h.meters.values["errors"] = "1"
		}
		return fmt.Sprintf("errors are at %q", h.meters.values["errors"])
	case 2:
		h.prober.unseen = !h.prober.unseen && h.random.IntN(2) == 0
		h.ref.prober.unseen = h.prober.unseen
		return fmt.Sprintf("handshakes see nothing: %t", h.prober.unseen)
	case 3:
		h.prober.hung = !h.prober.hung && h.random.IntN(2) == 0
		h.ref.prober.hung = h.prober.hung
		return fmt.Sprintf("handshakes hang: %t", h.prober.hung)
	case 4:
		h.hook.result = []HookResult{{Done: true}, {Done: true}, {}, {Done: true, Failed: "no"}, {Err: "not found"}}[h.random.IntN(5)]
		return fmt.Sprintf("the hook says %+v", h.hook.result)
	default:
		return h.configure()
	}
}

// complain makes a version bad that is served already: clients reject it now, or nodes that start again refuse it.
func (h *history) complain() string {
	group, name := h.policy.Groups()[h.random.IntN(4)], h.names[h.random.IntN(len(h.names))]
	v := h.ref.serves[group][name]
	if v == "" {
		return "nothing"
	}
	if h.random.IntN(2) == 0 {
		h.prober.bad[v] = "the root is gone"
		return fmt.Sprintf("clients reject %s %s now", name, short(v))
	}
	h.bad[v] = group
	h.both(func(n *node) {
		if n.group == group && n.connected {
			n.connect()
			clear(n.received)
		}
	})
	return fmt.Sprintf("%s starts again, and refuses %s %s", group, name, short(v))
}

// configure is a reload of the configuration.
func (h *history) configure() string {
	p := h.policy
	what := ""
	switch h.random.IntN(4) {
	case 3:
		p.Waves = [][][]string{
			{{"canary"}, {"eu", "us"}, {"rest"}}, {{"canary"}, {"eu"}, {"us"}, {"rest"}}, {{"eu"}, {"canary", "us"}, {"rest"}},
			{{"canary", "eu"}, {"us", "rest"}}, {{"rest"}, {"us"}, {"eu"}, {"canary"}},
		}[h.random.IntN(5)]
		what = fmt.Sprintf("the waves are %v", p.Waves)
	case 0:
		p.Manual = !p.Manual
		what = fmt.Sprintf("manual is %t", p.Manual)
	case 1:
		p.Calendar = nil
		if h.random.IntN(2) == 0 {
			p.Calendar = closed(time.Now().Add(5 * time.Minute))
		}
		what = fmt.Sprintf("frozen: %t", p.Calendar != nil)
	default:
		name := h.names[0]
		h.gone[name] = !h.gone[name] && h.random.IntN(2) == 0
		what = fmt.Sprintf("%s has left the configuration: %t", name, h.gone[name])
	}
	h.policy = p
	h.do(func() error { return h.c.Reconfigure(h.ctx(), p) }, func() { h.ref.reconfigure(p) })
	return what
}
