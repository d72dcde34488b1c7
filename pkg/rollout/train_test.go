package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestChangesThatAreReadyTogetherTravelTogether(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(5*time.Minute), func(t *testing.T, r *rig) {
		names := []string{"a", "b", "d", "e"}
		r.node("c1", "canary", names...)
		r.node("p1", "production", names...)
		old, now := versions{}, versions{}
		for _, n := range names {
			old[n] = r.serve(n)
		}
		for _, n := range names {
			now[n] = r.accept(n)
		}
		r.settle()
		r.want("a", versions{"canary": now["a"]}) // it was first, and is watched alone
		r.want("b", versions{"canary": old["b"]})
		r.pass(11 * time.Minute) // b, d and e in one train
		for _, n := range names[1:] {
			r.want(n, versions{"canary": now[n]})
		}
		r.pass(11 * time.Minute)
		for _, n := range names {
			r.want(n, r.all(now[n]))
		}
		r.wantStates("1 done", "2 done", "3 done", "4 done", "5 done", "6 done", "7 superseded", "8 superseded")
		if r.get(7).Joined != 6 || r.get(8).Joined != 6 || len(r.get(6).Change) != 3 {
			t.Errorf("7 goes with %d, 8 with %d, 6 brings %d", r.get(7).Joined, r.get(8).Joined, len(r.get(6).Change))
		}
	})
}

func TestCulpritLeavesTheTrainAndTheRestGoesOn(t *testing.T) {
	for _, how := range []string{"nack", "handshake"} {
		t.Run(how, func(t *testing.T) {
			run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
				r.prober.blinded = false
				names := []string{"x", "a", "b", "d"}
				c := r.node("c1", "canary", names...)
				r.node("p1", "production", names...)
				old, now := versions{}, versions{}
				for _, n := range names {
					old[n] = r.serve(n)
				}
				for _, n := range names {
					now[n] = r.accept(n)
				}
				if how == "nack" {
					c.refuses = func(name string, _ version) bool { return name == "b" }
				} else {
					r.prober.bad = map[version]string{now["b"]: "unknown root"}
				}
				r.pass(6 * time.Minute)
				r.want("a", r.all(now["a"]))
				r.want("d", r.all(now["d"]))
				r.want("b", r.all(old["b"]))
				if r.held("b", now["b"]) != Hard || r.held("a", now["a"]) != "" || r.held("d", now["d"]) != "" {
					t.Errorf("holds are %+v, want b alone", r.c.Holds())
				}
				if h := r.c.Holds()[0]; h.Handshake != (how == "handshake") { // whatever the others of the train showed
					t.Errorf("the hold is %+v after a %s", h, how)
				}
				if _, err := r.c.Rollback(r.ctx(), "canary", alice); err != nil { // the rest of the train can still be taken back
					t.Fatal(err)
				}
				r.want("a", versions{"canary": old["a"]})
				r.want("d", versions{"canary": old["d"]})
			})
		})
	}
}

func TestTrainThatFailsWithoutACulpritIsTriedAgainOneByOne(t *testing.T) {
	policy := waves("auto", "canary", "production").watched(time.Minute)
	policy.Gates = []Gate{{Name: "errors", Max: new(float64(5)), Timeout: time.Minute}}
	run(t, policy, func(t *testing.T, r *rig) {
		r.meters.values = map[string]string{"errors": "0"}
		names := []string{"x", "a", "b"}
		r.node("c1", "canary", names...)
		old, now := versions{}, versions{}
		for _, n := range names {
			old[n] = r.serve(n)
		}
		for i, n := range names {
			now[n] = r.acceptFor(n, time.Duration(90-i)*day)
		}
		r.pass(80 * time.Second) // x is on production; a and b are on canary
		r.want("a", versions{"canary": now["a"]})
		r.meters.values["errors"] = "9"
		r.pass(30 * time.Second)
		if r.held("a", now["a"]) != Soft || r.held("b", now["b"]) != Soft {
			t.Fatalf("holds are %+v, want a and b softly", r.c.Holds())
		}
		r.want("a", r.all(old["a"]))
		r.want("b", r.all(old["b"]))
		r.meters.values["errors"] = "0"
		r.pass(time.Hour)
		tried := 0
		for _, n := range names[1:] {
			if r.at("canary", n) == now[n] {
				tried++
			}
		}
		if tried != 1 || r.at("canary", "b") != now["b"] {
			t.Errorf("%d are tried again, want b alone: it expires first", tried)
		}
		r.pass(5 * time.Minute)
		r.want("a", r.all(now["a"]))
		r.want("b", r.all(now["b"]))
	})
}

