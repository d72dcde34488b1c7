package rollout

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

// token accepts a generic secret, which never ends, as if it were read from a file.
func (r *rig) token(content string) secret.Version {
	r.t.Helper()
	s, err := secret.NewGeneric("token", []byte(content))
	if err != nil {
		r.t.Fatal(err)
	}
	a, err := r.c.Accept(r.ctx(), Proposal{Secret: s, Source: cache.SourceFile, Reason: "read from a file"})
	if err != nil {
		r.t.Fatal(err)
	}
	return a.Meta.Version
}

func (r *rig) wantStanding(v secret.Version, want Standing) {
	r.t.Helper()
	got := r.c.Standing("token", v)
	if (got.Held == "") != (want.Held == "") || !strings.Contains(got.Held, want.Held) {
		r.t.Errorf("held: got %q, want %q", got.Held, want.Held)
	}
	got.Held, want.Held = "", ""
	if got != want {
		r.t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestStandingIsEverywhereWhenEveryNodeHasIt is what the rotation of session ticket keys relies on.
func TestStandingIsEverywhereWhenEveryNodeHasIt(t *testing.T) {
	r := newRig(t, waves("manual", "canary", "production"))
	r.node("c1", "canary", "token")
	n := r.node("p1", "production", "token")
	r.wantStanding("", Standing{Nowhere: true})
	r.edit(n, func(n *node) { n.silent = true })
	first := r.token("first")
	r.settle()
	r.wantStanding(first, Standing{}) // every group is at it, but a node has not ACKed
	r.edit(n, func(n *node) { n.silent = false })
	r.settle()
	r.wantStanding(first, Standing{Everywhere: true})
	r.wantStanding("other", Standing{})

	second := r.token("second")
	r.settle()
	r.wantStanding(second, Standing{}) // production waits for a promotion
	r.wantStanding(first, Standing{})
	r.edit(n, func(n *node) { n.silent = true })
	r.promote("production")
	r.want("token", r.all(second))
	r.wantStanding(second, Standing{})
	r.edit(n, func(n *node) { n.silent = false })
	r.settle()
	r.wantStanding(second, Standing{Everywhere: true})
	r.restart()
	r.settle()
	r.wantStanding(second, Standing{Everywhere: true})
}

func TestStandingTellsOfHolds(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "token")
	first := r.token("first")
	r.settle()
	if _, err := r.c.Rollback(r.ctx(), "canary", Operator{By: "alice"}); err == nil {
		t.Fatal("an addition was taken back")
	}
	second := r.token("second")
	r.settle()
	if _, err := r.c.Rollback(r.ctx(), "production", Operator{By: "alice"}); err != nil {
		t.Fatal(err)
	}
	r.settle()
	r.wantStanding(second, Standing{Held: "manual"})
	r.wantStanding(first, Standing{})
	if n, err := r.c.Release(r.ctx(), "token", second); err != nil || n != 1 {
		t.Fatalf("released %d, %v", n, err)
	}
	r.settle()
	r.wantStanding(second, Standing{Everywhere: true}) // what never ends may be rolled out again
}

// TestSecretFromAFileLeavesByTheWavesAndComesBackFromTheFile: unlike a certificate, it is not what was stored last.
func TestSecretFromAFileLeavesByTheWavesAndComesBackFromTheFile(t *testing.T) {
	for _, from := range []cache.Source{cache.SourceFile, cache.SourceServer} {
		t.Run(fmt.Sprint(from), func(t *testing.T) {
			r := newRig(t, waves("auto", "canary", "production"))
			s, err := secret.NewGeneric("token", []byte("old"))
			if err != nil {
				t.Fatal(err)
			}
			a, err := r.c.Accept(r.ctx(), Proposal{Secret: s, Source: from})
			if err != nil {
				t.Fatal(err)
			}
			r.settle()
			p := r.policy
			p.Managed = func(string) bool { return false }
			r.reconfigure(p)
			r.settle()
			r.want("token", r.all(""))
			r.wantStanding(a.Meta.Version, Standing{Nowhere: true})
			p.Managed = func(string) bool { return true }
			r.reconfigure(p)
			r.settle()
			r.restart()
			r.settle()
			r.want("token", r.all(""))
			v := r.token("new")
			r.settle()
			r.want("token", r.all(v))
			r.wantStanding(v, Standing{Everywhere: true})
		})
	}
}

func TestStandingWithoutGroupsIsNothing(t *testing.T) {
	r := newRig(t, Policy{AckTimeout: time.Minute})
	r.wantStanding("", Standing{})
}
