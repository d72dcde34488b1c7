package rollout

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

func (r *rig) rollback(group string) Step {
	r.t.Helper()
	step, err := r.c.Rollback(r.ctx(), group, alice)
	if err != nil {
		r.t.Fatal(err)
	}
	r.settle()
	return step
}

func TestRollbackUndoesTheLastMoveAndHolds(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	v1 := r.serve("www")
	v2 := r.serve("www")
	step := r.rollback("canary")
	r.want("www", r.all(v1))
	if !slices.Equal(step.Rollouts, []uint64{2}) || !slices.Equal(step.Held, []string{"www " + v2.Short()}) || len(step.Changes) != 1 {
		t.Errorf("got %+v, want rollout 2 ended and %s held", step, v2.Short())
	}
	r.wantStates("1 done", "2 rolled_back")
	if r.held("www", v2) != Manual {
		t.Errorf("held %q, want manual", r.held("www", v2))
	}
	last := r.get(2).Log
	if e := last[len(last)-1]; e.By != "alice" || !strings.Contains(e.Reason, "because") {
		t.Errorf("its log ends with %+v, want who and why", e)
	}
	r.restart()
	r.settle()
	r.want("www", r.all(v1))
	if _, err := r.c.Rollback(r.ctx(), "canary", alice); !errors.Is(err, ErrNothingToUndo) {
		t.Errorf("got %v, want %v", err, ErrNothingToUndo)
	}
}

func TestRollbackTwiceGoesBackTwoMoves(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	v1, v2, v3 := r.serve("www"), r.serve("www"), r.serve("www")
	r.rollback("production")
	r.want("www", versions{"canary": v3, "production": v2})
	r.rollback("production")
	r.want("www", versions{"canary": v3, "production": v1})
	r.restart()
	r.settle()
	r.want("www", versions{"canary": v3, "production": v1})
	v4 := r.serve("www")
	r.want("www", r.all(v4))
}

func TestRollbackDoesNotUndoAdditionsInBetween(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	v1 := r.serve("www")
	r.serve("www")
	added := r.serve("added")
	r.rollback("canary")
	r.want("www", r.all(v1))
	r.want("added", r.all(added))
}

func TestRollbackSkipsWhatBecameSomethingElse(t *testing.T) {
	r := newRig(t, waves("auto", "canary"))
	a1 := r.serve("a")
	b1 := r.serve("b")
	old := r.mustAt("canary").Number
	r.serve("a")
	r.serve("b")
	if _, err := r.c.RollbackTo(r.ctx(), "canary", old, alice); err != nil { // both are something else now
		t.Fatal(err)
	}
	if _, err := r.c.Rollback(r.ctx(), "canary", alice); !errors.Is(err, ErrNothingToUndo) {
		t.Errorf("got %v, want %v", err, ErrNothingToUndo)
	}
	r.want("a", r.all(a1))
	r.want("b", r.all(b1))
	a3 := r.serve("a")
	r.want("a", r.all(a3))
	r.rollback("canary")
	r.want("a", r.all(a1))
}

func TestRollbackToNamesWhatIsExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, waves("auto", "canary"))
		for _, name := range []string{"a", "b"} {
			r.acceptFor(name, 3*time.Hour)
		}
		c1 := r.serve("c")
		old := r.mustAt("canary").Number
		a2, b2, c2 := r.serve("a"), r.serve("b"), r.serve("c")
		time.Sleep(4 * time.Hour) //nolint:forbidigo // the clock of the bubble
		before := r.picture()
		_, err := r.c.RollbackTo(r.ctx(), "canary", old, alice)
		if err == nil || !strings.Contains(err.Error(), "a version") || !strings.Contains(err.Error(), "b version") || strings.Contains(err.Error(), "c version") {
			t.Errorf("got %v, want an error that names a and b", err)
		}
		if r.picture() != before {
			t.Errorf("a refused rollback changed something: %s", r.picture())
		}
		r.want("a", r.all(a2))
		r.want("b", r.all(b2))
		r.rollback("canary") // c alone
		r.want("c", r.all(c1))
		if r.held("c", c2) != Manual {
			t.Errorf("c is held %q, want manual", r.held("c", c2))
		}
		if _, err := r.c.Rollback(r.ctx(), "canary", alice); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("to an expired version: %v", err)
		}
	})
}

