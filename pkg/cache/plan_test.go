package cache

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

func TestPlanIsDurableBeforeItIsVisible(t *testing.T) {
	b := newBench(t, "a", "b")
	v1 := b.put("s", "a", "b")
	before := b.state()
	p := b.Plan()
	m, fresh, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"})
	if err != nil || !fresh {
		t.Fatalf("got %v, %v; want a fresh version", fresh, err)
	}
	for _, g := range []string{"a", "b"} {
		if _, err := p.Move(b.ctx(), g, map[string]secret.Version{"s": m.Version}, Why{}); err != nil {
			t.Fatal(err)
		}
	}
	if b.state() != before {
		t.Error("a plan is visible before its commit")
	}
	b.disk.before = func() bool {
		if b.state() != before {
			t.Error("a plan is visible before the store has it")
		}
		return false
	}
	if err := p.Commit(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if got, _ := b.at("a").Secrets.Version("s"); got != m.Version || got == v1 {
		t.Errorf("group a is at %s, want %s", got.Short(), m.Version.Short())
	}
	after := b.state()
	b.reopen()
	if b.state() != after {
		t.Errorf("after a restart: %s, want %s", b.state(), after)
	}
}

func TestFailingCommitLeavesEverythingAsItWas(t *testing.T) {
	for name, test := range map[string]struct {
		arrange func(*bench)
		want    error
	}{
		"disk full":      {func(b *bench) { b.disk.fail(true, false) }, errDisk},
		"another writer": {func(b *bench) { b.overwrite(groupKey("a")) }, store.ErrConflict},
		"condition":      {func(*bench) {}, store.ErrConflict},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, "a", "b")
			b.put("s", "a")
			p := b.Plan()
			m, _, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"})
			if err != nil {
				t.Fatal(err)
			}
			for _, g := range []string{"b", "a"} {
				if _, err := p.Move(b.ctx(), g, map[string]secret.Version{"s": m.Version}, Why{}); err != nil {
					t.Fatal(err)
				}
			}
			if name == "condition" {
				p.Add([]store.Condition{{Key: "order/s", Revision: 3}}, store.Delete("order/s"))
			}
			before := b.state()
			test.arrange(b)
			if err := p.Commit(b.ctx()); !errors.Is(err, test.want) {
				t.Fatalf("got %v, want %v", err, test.want)
			}
			b.disk.fail(false, false)
			if b.state() != before {
				t.Errorf("in memory: %s, want %s", b.state(), before)
			}
			if versions, err := b.Versions(b.ctx(), "s"); err != nil || len(versions) != 1 {
				t.Errorf("%d versions are stored, %v; want the 1 from before", len(versions), err)
			}
			b.reopen()
			if b.state() != before {
				t.Errorf("in the store: %s, want %s", b.state(), before)
			}
			b.put("s", "a", "b") // and it goes on
		})
	}
}

// overwrite is another writer: the same value at a new revision.
func (b *bench) overwrite(key string) {
	b.t.Helper()
	e, err := b.disk.Get(b.ctx(), key)
	if err != nil {
		b.t.Fatal(err)
	}
	if _, err := b.disk.Commit(b.ctx(), nil, []store.Operation{store.Put(key, e.Value)}); err != nil {
		b.t.Fatal(err)
	}
}

func TestRefreshTakesOverACommitWhoseAnswerGotLost(t *testing.T) {
	b := newBench(t, "a", "b")
	b.put("s", "a")
	sub, _ := b.Subscribe("a")
	sub.Add("s")
	before := b.state()
	p := b.Plan()
	m, _, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Move(b.ctx(), "a", map[string]secret.Version{"s": m.Version}, Why{}); err != nil {
		t.Fatal(err)
	}
	if err := p.AddGroup(b.ctx(), "c"); err != nil {
		t.Fatal(err)
	}
	b.disk.fail(false, true)
	if err := p.Commit(b.ctx()); !errors.Is(err, errDisk) {
		t.Fatalf("got %v, want %v", err, errDisk)
	}
	b.disk.fail(false, false)
	if b.state() != before {
		t.Error("a commit without an answer is visible")
	}
	if err := b.Refresh(b.ctx()); err != nil {
		t.Fatal(err)
	}
	if v, _ := b.at("a").Secrets.Version("s"); v != m.Version || len(b.Groups()) != 3 {
		t.Errorf("after a refresh: %s, want version %s and group c", b.state(), m.Version.Short())
	}
	if got := sub.Take(); !cmp.Equal(got, []string{"s"}) {
		t.Errorf("the subscriber was told of %v, want s", got)
	}
	after := b.state()
	b.put("s", "b")
	b.reopen()
	b.move("b", Why{Direction: Beside}, map[string]secret.Version{"s": ""})
	if !strings.HasPrefix(after, "latest 3") {
		t.Errorf("got %s, want snapshot 3 to be the newest", after)
	}
}