func TestNewerVersionTakesItsSecretOutOfATrain(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "x", "a", "b")
		for _, n := range []string{"x", "a", "b"} {
			r.serve(n)
		}
		r.accept("x")
		r.accept("a")
		b2 := r.accept("b")
		r.pass(2*time.Minute + 10*time.Second)
		r.want("b", versions{"canary": b2})
		a3 := r.accept("a")
		r.pass(5 * time.Minute)
		r.want("b", r.all(b2))
		r.want("a", r.all(a3))
	})
}

func TestTenSecretsRenewBesideAPausedRollout(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		names := []string{"paused"}
		for i := range 10 {
			names = append(names, fmt.Sprintf("s%d", i))
		}
		r.node("c1", "canary", names...)
		r.node("p1", "production", names...)
		old := versions{}
		for _, n := range names {
			old[n] = r.serve(n)
		}
		held := r.serve("paused")
		id := r.c.Active()[0].ID
		if _, err := r.c.Pause(r.ctx(), id, alice); err != nil {
			t.Fatal(err)
		}
		now := versions{}
		for _, n := range names[1:] {
			now[n] = r.accept(n)
		}
		added := r.serve("addition")
		r.pass(5 * time.Minute)
		for _, n := range names[1:] {
			r.want(n, r.all(now[n]))
		}
		r.want("addition", r.all(added))
		r.want("paused", versions{"canary": held, "production": old["paused"]})
		urgent, err := r.c.Start(r.ctx(), "s0", old["s0"], alice) // something else moves the group meanwhile
		if err != nil || urgent.ID == 0 {
			t.Fatalf("%+v, %v", urgent, err)
		}
		if _, err := r.c.Abort(r.ctx(), id, alice); err != nil { // going back undoes none of that
			t.Fatal(err)
		}
		r.pass(5 * time.Minute)
		r.want("paused", r.all(old["paused"]))
		r.want("addition", r.all(added))
		r.want("s0", r.all(old["s0"]))
		for _, n := range names[2:] {
			r.want(n, r.all(now[n]))
		}
		if r.get(id).State != Aborted || r.held("paused", held) != Manual {
			t.Errorf("it is %s, held %q; want aborted, and held by hand", r.get(id).State, r.held("paused", held))
		}
	})
}

func TestPausedWaveGoesOnWithWhatWasLeftOfItsWatch(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(10*time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www", "other")
		v1 := r.serve("www")
		r.serve("other")
		v2 := r.serve("www")
		r.pass(6 * time.Minute)
		id := r.c.Active()[0].ID
		if _, err := r.c.Pause(r.ctx(), id, alice); err != nil {
			t.Fatal(err)
		}
		r.restart()
		r.settle()
		r.accept("other")
		r.pass(5 * time.Minute) // the slot is that of the other one
		if got := r.get(id); got.State != Paused {
			t.Errorf("it is %s after a restart, want paused", got.State)
		}
		if _, err := r.c.Resume(r.ctx(), id, alice); err != nil {
			t.Fatal(err)
		}
		r.settle()
		if got := r.get(id); got.State != Waiting || !strings.Contains(got.Reason, "another change") {
			t.Errorf("it is %s (%s), want to wait for the other one", got.State, got.Reason)
		}
		r.pass(8 * time.Minute) // other is on to production; www is watched again on canary
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(2 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(30 * time.Minute)
		r.want("www", r.all(v2))
	})
}

func TestPausedWaveIsTakenBackByANACK(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(10*time.Minute), func(t *testing.T, r *rig) {
		c := r.node("c1", "canary", "www")
		v1 := r.serve("www")
		c.silent = true
		v2 := r.serve("www")
		if _, err := r.c.Pause(r.ctx(), 2, alice); err != nil {
			t.Fatal(err)
		}
		r.pass(5 * time.Minute) // no ack_timeout runs
		r.want("www", versions{"canary": v2, "production": v1})
		c.silent, c.refuses = false, func(string, version) bool { return true }
		r.settle()
		r.want("www", r.all(v1))
		if r.held("www", v2) != Hard {
			t.Errorf("held %q, want hard", r.held("www", v2))
		}
	})
}