func TestRollbackToOfMoreSecretsThanOneCommitTakes(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	const n = 130
	old := map[string]secret.Version{}
	for i := range n {
		name := fmt.Sprintf("s%d", i)
		old[name] = r.accept(name)
	}
	r.settle()
	number := r.mustAt("canary").Number
	for name := range old {
		r.accept(name)
	}
	r.settle()
	step, err := r.c.RollbackTo(r.ctx(), "canary", number, alice)
	if err != nil || len(step.Changes) != n || len(step.Held) != n || len(step.Rollouts) == 0 {
		t.Fatalf("%d changes, %d held, %d rollouts ended, %v; want %d of each", len(step.Changes), len(step.Held), len(step.Rollouts), err, n)
	}
	r.restart()
	r.settle()
	for name, v := range old {
		r.want(name, r.all(v))
	}
	if len(r.c.Holds()) != n || len(r.c.Active()) != 0 {
		t.Errorf("%d holds, %d under way; want %d and none", len(r.c.Holds()), len(r.c.Active()), n)
	}
}

func TestPromoteToOfManySecretsCanBeTakenBack(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	old := map[string]secret.Version{}
	for i := range 40 {
		name := fmt.Sprintf("s%d", i)
		old[name] = r.accept(name)
	}
	r.settle()
	for name := range old {
		r.accept(name)
	}
	r.settle()
	if _, err := r.c.PromoteTo(r.ctx(), "production", r.mustAt("canary").Number, alice); err != nil {
		t.Fatal(err)
	}
	if len(r.cache.Moves("production")[0].Entries) != 0 {
		t.Error("a large move is stored with its entries")
	}
	r.rollback("production")
	for name, v := range old {
		r.want(name, versions{"production": v})
	}
}

// What lies between the version that an operator leaves and the one that he goes back to was superseded before it was proven. Without a hold it comes
// with the next start of the server: to the group that was taken back, or past it to the later waves.
func TestRollbackHoldsAlsoWhatLiesBetween(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "eu us", "rest"))
	v1 := r.serve("www")
	old := r.mustAt("us").Number
	c := r.node("c1", "canary", "www")
	c.silent = true
	v2 := r.accept("www")
	c.silent = false
	v3 := r.serve("www")
	r.want("www", r.all(v3))
	for _, g := range []string{"us", "canary"} {
		if _, err := r.c.RollbackTo(r.ctx(), g, old, alice); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if r.held("www", v2) != Manual || r.held("www", v3) != Manual {
			t.Errorf("held %q and %q, want both manual", r.held("www", v2), r.held("www", v3))
		}
		r.want("www", versions{"canary": v1, "us": v1, "eu": v3, "rest": v3})
		r.restart()
		r.settle()
	}
	if n, err := r.c.Release(r.ctx(), "www", ""); n != 2 || err != nil {
		t.Errorf("%d released, %v; want both", n, err)
	}
	r.settle()
	r.want("www", r.all(v3))
}

func TestRollbackDoesNotHoldWhatIsOnItsWayToTheGroup(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	v1 := r.serve("www")
	old := r.mustAt("production").Number
	v2 := r.serve("www")
	v3 := r.serve("www")
	r.promote("production")
	r.want("www", r.all(v3))
	if _, err := r.c.Start(r.ctx(), "www", v2, alice); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.want("www", versions{"canary": v2, "production": v3})
	step, err := r.c.RollbackTo(r.ctx(), "production", old, alice)
	if err != nil || len(step.Rollouts) != 0 || !slices.Equal(step.Held, []string{"www " + v3.Short()}) {
		t.Errorf("got %+v, %v; want one held, and no rollout ended", step, err)
	}
	r.settle()
	r.want("www", versions{"canary": v2, "production": v1})
	r.promote("production")
	r.want("www", r.all(v2))
}