func TestSeveralGroupsMoveInOnePlan(t *testing.T) {
	b := newBench(t, "a", "b", "c")
	v1 := b.put("s", "a", "b")
	w1 := b.put("t", "b")
	commits := b.disk.commits
	var entries [3][]Entry
	b.plan(func(p *Plan) (err error) {
		m, _, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"})
		for i, g := range b.Groups() {
			if err == nil {
				entries[i], err = p.Move(b.ctx(), g, map[string]secret.Version{"s": m.Version}, Why{Rollout: 7})
			}
		}
		return err
	})
	v2, _ := b.at("c").Secrets.Version("s")
	want := [3][]Entry{{{"s", v1, v2}}, {{"s", v1, v2}}, {{"s", "", v2}}}
	if diff := cmp.Diff(want, entries); diff != "" {
		t.Errorf("entries (-want +got):\n%s", diff)
	}
	if w, _ := b.at("b").Secrets.Version("t"); w != w1 {
		t.Error("a move of s changed t")
	}
	if b.at("a") != b.at("c") || b.at("a").Number == b.at("b").Number {
		t.Errorf("groups are at %d, %d, %d; want a and c together", b.at("a").Number, b.at("b").Number, b.at("c").Number)
	}
	if b.disk.commits != commits+1 {
		t.Errorf("%d commits, want 1", b.disk.commits-commits)
	}
}

func TestMoveWithoutEffectChangesNothing(t *testing.T) {
	b := newBench(t, "a")
	v := b.put("s", "a")
	before, commits := b.state(), b.disk.commits
	p := b.Plan()
	for _, changes := range []map[string]secret.Version{{"s": v}, {"unknown": ""}, {}} {
		if entries, err := p.Move(b.ctx(), "a", changes, Why{}); err != nil || entries != nil {
			t.Errorf("%v: got %v, %v; want nothing", changes, entries, err)
		}
	}
	if !p.Empty() || b.state() != before || b.disk.commits != commits {
		t.Error("a move without effect is one")
	}
	if _, err := p.Move(b.ctx(), "a", map[string]secret.Version{"s": "never stored"}, Why{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("got %v, want %v", err, store.ErrNotFound)
	}
	if _, err := p.Move(b.ctx(), "nowhere", nil, Why{}); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Errorf("got %v, want an error that names the group", err)
	}
}

func TestBackForgetsTheMovesThatItTakesBack(t *testing.T) {
	b := newBench(t, "a")
	v1 := b.put("s", "a")
	for range keptMoves + 3 {
		b.put("s", "a")
	}
	if got := len(b.Moves("a")); got != keptMoves {
		t.Fatalf("%d moves are kept, want %d", got, keptMoves)
	}
	b.move("a", Why{Direction: Beside}, map[string]secret.Version{"s": v1})
	if got := len(b.Moves("a")); got != keptMoves {
		t.Errorf("an addition changed the moves: %d, want %d", got, keptMoves)
	}
	last := b.Moves("a")[keptMoves-2]
	b.move("a", Why{Direction: Back, Keep: keptMoves - 2}, map[string]secret.Version{"s": last.Entries[0].From})
	if diff := cmp.Diff(b.Moves("a")[keptMoves-3].Entries[0].To, last.Entries[0].From); diff != "" || len(b.Moves("a")) != keptMoves-2 {
		t.Errorf("%d moves are left, want %d, the last one ending where the group is: %s", len(b.Moves("a")), keptMoves-2, diff)
	}
	before := b.state()
	b.reopen()
	if b.state() != before {
		t.Error("a restart changed the moves")
	}
}

func TestFullPlanFitsIntoOneCommit(t *testing.T) {
	var groups []string
	for i := range 2 * MaxMoves {
		groups = append(groups, fmt.Sprintf("g%02d", i))
	}
	b := newBench(t, groups...)
	long := strings.Repeat("<", 250) // 1,500 bytes as JSON
	var versions []secret.Version
	for range keptMoves + 2 {
		versions = append(versions, b.put(long))
	}
	for i, g := range groups { // every group in a set of its own, with many moves of a long name
		own := fmt.Sprintf("own-%d", i)
		b.move(g, Why{}, map[string]secret.Version{own: b.put(own)})
		for _, v := range versions[:keptMoves] {
			b.move(g, Why{Reason: "rollout"}, map[string]secret.Version{long: v})
		}
	}
	for left := groups; len(left) > 0; {
		p, n := b.Plan(), 0
		for n < len(left) && !p.Full() {
			if _, err := p.Move(b.ctx(), left[n], map[string]secret.Version{long: versions[keptMoves]}, Why{}); err != nil {
				t.Fatal(err)
			}
			n++
		}
		if n < 2 || n > MaxMoves {
			t.Fatalf("a full plan moves %d groups, want 2 to %d", n, MaxMoves)
		}
		for i := range 30 { // what a caller may add
			p.Add(nil, store.Put(fmt.Sprintf("rollout/%d", i), make([]byte, 20<<10)))
		}
		if err := p.Commit(b.ctx()); err != nil {
			t.Fatalf("a full plan of %d groups: %v", n, err)
		}
		left = left[n:]
	}
}

