package rollout

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

var whyTest = cache.Why{Reason: "test", Direction: cache.Beside}

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithCancel(t.Context())
}

// with is a policy with other waves.
func (p Policy) with(groups ...string) Policy {
	p.Waves = nil
	for _, g := range groups {
		p.Waves = append(p.Waves, strings.Fields(g))
	}
	return p
}

func TestUnconfiguredIssuedSecretIsRemovedThroughTheWaves(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	c := r.node("c1", "canary", "www", "kept")
	v, kept := r.serve("www"), r.serve("kept")
	if _, err := r.c.Accept(r.ctx(), Proposal{Secret: newSecret(t, "imported", 1<<50), Source: cache.SourceImport}); err != nil {
		t.Fatal(err)
	}
	r.settle()
	imported := r.at("canary", "imported")
	p := r.policy
	p.Managed = func(name string) bool { return name == "kept" }
	r.reconfigure(p)
	r.settle()
	r.want("www", versions{"canary": "", "production": v})
	r.promote("production")
	r.want("www", versions{"canary": "", "production": ""})
	r.want("kept", r.all(kept))
	r.want("imported", r.all(imported))
	if change := r.get(4).Change[0]; change.Kind != Remove || change.From != v || change.To != "" {
		t.Errorf("got change %+v, want a removal", change)
	}
	for range 2 { // once
		r.restart()
		r.settle()
	}
	r.wantStates("1 done", "2 done", "3 done", "4 done")
	c.names = nil
	p.Managed = func(string) bool { return true }
	r.reconfigure(p) // and configured again
	r.settle()
	r.want("www", r.all(v))
}

func TestVersionThatACrashLeftWithoutARolloutGetsOne(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	r.serve("www")
	plan := r.cache.Plan()
	m, _, err := plan.PutSecret(r.ctx(), newSecret(t, "www", 1<<50), cache.Origin{Source: cache.SourceACME, Issuer: "le"})
	if err != nil {
		t.Fatal(err)
	}
	if err := plan.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.fleet.forget(true)
	r.crash()
	r.settle() // without a Reconfigure: Run does it
	r.want("www", r.all(m.Version))
	r.wantStates("1 done", "2 done")
}

func TestHealLeavesAGroupAtANewerHeldVersionAlone(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "eu us"))
	bad := r.node("e1", "eu", "www")
	v1 := r.serve("www")
	bad.refuses = func(_ string, v secret.Version) bool { return v != v1 }
	v2 := r.serve("www")
	plan := r.cache.Plan()
	if _, err := plan.Move(r.ctx(), "us", versions{"www": ""}, whyTest); err != nil {
		t.Fatal(err)
	}
	if err := plan.Commit(r.ctx()); err != nil {
		t.Fatal(err)
	}
	r.restart()
	r.settle()
	r.want("www", versions{"canary": v2, "eu": v1, "us": v1})
}

func TestNewGroupStartsWithWhatTheLastWaveServes(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "eu us"))
	a1, b1 := r.serve("a"), r.serve("b")
	a2 := r.serve("a") // waits for eu and us
	r.reconfigure(r.policy.with("canary", "eu us new", "newer"))
	r.settle()
	r.want("a", versions{"canary": a2, "eu": a1, "us": a1, "new": a1, "newer": a1})
	r.want("b", r.all(b1))
	if n := len(r.cache.Moves("new")); n != 0 {
		t.Errorf("a new group has %d moves that can be taken back, want none", n)
	}
	r.promote("newer") // the rollout under way reaches the new groups, too
	r.want("a", r.all(a2))
}

func TestNewGroupStartsWithTheOldestVersionWhereTheLastWaveDiffers(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "eu us"))
	v1, v2 := r.serve("www"), r.serve("www")
	r.rollback("eu")
	r.want("www", versions{"eu": v1, "us": v2})
	r.reconfigure(r.policy.with("canary", "eu us", "new"))
	r.settle()
	r.want("www", versions{"new": v1}) // v2 is held
	if _, err := r.c.Release(r.ctx(), "www", ""); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want("www", r.all(v2))
}

