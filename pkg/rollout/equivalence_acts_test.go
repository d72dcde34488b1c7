package rollout

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
)

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
		h.reboot(h.ref)
		return "restart"
	default:
		n := h.random.IntN(4) + 1
		return h.failing(n, name)
	}
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
	control := func(what string, wish func(id uint64) (Control, error), reference func(*reference, int) bool) string {
		var c Control
		var err error
		h.do(func() error { c, err = wish(uint64(id)); return err }, func() {
			if ok := reference(h.ref, id); ok != (err == nil && !c.Already) && !errors.Is(err, errDisk) {
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
		return control("pause", func(id uint64) (Control, error) { return h.c.Pause(ctx, id, alice) }, (*reference).pause)
	case k < 16:
		return control("resume", func(id uint64) (Control, error) { return h.c.Resume(ctx, id, alice) }, (*reference).resume)
	case k < 17:
		return control("abort", func(id uint64) (Control, error) { return h.c.Abort(ctx, id, alice) }, (*reference).abort)
	case k < 18:
		return control("undo", func(id uint64) (Control, error) { return h.c.Undo(ctx, id, alice) }, (*reference).undo)
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
	switch h.random.IntN(12) {
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
			{{"canary"}, {"eu", "us"}, {"rest"}},
			{{"canary"}, {"eu"}, {"us"}, {"rest"}},
			{{"eu"}, {"canary", "us"}, {"rest"}},
			{{"canary", "eu"}, {"us", "rest"}},
			{{"rest"}, {"us"}, {"eu"}, {"canary"}},
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
