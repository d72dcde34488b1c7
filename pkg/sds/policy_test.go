package sds

import (
	"errors"
	"strings"
	"testing"
)

func TestGlobMatchesWholeText(t *testing.T) {
	for _, test := range []struct {
		pattern, text string
		name, path    bool // as a secret name; as an identity
	}{
		{"*", "", true, true},
		{"*", "www.example.com", true, true},
		{"*", "a/b", true, false},
		{"a", "a", true, true},
		{"a", "ab", false, false},
		{"a*", "abc", true, true},
		{"*c", "abc", true, true},
		{"a*a", "a", false, false},
		{"a*a", "aa", true, true},
		{"*.example.com", "x.example.com", true, true},
		{"*.example.com", "example.com", false, false},
		{"a*b*c", "axxbyyc", true, true},
		{"a*b*c", "acb", false, false},
		{"*ab*ab", "abab", true, true},
		{"*ab*ab", "aab", false, false},
		{"a?c", "abc", false, false},
		{"[ab]", "a", false, false},
		{"", "", true, true},
		{"", "a", false, false},
		{"spiffe://edge.example/canary/*", "spiffe://edge.example/canary/a", true, true},
		{"spiffe://edge.example/canary/*", "spiffe://edge.example/canary/a/b", true, false},
		{"spiffe://edge.example/canary/*", "spiffe://edge.example/canary", false, false},
		{"spiffe://*/canary/*", "spiffe://edge.example/canary/a", true, true},
		{"spiffe://*/x", "spiffe://edge.example/canary/x", true, false},
	} {
		if got := newGlob(test.pattern).match(test.text); got != test.name {
			t.Errorf("name glob %q on %q: %v, want %v", test.pattern, test.text, got, test.name)
		}
		if got := newPathGlob(test.pattern).match(test.text); got != test.path {
			t.Errorf("identity glob %q on %q: %v, want %v", test.pattern, test.text, got, test.path)
		}
	}
}

func TestDecideNamesExactlyOneGroup(t *testing.T) {
	policy := NewPolicy([]Group{
		{Name: "canary", Identities: []string{"spiffe://edge.example/canary/*", "spiffe://edge.example/both/*", "dns:Edge-1.example"}},
		{
			Name: "production", Identities: []string{"spiffe://edge.example/production/*", "spiffe://edge.example/both/*"},
			Deny: []string{"spiffe://edge.example/*/stolen", "unix:uid=13"},
		},
		{Name: "empty"},
	})
	tls := func(identities ...string) Peer { return Peer{Transport: TLS, Identities: identities} }
	unix := func(identity string, groups ...string) Peer {
		return Peer{Transport: Unix, Identities: []string{identity}, Groups: groups}
	}
	narrowed := tls("spiffe://edge.example/both/a")
	narrowed.Groups = []string{"production"}
	for _, test := range []struct {
		name            string
		peer            Peer
		cluster         string
		identity, group string
		err             error
	}{
		{"no certificate", tls(), "canary", "", "", errNoCertificate},
		{"unknown identity", tls("spiffe://edge.example/other/a"), "canary", "", "", errUnknownIdentity},
		{"one group", tls("spiffe://edge.example/canary/a"), "", "spiffe://edge.example/canary/a", "canary", nil},
		{"one group, another cluster does not widen", tls("spiffe://edge.example/canary/a"), "production", "spiffe://edge.example/canary/a", "canary", nil},
		{"several groups, none named", tls("spiffe://edge.example/both/a"), "edge", "", "", errGroupNotNamed},
		{"several groups, one named", tls("spiffe://edge.example/both/a"), "production", "spiffe://edge.example/both/a", "production", nil},
		{"several groups, another one named", tls("spiffe://edge.example/both/a"), "empty", "", "", errGroupNotNamed},
		{"every SAN is looked at", tls("https://x.example/", "dns:edge-1.example"), "", "dns:edge-1.example", "canary", nil},
		{"DNS names have no case", tls("dns:EDGE-1.example"), "", "dns:EDGE-1.example", "canary", nil},
		{"URIs have a case", tls("spiffe://edge.example/Canary/a"), "", "", "", errUnknownIdentity},
		{"denied", tls("spiffe://edge.example/production/stolen"), "", "", "", errUnknownIdentity},
		{"denied by another SAN", tls("spiffe://edge.example/production/a", "spiffe://edge.example/production/stolen"), "", "", "", errUnknownIdentity},
		{"denied in one group only", tls("spiffe://edge.example/both/stolen"), "", "spiffe://edge.example/both/stolen", "canary", nil},
		{"the listener narrows", narrowed, "canary", "spiffe://edge.example/both/a", "production", nil},
		{"unix, the listener's group", unix("unix:uid=7", "canary"), "production", "unix:uid=7", "canary", nil},
		{"unix, several groups", unix("unix:uid=7", "canary", "production"), "production", "unix:uid=7", "production", nil},
		{"unix, denied", unix("unix:uid=13", "production"), "", "", "", errUnknownIdentity},
		{"unix, group is gone", unix("unix:uid=7", "gone"), "", "", "", errUnknownIdentity},
		{"no proof and no groups", unix("unix:uid=7"), "canary", "", "", errUnknownIdentity},
	} {
		t.Run(test.name, func(t *testing.T) {
			identity, group, err := policy.Decide(test.peer, test.cluster)
			if identity != test.identity || group != test.group || !errors.Is(err, test.err) || (err == nil) != (test.err == nil) {
				t.Errorf("got %q, %q, %v; want %q, %q, %v", identity, group, err, test.identity, test.group, test.err)
			}
		})
	}
}

func TestNamesAreAllowedByGroupOnly(t *testing.T) {
	policy := NewPolicy([]Group{{Name: "canary", Secrets: []string{"www.example", "*.api.example"}}, {Name: "production"}})
	for _, test := range []struct {
		group, name string
		want        bool
	}{
		{"canary", "www.example", true},
		{"canary", "a/b.api.example", true},
		{"canary", "www.example.org", false},
		{"production", "www.example", false},
		{"gone", "www.example", false},
	} {
		if got := policy.Allowed(test.group, test.name); got != test.want {
			t.Errorf("%s may have %q: %v, want %v", test.group, test.name, got, test.want)
		}
	}
}

func TestLongGlobsAreMatchedInLinearTime(t *testing.T) {
	pattern, text := strings.Repeat("a*", 1000)+"b", strings.Repeat("a", 100_000)
	if newGlob(pattern).match(text) {
		t.Error("matched, want no match") // with backtracking this would never end
	}
}