func TestVersionThatIsStoredAgainIsTheNewestOne(t *testing.T) {
	b := newBench(t, "a")
	old := newSecret(t, "s")
	putAgain := func() (m Meta, fresh bool) {
		b.plan(func(p *Plan) (err error) {
			m, fresh, err = p.PutSecret(b.ctx(), old, Origin{Source: SourceImport})
			return err
		})
		return m, fresh
	}
	first, fresh := putAgain()
	if !fresh {
		t.Error("a new version is not fresh")
	}
	if p := b.Plan(); true {
		if _, fresh, err := p.PutSecret(b.ctx(), old, Origin{Source: SourceImport}); err != nil || fresh || !p.Empty() {
			t.Errorf("the newest version again: fresh %v, empty %v, %v; want nothing to do", fresh, p.Empty(), err)
		}
	}
	newer := b.put("s")
	again, fresh := putAgain()
	versions, err := b.Versions(b.ctx(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if fresh || again.Version != first.Version || len(versions) != 2 || versions[0].Version != first.Version || versions[1].Version != newer {
		t.Errorf("got %v, fresh %v; want the old version to be the newest of 2", versions, fresh)
	}
}

func TestVersionsAreOrderedAlsoWhenTheClockIsSetBack(t *testing.T) {
	b := newBench(t, "a")
	var want []secret.Version
	for range 3 {
		p := b.Plan()
		p.now = p.now.AddDate(0, 0, -len(want))
		m, _, err := p.PutSecret(b.ctx(), newSecret(t, "s"), Origin{Source: SourceACME, Issuer: "le"})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Commit(b.ctx()); err != nil {
			t.Fatal(err)
		}
		want = append([]secret.Version{m.Version}, want...)
	}
	versions, err := b.Versions(b.ctx(), "s")
	if err != nil {
		t.Fatal(err)
	}
	var got []secret.Version
	for _, m := range versions {
		got = append(got, m.Version)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("versions, the newest first (-want +got):\n%s", diff)
	}
}

func TestCrashBeforeOrAfterAnyCommitLeavesOneStateOrTheOther(t *testing.T) {
	for _, before := range []bool{true, false} {
		for n := 1; ; n++ {
			b := newBench(t)
			count := 0
			hook := func() bool { count++; return count == n }
			if before {
				b.disk.before = hook
			} else {
				b.disk.after = hook
			}
			states := []string{b.state()}
			failed := false
			for step := 0; step < 6 && !failed; step++ {
				p := b.Plan()
				if err := b.script(p, step); err != nil {
					t.Fatal(err)
				}
				failed = p.Commit(b.ctx()) != nil
				states = append(states, b.state())
			}
			if !failed {
				break // n is beyond the last commit
			}
			was := states[len(states)-1]
			b.reopen()
			now := b.state()
			if before && now != was {
				t.Fatalf("commit %d failed before it: %s, want %s", n, now, was)
			}
			if !before && now == was {
				t.Fatalf("commit %d was stored: %s is unchanged", n, now)
			}
			p := b.Plan() // and it goes on
			if err := b.script(p, 1); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(p.AddGroup(b.ctx(), "a"), p.Commit(b.ctx())); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// script plans one step of a history.
func (b *bench) script(p *Plan, step int) error {
	if step == 0 {
		return errors.Join(p.AddGroup(b.ctx(), "a"), p.AddGroup(b.ctx(), "b"))
	}
	m, _, err := p.PutSecret(b.ctx(), newSecret(b.t, "s"), Origin{Source: SourceACME, Issuer: "le"})
	for _, g := range b.Groups()[:min(step%2+1, len(b.Groups()))] {
		if err == nil {
			_, err = p.Move(b.ctx(), g, map[string]secret.Version{"s": m.Version}, Why{Reason: fmt.Sprintf("step %d", step)})
		}
	}
	return errors.Join(err, p.Prune(b.ctx(), "s", func(secret.Version) bool { return false }))
}
