package verify

import (
	"testing"
	"time"
)

// The background looks at what each group serves, not at the first one alone.
func TestReviewBackgroundLooksAtEveryGroup(t *testing.T) {
	leaf := func(name string) Wanted {
		return Wanted{Leaf: Leaf{Secret: name, Version: "v", KeyType: "ecdsa-p256", DNSNames: []string{name + ".example"}, NotAfter: time.Now().Add(time.Hour)}, Asked: name}
	}
	groups := []Group{
		{Name: "canary", Timeout: time.Second, Targets: []Target{{Address: "127.0.0.1:1", Secrets: []Wanted{leaf("www")}}}},
		{Name: "production", Timeout: time.Second, Targets: []Target{{Address: "127.0.0.1:2", Secrets: []Wanted{leaf("www")}}}},
	}
	looked := map[string]bool{}
	for _, checks := range soonest(groups) {
		for _, c := range checks {
			looked[c.Group+" "+c.Address] = true
		}
	}
	for _, want := range []string{"canary 127.0.0.1:1", "production 127.0.0.1:2"} {
		if !looked[want] {
			t.Errorf("nothing looks at %s: %v", want, looked)
		}
	}
}
