package storetest

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/pkg/store"
)

// seedVariable repeats a random history: its value is the seed that a failed test has printed.
const seedVariable = "STORETEST_SEED"

// model is the naive store that the real one is compared with.
type model struct {
	entries  map[string]store.Entry
	revision int64
}

// testModel runs a random history against the store and a naive map. Every answer must be equal, and a watch from the
// beginning must tell the same history.
func testModel(t *testing.T, s store.Store) {
	seed := rand.Uint64()
	if v := os.Getenv(seedVariable); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("%s: %v", seedVariable, err)
		}
	}
	t.Logf("%s=%d repeats this history", seedVariable, seed)
	random := rand.New(rand.NewPCG(seed, 1))
	m := &model{entries: map[string]store.Entry{}}
	_, m.revision = list(t, s, "")
	events := watch(t, s, "", m.revision)
	for step := range 400 {
		switch random.IntN(5) {
		case 0:
			m.checkGet(t, s, randomKey(random))
		case 1:
			m.checkList(t, s, randomPrefix(random))
		default:
			if want := m.commit(t, s, random, step); want != nil {
				expect(t, events, want...)
			}
		}
	}
	m.checkList(t, s, "")
}

func (m *model) checkGet(t *testing.T, s store.Store, key string) {
	t.Helper()
	want, ok := m.entries[key]
	if !ok {
		absent(t, s, key)
		return
	}
	equalGet(t, s, want)
}

func (m *model) checkList(t *testing.T, s store.Store, prefix string) {
	t.Helper()
	var want []store.Entry
	for _, key := range slices.Sorted(maps.Keys(m.entries)) {
		if strings.HasPrefix(key, prefix) {
			want = append(want, m.entries[key])
		}
	}
	got, revision := list(t, s, prefix)
	equalEntries(t, fmt.Sprintf("list %q", prefix), got, want)
	if revision != m.revision {
		t.Fatalf("list %q at revision %d, want %d", prefix, revision, m.revision)
	}
}

// commit tries one random commit on both and returns the events that it must have sent, nil for none.
func (m *model) commit(t *testing.T, s store.Store, random *rand.Rand, step int) []store.Event {
	t.Helper()
	conditions, holds := m.randomConditions(random)
	operations := randomOperations(random, step)
	revision, err := s.Commit(t.Context(), conditions, operations)
	if !holds {
		if !errors.Is(err, store.ErrConflict) {
			t.Fatalf("step %d, conditions %v: got %v, want %v", step, conditions, err, store.ErrConflict)
		}
		return nil
	}
	if err != nil {
		t.Fatalf("step %d, conditions %v: %v", step, conditions, err)
	}
	var events []store.Event
	for _, o := range operations {
		_, present := m.entries[o.Key]
		switch {
		case !o.Delete:
			e := store.Entry{Key: o.Key, Value: o.Value, Revision: revision}
			m.entries[o.Key] = e
			events = append(events, store.Event{Entry: e})
		case present:
			delete(m.entries, o.Key)
			events = append(events, deleted(o.Key, revision))
		}
	}
	if events == nil && revision != m.revision || events != nil && revision <= m.revision {
		t.Fatalf("step %d: revision %d after %d with %d changes", step, revision, m.revision, len(events))
	}
	m.revision = revision
	return events
}

func (m *model) randomConditions(random *rand.Rand) ([]store.Condition, bool) {
	holds := true
	var conditions []store.Condition
	for range random.IntN(4) {
		c := store.Condition{Key: randomKey(random)}
		actual := m.entries[c.Key].Revision // 0 where there is none
		c.Revision = actual
		if random.IntN(6) == 0 {
			c.Revision = random.Int64N(m.revision + 2)
		}
		holds = holds && c.Revision == actual
		conditions = append(conditions, c)
	}
	return conditions, holds
}

func randomOperations(random *rand.Rand, step int) []store.Operation {
	var operations []store.Operation
	taken := map[string]bool{}
	for i := range random.IntN(6) {
		key := randomKey(random)
		if taken[key] {
			continue
		}
		taken[key] = true
		if random.IntN(3) == 0 {
			operations = append(operations, store.Delete(key))
			continue
		}
		// Mostly small, now and then more than a page of any engine.
		value := fmt.Appendf(nil, "%d.%d ", step, i)
		if random.IntN(10) == 0 {
			value = append(value, make([]byte, random.IntN(20000))...)
		}
		operations = append(operations, store.Put(key, value))
	}
	return operations
}

// randomKey returns one of few keys, so that histories meet, with prefixes of each other among them.
func randomKey(random *rand.Rand) string {
	parts := []string{"a", "a/", "a0", "b%2F", "secret", "ä", "\xff", "a/b/c"}
	return parts[random.IntN(len(parts))] + strconv.Itoa(random.IntN(6))
}

func randomPrefix(random *rand.Rand) string {
	key := randomKey(random)
	return key[:random.IntN(len(key)+1)]
}
