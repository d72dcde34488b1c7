package cache

import (
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/pkg/secret"
)

// TestCoverageFollowsRandomMoves compares what is kept incrementally with a naive search by Go's own rules of host names.
func TestCoverageFollowsRandomMoves(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	groups := []string{"canary", "production", "spare"}
	b := newBench(t, groups...)
	dnsNames := []string{"a.example", "*.a.example", "x.a.example", "X.A.Example", "*.x.a.example", "b.example", "*.example", "www.a.example"}
	names := []string{"one", "two", "x.a.example", "b.example", "zz"}
	asked := []string{
		"a.example", "A.EXAMPLE", "x.a.example", "X.a.example", "y.a.example", "y.x.a.example", "b.example", "b.example.", "c.example", "example",
		"a.b.c.example", "one", "*.a.example", "www.a.example",
	}
	parsed := map[secret.Version]*secret.Secret{}
	versions := map[string][]secret.Version{}
	for step := range 120 {
		name, group := names[random.IntN(len(names))], groups[random.IntN(len(groups))]
		switch n := random.IntN(10); {
		case n < 4 || len(versions[name]) == 0:
			var sans []string
			for _, d := range dnsNames {
				if random.IntN(3) == 0 {
					sans = append(sans, d)
				}
			}
			s := newSecret(t, name, append(sans, fmt.Sprintf("unique-%d.example", step))...)
			b.plan(func(p *Plan) error {
				m, _, err := p.PutSecret(b.ctx(), s, Origin{Source: SourceACME, Issuer: "le"})
				if err != nil {
					return err
				}
				parsed[m.Version], versions[name] = s, append(versions[name], m.Version)
				_, err = p.Move(b.ctx(), group, map[string]secret.Version{name: m.Version}, Why{Reason: "put"})
				return err
			})
		case n < 8: // to any version
			b.move(group, Why{Reason: "move"}, map[string]secret.Version{name: versions[name][random.IntN(len(versions[name]))]})
		case n < 9:
			b.move(group, Why{Reason: "remove"}, map[string]secret.Version{name: ""})
		default:
			b.reopen()
		}
		for _, g := range groups {
			for _, a := range asked {
				got := []string{}
				for _, r := range b.Covering(g, a) {
					got = append(got, r.Name+"@"+r.Version.Short())
					if !r.Covers(a) {
						t.Errorf("%s does not say that it covers %s", r.Name, a)
					}
				}
				if want := naiveCovering(b.at(g).Secrets, parsed, a); !slices.Equal(got, want) {
					t.Fatalf("step %d: %s is covered in %s by %v, want %v", step, a, g, got, want)
				}
			}
		}
	}
	for _, g := range groups {
		for _, name := range names {
			b.move(g, Why{Reason: "remove"}, map[string]secret.Version{name: ""})
		}
	}
	if len(b.coverage) != 0 {
		t.Errorf("%d names are left in the coverage of nothing", len(b.coverage))
	}
}

// naiveCovering looks at every certificate of a set.
func naiveCovering(set *Set, parsed map[secret.Version]*secret.Secret, asked string) []string {
	if strings.Contains(asked, "*") {
		return []string{}
	}
	host := strings.ToLower(strings.TrimSuffix(asked, "."))
	var exact, wild []string
	for name, v := range set.All() { // sorted by name
		leaf := parsed[v].Leaf()
		if leaf.VerifyHostname(asked) != nil || name == asked {
			continue
		}
		one := name + "@" + v.Short()
		if !slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return strings.EqualFold(n, host) }) {
			wild = append(wild, one)
			continue
		}
		if name == host {
			exact = slices.Insert(exact, 0, one)
		} else {
			exact = append(exact, one)
		}
		if slices.ContainsFunc(leaf.DNSNames, func(n string) bool { return strings.HasPrefix(n, "*.") && wildcardFor(n, host) }) {
			wild = append(wild, one) // it covers the name twice
		}
	}
	return append(append([]string{}, exact...), wild...)
}

func wildcardFor(pattern, host string) bool {
	_, rest, _ := strings.Cut(host, ".")
	return strings.EqualFold(pattern, "*."+rest)
}

