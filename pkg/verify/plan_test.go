package verify

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestPlan(t *testing.T) {
	ec := func(name string, dnsNames ...string) Wanted {
		return Wanted{Leaf: Leaf{Secret: name, KeyType: "ecdsa-p256", DNSNames: dnsNames}, Asked: name}
	}
	rsa := func(name string, dnsNames ...string) Wanted {
		return Wanted{Leaf: Leaf{Secret: name, KeyType: "rsa-3072", DNSNames: dnsNames}, Asked: name}
	}
	alias := func(w Wanted, asked string) Wanted {
		w.Asked = asked
		return w
	}
	address := ec("address")
	address.IPAddresses = []string{"192.0.2.1"}
	for _, test := range []struct {
		name        string
		secrets     []Wanted
		serverNames []string
		want        []string // "name client secret..."
	}{
		{"an ECDSA certificate", []Wanted{ec("www", "a.example", "b.example")}, nil, []string{
			"a.example tls1.2-ecdsa www", "a.example tls1.3 www", "b.example tls1.2-ecdsa www", "b.example tls1.3 www",
		}},
		{"an RSA certificate", []Wanted{rsa("www", "a.example")}, nil, []string{"a.example tls1.2-rsa www", "a.example tls1.3 www"}},
		{"Ed25519", []Wanted{{Leaf: Leaf{Secret: "ed", KeyType: "ed25519", DNSNames: []string{"a.example"}}, Asked: "ed"}}, nil, []string{
			"a.example tls1.2-ecdsa ed", "a.example tls1.3 ed",
		}},
		{"both, TLS 1.3 takes ECDSA before RSA", []Wanted{rsa("a-rsa", "a.example"), ec("b-ec", "a.example")}, nil, []string{
			"a.example tls1.2-ecdsa b-ec", "a.example tls1.2-rsa a-rsa", "a.example tls1.3 b-ec a-rsa",
		}},
		{"a wildcard", []Wanted{ec("wild", "*.a.example")}, nil, []string{"sds-verify.a.example tls1.2-ecdsa wild", "sds-verify.a.example tls1.3 wild"}},
		{"a name before a wildcard", []Wanted{ec("a-wild", "*.a.example"), ec("www", "www.a.example")}, nil, []string{
			"sds-verify.a.example tls1.2-ecdsa a-wild", "sds-verify.a.example tls1.3 a-wild",
			"www.a.example tls1.2-ecdsa www a-wild", "www.a.example tls1.3 www a-wild",
		}},
		{"server names", []Wanted{ec("www", "a.example", "*.b.example"), rsa("other", "c.example")}, []string{"x.b.example", "*.b.example", "x.y.b.example", "d.example"}, []string{
			"sds-verify.b.example tls1.2-ecdsa www", "sds-verify.b.example tls1.3 www", "x.b.example tls1.2-ecdsa www", "x.b.example tls1.3 www",
		}},
		{"a name that the node asked for", []Wanted{alias(ec("wild", "*.a.example"), "1.a.example")}, nil, []string{"1.a.example tls1.2-ecdsa wild", "1.a.example tls1.3 wild"}},
		{"a server name that the node did not ask for", []Wanted{alias(ec("wild", "*.a.example"), "1.a.example")}, []string{"2.a.example"}, nil},
		{"only an address", []Wanted{address}, nil, []string{"192.0.2.1 tls1.2-ecdsa address", "192.0.2.1 tls1.3 address"}},
		{"nothing", nil, nil, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			var got []string
			for _, c := range Plan(Group{Name: "g", ServerNames: test.serverNames, Targets: []Target{{Address: "x:1", Secrets: test.secrets}}}) {
				words := []string{c.ServerName, string(c.Client)}
				for _, w := range c.Wanted {
					words = append(words, w.Secret)
				}
				got = append(got, strings.Join(words, " "))
			}
			slices.Sort(got)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// An on-demand node may have a thousand names under one certificate.
func TestPlanIsBounded(t *testing.T) {
	leaf := Leaf{Secret: "wild", KeyType: "ecdsa-p256", DNSNames: []string{"*.a.example"}}
	var aliases []Wanted
	for i := range 1000 {
		aliases = append(aliases, Wanted{Leaf: leaf, Asked: fmt.Sprintf("%d.a.example", i)})
	}
	if n := len(Plan(Group{Targets: []Target{{Secrets: aliases}}})); n != 2*maxAliases {
		t.Errorf("%d checks for 1000 aliases, want %d", n, 2*maxAliases)
	}
	leaf.DNSNames = nil
	for i := range 1000 {
		leaf.DNSNames = append(leaf.DNSNames, fmt.Sprintf("%d.b.example", i))
	}
	if n := len(Plan(Group{Targets: []Target{{Secrets: []Wanted{{Leaf: leaf, Asked: leaf.Secret}}}}})); n != 2*maxNames {
		t.Errorf("%d checks for 1000 names, want %d", n, 2*maxNames)
	}
}

func TestAddressIsNoSNI(t *testing.T) {
	for name, want := range map[string]string{"192.0.2.1": "", "2001:db8::1": "", "a.example": "a.example"} {
		if got := (&Check{ServerName: name}).sni(); got != want {
			t.Errorf("%s: SNI %q, want %q", name, got, want)
		}
	}
}
