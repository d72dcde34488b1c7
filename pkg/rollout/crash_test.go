package rollout

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// scenario is a history that can be run again with the same secrets.
type scenario struct {
	secrets []*secret.Secret
	labels  map[string]int // how many versions of a name there are
	bad     *secret.Secret // production refuses it
	gone    *secret.Secret
}

func newScenario(t *testing.T) *scenario {
	s := &scenario{labels: map[string]int{}}
	for _, name := range []string{"www", "other", "www", "www", "gone", "www", "www", "www"} {
		s.secrets = append(s.secrets, newSecret(t, name, 1<<50))
	}
	s.gone, s.bad = s.secrets[4], s.secrets[3]
	return s
}

// steps are what operators and issuers do, one after the other.
func (s *scenario) steps(r *rig) []func() error {
	accept := func(i int) func() error {
		return func() error {
			_, err := r.c.Accept(r.ctx(), Proposal{
				Secret: s.secrets[i], Source: cache.SourceACME, Issuer: "le", Reason: "issued",
				Operations: []store.Operation{store.Put(fmt.Sprintf("certificate/%d", i), []byte("issued")), store.Delete(fmt.Sprintf("order/%d", i))},
			})
			if errors.Is(err, ErrHeld) { // the answer got lost, and it was refused meanwhile
				return nil
			}
			return err
		}
	}
	return []func() error{
		accept(0), accept(1), accept(2), accept(3), accept(4), accept(5),
		accept(6), // else the way back led to what production has refused
		func() error { _, err := r.c.Rollback(r.ctx(), "canary", alice); return err },
		func() error {
			r.policy = waves("manual", "canary", "production", "new")
			r.policy.Managed = func(name string) bool { return name != "gone" }
			return r.c.Reconfigure(r.ctx(), r.policy)
		},
		func() error { _, err := r.c.Promote(r.ctx(), "new", 0, alice); return err },
		accept(7),
		func() error { _, err := r.c.Promote(r.ctx(), "new", 0, alice); return err },
	}
}

// run takes the scenario through a fleet whose store fails once, and returns where it ends.
func (s *scenario) run(t *testing.T, before, after func(n int) bool) (outcome string, commits int) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www", "other", "gone")
	p := r.node("p1", "production", "www", "other")
	p.refuses = func(_ string, v secret.Version) bool { return v == r.cache.Version(s.bad) }
	base := r.disk.count()
	failed, lost := false, false
	arm := func() {
		r.disk.hooks(
			func(n int) bool { now := !failed && before(n-base); failed = failed || now; return now },
			func(n int) bool {
				now := !failed && after(n-base)
				failed, lost = failed || now, lost || now
				return now
			})
	}
	arm()
	reopen := func() {
		commits += r.disk.count()
		r.disk.hooks(nil, nil)
		r.fleet.forget(true)
		r.fleet.edit(func() { // the Envoys start again, too: one that goes on ACKs refused bytes, and only a handshake tells
			for _, n := range r.fleet.nodes {
				clear(n.received)
			}
		})
		r.crash()
	}
	settle := func() {
		for range 100 {
			r.fleet.deliver(r.cache)
			was := r.picture()
			if _, err := r.c.step(r.ctx()); err != nil {
				if !errors.Is(err, errDisk) {
					t.Fatal(err)
				}
				reopen()
				continue
			}
			if r.fleet.deliver(r.cache); r.picture() == was {
				return
			}
		}
		t.Fatal("it does not come to rest")
	}
	for i, step := range s.steps(r) {
		if err := step(); errors.Is(err, errDisk) {
			reopen()
			if !lost || i == 8 {
				if err := step(); err != nil {
					t.Fatalf("step %d again: %v", i, err)
				}
			}
		} else if err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		settle()
	}
	return s.describe(r), commits + r.disk.count() - base
}

// describe tells the end of a scenario in words that do not depend on the store's version key.
func (s *scenario) describe(r *rig) string {
	names := map[secret.Version]string{}
	for i, one := range s.secrets {
		names[r.cache.Version(one)] = fmt.Sprintf("%s-%d", one.Name(), i)
	}
	var lines []string
	for _, g := range r.cache.Groups() {
		set := map[string]string{}
		for name, v := range r.mustAt(g).Secrets.All() {
			set[name] = names[v]
		}
		lines = append(lines, fmt.Sprintf("%s: %v", g, set))
	}
	for _, h := range r.c.Holds() {
		lines = append(lines, fmt.Sprintf("held: %s %s", names[h.Version], h.Kind))
	}
	for _, a := range r.c.Active() {
		lines = append(lines, fmt.Sprintf("under way: %v", a))
	}
	for i := range s.secrets {
		if _, err := r.disk.Get(r.ctx(), fmt.Sprintf("certificate/%d", i)); err != nil {
			lines = append(lines, fmt.Sprintf("state of %d: %v", i, err))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func TestCrashAtAnyCommitLosesNothing(t *testing.T) {
	s := newScenario(t)
	never := func(int) bool { return false }
	want, commits := s.run(t, never, never)
	t.Logf("%d commits end in\n%s", commits, want)
	if strings.Contains(want, "under way") || !strings.Contains(want, "www-7") || strings.Contains(want, "gone") {
		t.Fatal("the scenario does not end as it should")
	}
	for n := range commits {
		at := func(k int) bool { return k == n+1 }
		for when, hooks := range map[string][2]func(int) bool{"before": {at, never}, "after": {never, at}} {
			if got, _ := s.run(t, hooks[0], hooks[1]); got != want {
				t.Errorf("crash %s commit %d (-want +got):\n%s", when, n+1, cmp.Diff(want, got))
			}
		}
	}
}

func TestSecretsAreNeverLostByACrash(t *testing.T) {
	s := newScenario(t)
	r := newRig(t, waves("auto", "canary", "production"))
	var accepted []secret.Version
	for i, one := range s.secrets[:3] {
		r.disk.hooks(nil, func(int) bool { return i == 1 })
		_, err := r.c.Accept(r.ctx(), Proposal{Secret: one, Source: cache.SourceACME, Reason: "issued"})
		if (err != nil) != (i == 1) {
			t.Fatal(err)
		}
		accepted = append(accepted, r.cache.Version(one))
		r.crash()
	}
	metas, err := r.cache.Secrets(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	stored := map[secret.Version]bool{}
	for _, m := range metas {
		stored[m.Version] = true
	}
	if len(stored) != 3 || !stored[accepted[0]] || !stored[accepted[1]] || !stored[accepted[2]] {
		t.Errorf("%d versions are stored, want all 3", len(stored))
	}
}
