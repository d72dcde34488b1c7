package integration

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

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

// rolloutSteps are texts of the log; the server is killed when it has written one after it got a certificate.
var rolloutSteps = []string{ //nolint:gochecknoglobals // a table
	"", // at once, before or after it has stored the certificate
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
			k.killHeld(step, round == 1)
		}
		k.start()
		k.completes(fmt.Sprintf("renewal %d, killed at %d steps", round+1, len(heldSteps)))
	}
	for round := range rolloutRenewals {
		step := rolloutSteps[round%len(rolloutSteps)]
		k.killAtRollout(step)
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
	invalid  int // orders that the CA made invalid, because nobody was there to answer its challenge
	lost     int // kills between the CA's acceptance of newOrder and our knowing its URL: the order is found in the account's list
}

func startKillRun(t *testing.T) *killRun {
	e := testenv.NewT(t)
	k := &killRun{T: e, loads: map[string]*testenv.Load{}}
	// One name: the challenges of several are answered beside each other, and a held one would not hold the order.
	k.fleet, k.proxy = startBehindProxy(e, fleet.Settings{Certificates: []fleet.Certificate{{Names: []string{site}}}})
	ctx := e.Ready()
	roots, err := k.fleet.Pebble.Roots(ctx)
	must(t, err)
	for group, address := range k.fleet.HTTPS {
		k.loads[group] = gentleLoad(e, address, roots)
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

// killHeld starts the server, which comes to the step, and kills it there. The CA's look at a challenge ends before the kill where
// validated is set; else it finds nobody, and makes the order invalid.
func (k *killRun) killHeld(step heldStep, validated bool) {
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
		valid := k.validated()
		before.Release()
		k.reached(after, step)
		if step.kind == testenv.KindChallenge && validated {
			must(k, testenv.Eventually(k.Ready(), func(context.Context) error {
				if k.validated() == valid {
					return errors.New("the CA has not validated the name")
				}
				return nil
			}))
		}
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

// validated is how many names the CA has validated.
func (k *killRun) validated() int {
	k.Helper()
	log, err := k.fleet.Pebble.Log()
	must(k, err)
	return strings.Count(log, "set VALID by completed challenge")
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

// killAtRollout kills the server when it has got the certificate and then written a line with the text; with no text, when the answer
// is let go. The order is known by then, so the server ends the renewal by itself, wherever the kill falls.
func (k *killRun) killAtRollout(text string) {
	k.Helper()
	step := heldStep{testenv.KindCert, testenv.After}
	hold := k.proxy.Hold(step.kind, step.point)
	defer hold.Release()
	ended := k.renew()
	k.reached(hold, step)
	written := len(k.log())
	hold.Release()
	if text != "" {
		must(k, testenv.Eventually(k.Ready(), func(context.Context) error {
			if !strings.Contains(k.log()[written:], text) {
				return fmt.Errorf("the log has no new line with %s", text)
			}
			return nil
		}))
	}
	k.kill()
	ended()
}

func (k *killRun) log() string {
	k.Helper()
	log, err := k.fleet.Server.Log()
	must(k, err)
	return log
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
		if _, err := load.WaitSerial(k.Ready(), *k.versions[had].Serial); err != nil {
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

// ordersExplained fails unless there is one certificate for each stored version, and each other order at the CA was made invalid. One whose
// answer got lost is no other one.
func (k *killRun) ordersExplained(what string) {
	k.Helper()
	log, err := k.fleet.Pebble.Log()
	must(k, err)
	k.invalid = strings.Count(log, "set INVALID by invalid authz")
	if got, want := k.proxy.Count(testenv.KindFinalize).Succeeded, len(k.versions); got != want {
		k.Errorf("%s: the CA finalized %d orders, want %d: one for each stored version", what, got, want)
	}
	if got, want := k.proxy.Count(testenv.KindNewOrder).Succeeded, len(k.versions)+k.invalid; got != want {
		k.Errorf("%s: the CA accepted %d orders, want %d: %d stored versions, %d made invalid; %d answers got lost",
			what, got, want, len(k.versions), k.invalid, k.lost)
	}
	if k.Failed() {
		k.FailNow() // each later renewal would say the same
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
	k.Logf("%d kills, %d of them between newOrder and stored; %d certificates; %d answers with an order lost, %d orders made invalid; %d handshakes",
		k.kills, k.between, len(k.versions), k.lost, k.invalid, made)
}
