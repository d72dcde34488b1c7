package sds

import (
	"encoding/json"
	"testing"
)

func TestExplainNamesTheRulesThatDecide(t *testing.T) {
	p := NewPolicy([]Group{
		{Name: "canary", Identities: []string{"spiffe://e/canary/*", "dns:Edge-1.example"}, Deny: []string{"spiffe://e/canary/old-*"}, Secrets: []string{"a", "w*.example"}},
		{Name: "production", Identities: []string{"spiffe://e/*/*"}, Secrets: []string{"*"}},
	})
	tls := func(identity string) Peer { return Peer{Transport: TLS, Identities: []string{identity}} }
	for _, tc := range []struct {
		name   string
		peer   Peer
		secret string
		want   string
	}{
		{"two groups", tls("spiffe://e/canary/n1"), "www.example", `{"identity":"spiffe://e/canary/n1","secret":"www.example","allowed":true,"groups":[` +
			`{"name":"canary","identity_rule":"spiffe://e/canary/*","deny_rule":null,"secret_rule":"w*.example","covered_by":null,"allowed":true},` +
			`{"name":"production","identity_rule":"spiffe://e/*/*","deny_rule":null,"secret_rule":"*","covered_by":null,"allowed":true}],` +
			`"reason":"group \"canary\" has the identity by \"spiffe://e/canary/*\" and the secret by \"w*.example\"; group \"production\" has the identity by ` +
			`\"spiffe://e/*/*\" and the secret by \"*\"; the node has to name one of its groups in node.cluster: canary, production"}`},
		{"deny wins", tls("spiffe://e/canary/old-1"), "a", `{"identity":"spiffe://e/canary/old-1","secret":"a","allowed":true,"groups":[` +
			`{"name":"canary","identity_rule":"spiffe://e/canary/*","deny_rule":"spiffe://e/canary/old-*","secret_rule":"a","covered_by":null,"allowed":false},` +
			`{"name":"production","identity_rule":"spiffe://e/*/*","deny_rule":null,"secret_rule":"*","covered_by":null,"allowed":true}],` +
			`"reason":"group \"production\" has the identity by \"spiffe://e/*/*\" and the secret by \"*\""}`},
		{"no secret rule", tls("dns:EDGE-1.example"), "b", `{"identity":"dns:EDGE-1.example","secret":"b","allowed":false,"groups":[` +
			`{"name":"canary","identity_rule":"dns:edge-1.example","deny_rule":null,"secret_rule":null,"covered_by":null,"allowed":false},` +
			`{"name":"production","identity_rule":null,"deny_rule":null,"secret_rule":"*","covered_by":null,"allowed":false}],` +
			`"reason":"no rule of the identity's groups has the secret: canary"}`},
		{"nobody", tls("spiffe://e/n1"), "a", `{"identity":"spiffe://e/n1","secret":"a","allowed":false,"groups":[` +
			`{"name":"canary","identity_rule":null,"deny_rule":null,"secret_rule":"a","covered_by":null,"allowed":false},` +
			`{"name":"production","identity_rule":null,"deny_rule":null,"secret_rule":"*","covered_by":null,"allowed":false}],"reason":"no group has the identity"}`},
		{"by the listener", Peer{Transport: Unix, Identities: []string{"unix:uid=7"}, Groups: []string{"canary"}}, "a", `{"identity":"unix:uid=7","secret":"a","allowed":true,"groups":[` +
			`{"name":"canary","identity_rule":"listener","deny_rule":null,"secret_rule":"a","covered_by":null,"allowed":true},` +
			`{"name":"production","identity_rule":null,"deny_rule":null,"secret_rule":"*","covered_by":null,"allowed":false}],` +
			`"reason":"group \"canary\" has the identity by \"listener\" and the secret by \"a\""}`},
		{"narrowed", Peer{Transport: TLS, Identities: []string{"spiffe://e/x/n1"}, Groups: []string{"canary"}}, "a", `{"identity":"spiffe://e/x/n1","secret":"a","allowed":false,"groups":[` +
			`{"name":"canary","identity_rule":null,"deny_rule":null,"secret_rule":"a","covered_by":null,"allowed":false},` +
			`{"name":"production","identity_rule":null,"deny_rule":null,"secret_rule":"*","covered_by":null,"allowed":false}],"reason":"no group has the identity"}`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := json.Marshal(p.Explain(tc.peer, tc.secret))
			if err != nil {
				t.Fatal(err)
			}
			if string(got) != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
	denied := NewPolicy([]Group{{Name: "canary", Identities: []string{"*"}, Deny: []string{"x"}, Secrets: []string{"*"}}}).Explain(tls("x"), "a")
	if denied.Allowed || denied.Reason != `group "canary" denies the identity by "x"` {
		t.Errorf("denied: %+v", denied)
	}
}

// The explanation must never say anything else than the edge does.
func TestExplainAgreesWithTheEdge(t *testing.T) {
	globs := []string{"*", "spiffe://e/*", "spiffe://e/a", "dns:*", "unix:uid=1"}
	identities := []string{"spiffe://e/a", "spiffe://e/b", "dns:x", "unix:uid=1", "plaintext"}
	for _, allow := range globs {
		for _, deny := range append([]string{""}, globs...) {
			g := Group{Name: "g", Identities: []string{allow}, Secrets: []string{"a*"}}
			if deny != "" {
				g.Deny = []string{deny}
			}
			p := NewPolicy([]Group{g, {Name: "other"}})
			for _, identity := range identities {
				for _, transport := range []Transport{TLS, Unix} {
					for _, listener := range [][]string{nil, {"g"}, {"other"}} {
						for _, name := range []string{"abc", "bcd"} {
							peer := Peer{Transport: transport, Identities: []string{identity}, Groups: listener}
							want := p.permits(peer, "g") && p.Allowed("g", name)
							if got := p.Explain(peer, name); got.Allowed != want {
								t.Fatalf("allow %q, deny %q: %+v may have %q: %t, want %t", allow, deny, peer, name, got.Allowed, want)
							}
						}
					}
				}
			}
		}
	}
}