// FuzzHostKeys compares what covers a name with Go's own rules.
func FuzzHostKeys(f *testing.F) {
	for _, seed := range [][2]string{
		{"x.a.example", "*.a.example"},
		{"X.A.example.", "x.a.EXAMPLE"},
		{"*.a.example", "*.a.example"},
		{"10.0.0.1", "*.0.0.1"},
		{"a..b", "a..b"},
		{"\u212a.example", "k.example"},
		{"_a.b", "*.b"},
		{"", ""},
		{"a", "*"},
		{"1.2.a.example", "*.a.example"},
	} {
		f.Add(seed[0], seed[1])
	}
	f.Fuzz(func(t *testing.T, asked, dnsName string) {
		exact, wild, ok := hostKeys(asked)
		if strings.Contains(asked, "*") || len(asked) > maxHost {
			if ok && exact != "" && strings.Contains(exact, "*") {
				t.Errorf("%q is a host name", asked)
			}
			return
		}
		key := strings.ToLower(dnsName)
		got := ok && key != "" && (key == exact || key == wild)
		if got && strings.HasPrefix(dnsName, "*") != (key == wild) {
			t.Errorf("%q: exact %q, wildcard %q", asked, exact, wild)
		}
		for label := range strings.SplitSeq(asked, ".") {
			if strings.HasPrefix(label, "-") || len(label) > maxLabel { // Go is stricter in the one, and not in the other
				return
			}
		}
		if _, err := netip.ParseAddr(strings.Trim(asked, "[]")); err == nil || !validPattern(dnsName) {
			return
		}
		if want := (&x509.Certificate{DNSNames: []string{dnsName}}).VerifyHostname(asked) == nil && ok; got != want {
			t.Errorf("%q by %q: %t, want %t", asked, dnsName, got, want)
		}
	})
}

// validPattern reports whether pkg/secret would let a name into a certificate.
func validPattern(name string) bool {
	exact, _, ok := hostKeys(strings.TrimPrefix(name, "*."))
	return ok && !strings.HasSuffix(name, ".") && exact != ""
}

// A name that Go's rules let through is refused only for its length, its characters, or because it is an address.
func TestHostNames(t *testing.T) {
	for name, want := range map[string]bool{
		"a.example": true, "A.Example.": true, "localhost": true, "_x.a.example": true, "xn--bcher-kva.example": true, "1.example": true,
		"": false, ".": false, "a..b": false, "..": false, ".a": false, "a b": false, "*.a": false, "*": false, "10.0.0.1": false, "::1": false,
		"a\x00b": false, "bücher.example": false, "\u212a.example": false, strings.Repeat("x", 64) + ".a": false,
		strings.Repeat("x.", 126) + "a": true, strings.Repeat("x.", 127) + "a": false, strings.Repeat("x", 63): true,
	} {
		if _, _, ok := hostKeys(name); ok != want {
			t.Errorf("%.40q is a host name: %t, want %t", name, ok, want)
		}
	}
}

func TestHostsAreFoundByWhatCoversThem(t *testing.T) {
	var h Hosts
	for _, name := range []string{"a.example", "b.a.example", "B.a.example", "no host", ""} {
		h.Add(name)
		h.Add(name)
	}
	under := func(dnsName string) []string { return slices.Sorted(h.CoveredBy(dnsName)) }
	if got := under("*.a.example"); !slices.Equal(got, []string{"B.a.example", "b.a.example"}) {
		t.Errorf("under the wildcard: %v", got)
	}
	if got := under("b.a.example"); !slices.Equal(got, []string{"B.a.example", "b.a.example"}) {
		t.Errorf("exact: %v", got)
	}
	if got := under("*.example"); !slices.Equal(got, []string{"a.example"}) {
		t.Errorf("under the upper wildcard: %v", got)
	}
	for _, name := range []string{"a.example", "b.a.example", "B.a.example", "no host", "", "never there"} {
		h.Remove(name)
	}
	if len(h.byDNSName) != 0 {
		t.Errorf("%v is left", h.byDNSName)
	}
}
