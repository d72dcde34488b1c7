package rollout

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/cache"
)

// What a commit puts into groups is announced before it. What is not stored is retracted once that is known, and only what has an announcement of its own.
func TestAnnouncedMoveThatIsNotStoredIsRetracted(t *testing.T) {
	for _, one := range []struct {
		name     string
		fail     func(d *disk, n int)
		retracts bool
	}{
		{"before it is stored", func(d *disk, n int) { d.hooks(func(k int) bool { return k == n }, nil) }, true},
		{"after it, and the answer is lost", func(d *disk, n int) { d.hooks(nil, func(k int) bool { return k == n }) }, false},
	} {
		t.Run(one.name, func(t *testing.T) {
			r := newRig(t, waves("auto", "canary more", "production"))
			r.node("c1", "canary", "www")
			r.node("m1", "more", "www")
			r.node("p1", "production", "www")
			r.serve("www")
			commits := r.disk.count()
			var announced, retracted []cache.Placement
			r.c.announce = func(all []cache.Placement) []cache.Placement {
				if got := r.disk.count(); got != commits {
					t.Errorf("announced after %d commits, want before the first", got-commits)
				}
				announced = append(announced, all...)
				return slices.DeleteFunc(slices.Clone(all), func(p cache.Placement) bool { return p.Group == "more" }) // nobody is there, say
			}
			r.c.retract = func(all []cache.Placement) { retracted = append(retracted, all...) }

			one.fail(r.disk, commits+1)
			s := newSecret(t, "www", 1<<50)
			p := Proposal{Secret: s, Source: cache.SourceACME, Issuer: "le", Reason: "issued by le"}
			if _, err := r.c.Accept(r.ctx(), p); err == nil {
				t.Fatal("the store has not failed")
			}
			if len(retracted) > 0 {
				t.Errorf("retracted before it is known whether it was stored: %+v", retracted)
			}
			r.step() // reads what the store holds
			want := []cache.Placement{{Group: "canary", Secret: "www", Version: r.cache.Version(s), Snapshot: 3}, {Group: "more", Secret: "www", Version: r.cache.Version(s), Snapshot: 3}}
			if diff := cmp.Diff(want, announced); diff != "" {
				t.Errorf("announced (-want +got):\n%s", diff)
			}
			if want = want[:1]; !one.retracts {
				want = nil
			}
			if diff := cmp.Diff(want, retracted); diff != "" {
				t.Errorf("retracted (-want +got):\n%s", diff)
			}

			announced, retracted = nil, nil
			r.c.announce = func(all []cache.Placement) []cache.Placement { announced = append(announced, all...); return all }
			if one.retracts {
				if _, err := r.c.Accept(r.ctx(), p); err != nil {
					t.Fatal(err)
				}
			}
			r.settle()
			r.want("www", r.all(r.cache.Version(s)))
			if last := announced[len(announced)-1]; last.Group != "production" || len(retracted) > 0 {
				t.Errorf("announced last %+v, want production; retracted %+v", last, retracted)
			}
		})
	}
}