func TestNewGroupDoesNotStartWithAnExpiredVersion(t *testing.T) {
	run(t, waves("manual", "canary", "eu us"), func(t *testing.T, r *rig) {
		v1 := r.acceptFor("www", 3*time.Hour)
		r.settle()
		v2 := r.serve("www")
		r.promote("eu")
		plan := r.cache.Plan()
		if _, err := plan.Move(r.ctx(), "eu", versions{"www": v1}, whyTest); err != nil {
			t.Fatal(err)
		}
		if err := plan.Commit(r.ctx()); err != nil {
			t.Fatal(err)
		}
		r.pass(4 * time.Hour)
		r.reconfigure(r.policy.with("canary", "eu us", "new"))
		r.want("www", versions{"eu": v2, "us": v2, "new": v2}) // what eu served has expired, too
	})
}

func TestReloadChangesTheWavesOfARolloutUnderWay(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "eu", "us"))
	c := r.node("c1", "canary", "www")
	eu := r.node("e1", "eu", "www")
	r.serve("www")
	c.silent, eu.silent = true, true
	v2 := r.accept("www")
	r.settle()
	r.reconfigure(r.policy.with("us", "eu", "canary new")) // canary is moving already; new starts where the last wave, canary, is
	c.silent = false
	r.settle()
	r.want("www", versions{"canary": v2, "us": v2, "eu": v2, "new": v2})
	eu.silent = false
	r.settle()
	r.want("www", r.all(v2))
	if got := fmt.Sprint(waveGroups(r.get(2))); got != "[[canary] [us] [eu] [new]]" {
		t.Errorf("its waves are %s", got)
	}
}

func waveGroups(r *Rollout) (groups [][]string) {
	for _, w := range r.Waves {
		groups = append(groups, w.Groups)
	}
	return groups
}

func TestReloadKeepsPromotions(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "eu", "us"))
	eu := r.node("e1", "eu", "www")
	r.serve("www")
	v2 := r.serve("www")
	eu.silent = true
	r.promote("us")
	r.reconfigure(r.policy.with("canary", "us", "eu"))
	eu.silent = false
	r.settle()
	r.want("www", r.all(v2))
}

func TestRolloutsUnderWayAreRewavedHoweverMany(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	const n = 110
	want := map[string]secret.Version{}
	for range 2 {
		for i := range n {
			name := fmt.Sprintf("s%d", i)
			want[name] = r.accept(name)
		}
		r.settle()
	}
	r.reconfigure(waves("auto", "canary", "us", "production"))
	r.settle()
	for name, v := range want {
		r.want(name, r.all(v))
	}
}

func TestFailedReloadKeepsTheOldPolicy(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.serve("www")
	r.disk.full(true)
	if err := r.c.Reconfigure(r.ctx(), r.policy.with("canary", "production", "new")); !errors.Is(err, errDisk) {
		t.Fatalf("got %v, want %v", err, errDisk)
	}
	r.disk.full(false)
	r.settle()
	v := r.serve("www")
	r.want("www", r.all(v))
	if groups := r.cache.Groups(); len(groups) != 2 {
		t.Errorf("groups are %v, want the old ones", groups)
	}
}

func TestSecretThatCannotBeHealedKeepsNoOtherOneFromIt(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	r.serve("a")
	r.serve("b")
	for _, name := range []string{"a", "b"} {
		plan := r.cache.Plan()
		if _, _, err := plan.PutSecret(r.ctx(), newSecret(t, name, 1<<50), cache.Origin{Source: cache.SourceACME, Issuer: "le"}); err != nil {
			t.Fatal(err)
		}
		if err := plan.Commit(r.ctx()); err != nil {
			t.Fatal(err)
		}
	}
	refuse := &refuser{Store: r.disk.Store, key: store.Key("rollout", fmt.Sprintf("%020d", 3))}
	r.disk.Store = refuse
	r.reconfigure(r.policy)
	refuse.key = ""
	r.settle()
	for _, name := range []string{"a", "b"} {
		metas, err := r.cache.Versions(r.ctx(), name)
		if err != nil {
			t.Fatal(err)
		}
		r.want(name, r.all(metas[0].Version))
	}
}

