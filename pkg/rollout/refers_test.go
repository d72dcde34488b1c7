package rollout

import (
	"slices"
	"testing"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

func TestVersionsThatNodesNeedAreNotPruned(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	needed, other := r.serve("a"), r.serve("a")
	r.needed = []secret.Version{needed}
	stored := func(v secret.Version) bool {
		t.Helper()
		versions, err := r.cache.Versions(t.Context(), "a")
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(versions, func(m cache.Meta) bool { return m.Version == v })
	}
	for range 8 {
		r.serve("a")
	}
	if stored(other) || !stored(needed) {
		t.Errorf("stored: %t of the version that nodes need, %t of another; want the first alone", stored(needed), stored(other))
	}
	r.needed = nil
	r.serve("a")
	if stored(needed) {
		t.Error("the version is still stored when no node needs it")
	}
}
