package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
	"github.com/sds-server/sds-server/pkg/rollout"
)

const (
	secretName = "www.demo.example"
	otherName  = "demo.example"
	rotations  = 30
	// watch is how long a wave is watched where the story is about that.
	watch = "3s"
	// workers is how many handshakes are under way with each Envoy. More of them on two cores measure each other.
	workers = 1
)

// demo is the story and its parts.
type demo struct {
	out     io.Writer
	fleet   *fleet.Fleet
	sockets string
	load    map[string]*testenv.Load
	step    int
	result  result
}

// newDemo makes .demo anew and builds the server.
func newDemo(ctx context.Context, out io.Writer) (*demo, error) {
	dir, err := demoDir()
	if err != nil {
		return nil, err
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	sockets, err := testenv.ShortDir()
	if err != nil {
		return nil, err
	}
	if _, err := testenv.EnsureTools(ctx, func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }); err != nil {
		return nil, err
	}
	binary, err := testenv.BuildServer(ctx, filepath.Join(filepath.Dir(dir), "bin"), false)
	if err != nil {
		return nil, err
	}
	f, err := fleet.New(fleet.Options{Dir: dir, Sockets: sockets, Binary: binary})
	if err != nil {
		return nil, err
	}
	return &demo{out: out, fleet: f, sockets: sockets, load: map[string]*testenv.Load{}}, nil
}

