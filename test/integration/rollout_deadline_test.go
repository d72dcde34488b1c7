package integration

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// A watch that is longer than what is left of the life of what the later waves serve is shortened: they get the renewed certificate in time.
func TestWatchEndsBeforeShortLivedCertificate(t *testing.T) {
	t.Parallel()
	e := testenv.NewT(t)
	settings := one(false)
	settings.Profile, settings.Watch, settings.Verify = "short", "1h", true
	settings.Certificates[0].RenewBefore = "60%" // the CA would have it renewed so late that nothing could be watched
	f := startFleet(e, settings, func(o *fleet.Options) {
		o.Pebble.Profiles = map[string]testenv.PebbleProfile{"short": {Validity: 16 * time.Second}}
	})
	ctx := e.Ready()
	before, err := f.Secret(ctx, site)
	must(t, err)
	loads := map[string]*testenv.Load{}
	for group := range f.Envoys {
		loads[group], err = f.Load(ctx, group, site, 1)
		must(t, err)
		defer loads[group].Stop()
	}
	r := renewedByItself(e, f, before.Versions[0].Version)
	after, err := f.Secret(ctx, site)
	must(t, err)
	i := slices.IndexFunc(after.Versions, func(v admin.SecretVersion) bool { return v.Version == *r.Change[0].To })
	at, err := loads[fleet.Production].WaitSerial(ctx, *after.Versions[i].Serial)
	must(t, err)
	if end := *before.Versions[0].NotAfter; !at.Before(end) {
		t.Errorf("production served it at %s, what it had before ended at %s", at, end)
	}
	begins := slices.IndexFunc(r.Log, func(e admin.Event) bool { return e.State == rollout.Watching })
	if r.Change[0].Kind != rollout.Renewal || len(r.Waves) != 2 || begins < 0 || begins+1 == len(r.Log) {
		t.Fatalf("it was %s in %d waves, want an ordinary renewal, of which canary is watched: %s", r.Change[0].Kind, len(r.Waves), logged(r))
	}
	word, ok := strings.CutSuffix(strings.TrimPrefix(r.Log[begins].Reason, "wave 1 (canary) is watched for "), ", not for 1h0m0s: what the later waves serve ends soon")
	watch, err := time.ParseDuration(word)
	if took := r.Log[begins+1].At.Sub(r.Log[begins].At); !ok || err != nil || watch < time.Second || took < watch {
		t.Errorf("canary was watched for %s, want all of a part of what was left: %s", took, logged(r))
	}
	for group, load := range loads {
		load.Stop()
		if load.Failed() > 0 {
			t.Errorf("%s: %d handshakes made, %d failed: %v", group, load.Made(), load.Failed(), load.Errors())
		}
	}
}

// renewedByItself waits until the rollout of the version after one is past its first wave.
func renewedByItself(e *testenv.T, f *fleet.Fleet, before string) (found admin.Rollout) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		var all admin.Rollouts
		if err := f.JSON(ctx, &all, "rollout", "history"); err != nil {
			return err
		}
		for _, r := range all.Rollouts {
			if c := r.Change[0]; c.From != nil && *c.From == before && r.Wave >= 1 {
				found = r
				return nil
			}
		}
		return fmt.Errorf("rollouts: %+v", all.Rollouts)
	}))
	return found
}
