package integration

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// An Envoy that is stuck ends a rollout. With min_acked the others are enough, also where handshakes show what it still serves; it gets the
// version when it goes on.
func TestStuckEnvoyIsLetPassByMinAcked(t *testing.T) {
	t.Parallel()
	s := startStage(testenv.NewT(t), stageOptions{
		groups: []stageGroup{{name: "canary", nodes: 2}, {name: "production", nodes: 1}}, secrets: []string{site},
		policy: "watch: 0s, ack_timeout: 2s, empty_group: skip, retry_after: 1h", verify: true,
	})
	w := startWire(s.T, s.sdsSocket("canary"))
	must(t, s.envoys["canary-2"].Stop())
	s.startNode("canary", 2, s.sdsSocket("canary"), w.socket)
	s.serves("canary-2", site, s.serials[site])
	s.expectNode("canary-2", func(n admin.Node) bool { return n.Connected && n.State == "SYNCED" })
	s.load()

	w.hold(true)
	first := s.brings(s.ca, site)
	if r := s.reaches(first, rollout.RolledBack); !strings.Contains(r.Reason, "canary-2 did not answer within 2s") {
		t.Errorf("it went back because of %q", r.Reason)
	}
	s.held(first, rollout.Soft, "canary-2 did not answer")
	s.serves("canary-1", site, s.serials[site])
	s.unseen("production", first)

	s.policy += ", min_acked: 50"
	s.reload()
	second := s.brings(s.ca, site)
	r := s.reaches(second, rollout.Done)
	s.serves("canary-1", site, second.Serial)
	s.serves("production-1", site, second.Serial)
	s.serves("canary-2", site, s.serials[site])
	if got := r.Waves[0].Nodes; got.Expected != 2 || got.Acked != 1 {
		t.Errorf("wave 1: got %+v, want the ACK of one of two nodes", got)
	}
	w.hold(false)
	s.serves("canary-2", site, second.Serial)
	s.good(s.nodes()...)
}

// ending is a certificate that ends in a moment, and a twentieth of whose life begins a few seconds before that.
func ending(name string) testenv.LeafOptions {
	now := time.Now()
	return testenv.LeafOptions{DNSNames: []string{name}, NotBefore: now.Add(-104 * time.Second), NotAfter: now.Add(16 * time.Second)}
}

// hurries waits until a version is everywhere because what was served under its name ended, and returns the rollout that brought it.
func (s *stage) hurries(a admin.Accepted) (r admin.Rollout) {
	s.Helper()
	must(s, testenv.Eventually(s.Ready(), func(ctx context.Context) error {
		var all admin.Rollouts
		if err := s.admin.Get(ctx, "/v1/rollouts?all=true", &all); err != nil {
			return err
		}
		for _, r = range all.Rollouts {
			if c := r.Change[0]; c.Secret == a.Name && c.To != nil && *c.To == a.Version && c.Kind == rollout.Emergency && r.State == rollout.Done {
				return nil
			}
		}
		return fmt.Errorf("no emergency brought version %s of %s", a.Version[:12], a.Name)
	}))
	s.allServe(a.Name, a.Serial)
	return r
}

// A command says no: the version goes back, and is held. It says yes: the next one goes on. It is asked after the watch of each wave, and not where
// what is served ends: that passes what was held.
func TestHookDecidesUntilTheDeadline(t *testing.T) {
	t.Parallel()
	const short = "short.example"
	e := testenv.NewT(t)
	asked, agrees := filepath.Join(e.Dir, "asked"), filepath.Join(e.Dir, "agrees")
	script := fmt.Sprintf("echo $SDS_ROLLOUT $SDS_WAVE $SDS_GROUPS $SDS_SECRETS >>%s; test -e %s || { echo not today; exit 1; }", asked, agrees)
	s := startStage(e, stageOptions{
		groups: canaryAndProduction(), secrets: []string{site, short}, later: []string{short},
		policy: fmt.Sprintf("watch: 0s, ack_timeout: 20s, empty_group: skip, retry_after: 1h, hook: {command: [/bin/sh, -c, %q], timeout: 20s}", script),
	})
	s.load()
	s.bringsWith(s.ca, short, ending(short)) // the name is new: nothing is asked

	bad := s.brings(s.ca, short)
	r := s.reaches(bad, rollout.RolledBack)
	if !strings.Contains(r.Reason, "the hook refused: exit code 1: not today") || r.Waves[1].State != rollout.Pending {
		t.Errorf("it went back because of %q, wave 2 is %s", r.Reason, r.Waves[1].State)
	}
	s.held(bad, rollout.Soft, "the hook refused")

	must(t, os.WriteFile(agrees, nil, 0o600))
	good := s.brings(s.ca, site)
	s.reaches(good, rollout.Done)
	s.allServe(site, good.Serial)

	s.hurries(bad)
	got, err := os.ReadFile(asked)
	must(t, err)
	want := fmt.Sprintf("%[1]d 0 canary %[3]s\n%[2]d 0 canary %[4]s\n%[2]d 1 production %[4]s\n", *bad.Rollout, *good.Rollout, short, site)
	if string(got) != want {
		t.Errorf("the hook was asked\n%swant\n%s", got, want)
	}
	s.good(s.nodes()...)
}

