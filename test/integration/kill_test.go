package integration

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// heldStep is a step of an order at which the proxy holds the server's request, or the CA's answer, while the server is killed.
type heldStep struct {
	kind  testenv.Kind
	point testenv.Point
}

// heldSteps are the steps of one order. Each kill takes the order one step further, so that all of them fall into one renewal.
var heldSteps = []heldStep{ //nolint:gochecknoglobals // a table
	{testenv.KindNewOrder, testenv.Before},
	{testenv.KindNewOrder, testenv.After},
	{testenv.KindAuthz, testenv.Before},
	{testenv.KindAuthz, testenv.After},
	{testenv.KindChallenge, testenv.Before},
	{testenv.KindChallenge, testenv.After},
	{testenv.KindOrder, testenv.Before},
	{testenv.KindOrder, testenv.After},
	{testenv.KindFinalize, testenv.Before},
	{testenv.KindFinalize, testenv.After},
	{testenv.KindCert, testenv.Before},
	{testenv.KindCert, testenv.After},
}

func (s heldStep) String() string {
	if s.point == testenv.After {
		return "after " + string(s.kind)
	}
	return "before " + string(s.kind)
}

// accepted reports whether the CA has an order of this renewal at the step.
func (s heldStep) accepted() bool { return s != heldStep{testenv.KindNewOrder, testenv.Before} }

// asked reports whether the server comes to the step only when `renew` is run: no order of this renewal is in its store yet. To the
// later steps it has to come by itself.
func (s heldStep) asked() bool {
	return s.kind == testenv.KindNewOrder || s == heldStep{testenv.KindAuthz, testenv.Before}
}

// rolloutSteps are lines of the log that begin with one of these; the server is killed when it has written one.
var rolloutSteps = []string{ //nolint:gochecknoglobals // a table
	"", // none: the kill comes at once after the CA's answer, before or after it is stored
	`msg="certificate issued"`,
	`msg="group moved" part=cache group=canary`,
	`msg="group moved" part=cache group=production`,
	`msg=rollout part=rollout rollout=`,
}

const (
	heldRenewals    = 3  // each with a kill at every one of heldSteps
	rolloutRenewals = 15 // each with a kill at one of rolloutSteps
)

// TestKilledServerLosesNothing kills the server with SIGKILL at every step of issuance and rotation.
func TestKilledServerLosesNothing(t *testing.T) {
	k := startKillRun(t)
	for round := range heldRenewals {
		for _, step := range heldSteps {
			k.killHeld(step)
		}
		k.start()
		k.completes(fmt.Sprintf("renewal %d, killed at %d steps", round+1, len(heldSteps)))
	}
	for round := range rolloutRenewals {
		step := rolloutSteps[round%len(rolloutSteps)]
		if step == "" {
			k.killAtAnswer()
		} else {
			k.killAtLine(step)
		}
		k.start()
		k.completes(fmt.Sprintf("renewal killed at %q", step))
	}
	k.sum()
}

// killRun is the fleet behind the proxy, and what was seen of it.
type killRun struct {
	*testenv.T
	fleet *fleet.Fleet
	proxy *testenv.Proxy
	loads map[string]*testenv.Load

	versions []admin.SecretVersion // every one that was ever shown as stored, the newest last
	kills    int
	between  int // kills between the CA's acceptance of newOrder and the store's commit
	lost     int // kills between the CA's acceptance of newOrder and the store's commit of the order
}

func startKillRun(t *testing.T) *killRun {
	// The race detector sleeps for 1 s at the end of each process: of each command, and of each check of the store.
	t.Setenv("GORACE", "atexit_sleep_ms=0")
	e := testenv.NewT(t)
	k := &killRun{T: e, loads: map[string]*testenv.Load{}}
	// One name: the challenges of several are answered beside each other, and a held one would not hold the order.
	k.fleet, k.proxy = startBehindProxy(e, fleet.Settings{Certificates: []fleet.Certificate{{Names: []string{site}}}})
	ctx := e.Ready()
	roots, err := k.fleet.Pebble.Roots(ctx)
	must(t, err)
	for group, address := range k.fleet.HTTPS {
		k.loads[group] = e.Load(testenv.LoadOptions{Address: address, ServerName: site, Roots: roots, Workers: 1, Pause: 20 * time.Millisecond, Timeout: 20 * time.Second})
	}
	k.settled()
	return k
}

// start starts the server again where it was killed.
func (k *killRun) start() {
	k.Helper()
	if !k.fleet.Server.Running() {
		must(k, k.fleet.StartServer(k.Ready()))
	}
}

func (k *killRun) kill() {
	k.Helper()
	must(k, k.fleet.Server.Kill())
	k.kills++
}

// renew runs the command beside the test; the function that it returns waits for its end, which has to be that of the server.
func (k *killRun) renew() (ended func()) {
	done := make(chan error, 1)
	ctx := k.Ready()
	go func() {
		_, err := k.fleet.Run(ctx, "renew", site, "--force", "--wait=issued")
		done <- err
	}()
	return func() {
		k.Helper()
		err := <-done
		if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 3) {
			k.Errorf("renew: got %v, want success or exit code 3", err)
		}
	}
}

// killHeld starts the server, which comes to the step, and kills it there.
func (k *killRun) killHeld(step heldStep) {
	k.Helper()
	before := k.proxy.Hold(step.kind, testenv.Before)
	defer before.Release()
	k.start()
	ended := func() {}
	if step.asked() {
		ended = k.renew()
	}
	k.reached(before, step)
	k.settled()
	if step.point == testenv.After {
		after := k.proxy.Hold(step.kind, testenv.After)
		defer after.Release()
		before.Release()
		k.reached(after, step)
	}
	k.kill()
	ended()
	if step.accepted() {
		k.between++
	}
	if step == (heldStep{testenv.KindNewOrder, testenv.After}) {
		k.lost++
	}
}