func TestOperatorsWishesAreSafeToRepeat(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(10*time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		wishes := []struct {
			name string
			do   func() (Control, error)
			want State
		}{
			{"pause", func() (Control, error) { return r.c.Pause(r.ctx(), 2, alice) }, Paused},
			{"resume", func() (Control, error) { return r.c.Resume(r.ctx(), 2, alice) }, Watching},
			{"abort", func() (Control, error) { return r.c.Abort(r.ctx(), 2, alice) }, Aborted},
		}
		for _, w := range wishes {
			for i := range 2 {
				got, err := w.do()
				if w.name == "resume" && i == 0 {
					r.settle()
					continue
				}
				if err != nil || got.Already != (i == 1) || got.State != w.want {
					t.Errorf("%s: %+v, %v; want %s", w.name, got, err, w.want)
				}
			}
			if by := r.get(2).Log[len(r.get(2).Log)-1].By; w.name != "resume" && by != alice.By {
				t.Errorf("%s was by %q", w.name, by)
			}
		}
		r.settle()
		r.want("www", r.all(v1))
		if _, err := r.c.Start(r.ctx(), "www", v2[:10], Operator{By: "alice"}); err != nil {
			t.Fatal(err)
		}
		if again, err := r.c.Start(r.ctx(), "www", v2[:10], Operator{By: "alice"}); err != nil || !again.Already || again.ID != 3 {
			t.Errorf("%+v, %v; want rollout 3 already", again, err)
		}
		r.pass(21 * time.Minute)
		r.want("www", r.all(v2))
		for i := range 2 {
			if got, err := r.c.Undo(r.ctx(), 3, alice); err != nil || got.State != RolledBack || got.Already != (i == 1) {
				t.Errorf("undo: %+v, %v", got, err)
			}
		}
		r.want("www", r.all(v1))
		if _, err := r.c.Undo(r.ctx(), 2, alice); err == nil || !strings.Contains(err.Error(), "aborted") {
			t.Errorf("undo of an aborted one: %v", err)
		}
		if n := len(r.states()); n != 3 {
			t.Errorf("there are %d rollouts, want 3: %v", n, r.states())
		}
	})
}

func TestUndoIsRefusedAfterItsWindow(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.serve("www")
		v2 := r.serve("www")
		r.pass(33 * time.Minute)
		if _, err := r.c.Undo(r.ctx(), 2, alice); err == nil || !strings.Contains(err.Error(), "undo_window") {
			t.Errorf("%v, want it to name undo_window", err)
		}
		r.want("www", r.all(v2))
	})
}

func TestHeldVersionEndsItsRolloutAndStaysWhereItIs(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		h, err := r.c.Hold(r.ctx(), "www", "", Operator{By: "alice", Reason: "freeze"})
		if err != nil || h.Version != v2 || h.Kind != Manual || !strings.Contains(h.Reason, "freeze") {
			t.Fatalf("%+v, %v", h, err)
		}
		r.pass(5 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		if n, err := r.c.Release(r.ctx(), "www", v2); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		r.pass(5 * time.Minute)
		r.want("www", r.all(v2))
		if slices.ContainsFunc(r.c.Holds(), func(h Hold) bool { return h.Secret == "www" }) {
			t.Error("it is still held")
		}
	})
}

func TestNodeOfAChangeThatLeftATrainIsNotWaitedFor(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "x")
		a := r.node("ca", "canary", "a")
		r.node("cb", "canary", "b")
		for _, n := range []string{"x", "a", "b"} {
			r.serve(n)
		}
		r.accept("x")
		r.accept("a")
		b2 := r.accept("b")
		a.silent = true
		r.pass(70 * time.Second)
		r.want("b", versions{"canary": b2})
		r.edit(a, (*node).disconnect) // it would be waited for, up to its grace
		a3 := r.accept("a")
		r.pass(5 * time.Minute)
		r.want("b", r.all(b2))
		r.want("a", versions{"canary": r.at("canary", "a")})
		if r.at("production", "a") == a3 {
			t.Error("a has passed canary without its node")
		}
	})
}

func TestSilentNodeDelaysNoSecretThatItDoesNotHave(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "x", "healthy")
		silent := r.node("c2", "canary", "a")
		for _, n := range []string{"x", "a", "healthy"} {
			r.serve(n)
		}
		silent.silent = true
		r.accept("x")
		a2, healthy := r.accept("a"), r.accept("healthy")
		r.pass(6 * time.Minute)
		r.want("healthy", r.all(healthy))
		if r.held("a", a2) != Soft || r.held("healthy", healthy) != "" {
			t.Errorf("holds are %+v, want a alone", r.c.Holds())
		}
	})
}

func TestWhatIsTriedAgainDoesNotDelayWhatIsNew(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(5*time.Minute), func(t *testing.T, r *rig) {
		names := []string{"a", "b", "d", "e", "f"}
		c := r.node("c1", "canary", names...)
		r.node("c2", "canary", "new")
		r.serve("new")
		for _, n := range names {
			r.serve(n)
		}
		c.silent = true
		for _, n := range names {
			r.accept(n)
		}
		r.pass(10 * time.Minute) // all of them are held softly
		c.silent = false
		r.pass(55 * time.Minute) // and the first is tried again
		v := r.accept("new")
		r.pass(16 * time.Minute)
		r.want("new", r.all(v))
		r.pass(2 * time.Hour)
		if len(r.c.Holds())+len(r.c.Active()) != 0 {
			t.Errorf("held %+v, under way %d", r.c.Holds(), len(r.c.Active()))
		}
	})
}
