package sds

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sds-server/sds-server/pkg/secret"
)

// aliasModel is a naive second implementation of what one on-demand Envoy should have: it looks at every certificate for every name.
type aliasModel struct {
	t        *testing.T
	f        *fleet
	protocol Protocol
	envoy    *envoy
	random   *rand.Rand
	limit    int

	at        map[string]secret.Version   // by secret, that the group is at
	all       map[string][]secret.Version // that ever were
	of        map[secret.Version]string   // the secret
	dnsNames  map[secret.Version][]string
	chains    map[string]secret.Version
	bad       map[secret.Version]bool // that the Envoy rejects
	forbidden map[string]bool         // secrets
	names     []string                // that the Envoy subscribes to
	has       map[string]secret.Version
	sent      map[string]int         // of bad ones, by name and version
	may       map[secret.Version]int // how often, for each name
	log       []string
}

var (
	aliasSecrets = []string{"a", "b", "x.e.example"}
	aliasNames   = []string{"x.e.example", "y.e.example", "Y.e.example", "z.e.example", "a", "e.example", "nothing"}
	aliasSANs    = []string{"*.e.example", "x.e.example", "y.e.example", "e.example", "*.f.example"}
)

func TestRandomHistoriesOfAliasesEndWithWhatTheNaiveModelSays(t *testing.T) {
	for _, protocol := range []Protocol{SotW, Delta, ADSSotW, ADSDelta} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s-%d", protocol, seed), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					m := &aliasModel{
						t: t, protocol: protocol, random: rand.New(rand.NewPCG(seed, 11)), limit: 1000, at: map[string]secret.Version{},
						all: map[string][]secret.Version{}, of: map[secret.Version]string{}, dnsNames: map[secret.Version][]string{},
						chains: map[string]secret.Version{}, bad: map[secret.Version]bool{}, forbidden: map[string]bool{},
						has: map[string]secret.Version{}, sent: map[string]int{}, may: map[secret.Version]int{},
					}
					if seed%2 == 1 && protocol.delta() { // an Envoy asks again for what made room only when a client wants it
						m.limit = 2
					}
					m.f = newFleet(t, Limits{AliasesPerNode: m.limit})
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

func (m *aliasModel) note(format string, args ...any) {
	m.log = append(m.log, fmt.Sprintf(format, args...))
}

func (m *aliasModel) step() {
	m.t.Helper()
	name := aliasSecrets[m.random.IntN(len(aliasSecrets))]
	versions := m.all[name]
	switch m.random.IntN(14) {
	case 0, 1, 2, 3: // a new version, every third one of which is bad
		sans := []string{fmt.Sprintf("unique-%d.example", len(m.log))}
		for _, s := range aliasSANs {
			if m.random.IntN(3) == 0 {
				sans = append(sans, s)
			}
		}
		v := m.f.certify(m.t, "canary", name, sans...)
		meta, _ := m.f.cache.Meta(name, v)
		m.chains[meta.ChainPEM], m.at[name], m.all[name], m.dnsNames[v], m.of[v] = v, v, append(versions, v), sans, name
		if m.bad[v] = m.random.IntN(3) == 0; m.bad[v] {
			m.may[v] = 1
		}
		m.note("new %s %s %v bad=%t", name, v.Short(), sans, m.bad[v])
	case 4, 5:
		if len(versions) > 0 {
			v := versions[m.random.IntN(len(versions))]
			m.f.move(m.t, "canary", name, v)
			m.at[name] = v
			m.note("move %s %s bad=%t", name, v.Short(), m.bad[v])
		}
	case 6:
		if m.at[name] != "" {
			m.f.move(m.t, "canary", name, "")
			m.at[name] = ""
			m.note("remove %s", name)
		}
	case 7, 8, 9:
		asked := aliasNames[m.random.IntN(len(aliasNames))]
		if !slices.Contains(m.names, asked) {
			m.names = append(m.names, asked)
			m.envoy.subscribe(asked)
			m.note("subscribe %s", asked)
		}
	case 10:
		m.envoy.leave()
		m.connect()
		m.note("reconnect")
	case 11:
		m.envoy.leave()
		m.f.restart(m.t)
		m.allow()
		m.connect()
		m.note("restart")
	case 12:
		if len(versions) > 0 {
			v := versions[m.random.IntN(len(versions))]
			if m.bad[v] {
				m.may[v]++
			}
			m.f.Release(name, v)
			m.note("release %s %s", name, v.Short())
		}
	case 13:
		m.forbidden[name] = !m.forbidden[name]
		m.allow()
		m.note("forbidden %v", m.forbidden)
	}
}