// Outside of the windows, and in a freeze, a rollout waits and says why; what is served and ends waits for neither.
func TestWindowsAndFreezesHoldARolloutUntilTheDeadline(t *testing.T) {
	t.Parallel()
	const short, late = "short.example", "late.example"
	opens := time.Now().UTC().Add(30 * time.Minute).Truncate(time.Minute)
	const policy = "watch: 0s, ack_timeout: 20s, empty_group: skip, "
	s := startStage(testenv.NewT(t), stageOptions{
		groups: canaryAndProduction(), secrets: []string{site, short, late}, later: []string{short, late},
		policy: policy + fmt.Sprintf(`windows: [{cron: "%d %d * * *", duration: 1m}]`, opens.Minute(), opens.Hour()),
	})
	s.load()
	for _, name := range []string{short, late} { // they are new: for them there is no window
		a := s.bringsWith(s.ca, name, ending(name))
		s.allServe(name, a.Serial)
	}

	waits, hurried := s.brings(s.ca, site), s.brings(s.ca, short)
	for _, a := range []admin.Accepted{waits, hurried} {
		r := s.reaches(a, rollout.Waiting)
		if want := "outside of the windows; the next one opens at " + opens.Format(time.RFC3339); r.Reason != want || r.Waves[0].State != rollout.Pending {
			t.Errorf("%s waits because of %q, its first wave is %s; want %q", a.Name, r.Reason, r.Waves[0].State, want)
		}
	}
	s.hurries(hurried) // when its deadline has come
	if r := s.hurries(s.brings(s.ca, late)); len(r.Waves) != 1 {
		t.Errorf("it went in %d waves, want one: its deadline had come before it", len(r.Waves))
	}
	s.reaches(waits, rollout.Waiting)
	s.allServe(site, s.serials[site])

	ends := time.Now().UTC().Add(4 * time.Second).Truncate(time.Second)
	s.policy = policy + fmt.Sprintf("freeze: [{from: %q, to: %q, reason: holidays}]", ends.Add(-time.Hour).Format(time.RFC3339), ends.Format(time.RFC3339))
	s.reload()
	r := s.reaches(waits, rollout.Done) // by itself
	s.allServe(site, waits.Serial)
	i := slices.IndexFunc(r.Log, func(e admin.Event) bool { return e.State == rollout.Moving })
	if want := fmt.Sprintf("freeze until %s: holidays", ends.Format(time.RFC3339)); i < 1 || r.Log[i-1].Reason != want || r.Log[i].At.Before(ends) {
		t.Errorf("it began at %s, want after %q: %s", r.Log[i].At, want, logged(r))
	}
	s.good(s.nodes()...)
}

// A node that comes while a wave is watched is heard: what it refuses goes back.
func TestNACKInTheMiddleOfAWatchGoesBackFromCanary(t *testing.T) {
	t.Parallel()
	s := startStage(testenv.NewT(t), stageOptions{
		groups: canaryAndProduction(), secrets: []string{site}, policy: "watch: 1m, ack_timeout: 20s, empty_group: skip", verify: true,
	})
	s.load()
	bad := s.brings(s.ca, site)
	s.reaches(bad, rollout.Watching)
	s.serves("canary-1", site, bad.Serial)

	// This one wants OCSP staples with its certificates, and refuses every one without.
	const tls = "extensions.transport_sockets.tls.v3.DownstreamTlsContext\n"
	s.https["canary-2"] = s.Address()
	s.startNode("canary", 2, tls, tls+"          ocsp_staple_policy: MUST_STAPLE\n")
	r := s.reaches(bad, rollout.RolledBack)
	if got := slices.DeleteFunc(states(r), func(one string) bool { return one == "waiting" }); !slices.Equal(got, []string{"moving", "verifying", "watching", "rolled_back"}) {
		t.Errorf("it was %v: %s", got, logged(r))
	}
	if !strings.Contains(r.Reason, "canary-2 (unix:uid=") || !strings.Contains(r.Reason, "OCSP") {
		t.Errorf("it went back because of %q, want the refusal of canary-2 with Envoy's words", r.Reason)
	}
	s.held(bad, rollout.Hard, "canary-2")
	for _, node := range []string{"canary-1", "production-1", "production-2"} {
		s.serves(node, site, s.serials[site])
	}
	s.unseen("production", bad)
	s.good("canary-1", "production-1", "production-2")
}
