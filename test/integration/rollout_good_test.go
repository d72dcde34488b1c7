package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// watched is a policy with a short watch.
const watched = "watch: 2s, ack_timeout: 20s, empty_group: skip"

// A good version goes from canary to production by itself, and no handshake fails meanwhile.
func TestGoodRolloutIsVerifiedWatchedAndPromotedByItself(t *testing.T) {
	t.Parallel()
	s := startStage(testenv.NewT(t), stageOptions{groups: canaryAndProduction(), secrets: []string{site}, policy: watched, verify: true})
	s.load()
	a := s.brings(s.ca, site)
	must(t, testenv.Eventually(t.Context(), func(ctx context.Context) error {
		if r := s.seen(ctx, *a.Rollout); !slices.ContainsFunc(r.Waves, func(w admin.Wave) bool { return w.Handshakes.OK > 0 }) {
			return fmt.Errorf("no handshakes are shown: %+v", r.Waves)
		}
		return nil
	}))
	s.reaches(a, rollout.Done)
	s.allServe(site, a.Serial)
	s.good(s.nodes()...)

	var printed admin.Rollouts
	must(t, json.Unmarshal([]byte(s.run("rollout", "status", idText(a), "-o", "json", "-c", s.config)), &printed))
	r := printed.Rollouts[0]
	want := []string{"moving", "verifying", "watching", "moving", "verifying", "watching", "done"}
	if got := slices.DeleteFunc(states(r), func(one string) bool { return one == "waiting" }); !slices.Equal(got, want) {
		t.Errorf("it was %v, want %v: %s", got, want, logged(r))
	}
	for i, w := range r.Waves {
		if w.State != rollout.Done || w.Handshakes.Failed != 0 || w.Nodes.Acked != i+1 {
			t.Errorf("wave %d: got %+v", i+1, w)
		}
	}
	for _, node := range s.nodesOf("production") {
		first, _ := s.loads[node].FirstSeen(a.Serial)
		if second := r.Log[slices.IndexFunc(r.Log, func(e admin.Event) bool { return strings.Contains(e.Reason, "wave 2 (production) was switched") })].At; first.Before(second) {
			t.Errorf("%s served it at %s, before its wave was switched at %s", node, first, second)
		}
	}
	s.trail(a, "push canary canary-1", "rollout_moving canary", "rollout_verifying canary", "rollout_watching canary", "push production",
		"rollout_moving production", "rollout_verifying production", "rollout_watching production", "rollout_done ")
}

// trail wants entries of the audit trail about a version in this order; each begins with the text: the event, the group, and the nodes.
func (s *stage) trail(a admin.Accepted, want ...string) {
	s.Helper()
	var got []string
	for _, e := range s.audited("", a.Name) {
		if e.Version == a.Version {
			got = append(got, e.Event+" "+e.Group+" "+strings.Join(e.Nodes, ","))
		}
	}
	rest := got
	for _, begins := range want {
		i := slices.IndexFunc(rest, func(line string) bool { return strings.HasPrefix(line, begins) })
		if i < 0 {
			s.Fatalf("%q is not in the audit trail, or not in its order: %q", begins, got)
		}
		rest = rest[i+1:]
	}
}

func idText(a admin.Accepted) string { return strconv.FormatUint(*a.Rollout, 10) }
