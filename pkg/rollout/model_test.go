package rollout

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

func TestInvariantsHoldInRandomHistories(t *testing.T) {
	var sum claimed
	sum.in(t, 1, 3, 4, 5, 6, 8)
	histories(t, 8, func(t *testing.T, seed uint64) {
		m := newModel(t, seed)
		m.play()
		sum.add(m.claims)
	})
}

// play does one random thing after another and checks, and returns what there was after each.
func (m *model) play() []string {
	var told []string
	for n := range 80 {
		what := m.act()
		m.acts = append(m.acts, what)
		m.check(fmt.Sprintf("action %d, %s", n, what))
		told = append(told, what+"\n"+m.picture())
		if m.t.Failed() {
			m.tell()
			return told
		}
	}
	m.end()
	m.checkKeys(m.claims, "the end")
	if m.t.Failed() {
		m.tell()
	}
	return append(told, m.picture())
}

// tell prints the history that failed.
func (m *model) tell() {
	m.t.Logf("manual %t; history:\n%s", m.policy.Manual, strings.Join(m.acts, "\n"))
	for _, n := range m.fleet.nodes {
		m.t.Logf("node %s of %s: %v, connected %t, silent %t", n.id, n.group, n.names, n.connected, n.silent)
	}
	for _, r := range must(m.c.History(m.ctx())) {
		for _, e := range r.Log {
			m.t.Logf("rollout %d %s %v: %s %s (%s)", r.ID, e.At.Format("15:04:05.0"), r.wants(), e.State, e.Reason, e.By)
		}
	}
	m.t.Logf("%s", m.picture())
}

// model is a rig with what has to be true of it.
type model struct {
	*rig
	random *rand.Rand
	names  []string
	acts   []string
	claims claims
	served map[string]map[string]bool           // group -> names that it has had
	banned map[holdID]map[string]bool           // held hard -> groups that were at it then
	good   map[*node]map[string]secret.Version  // what a node went on with last
	had    map[string]map[string]secret.Version // group -> name -> version at the last check
	ever   map[string]map[holdID]bool           // group -> versions that it has served
	forced map[holdID]bool                      // versions that an operator let go on without an ACK
	by     string                               // group that an operator has just moved
	acks   map[*node]map[holdID]bool            // what a node has ever ACKed

	refused map[*node]map[holdID]bool // and refused: the same bytes sent again are ACKed, but not served
}

func newModel(t *testing.T, seed uint64) *model {
	random := rand.New(rand.NewPCG(seed, 0))
	policy := waves([]string{"auto", "manual"}[seed%2], "canary", "eu us", "rest")
	m := &model{
		rig: newRigOn(t, policy, seededStore(seed)), random: random, names: []string{"a", "b", "d"},
		served: map[string]map[string]bool{}, banned: map[holdID]map[string]bool{}, good: map[*node]map[string]secret.Version{},
		had: map[string]map[string]secret.Version{}, ever: map[string]map[holdID]bool{}, forced: map[holdID]bool{}, acks: map[*node]map[holdID]bool{},
		refused: map[*node]map[holdID]bool{}, claims: claims{},
	}
	for _, g := range []string{"canary", "canary", "eu", "us", "rest"} {
		m.node(fmt.Sprintf("n%d", len(m.fleet.nodes)), g, m.names[:1+random.IntN(3)]...)
	}
	return m
}