// reached waits until the proxy holds a request of the server.
func (k *killRun) reached(hold *testenv.Hold, step heldStep) {
	k.Helper()
	select {
	case <-hold.Reached():
	case <-k.Ready().Done():
		k.Fatalf("%s: the server did not come to it", step)
	}
}

// killAtAnswer kills the server when the answer with the certificate is let go.
func (k *killRun) killAtAnswer() {
	k.Helper()
	step := heldStep{testenv.KindCert, testenv.After}
	hold := k.proxy.Hold(step.kind, step.point)
	ended := k.renew()
	k.reached(hold, step)
	hold.Release()
	k.kill()
	ended()
}

// killAtLine kills the server when it has written a line that it had not written before.
func (k *killRun) killAtLine(text string) {
	k.Helper()
	count := func() int {
		log, err := k.fleet.Server.Log()
		must(k, err)
		return strings.Count(log, text)
	}
	had := count()
	ended := k.renew()
	must(k, testenv.Eventually(k.Ready(), func(context.Context) error {
		if count() == had {
			return fmt.Errorf("the log has no new line with %s", text)
		}
		return nil
	}))
	k.kill()
	ended()
}

// completes waits until the renewal under way is stored, by the server alone, and served by both Envoys.
func (k *killRun) completes(what string) {
	k.Helper()
	had := len(k.versions)
	must(k, testenv.Eventually(k.Ready(), func(ctx context.Context) error {
		k.look(ctx)
		if len(k.versions) == had {
			return fmt.Errorf("%s: no new version is stored", what)
		}
		return nil
	}))
	k.settled()
	if got := len(k.versions) - had; got != 1 {
		k.Fatalf("%s: it stored %d versions, want 1", what, got)
	}
	for group, load := range k.loads {
		if _, err := load.WaitSerial(k.Ready(), k.versions[had].Serial); err != nil {
			k.Fatalf("%s: %s: %v", what, group, err)
		}
	}
	k.ordersExplained(what)
}

// look reads the stored versions: those that were seen before are still there, but for the ones with three newer ones.
func (k *killRun) look(ctx context.Context) {
	k.Helper()
	s, err := k.fleet.Secret(ctx, site)
	must(k, err)
	index := func(version string) int {
		return slices.IndexFunc(s.Versions, func(v admin.SecretVersion) bool { return v.Version == version })
	}
	for _, v := range slices.Backward(s.Versions) { // the newest first
		if !slices.ContainsFunc(k.versions, func(have admin.SecretVersion) bool { return have.Version == v.Version }) {
			k.versions = append(k.versions, v)
		}
	}
	for _, v := range k.versions[max(0, len(k.versions)-3):] {
		if index(v.Version) < 0 {
			k.Fatalf("version %s of %s is lost", v.Version, v.Created)
		}
	}
}

// settled waits until the store's newest version is where both groups are, and what both Envoys have ACKed.
func (k *killRun) settled() {
	k.Helper()
	must(k, testenv.Eventually(k.Ready(), func(ctx context.Context) error {
		k.look(ctx)
		newest := k.versions[len(k.versions)-1].Version
		if err := k.fleet.WaitSynced(ctx); err != nil {
			return err
		}
		acked, err := k.fleet.Versions(ctx, site)
		if err != nil {
			return err
		}
		for group := range k.loads {
			if got := acked[group+"-1"]; got != newest {
				return fmt.Errorf("%s has version %s, want %s", group, got, newest)
			}
		}
		return nil
	}))
}

// ordersExplained fails unless each order at the CA is that of a stored version, was lost with the answer of a newOrder, or was made
// invalid by the CA, because nobody was there to answer its challenge; and unless there is one certificate for each stored version.
func (k *killRun) ordersExplained(what string) {
	k.Helper()
	log, err := k.fleet.Pebble.Log()
	must(k, err)
	invalid := 0
	for line := range strings.Lines(log) {
		if strings.Contains(line, "set INVALID by invalid authz") {
			invalid++
		}
	}
	if got, want := k.proxy.Count(testenv.KindNewOrder).Succeeded, len(k.versions)+k.lost+invalid; got != want {
		k.Errorf("%s: the CA accepted %d orders, want %d: %d stored versions, %d lost answers, %d made invalid", what, got, want, len(k.versions), k.lost, invalid)
	}
	if got, want := k.proxy.Count(testenv.KindFinalize).Succeeded, len(k.versions); got != want {
		k.Errorf("%s: the CA finalized %d orders, want %d: one for each stored version", what, got, want)
	}
}

// sum checks the numbers of the whole run.
func (k *killRun) sum() {
	k.Helper()
	made := 0
	for group, load := range k.loads {
		load.Stop()
		made += load.Made()
		if load.Failed() > 0 || load.Made() == 0 {
			k.Errorf("%s: %d handshakes made, %d failed: %v", group, load.Made(), load.Failed(), load.Errors())
		}
	}
	if want := 1 + heldRenewals + rolloutRenewals; len(k.versions) != want {
		k.Errorf("%d versions were stored, want %d", len(k.versions), want)
	}
	if k.kills < 50 {
		k.Errorf("%d kills, want at least 50", k.kills)
	}
	if k.between < 30 {
		k.Errorf("%d kills fell between newOrder and stored, want at least 30", k.between)
	}
	k.Logf("%d kills, %d of them between newOrder and stored; %d certificates; %d handshakes", k.kills, k.between, len(k.versions), made)
}
