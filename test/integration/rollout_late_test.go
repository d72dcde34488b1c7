package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// An Envoy that starts after the end of a rollout and refuses the version takes it back.
func TestLateNACKTakesBack(t *testing.T) {
	t.Parallel()
	const bad, good = "bad.example", "good.example"
	e := newEdge(t)
	e.policy.UndoWindow = time.Hour
	must(t, e.rollout.Reconfigure(t.Context(), e.policy))
	ca, err := testenv.NewAuthority(e.Dir, "ca")
	must(t, err)
	old, other := e.accept(ca, bad), e.accept(ca, good)
	version := e.sneak(ca, bad) // nobody is there who could refuse it
	must(t, testenv.Eventually(e.Ready(), func(context.Context) error {
		for _, g := range edgeGroups {
			at, _ := e.cache.At(g)
			if v, _ := at.Secrets.Version(bad); v != version || len(e.rollout.Active()) > 0 {
				return fmt.Errorf("%s is at %s; under way: %+v", g, v.Short(), e.rollout.Active())
			}
		}
		return nil
	}))

	e.startNode("canary", bootstrap.Delta, []string{bad, good})
	e.expectHold(version)
	e.serves("canary", bad, old)
	e.startNode("production", bootstrap.Delta, []string{bad, good})
	e.serves("production", bad, old)
	e.expectNodes(bad, version)
	for _, g := range edgeGroups {
		e.serves(g, good, other)
	}
	history, err := e.rollout.History(t.Context())
	must(t, err)
	if r := history[len(history)-1]; r.State != rollout.RolledBack || !strings.HasPrefix(r.Reason, "after its end: ") {
		t.Errorf("got %s: %s", r.State, r.Reason)
	}
}

// A handshake that fails after the end takes a version back from every group.
func TestLateHandshakeTakesBack(t *testing.T) {
	t.Parallel()
	s := startStage(testenv.NewT(t), stageOptions{
		groups: canaryAndProduction(), secrets: []string{site}, policy: "watch: 0s, undo_window: 1h, empty_group: skip", verify: true,
	})
	stranger, err := testenv.NewAuthority(s.Dir, "stranger")
	must(t, err)
	a := s.brings(s.ca, site)
	s.reaches(a, rollout.Done)

	// The port of an Envoy gets another owner, with a chain that clients do not accept.
	leaf, err := stranger.Issue(testenv.LeafOptions{DNSNames: []string{site}})
	must(t, err)
	other := s.https["production-2"]
	s.https["production-2"] = s.Address()
	s.startPinned("production", 2, other, sample{Name: site, Chain: string(leaf.CertPEM), Key: string(leaf.KeyPEM)})
	p := s.Process(testenv.ProcessOptions{Name: "verify", Path: binary(t), Args: []string{"verify", "--group", "production", "-c", s.config}})
	if code, err := p.Wait(s.Ready()); err != nil || code != 1 {
		t.Errorf("verify: exit code %d, %v; want 1: the chain is bad", code, err)
	}
	must(t, testenv.Eventually(s.Ready(), func(context.Context) error {
		if r := s.seen(*a.Rollout); r.State != rollout.RolledBack || !strings.HasPrefix(r.Reason, "after its end: handshake: ") {
			return fmt.Errorf("rollout %d is %s (%s)", r.ID, r.State, r.Reason)
		}
		return nil
	}))
	s.allServe(site, s.serials[site])
	s.held(a, rollout.Hard, "handshake: ")
}
