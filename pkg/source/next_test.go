package source

import (
	"bytes"
	"testing"
	"time"
)

// TestNextStepOfARing is the decision alone, also where the loop gets seldom: with a record that a crash left beside a secret that is gone, and with a
// version that is held after every node had it.
func TestNextStepOfARing(t *testing.T) {
	now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	c := Ring{Name: "tickets", Rotate: time.Hour, Keep: 2}
	a, b, d := newKey(), newKey(), newKey()
	learnt := &ring{Name: c.Name, Phase: learning, Keys: [][]byte{a, b, d}, Since: now, Switched: now.Add(-time.Hour), revision: 7}
	old := &ring{Name: c.Name, Phase: serving, Keys: [][]byte{a, d}, Since: now, Switched: now.Add(-2 * time.Hour), revision: 7}
	fresh := &ring{Name: c.Name, Phase: serving, Keys: [][]byte{a, d}, Since: now, Switched: now.Add(-time.Minute), revision: 7}
	for _, row := range []struct {
		name     string
		ring     *ring
		standing Standing
		phase    phase    // of the next state; empty: it stays
		keys     [][]byte // of the next state; nil stands for a new key
	}{
		{"there is none", nil, Standing{}, serving, [][]byte{nil}},
		{"its secret is gone", old, Standing{Nowhere: true}, serving, [][]byte{nil}},
		{"its secret is gone while nodes learn", learnt, Standing{Nowhere: true}, serving, [][]byte{nil}},
		{"its secret was refused everywhere", old, Standing{Nowhere: true, Held: "hard"}, "", nil},
		{"not everywhere", old, Standing{}, "", nil},
		{"not everywhere while nodes learn", learnt, Standing{}, "", nil},
		{"held and everywhere", old, Standing{Everywhere: true, Held: "manual"}, "", nil},
		{"held and everywhere while nodes learn", learnt, Standing{Everywhere: true, Held: "manual"}, "", nil},
		{"not due", fresh, Standing{Everywhere: true}, "", nil},
		{"due", old, Standing{Everywhere: true}, learning, [][]byte{a, nil, d}},
		{"learnt", learnt, Standing{Everywhere: true}, serving, [][]byte{b, a}},
	} {
		t.Run(row.name, func(t *testing.T) {
			next, _ := row.ring.next(now, c, row.standing)
			if row.phase == "" {
				if next != nil {
					t.Fatalf("got a next state in phase %s, want none", next.Phase)
				}
				return
			}
			if next == nil {
				t.Fatalf("got no next state, want one in phase %s", row.phase)
			}
			if next.Phase != row.phase || len(next.Keys) != len(row.keys) {
				t.Fatalf("got phase %s with %d keys, want %s with %d", next.Phase, len(next.Keys), row.phase, len(row.keys))
			}
			for i, want := range row.keys {
				known := bytes.Equal(next.Keys[i], a) || bytes.Equal(next.Keys[i], b) || bytes.Equal(next.Keys[i], d)
				if want == nil && known || want != nil && !bytes.Equal(next.Keys[i], want) {
					t.Errorf("key %d is not the one that it should be", i+1)
				}
			}
			if row.ring != nil && next.revision != row.ring.revision {
				t.Errorf("got revision %d, want %d: the commit would find a conflict", next.revision, row.ring.revision)
			}
		})
	}
}
