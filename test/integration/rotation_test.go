package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

const site = "www.test.example"

func one(manual bool) fleet.Settings {
	return fleet.Settings{Manual: manual, Certificates: []fleet.Certificate{{Names: []string{site, "test.example"}}}}
}

// renew orders a new certificate and returns what `renew --wait` says.
func renew(ctx context.Context, t testing.TB, f *fleet.Fleet, wait string) admin.Renewed {
	t.Helper()
	var r admin.Renewed
	must(t, f.JSON(ctx, &r, "renew", site, "--force", "--wait="+wait))
	return r
}

func served(ctx context.Context, t testing.TB, f *fleet.Fleet, group, serial string) {
	t.Helper()
	if _, err := f.WaitServed(ctx, group, site, serial); err != nil {
		t.Fatal(err)
	}
}

func TestManualRotationMovesCanaryThenProductionAndBack(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, one(true))
	ctx := e.Ready()
	loads := map[string]*testenv.Load{}
	for group := range f.Envoys {
		load, err := f.Load(ctx, group, site, 1)
		must(t, err)
		defer load.Stop()
		loads[group] = load
	}
	old, err := f.WaitServed(ctx, fleet.Production, site, "")
	must(t, err)

	r := renew(ctx, t, f, "issued")
	served(ctx, t, f, fleet.Canary, *r.Serial)
	served(ctx, t, f, fleet.Production, old)
	expectRollout(ctx, t, f, "waiting")

	out, err := f.Run(ctx, "promote", "--group", "production")
	must(t, err)
	if !strings.Contains(string(out), site) {
		t.Errorf("promote said %q, want the name of the changed secret", out)
	}
	served(ctx, t, f, fleet.Production, *r.Serial)
	out, err = f.Run(ctx, "promote", "--group", "production")
	must(t, err)
	if !strings.Contains(string(out), "already there") {
		t.Errorf("second promote said %q, want already there", out)
	}

	_, err = f.Run(ctx, "rollback", "--group", "canary")
	must(t, err)
	served(ctx, t, f, fleet.Canary, old)
	served(ctx, t, f, fleet.Production, *r.Serial)
	if _, err = f.Run(ctx, "promote", "--group", "canary"); err == nil || !strings.Contains(err.Error(), "held") {
		t.Errorf("promote of a group that was taken back: got %v, want an error that says held", err)
	}
	for group, load := range loads {
		load.Stop()
		if load.Failed() > 0 || load.Made() == 0 {
			t.Errorf("%s: %d handshakes made, %d failed: %v", group, load.Made(), load.Failed(), load.Errors())
		}
	}
}

// expectRollout waits until exactly one rollout is under way, in the state.
func expectRollout(ctx context.Context, t testing.TB, f *fleet.Fleet, state string) {
	t.Helper()
	must(t, testenv.Eventually(ctx, func(ctx context.Context) error {
		var r admin.Rollouts
		if err := f.JSON(ctx, &r, "rollout", "status"); err != nil {
			return err
		}
		if len(r.Rollouts) != 1 || string(r.Rollouts[0].State) != state {
			return fmt.Errorf("rollouts %+v, want one that is %s", r.Rollouts, state)
		}
		return nil
	}))
}

func TestAutomaticRotationReachesEveryWaveByItself(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, one(false))
	ctx := e.Ready()
	for range 3 {
		r := renew(ctx, t, f, "done")
		for group := range f.Envoys {
			served(ctx, t, f, group, *r.Serial)
		}
		if r.DoneSeconds == nil || r.Rollout == nil || r.Snapshot == nil {
			t.Errorf("renew --wait answered %+v, want rollout, snapshot and done_seconds", r)
		}
	}
	s, err := f.Secret(ctx, site)
	must(t, err)
	if len(s.Versions) != 3 {
		t.Errorf("%d versions are stored, want the last 3", len(s.Versions))
	}
}

func TestRestartKeepsEveryGroupWhereItWas(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, one(true))
	ctx := e.Ready()
	renew(ctx, t, f, "issued")          // canary is now ahead of production
	expectRollout(ctx, t, f, "waiting") // canary has ACKed
	must(t, f.WaitSynced(ctx))
	before, err := f.Versions(ctx, site)
	must(t, err)
	if before["canary-1"] == before["production-1"] {
		t.Fatalf("both nodes have version %s, want canary ahead", before["canary-1"])
	}
	updates := contextUpdates(ctx, t, f)

	must(t, f.Server.Kill())
	must(t, f.StartServer(ctx))
	must(t, f.WaitSynced(ctx))
	after, err := f.Versions(ctx, site)
	must(t, err)
	for node, version := range before {
		if after[node] != version {
			t.Errorf("%s: version %s after the restart, want %s", node, after[node], version)
		}
	}
	expectRollout(ctx, t, f, "waiting")
	if got := contextUpdates(ctx, t, f); fmt.Sprint(got) != fmt.Sprint(updates) {
		t.Errorf("TLS contexts were rebuilt by the restart: %v, before %v", got, updates)
	}
}

// contextUpdates is how often each Envoy rebuilt its TLS context (listener.*.ssl_context_update_by_sds).
func contextUpdates(ctx context.Context, t testing.TB, f *fleet.Fleet) map[string]string {
	t.Helper()
	out := map[string]string{}
	for group, envoy := range f.Envoys {
		stats, err := envoy.Stats(ctx, "ssl_context_update_by_sds")
		must(t, err)
		for _, name := range slices.Sorted(maps.Keys(stats)) {
			out[group] += name + "=" + stats[name] + " "
		}
	}
	return out
}

func TestImportIsServedByBothEnvoys(t *testing.T) {
	e := testenv.NewT(t)
	f := startFleet(e, fleet.Settings{Certificates: []fleet.Certificate{{Names: []string{site}}}})
	ctx := e.Ready()
	ca, err := testenv.NewAuthority(e.Dir, "import")
	must(t, err)
	leaf, err := ca.Issue(testenv.LeafOptions{DNSNames: []string{"imported.example"}})
	must(t, err)
	chain, key := e.Dir+"/import.crt", e.Dir+"/import.key"
	root, err := os.ReadFile(ca.File)
	must(t, err)
	must(t, os.WriteFile(chain, slices.Concat(leaf.CertPEM, root), 0o600))
	must(t, os.WriteFile(key, leaf.KeyPEM, 0o600))
	_, err = f.Run(ctx, "secrets", "import", "imported.example", "--chain", chain, "--key", key)
	must(t, err)
	// An Envoy that names it gets it; one that does not is not bothered.
	must(t, f.Envoys[fleet.Production].Stop())
	must(t, f.StartEnvoy(ctx, fleet.Production, "imported.example"))
	must(t, testenv.Eventually(ctx, func(ctx context.Context) error {
		got, _, err := testenv.Handshake(ctx, f.HTTPS[fleet.Production], "imported.example", nil)
		if err != nil {
			return err
		}
		if want := testenv.Serial(leaf.TLS.Leaf); testenv.Serial(got) != want {
			return errors.New("another certificate is served: " + testenv.Serial(got))
		}
		return nil
	}))
	if _, err := f.Run(ctx, "secrets", "import", site, "--chain", chain, "--key", key); err == nil {
		t.Error("an import over an issued secret was accepted")
	}
}
