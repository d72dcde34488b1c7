package integration

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// A rollout that is paused keeps no other secret waiting, and going back from it undoes nothing that came in between.
func TestPausedRolloutKeepsNothingWaiting(t *testing.T) {
	t.Parallel()
	const added, short = "added.example", "short.example"
	var ten []string
	for i := range 10 {
		ten = append(ten, fmt.Sprintf("www-%d.example", i))
	}
	s := startStage(testenv.NewT(t), stageOptions{
		groups: canaryAndProduction(), secrets: append([]string{site, added, short}, ten...), later: []string{added, short},
		policy: "watch: 1s, ack_timeout: 20s, empty_group: skip", verify: false,
	})
	s.load()
	// What is served under this name ends in a moment.
	now := time.Now()
	ending := s.bringsWith(s.ca, short, testenv.LeafOptions{DNSNames: []string{short}, NotBefore: now.Add(-3 * time.Minute), NotAfter: now.Add(25 * time.Second)})
	s.allServe(short, ending.Serial)

	paused := s.brings(s.ca, site)
	s.reaches(paused, rollout.Watching)
	s.run("rollout", "pause", idText(paused), "-c", s.config)
	s.reaches(paused, rollout.Paused)
	s.serves("canary-1", site, paused.Serial)

	renewed := s.bringsAll(ten...)
	addition := s.brings(s.ca, added)
	for _, name := range ten {
		s.reaches(renewed[name], rollout.Done)
		s.allServe(name, renewed[name].Serial)
	}
	s.allServe(added, addition.Serial)
	must(t, testenv.Eventually(t.Context(), func(context.Context) error { // a twentieth of its life is left
		if left := time.Until(now.Add(25 * time.Second)); left > 10*time.Second {
			return fmt.Errorf("%s ends in %s", short, left)
		}
		return nil
	}))
	emergency := s.brings(s.ca, short)
	r := s.reaches(emergency, rollout.Done)
	s.allServe(short, emergency.Serial)
	if r.Change[0].Kind != rollout.Emergency || len(r.Waves) != 1 {
		t.Errorf("got %+v in %d waves, want an emergency that goes to all groups at once", r.Change, len(r.Waves))
	}

	s.reaches(paused, rollout.Paused)
	s.run("rollout", "abort", idText(paused), "-c", s.config)
	s.reaches(paused, rollout.Aborted)
	s.allServe(site, s.serials[site])
	s.unseen("production", paused)
	s.allServe(added, addition.Serial)
	s.allServe(short, emergency.Serial)
	for _, name := range ten {
		s.allServe(name, renewed[name].Serial)
	}
	s.good(s.nodes()...)
}
