package integration

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// A certificate of another profile goes through all waves as another chain, and is watched as long as any; the one after it is an ordinary renewal.
func TestAnotherProfileGoesAsAChainChange(t *testing.T) {
	t.Parallel()
	e := testenv.NewT(t)
	settings := one(false)
	settings.Profile, settings.Watch, settings.Verify = "classic", "1s", true
	f := startFleet(e, settings, func(o *fleet.Options) {
		o.Pebble.Profiles = map[string]testenv.PebbleProfile{"classic": {}, "tlsserver": {Validity: 45 * 24 * time.Hour}}
	})
	ctx := e.Ready()
	kinds := func() (found []rollout.Kind) {
		var all admin.Rollouts
		must(t, f.JSON(ctx, &all, "rollout", "history"))
		slices.SortFunc(all.Rollouts, func(a, b admin.Rollout) int { return int(a.ID) - int(b.ID) })
		for _, r := range all.Rollouts {
			found = append(found, r.Change[0].Kind)
			if r.Change[0].Kind != rollout.Chain {
				continue
			}
			if n := strings.Count(logged(r), " is watched for 1s"); n != 2 || len(r.Waves) != 2 || r.State != rollout.Done {
				t.Errorf("a chain change was watched %d times in %d waves, want both: %s", n, len(r.Waves), logged(r))
			}
		}
		return found
	}

	renew(ctx, t, f, "done")
	settings.Profile = "tlsserver"
	must(t, f.Reconfigure(ctx, settings))
	renew(ctx, t, f, "done")
	renew(ctx, t, f, "done")
	if got, want := kinds(), []rollout.Kind{rollout.Add, rollout.Renewal, rollout.Chain, rollout.Renewal}; !slices.Equal(got, want) {
		t.Errorf("rollouts were %v, want %v", got, want)
	}
	var profiles []string
	s, err := f.Secret(ctx, site)
	must(t, err)
	for _, v := range s.Versions {
		if v.Profile == nil {
			t.Fatalf("version %s has no profile", v.Version)
		}
		profiles = append(profiles, *v.Profile)
	}
	if want := []string{"tlsserver", "tlsserver", "classic"}; !slices.Equal(profiles, want) {
		t.Errorf("profiles of the versions, the newest first: %v, want %v", profiles, want)
	}
}
