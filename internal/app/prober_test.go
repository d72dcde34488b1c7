package app

import (
	"errors"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// TestNewGroupIsProvenFromItsFirstMoveOn: a reload that adds a group with verify moves it at once, so that what it has to prove must be known before;
// else its first wave would pass as one without verify. Where the reload fails, the old answer is back.
func TestNewGroupIsProvenFromItsFirstMoveOn(t *testing.T) {
	p := newParts(t, t.TempDir())
	v := p.accept(time.Now().Add(60 * 24 * time.Hour)).Version
	proven := func() bool {
		r := prober{p.server}.Look("late", map[string]secret.Version{site: v}, time.Now())
		return r.Ended.IsZero()
	}
	if proven() {
		t.Fatal("handshakes are made with a group that is not configured")
	}
	next := p.configure(
		"rollout:\n", "  - {name: late, identities: [\"spiffe://sds-server/late/*\"], secrets: [\"*\"], verify: {endpoints: [{address: \"127.0.0.1:9\"}]}}\nrollout:\n",
		"[production]]", "[production], [late]]",
	)
	commits, broken := 0, errors.New("disk full")
	p.store.before = func() error {
		if commits++; !proven() {
			t.Error("the new group moves, and there is nothing to be looked at")
		}
		return broken
	}
	if err := p.apply(t.Context(), next); !errors.Is(err, broken) {
		t.Fatalf("got %v, want the store's error", err)
	}
	if commits == 0 {
		t.Fatal("the reload committed nothing: this test looks at nothing")
	}
	if proven() {
		t.Error("the reload failed, and its group is looked at")
	}
	p.store.before = func() error {
		if !proven() {
			t.Error("the new group moves, and there is nothing to be looked at")
		}
		return nil
	}
	must(t, p.apply(t.Context(), next))
	if !proven() {
		t.Error("the reload succeeded, and its group is not looked at")
	}
}