// tell is the story, one step after the other.
func (d *demo) tell(ctx context.Context) error {
	for _, step := range []func(context.Context) error{
		d.start, d.issue, d.rotateInStages, d.rotateOften, d.killServer, d.rotateBadly, d.sum,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) say(format string, args ...any) { fmt.Fprintf(d.out, "   "+format+"\n", args...) }

func (d *demo) title(format string, args ...any) {
	d.step++
	fmt.Fprintf(d.out, "%d. "+format+"\n", append([]any{d.step}, args...)...)
}

// start runs a CA, the server, and two Envoys that have no certificate yet.
func (d *demo) start(ctx context.Context) error {
	f := d.fleet
	d.title("Start a CA (Pebble), sds-server, and two Envoys: canary over a Unix socket, production over mutual TLS")
	if err := f.StartPebble(ctx); err != nil {
		return err
	}
	if err := f.Init(ctx); err != nil {
		return err
	}
	if err := f.Configure(fleet.Settings{}); err != nil {
		return err
	}
	if err := f.StartServer(ctx); err != nil {
		return err
	}
	if err := f.StartEnvoys(ctx, secretName); err != nil {
		return err
	}
	if err := d.writeEnv(); err != nil {
		return err
	}
	d.say("Pebble, sds-server, canary and production are up; neither Envoy has a certificate")
	return nil
}

// issue configures a certificate in the running server.
func (d *demo) issue(ctx context.Context) error {
	d.title("Configure a certificate for two names; the CA validates it by HTTP-01 through canary's own port 80")
	begin := time.Now()
	if err := d.fleet.Reconfigure(ctx, d.settings(watch)); err != nil {
		return err
	}
	serial, err := d.fleet.WaitServed(ctx, fleet.Canary, secretName, "")
	if err != nil {
		return err
	}
	if _, err := d.fleet.WaitServed(ctx, fleet.Production, otherName, serial); err != nil {
		return err
	}
	if err := d.fleet.WaitSynced(ctx); err != nil {
		return err
	}
	d.result.SerialBefore = serial
	d.say("issued and served by both Envoys after %.1f s: serial %s", time.Since(begin).Seconds(), serial)
	return nil
}

// settings have handshakes prove each wave that is watched.
func (d *demo) settings(watch string) fleet.Settings {
	return fleet.Settings{Watch: watch, Verify: watch != "0s", Certificates: []fleet.Certificate{{Names: []string{secretName, otherName}}}}
}

// rotateInStages renews under load: canary first, and production when canary was proven and watched.
func (d *demo) rotateInStages(ctx context.Context) error {
	for _, group := range []string{fleet.Canary, fleet.Production} {
		load, err := d.fleet.Load(ctx, group, secretName, workers)
		if err != nil {
			return err
		}
		d.load[group] = load
	}
	d.title("Rotate under a load of full handshakes (watch: %s, proven by handshakes)", watch)
	renewed, err := d.renew(ctx)
	if err != nil {
		return err
	}
	d.result.SerialAfter = *renewed.Serial
	d.say("renewed in %.2f s: serial %s", *renewed.IssuedSeconds, *renewed.Serial)
	r, err := d.follow(ctx, *renewed.Rollout)
	if err != nil {
		return err
	}
	if r.State != rollout.Done {
		return fmt.Errorf("rollout %d ended as %s: %s", r.ID, r.State, r.Reason)
	}
	for _, group := range []string{fleet.Canary, fleet.Production} {
		if err := d.serves(ctx, group, *renewed.Serial); err != nil {
			return err
		}
	}
	d.say("nobody typed a command: both serve %s", *renewed.Serial)
	return nil
}

// follow tells what happens to a rollout until it has ended, with the seconds since it began.
func (d *demo) follow(ctx context.Context, id uint64) (r admin.Rollout, err error) {
	told := 0
	err = testenv.Eventually(ctx, func(ctx context.Context) error {
		var answer admin.Rollouts
		if err := admin.NewClient(d.fleet.AdminSocket()).Get(ctx, fmt.Sprintf("/v1/rollouts/%d", id), &answer); err != nil {
			return err
		}
		for r = answer.Rollouts[0]; told < len(r.Log); told++ {
			e := r.Log[told]
			d.say("%5.2f s  %-11s %s", e.At.Sub(r.Started).Seconds(), e.State, e.Reason)
		}
		if !r.State.Ended() {
			return fmt.Errorf("rollout %d is %s", id, r.State)
		}
		return nil
	})
	return r, err
}

func (d *demo) renew(ctx context.Context) (admin.Renewed, error) {
	var r admin.Renewed
	return r, d.fleet.JSON(ctx, &r, "renew", secretName, "--force", "--wait=issued")
}

// serves waits until new handshakes get the serial.
func (d *demo) serves(ctx context.Context, group, serial string) error {
	_, err := d.fleet.WaitServed(ctx, group, secretName, serial)
	return err
}

// rotateOften reloads with promotion: auto, and measures from the store's commit to the first handshake with the new leaf.
func (d *demo) rotateOften(ctx context.Context) error {
	d.title("Reload with watch: 0s, and rotate %d times in a row: canary, its ACK, production", rotations)
	if err := d.fleet.Reconfigure(ctx, d.settings("0s")); err != nil {
		return err
	}
	var canary, production, issued []float64
	for range rotations {
		r, err := d.renew(ctx)
		if err != nil {
			return err
		}
		first := map[string]time.Time{}
		for _, group := range []string{fleet.Canary, fleet.Production} {
			if first[group], err = d.load[group].WaitSerial(ctx, *r.Serial); err != nil {
				return err
			}
		}
		stored, err := d.stored(ctx, *r.Version) // asked last: the answer takes processor time that is being measured
		if err != nil {
			return err
		}
		canary = append(canary, milliseconds(first[fleet.Canary].Sub(stored)))
		production = append(production, milliseconds(first[fleet.Production].Sub(stored)))
		issued = append(issued, *r.IssuedSeconds*1000)
	}
	d.result.Rotations = rotations
	d.result.StoredToServed = quantiles(canary)
	d.result.StoredToServedProduction = quantiles(production)
	d.result.Issued = quantiles(issued)
	d.say("stored to served on canary:      p50 %5.1f ms   p99 %5.1f ms", d.result.StoredToServed.P50, d.result.StoredToServed.P99)
	d.say("           ... on production:    p50 %5.1f ms   p99 %5.1f ms   (after canary's ACK)",
		d.result.StoredToServedProduction.P50, d.result.StoredToServedProduction.P99)
	d.say("renewal, from command to stored: p50 %5.0f ms   p99 %5.0f ms", d.result.Issued.P50, d.result.Issued.P99)
	return nil
}

// stored returns when a version was created: just before its commit.
func (d *demo) stored(ctx context.Context, version string) (time.Time, error) {
	s, err := d.fleet.Secret(ctx, secretName)
	if err != nil {
		return time.Time{}, err
	}
	i := slices.IndexFunc(s.Versions, func(v admin.SecretVersion) bool { return v.Version == version })
	if i < 0 {
		return time.Time{}, fmt.Errorf("version %s is not stored", version)
	}
	return s.Versions[i].Created, nil
}

// killServer kills the server without warning; the Envoys serve on, and have equal versions after its restart.
func (d *demo) killServer(ctx context.Context) error {
	d.title("Kill the server with SIGKILL, and start it again")
	if err := d.fleet.WaitSynced(ctx); err != nil {
		return err
	}
	before, err := d.fleet.Versions(ctx, secretName)
	if err != nil {
		return err
	}
	if err := d.fleet.Server.Kill(); err != nil {
		return err
	}
	for group, load := range d.load {
		if err := load.WaitMade(ctx, load.Made()+200); err != nil {
			return fmt.Errorf("%s while the server is down: %w", group, err)
		}
	}
	if err := d.fleet.StartServer(ctx); err != nil {
		return err
	}
	if err := d.fleet.WaitSynced(ctx); err != nil {
		return err
	}
	after, err := d.fleet.Versions(ctx, secretName)
	if err != nil {
		return err
	}
	for node, version := range before {
		if after[node] != version {
			return fmt.Errorf("%s had version %s before the restart and %s after it", node, version, after[node])
		}
	}
	d.result.RestartVersionsEqual = len(before) == 2 && len(after) == 2
	d.say("both Envoys served on without it, reconnected, and have equal versions: %s", before[fleet.Canary+"-1"][:12])
	return nil
}

// rotateBadly takes a certificate from a CA that no client trusts: canary's clients are told to stay away meanwhile, production's are not.
func (d *demo) rotateBadly(ctx context.Context) error {
	d.title("Take the next certificate from a CA that clients do not trust (roots: unchecked), watch: %s", watch)
	if err := d.fleet.StartStranger(ctx); err != nil {
		return err
	}
	s := d.settings(watch)
	s.Stranger = true
	if err := d.fleet.Reconfigure(ctx, s); err != nil {
		return err
	}
	d.load[fleet.Canary].Stop()
	production := d.load[fleet.Production]
	failed := production.Failed()
	bad, err := d.renew(ctx)
	if err != nil {
		return err
	}
	d.say("issued, valid, accepted by Envoy: serial %s", *bad.Serial)
	r, err := d.follow(ctx, *bad.Rollout)
	if err != nil {
		return err
	}
	if _, err := d.fleet.WaitServed(ctx, fleet.Canary, secretName, ""); err != nil {
		return err
	}
	if err := production.WaitMade(ctx, 100); err != nil {
		return err
	}
	_, shown := production.Seen(*bad.Serial)
	status, err := d.fleet.Status(ctx)
	if err != nil {
		return err
	}
	b := badRollout{State: r.State, Reason: r.Reason, ProductionFailed: production.Failed() - failed, ProductionShown: shown}
	for _, h := range status.Held {
		b.Held = b.Held || h.Version == *bad.Version
	}
	d.result.BadRollout = b
	d.say("canary went back by itself, the version is held, and production never showed it: %d failed handshakes there", b.ProductionFailed)
	return d.fleet.Reconfigure(ctx, d.settings("0s"))
}

// sum ends the load and writes the result.
func (d *demo) sum(context.Context) error {
	d.title("Sum up")
	for group, load := range d.load {
		load.Stop()
		d.result.Handshakes += load.Made()
		d.result.HandshakesFailed += load.Failed()
		for _, err := range load.Errors() {
			d.say("failed handshake with %s: %v", group, err)
		}
	}
	if err := d.result.write(filepath.Join(d.fleet.Dir, "result.json")); err != nil {
		return err
	}
	d.say("serial before %s, after %s", d.result.SerialBefore, d.result.SerialAfter)
	d.say("%d full handshakes made, %d failed; figures in .demo/result.json", d.result.Handshakes, d.result.HandshakesFailed)
	b := d.result.BadRollout
	if d.result.HandshakesFailed > 0 || !d.result.RestartVersionsEqual || b.State != rollout.RolledBack || !b.Held || b.ProductionShown {
		return errors.New("the demo did not go as it should")
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// quantiles returns the nearest-rank p50 and p99.
func quantiles(values []float64) percentiles {
	slices.Sort(values)
	at := func(q float64) float64 { return values[int(math.Ceil(q*float64(len(values))))-1] }
	return percentiles{P50: at(0.50), P99: at(0.99)}
}