// allow puts the rights in force.
func (m *aliasModel) allow() {
	g := Group{Name: "canary"}
	for _, name := range aliasSecrets {
		if !m.forbidden[name] {
			g.Secrets = append(g.Secrets, name)
		}
	}
	m.f.SetPolicy(NewPolicy([]Group{g}))
}

func (m *aliasModel) connect() {
	m.envoy = m.f.envoy(m.t, m.protocol, "edge-1")
	if len(m.names) > 0 {
		m.envoy.reconnected(maps.Clone(m.has), m.names...)
	}
}

// candidates are the secrets that may be served under a name, the best first: behind a secret's own those that covered the name before.
func (m *aliasModel) candidates(asked string) []string {
	if m.at[asked] == "" {
		return m.covering(asked)
	}
	if m.forbidden[asked] {
		return nil
	}
	return append([]string{asked}, slices.DeleteFunc(m.covering(asked), func(name string) bool { return name == asked })...)
}

func (m *aliasModel) covering(asked string) []string {
	host := strings.ToLower(asked)
	_, rest, dot := strings.Cut(host, ".")
	var found []string
	for _, pattern := range []string{host, "*." + rest} {
		if pattern == "*." && !dot {
			continue
		}
		for _, name := range aliasSecrets { // sorted
			if at := m.at[name]; at != "" && !m.forbidden[name] && slices.Contains(m.dnsNames[at], pattern) {
				found = append(found, name)
			}
		}
	}
	if i := slices.Index(found, host); i > 0 && slices.Contains(m.dnsNames[m.at[host]], host) {
		found = slices.Insert(slices.Delete(found, i, i+1), 0, host)
	}
	return found
}

// settle answers everything, and compares.
func (m *aliasModel) settle() {
	m.t.Helper()
	before := maps.Clone(m.has)
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
	given := 0
	for _, asked := range m.names {
		m.judge(asked, before[asked])
		if v := m.has[asked]; v != "" && m.of[v] != asked {
			given++
		}
	}
	if m.protocol.delta() && given > m.limit {
		m.t.Fatalf("%d aliases, want at most %d; after %v", given, m.limit, m.log)
	}
}

func (m *aliasModel) judge(asked string, before secret.Version) {
	m.t.Helper()
	has, found := m.has[asked], m.candidates(asked)
	alias := !slices.Contains(found, asked)
	ok := false
	switch {
	case has == "" && alias && m.limit < len(aliasNames): // it may have made room
		ok = true
	case len(found) == 0 && m.protocol.delta():
		ok = has == ""
	case len(found) == 0: // SotW has no word for it
		ok = has == before
	case !m.bad[m.at[found[0]]]:
		ok = has == m.at[found[0]]
	case has == before && (!m.protocol.delta() || has == ""): // the best one was rejected
		ok = true
	default: // another version of a secret that covers it, or nothing; never a bad one
		ok = !m.bad[has] && (has == "" || slices.Contains(found, m.of[has]))
	}
	if !ok {
		m.t.Fatalf("the Envoy has %q (%s) under %s, had %q, should have one of %v (bad: %t); after %v",
			has.Short(), m.of[has], asked, before.Short(), found, len(found) > 0 && m.bad[m.at[found[0]]], strings.Join(m.log, "\n"))
	}
}

func (m *aliasModel) answer(a answer) {
	m.t.Helper()
	if a.removed != "" {
		delete(m.has, a.removed)
		m.envoy.ack(a)
		return
	}
	v := m.chains[a.chain]
	if a.name == "" { // it says nothing
		m.envoy.ack(a)
		return
	}
	if !m.bad[v] {
		m.has[a.name] = v
		m.envoy.ack(a)
		return
	}
	key := a.name + " " + string(v)
	if m.sent[key]++; m.sent[key] > m.may[v] {
		m.t.Fatalf("bad version %s was sent %d times under %s, want %d; after %v", v.Short(), m.sent[key], a.name, m.may[v], m.log)
	}
	m.envoy.nack(a, "bad")
}
