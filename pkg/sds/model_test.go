package sds

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/sds-server/sds-server/pkg/secret"
)

// model is a naive second implementation of what one Envoy should have: it knows the whole history, and no protocol.
type model struct {
	t        *testing.T
	f        *fleet
	protocol Protocol
	envoy    *envoy
	random   *rand.Rand

	at     map[string]secret.Version   // that the group is at; empty: nothing
	all    map[string][]secret.Version // that ever were
	chains map[string]secret.Version   // by chain
	bad    map[secret.Version]bool     // that the Envoy rejects
	names  []string                    // that it subscribes to
	has    map[string]secret.Version
	good   map[string]secret.Version // that it acknowledged last
	sent   map[secret.Version]int    // of the bad ones
	may    map[secret.Version]int    // how often: once, and once more after each release
	log    []string
}

func TestRandomHistoriesEndWithWhatTheNaiveModelSays(t *testing.T) {
	for _, protocol := range []Protocol{SotW, Delta, ADSSotW, ADSDelta} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s-%d", protocol, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := &model{
						t: t, f: newFleet(t, Limits{}), protocol: protocol, random: rand.New(rand.NewPCG(seed, 7)),
						at: map[string]secret.Version{}, all: map[string][]secret.Version{}, chains: map[string]secret.Version{},
						bad: map[secret.Version]bool{}, has: map[string]secret.Version{}, good: map[string]secret.Version{},
						sent: map[secret.Version]int{}, may: map[secret.Version]int{},
					}
					m.connect()
					for range 60 {
						m.step()
						m.settle()
					}
				})
			})
		}
	}
}

var modelNames = []string{"a", "b", "c"}

func (m *model) step() {
	m.t.Helper()
	name := modelNames[m.random.IntN(len(modelNames))]
	versions := m.all[name]
	switch m.random.IntN(12) {
	case 0, 1, 2, 3: // a new version, every second one of which is bad
		v := m.f.rotate(m.t, "canary", name)
		meta, _ := m.f.cache.Meta(name, v)
		m.chains[meta.ChainPEM], m.at[name], m.all[name] = v, v, append(versions, v)
		if m.bad[v] = m.random.IntN(2) == 0; m.bad[v] {
			m.may[v] = 1
		}
		m.note("new %s %s bad=%t", name, v.Short(), m.bad[v])
	case 4, 5: // back to an older one
		if len(versions) > 0 {
			v := versions[m.random.IntN(len(versions))]
			m.f.move(m.t, "canary", name, v)
			m.at[name] = v
			m.note("move %s %s bad=%t", name, v.Short(), m.bad[v])
		}
	case 6: // removed
		if m.at[name] != "" {
			m.f.move(m.t, "canary", name, "")
			m.at[name] = ""
			m.note("remove %s", name)
		}
	case 7, 8:
		if !slices.Contains(m.names, name) {
			m.names = append(m.names, name)
			m.envoy.subscribe(name)
			m.note("subscribe %s", name)
		}
	case 9:
		m.envoy.leave()
		m.connect()
		m.note("reconnect")
	case 10:
		m.envoy.leave()
		m.f.restart(m.t)
		m.connect()
		m.note("restart")
	case 11:
		if len(versions) > 0 {
			v := versions[m.random.IntN(len(versions))]
			if m.bad[v] {
				m.may[v]++
			}
			m.f.Release(name, v)
			m.note("release %s %s", name, v.Short())
		}
	}
}

func (m *model) note(format string, args ...any) { m.log = append(m.log, fmt.Sprintf(format, args...)) }

func (m *model) connect() {
	m.envoy = m.f.envoy(m.t, m.protocol, "edge-1")
	if len(m.names) > 0 {
		m.envoy.reconnected(m.has, m.names...)
	}
}

// settle answers everything, and compares.
func (m *model) settle() {
	m.t.Helper()
	before := map[string]secret.Version{}
	for _, n := range modelNames {
		before[n] = m.has[n]
	}
	for more := true; more; {
		synctest.Wait()
		select {
		case a := <-m.envoy.answers:
			m.answer(a)
		case err := <-m.envoy.ended:
			m.t.Fatalf("stream ended: %v after %v", err, m.log)
		default:
			more = false
		}
	}
	for _, name := range m.names {
		at, has := m.at[name], m.has[name]
		ok := false
		switch {
		case at == "" && m.protocol.delta():
			ok = has == ""
		case at == "": // SotW has no word for it
			ok = has == before[name]
		case !m.bad[at]:
			ok = has == at
		default: // it goes on with what it has, or is given back what it acknowledged last
			ok = has == before[name] || has == m.good[name]
		}
		if !ok {
			m.t.Fatalf("the Envoy has %q of %s, was at %q, its group is at %q (bad: %t), good %q; after %v",
				has.Short(), name, before[name].Short(), at.Short(), m.bad[at], m.good[name].Short(), m.log)
		}
	}
}

func (m *model) answer(a answer) {
	m.t.Helper()
	if a.removed != "" {
		delete(m.has, a.removed)
		m.envoy.ack(a)
		return
	}
	v := m.chains[a.chain]
	if !m.bad[v] {
		m.has[a.name], m.good[a.name] = v, v
		m.envoy.ack(a)
		return
	}
	if m.sent[v]++; m.sent[v] > m.may[v] {
		m.t.Fatalf("bad version %s of %s was sent %d times, want %d; after %v", v.Short(), a.name, m.sent[v], m.may[v], m.log)
	}
	m.envoy.nack(a, "bad")
}

// FuzzGlob compares the matcher with a naive one.
func FuzzGlob(f *testing.F) {
	for _, seed := range [][2]string{{"*", ""}, {"a*b*c", "aXbYc"}, {"spiffe://e/*/x", "spiffe://e/a/b/x"}, {"**", "a/b"}, {"*a*a*", "aa"}, {"", ""}} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, pattern, text string) {
		if len(pattern) > 40 || len(text) > 40 {
			return
		}
		if got, want := newGlob(pattern).match(text), naive(pattern, text, true); got != want {
			t.Errorf("name %q, %q: %t, want %t", pattern, text, got, want)
		}
		if got, want := newPathGlob(pattern).match(text), naive(pattern, text, false); got != want {
			t.Errorf("identity %q, %q: %t, want %t", pattern, text, got, want)
		}
		if got := newPathGlob(pattern).String(); got != pattern {
			t.Errorf("%q is shown as %q", pattern, got)
		}
	})
}

// naive matches byte by byte, with every length that a star may have, by a table.
func naive(pattern, text string, slash bool) bool {
	fits := make([]bool, len(text)+1) // fits[i]: the pattern so far matches text[:i]
	fits[0] = true
	for p := range len(pattern) {
		next := make([]bool, len(text)+1)
		for i := range fits {
			switch {
			case pattern[p] != '*':
				next[i] = i > 0 && fits[i-1] && text[i-1] == pattern[p]
			default:
				next[i] = fits[i] || i > 0 && next[i-1] && (slash || text[i-1] != '/')
			}
		}
		fits = next
	}
	return fits[len(text)]
}
