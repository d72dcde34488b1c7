package app

import (
	"time"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/verify"
)

// prober lets the rollout controller ask for handshakes.
type prober struct{ server *server }

var _ rollout.Prober = prober{}

// Look implements rollout.Prober. For a group without verify the answer is there at once: there is nothing to be looked at.
func (p prober) Look(group string, want map[string]secret.Version, since time.Time) rollout.Round {
	cfg := p.server.config.Load()
	if cfg == nil { // nothing is known before the start
		return rollout.Round{}
	}
	if !proves(cfg, group) {
		return rollout.Round{Began: since, Ended: since}
	}
	r := p.server.verify.Look(group, want, since)
	out := rollout.Round{Began: r.Began, Ended: r.Ended, Targets: r.Targets, OK: r.OK, Failed: r.Failed, Served: r.Served}
	for _, f := range r.Findings {
		out.Findings = append(out.Findings, finding(f))
	}
	return out
}

// Mismatch implements rollout.Prober.
func (p prober) Mismatch(group, name string, version secret.Version) (rollout.Finding, bool) {
	f, ok := p.server.verify.Mismatch(group, name, version)
	return finding(f), ok
}

func finding(f verify.Finding) rollout.Finding {
	return rollout.Finding{Secret: f.Secret, Version: f.Version, Node: f.Node, Kind: f.Kind, Unseen: f.Unseen, Message: f.Message}
}

// proves reports whether what a group serves is looked at by handshakes.
func proves(cfg *config.Config, group string) bool {
	for _, g := range cfg.Groups {
		if g.Name == group {
			return g.Verify != nil
		}
	}
	return false
}