// refuser fails the first commit that writes a key.
type refuser struct {
	store.Store
	key string
}

func (f *refuser) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	for _, o := range operations {
		if o.Key == f.key {
			f.key = ""
			return 0, errDisk
		}
	}
	return f.Store.Commit(ctx, conditions, operations)
}

func TestRestartDoesNotAddGroupsToARollout(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	r.node("c1", "canary", "www")
	p := r.node("p1", "production", "www")
	v1, v2 := r.serve("www"), r.serve("www") // v2 waits for production
	p.refuses = func(_ string, v secret.Version) bool { return v != v1 && v != v2 }
	v3 := r.serve("www")
	r.promote("production") // refused: canary stays at v3
	r.reconfigure(r.policy) // brings v2 to production
	for range 2 {
		r.settle()
		r.want("www", versions{"canary": v3, "production": v1})
		r.restart()
	}
	r.reconfigure(r.policy.with("production", "canary"))
	r.settle()
	r.want("www", versions{"canary": v3, "production": v2})
}

func TestGroupThatComesBackStartsLikeANewOne(t *testing.T) {
	run(t, waves("manual", "canary", "production", "edge"), func(t *testing.T, r *rig) {
		gone, kept := r.serve("gone"), r.acceptFor("www", 5*time.Hour)
		r.settle()
		r.want("www", r.all(kept))
		r.reconfigure(r.policy.with("canary", "production"))
		r.policy.Managed = func(name string) bool { return name != "gone" }
		r.reconfigure(r.policy)
		v2 := r.serve("www")
		r.promote("production")
		r.want("gone", versions{"canary": "", "production": "", "edge": gone})
		r.pass(6 * time.Hour)
		r.restart()
		r.reconfigure(r.policy.with("canary", "production", "edge"))
		r.settle()
		r.want("www", r.all(v2))
		r.want("gone", r.all(""))
		if n := len(r.cache.Moves("edge")); n != 0 {
			t.Errorf("it has %d moves that can be taken back, want none", n)
		}
	})
}

func TestGroupsThatAllComeBackKeepWhatMayBeServed(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	v1 := r.serve("www")
	r.reconfigure(r.policy.with("other"))
	r.settle()
	r.reconfigure(r.policy.with("canary", "production"))
	r.settle()
	r.want("www", r.all(v1))
}

func TestRemovalWaitsForAPromotionWhereNodesSubscribe(t *testing.T) {
	run(t, waves("auto", "canary", "eu", "us"), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		us := r.node("u1", "us", "www")
		v1 := r.serve("www")
		r.policy.Managed = func(string) bool { return false }
		r.restart()
		r.settle()
		r.want("www", versions{"canary": "", "eu": "", "us": v1})
		if a := r.c.Active(); len(a) != 1 || a[0].State != Waiting || !strings.Contains(a[0].Reason, "promotion of us: nodes there subscribe") {
			t.Errorf("got %+v, want one that waits for us and says why", a)
		}
		us.names = nil
		r.settle()
		r.want("www", r.all(""))
	})
}

func TestRemovalWaitsAlsoForNodesThatAreNotBackAfterARestart(t *testing.T) {
	run(t, waves("auto", "canary", "us"), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.node("u1", "us", "www")
		v1 := r.serve("www")
		r.policy.Managed = func(string) bool { return false }
		r.fleet.forget(false)
		r.crash()
		r.reconfigure(r.policy)
		r.pass(5 * time.Minute)
		r.want("www", versions{"canary": "", "us": v1})
		if next, err := r.c.step(r.ctx()); err != nil || time.Until(next) <= 0 || time.Until(next) > 5*time.Minute {
			t.Errorf("looks again in %s, %v, want when u1 is gone for node_grace", time.Until(next), err)
		}
		r.pass(6 * time.Minute) // it is gone for good
		r.want("www", r.all(""))
	})
}
