package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestPlanOfARound(t *testing.T) {
	leaf := func(name, keyType string, version secret.Version, names ...string) Wanted {
		return Wanted{Asked: name, Leaf: Leaf{Secret: name, Version: version, KeyType: keyType, DNSNames: names}}
	}
	var many []string
	for i := range 100 {
		many = append(many, fmt.Sprintf("%02d.example", i))
	}
	rsa, ec, old := leaf("r", "rsa-2048", "v1", "a.example"), leaf("e", "ecdsa-p256", "v1", "a.example"), leaf("old", "ecdsa-p256", "v0", "o.example")
	for _, test := range []struct {
		name        string
		secrets     []Wanted
		serverNames []string
		want        []string
	}{
		{"RSA beside ECDSA", []Wanted{rsa, leaf("x", "ecdsa-p256", "v1", "a.example")}, nil, []string{"a.example tls1.2-rsa r"}},
		{"both are wanted", []Wanted{rsa, ec}, nil, []string{"a.example tls1.2-rsa r", "a.example tls1.2-ecdsa e", "a.example tls1.3 e r"}},
		{"the wanted one first", []Wanted{ec, leaf("a", "ecdsa-p256", "v1", "a.example")}, nil, []string{"a.example tls1.2-ecdsa e a", "a.example tls1.3 e a"}},
		{"another version", []Wanted{old}, nil, nil},
		{"not wanted", []Wanted{leaf("x", "ecdsa-p256", "v1", "x.example")}, nil, nil},
		{"a wildcard", []Wanted{leaf("e", "ecdsa-p256", "v1", "*.a.example")}, nil, []string{"sds-verify.a.example tls1.2-ecdsa e", "sds-verify.a.example tls1.3 e"}},
		{"the first names", []Wanted{leaf("r", "rsa-2048", "v1", many...)}, nil, []string{
			"00.example tls1.2-rsa r", "00.example tls1.3 r", "01.example tls1.2-rsa r", "01.example tls1.3 r",
			"02.example tls1.2-rsa r", "02.example tls1.3 r", "03.example tls1.2-rsa r", "03.example tls1.3 r",
		}},
		{"every server name", []Wanted{leaf("r", "rsa-2048", "v1", many...)}, append([]string{"else.example"}, many[50:56]...), []string{
			"50.example tls1.2-rsa r", "50.example tls1.3 r", "51.example tls1.2-rsa r", "51.example tls1.3 r", "52.example tls1.2-rsa r", "52.example tls1.3 r",
			"53.example tls1.2-rsa r", "53.example tls1.3 r", "54.example tls1.2-rsa r", "54.example tls1.3 r", "55.example tls1.2-rsa r", "55.example tls1.3 r",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			target := Target{Address: "x:1", Secrets: test.secrets}
			var got []string
			for _, c := range target.plan(Group{Name: "g", ServerNames: test.serverNames}, &scope{map[string]secret.Version{"r": "v1", "e": "v1", "old": "v1"}, roundNames}) {
				words := []string{c.ServerName, string(c.Client)}
				for _, w := range c.Wanted {
					words = append(words, w.Secret)
				}
				got = append(got, strings.Join(words, " "))
			}
			if !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// On-demand, a node asks for names under one secret.
func TestPlanOfARoundIsBoundedOverAliases(t *testing.T) {
	wild := Leaf{Secret: "wild", Version: "v1", KeyType: "ecdsa-p256", DNSNames: []string{"*.a.example"}}
	target := Target{Address: "x:1"}
	for i := range 10 {
		target.Secrets = append(target.Secrets, Wanted{Leaf: wild, Asked: fmt.Sprintf("%d.a.example", i)})
	}
	if n := len(target.plan(Group{}, &scope{map[string]secret.Version{"wild": "v1"}, roundNames})); n != 2*roundNames {
		t.Errorf("%d checks, want %d", n, 2*roundNames)
	}
}

// A round with many targets and secrets asks for fewer names.
func TestNamesOfALargeRoundAreFewer(t *testing.T) {
	wanted := map[string]secret.Version{}
	var secrets []Wanted
	for i := range 10 {
		name := fmt.Sprint(i)
		wanted[name] = "v1"
		leaf := Leaf{Secret: name, Version: "v1"}
		secrets = append(secrets, Wanted{Asked: name, Leaf: leaf}, Wanted{Asked: "alias", Leaf: leaf}, Wanted{Asked: "x", Leaf: Leaf{Secret: "other" + name, Version: "v1"}})
	}
	for targets, want := range map[int]int{0: roundNames, 1: roundNames, 25: 4, 33: 3, 50: 2, 100: 1, 10000: 1} {
		g := Group{}
		for range targets {
			g.Targets = append(g.Targets, Target{Secrets: secrets})
		}
		if got := newScope(g, wanted).names; got != want {
			t.Errorf("%d targets with 10 secrets: %d names, want %d", targets, got, want)
		}
	}
}

// Two listeners of a node may have different certificates.
func TestServerNamesOfATargetAreAllThatIsAskedForThere(t *testing.T) {
	secrets := []Wanted{
		{Asked: "a", Leaf: Leaf{Secret: "a", KeyType: "ecdsa-p256", DNSNames: []string{"a.example"}}},
		{Asked: "b", Leaf: Leaf{Secret: "b", KeyType: "ecdsa-p256", DNSNames: []string{"b.example"}}},
	}
	checks := Plan(Group{ServerNames: []string{"b.example"}, Targets: []Target{
		{Address: "x:1", Secrets: secrets, ServerNames: []string{"a.example"}}, {Address: "x:2", Secrets: secrets},
	}})
	var got []string
	for _, c := range checks {
		got = append(got, c.Address+" "+c.ServerName)
	}
	if want := []string{"x:1 a.example", "x:1 a.example", "x:2 b.example", "x:2 b.example"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