// act does one random thing, as a CA, a node, an operator or a failing machine does.
func (m *model) act() string {
	n := m.fleet.nodes[m.random.IntN(len(m.fleet.nodes))]
	name := m.names[m.random.IntN(len(m.names))]
	group := m.policy.Groups()[m.random.IntN(4)]
	m.by = ""
	switch k := m.random.IntN(20); {
	case k < 5:
		m.accept(name)
		return "accept " + name
	case k < 9:
		m.pass(time.Duration(1+m.random.IntN(90)) * time.Second)
		return "time passes"
	case k == 9:
		victim, chance := name, m.random.IntN(2) == 0
		m.edit(n, func(n *node) {
			n.refuses = func(name string, v secret.Version) bool { return chance && name == victim && v[0] < '5' }
		})
		return n.id + " is picky"
	case k == 10:
		m.edit(n, func(n *node) { n.silent = !n.silent })
		return n.id + " is silent, or not"
	case k == 11:
		m.edit(n, func(n *node) {
			if n.connected {
				n.disconnect()
			} else {
				n.connect()
			}
		})
		return n.id + " goes, or comes"
	case k == 12:
		m.noteForced()
		m.tolerate(m.c.Promote(m.ctx(), group, 0, alice))
		return "promote " + group
	case k == 13:
		m.by = group
		m.tolerate(m.c.Rollback(m.ctx(), group, alice))
		return "rollback " + group
	case k == 14:
		m.by = group
		m.tolerate(m.c.PromoteTo(m.ctx(), group, 1+m.random.Uint64N(m.cache.Latest()), alice))
		return "promote to, " + group
	case k == 15:
		m.by = group
		m.tolerate(m.c.RollbackTo(m.ctx(), group, 1+m.random.Uint64N(m.cache.Latest()), alice))
		return "rollback to, " + group
	case k == 16:
		maps.DeleteFunc(m.banned, func(id holdID, _ map[string]bool) bool { return id.secret == name })
		m.tolerate(m.c.Release(m.ctx(), name, ""))
		return "release " + name
	case k == 17:
		before := m.picture()
		m.fleet.forget(true)
		m.crash()
		if after := m.picture(); len(m.c.Active()) == 0 && m.claims.broken(5, after != before) {
			m.t.Errorf("%s: %s, want %s", invariant(5), after, before)
		}
		m.reconfigure(m.policy)
		return "restart"
	case k == 18:
		m.disk.hooks(func(int) bool { return m.random.IntN(2) == 0 }, func(int) bool { return m.random.IntN(2) == 0 })
		for range 4 {
			_, err := m.c.step(m.ctx())
			_, again := m.c.Accept(m.ctx(), Proposal{Secret: m.newSecret(name, 1<<51), Source: cache.SourceACME, Reason: "issued"})
			m.tolerate(err, again)
		}
		m.disk.hooks(nil, nil)
		m.step()
		return "the store fails now and then"
	default:
		m.step()
		return "look"
	}
}

// tolerate drops the error of a refused wish: that it is refused is one of the things that may happen.
func (m *model) tolerate(any, error) {}

// noteForced notes what the next promotion lets go on without an ACK.
func (m *model) noteForced() {
	for _, r := range m.c.Active() {
		if w := r.current(); w != nil && w.Stalled {
			for _, c := range r.Change {
				m.forced[holdID{c.Secret, c.To}] = true
			}
		}
	}
}

// end makes everybody well, and waits: everything comes to rest, and every node is where its group is.
func (m *model) end() {
	m.t.Helper()
	m.fleet.edit(func() {
		for _, n := range m.fleet.nodes {
			n.silent, n.refuses = false, nil
			n.connect()
		}
	})
	for _, d := range []time.Duration{11 * time.Minute, time.Minute, m.policy.RetryAfter, time.Minute} {
		m.pass(d)
		for _, g := range m.policy.Groups() {
			m.noteForced()
			m.tolerate(m.c.Promote(m.ctx(), g, 0, alice))
		}
	}
	m.pass(time.Minute)
	m.check("the end")
	for _, a := range m.c.Active() {
		m.t.Errorf("rollout %d is still %s: %s", a.ID, a.State, a.Reason)
	}
	for _, n := range m.fleet.nodes {
		for _, name := range n.names {
			if want := m.at(n.group, name); n.serves[name] != want && !m.refused[n][holdID{name, want}] {
				m.t.Errorf("node %s serves %s of %s, want %s", n.id, short(n.serves[name]), name, short(want))
			}
		}
	}
}
