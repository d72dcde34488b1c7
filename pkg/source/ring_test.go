package source

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	rotate = time.Hour
	keep   = 3
)

var tickets = Config{Rings: []Ring{{Name: "tickets", Rotate: rotate, Keep: keep}}}

// TestNodesKnowAKeyBeforeOneEncryptsWithIt rotates a ring many times on a fleet that takes a while for each step, and asks at every step what each node could
// read.
func TestNodesKnowAKeyBeforeOneEncryptsWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.lag = time.Minute // from one group to the next
		w.start(tickets)
		for range 20 {
			w.wait(rotate / 2)
		}
		if got := w.encrypted(); got < 9 || got > 11 {
			t.Errorf("%d keys have encrypted within ten times the time of a rotation, want about 10", got)
		}
	})
}

// TestRotationHappensWhenItIsDue is about the times: the age of the key that encrypts, and of the keys that are kept.
func TestRotationHappensWhenItIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(tickets)
		begin := time.Now()
		var first [][]byte
		for n := range 6 {
			ring := w.ring("tickets")
			first = append(first, ring[0])
			if want := min(n+1, keep); len(ring) != want {
				t.Errorf("after %d rotations: %d keys, want %d", n, len(ring), want)
			}
			for i, key := range ring {
				if !bytes.Equal(key, first[n-i]) {
					t.Errorf("after %d rotations: key %d is not the one that was first %d rotations ago", n, i, i)
				}
			}
			due := w.status("tickets").Next
			if switched := w.status("tickets").Switched; due.Sub(switched) != rotate || switched.Before(begin) {
				t.Errorf("rotation %d: the key is first since %v, and due at %v", n+1, switched, due)
			}
			w.wait(time.Until(due) - time.Second)
			if got := w.ring("tickets"); !bytes.Equal(got[0], first[n]) || len(got) != len(ring) {
				t.Fatalf("rotation %d: it began before it was due", n+1)
			}
			w.wait(4 * stepInterval)
		}
	})
}

func TestOneMoreKeyWhileNodesLearn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(tickets)
		w.wait(5 * rotate)
		before := w.ring("tickets")
		w.set(true, false)
		w.wait(rotate)
		learning := w.proposed("tickets")
		if len(learning) != keep+1 || !bytes.Equal(learning[0], before[0]) || !slices.EqualFunc(learning[2:], before[1:], bytes.Equal) {
			t.Fatalf("%d keys are proposed, want the %d of before with a new one in second place", len(learning), len(before))
		}
		if st := w.status("tickets"); !st.Learning || st.Version != w.versionOf("tickets") {
			t.Errorf("status %+v, want learning", st)
		}
		w.set(false, false)
		w.wait(time.Minute)
		after := w.ring("tickets")
		if len(after) != keep || !bytes.Equal(after[0], learning[1]) || !bytes.Equal(after[1], learning[0]) {
			t.Errorf("%d keys are served, want the new one first and the old one behind it", len(after))
		}
	})
}

// TestRotationThatCannotMoveHappensOnce holds the fleet up, in either step, for many times the time of a rotation.
func TestRotationThatCannotMoveHappensOnce(t *testing.T) {
	for _, hold := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t)
			w.start(tickets)
			w.wait(rotate - time.Minute)
			for step := range 2 { // learning, encrypting
				w.set(!hold, hold)
				w.wait(8 * rotate)
				if got, want := w.accepted("tickets"), 2+step; got != want {
					t.Fatalf("hold %v, step %d: %d versions were proposed, want %d", hold, step, got, want)
				}
				if st := w.status("tickets"); hold != (st.Held != "") {
					t.Errorf("hold %v: status %+v", hold, st)
				}
				w.release()
				w.wait(lookInterval)
			}
			w.set(false, false)
			w.release()
			w.wait(2 * lookInterval)
			if got := w.accepted("tickets"); got > 5 { // it is due again, once
				t.Errorf("%d versions were proposed after all, want no rotation made up for", got)
			}
		})
	}
}

// TestRingSurvivesACrashAnywhere ends the server after every commit, and before it, with and without its answer.
func TestRingSurvivesACrashAnywhere(t *testing.T) {
	for _, mode := range []string{"before", "after"} {
		for n := range 7 {
			t.Run(fmt.Sprintf("%s commit %d", mode, n), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					w := newWorld(t)
					w.crashAt, w.crashBefore = n, mode == "before"
					w.start(tickets)
					for range 16 {
						w.wait(rotate / 4)
						if w.hasCrashed() {
							w.restart(tickets)
						}
					}
					if !w.wasCrashed {
						t.Fatal("it did not crash")
					}
					// 3 or 4 rotations have been due. One crash costs no rotation, and makes none.
					if got := w.encrypted(); got < 4 || got > 5 {
						t.Errorf("%d keys have encrypted, want 4 or 5", got)
					}
				})
			})
		}
	}
}

func TestRestartKeepsPhaseAndTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(tickets)
		w.wait(rotate / 2)
		before := w.status("tickets")
		w.restart(tickets)
		if got := w.status("tickets"); got != before {
			t.Errorf("after a restart %+v, want %+v", got, before)
		}
		w.stop()
		w.wait(5 * rotate) // down for long
		w.restart(tickets)
		w.wait(time.Minute)
		if got := w.accepted("tickets"); got != 3 {
			t.Errorf("%d versions were proposed, want one rotation: 3", got)
		}
	})
}

func TestChangedTimesAreInForceAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(tickets)
		w.wait(5*rotate + rotate/2)
		first := w.ring("tickets")[0]
		w.Set(Config{Rings: []Ring{{Name: "tickets", Rotate: time.Minute, Keep: 1}}})
		w.wait(30 * time.Second)
		if got := w.ring("tickets"); len(got) != 1 || bytes.Equal(got[0], first) {
			t.Errorf("%d keys are served, want one new one: it was due", len(got))
		}
	})
}

func TestRingThatWasAwayBeginsAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(tickets)
		w.wait(3 * rotate)
		old := w.ring("tickets")
		w.Set(Config{})
		w.wait(2 * lookInterval)
		if _, err := w.store.Get(t.Context(), ringKey("tickets")); err != nil {
			t.Errorf("the keys of a ring that is served still are gone: %v", err)
		}
		w.remove("tickets")
		w.wait(2 * lookInterval)
		if _, err := w.store.Get(t.Context(), ringKey("tickets")); err == nil {
			t.Error("the keys of a ring that is gone are still stored")
		}
		w.Set(tickets)
		w.wait(time.Minute)
		if got := w.ring("tickets"); len(got) != 1 || slices.ContainsFunc(old, func(k []byte) bool { return bytes.Equal(k, got[0]) }) {
			t.Errorf("%d keys are served, want one new one", len(got))
		}
	})
}

// TestVersionThatIsHeldNowhereServedStays: an operator took the ring away everywhere; a new one would overrule that.
func TestHeldRingIsNotReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.start(tickets)
		w.wait(time.Minute)
		w.hold("tickets")
		w.remove("tickets")
		w.wait(3 * rotate)
		if got := w.accepted("tickets"); got != 1 {
			t.Errorf("%d versions were proposed, want 1", got)
		}
	})
}

func TestClockThatWasSetBackStopsNoRotation(t *testing.T) {
	now := time.Now()
	r := &ring{Name: "tickets", Phase: serving, Keys: [][]byte{newKey()}, Switched: now.Add(1000 * time.Hour)}
	next, _ := r.next(now, tickets.Rings[0], Standing{Everywhere: true})
	if next == nil || next.Phase != learning {
		t.Fatalf("got %v, want a rotation", next)
	}
	next, _ = next.next(now, tickets.Rings[0], Standing{Everywhere: true})
	if next == nil || next.Phase != serving || !next.Switched.Equal(now) {
		t.Errorf("got %v, want the new key first since now", next)
	}
}

func TestForeignRecordIsRefusedWithoutItsContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		for _, value := range []string{
			`{"name":"other","phase":"serving","keys":["private"]}`, `{"name":"tickets","phase":"private","keys":["cHJpdmF0ZQ=="]}`,
			`{"name":"tickets","phase":"learning","keys":["cHJpdmF0ZQ=="]}`, `{"name":"tickets","phase":"serving","keys":["cHJpdmF0ZQ=="]}`, `private`,
		} {
			if _, err := w.store.Commit(t.Context(), nil, []store.Operation{store.Put(ringKey("tickets"), []byte(value))}); err != nil {
				t.Fatal(err)
			}
			w.restart(tickets)
			st := w.status("tickets")
			if st.Err == nil || bytes.Contains([]byte(st.Err.Error()), []byte("private")) || bytes.Contains(w.log.Bytes(), []byte("private")) {
				t.Errorf("%s: got %v and the log %s", value, st.Err, w.log)
			}
			w.stop()
		}
		if got := w.accepted("tickets"); got != 0 {
			t.Errorf("%d versions were proposed, want none", got)
		}
	})
}
