package cache

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"runtime"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestSetIsAPlainMap(t *testing.T) {
	for range 20 {
		seed := rand.Uint64()
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) { modelTest(t, rand.New(rand.NewPCG(seed, 0))) })
	}
}

// modelTest takes a set and a map through the same random history.
func modelTest(t *testing.T, random *rand.Rand) {
	sets, models := []*Set{{}}, []map[string]secret.Version{{}}
	for range 60 {
		from := random.IntN(len(sets))
		changes := map[string]secret.Version{}
		for range random.IntN(30) {
			version := ""
			if random.IntN(3) > 0 {
				version = fmt.Sprintf("v%d", random.IntN(4))
			}
			changes[fmt.Sprintf("s%d", random.IntN(600))] = secret.Version(version)
		}
		model := maps.Clone(models[from])
		maps.Copy(model, changes)
		maps.DeleteFunc(model, func(_ string, v secret.Version) bool { return v == "" })
		sets, models = append(sets, sets[from].With(changes)), append(models, model)
	}
	for i, s := range sets { // after all changes: a set that shares a shard must not have been written to
		if diff := cmp.Diff(models[i], maps.Collect(s.All())); diff != "" || s.Len() != len(models[i]) {
			t.Fatalf("set %d (-want +got), %d members, want %d:\n%s", i, s.Len(), len(models[i]), diff)
		}
		for name := range models[0] {
			if v, ok := s.Version(name); ok != (models[i][name] != "") || v != models[i][name] {
				t.Fatalf("set %d: %s is %q, want %q", i, name, v, models[i][name])
			}
		}
		for range 5 {
			j := random.IntN(len(sets))
			other := sets[j]
			diff := s.Diff(other)
			if got := s.With(diff); !got.Equal(other) || got.digest != other.digest {
				t.Fatalf("set %d with its difference to set %d is not set %d", i, j, j)
			}
			if equal := maps.Equal(models[i], models[j]); s.Equal(other) != equal || (len(diff) == 0) != equal || (s.digest == other.digest) != equal {
				t.Fatalf("sets %d and %d: Equal %v, difference %v; the models are equal: %v", i, j, s.Equal(other), diff, equal)
			}
		}
	}
	rebuilt := (&Set{}).With(models[len(models)-1])
	if last := sets[len(sets)-1]; rebuilt.digest != last.digest || !rebuilt.Equal(last) {
		t.Fatal("the same content by another history is another set")
	}
}

// large returns n secrets at one version.
func large(n int, name string) map[string]secret.Version {
	all := make(map[string]secret.Version, n)
	for i := range n {
		all[fmt.Sprintf(name, i)] = secret.Version(fmt.Sprintf("%064d", i))
	}
	return all
}

func TestOneChangeOfALargeSetCopiesItsShardOnly(t *testing.T) {
	set := (&Set{}).With(large(10_000, "secret-%d"))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	next := set.With(map[string]secret.Version{"secret-77": "new"})
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got >= 64<<10 {
		t.Errorf("one change allocates %d bytes, want less than 64 KiB", got)
	}
	own := 0
	for n := range set.shards {
		if !shared(set.shards[n], next.shards[n]) {
			own++
		}
	}
	if own != 1 {
		t.Errorf("%d shards were copied, want 1", own)
	}
}
