package app

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/sds"
)

// apply takes over a new configuration: groups, rollout, issuers and secrets are live, the rest waits for a restart.
// It runs one at a time. What can fail comes first, so that a failure leaves the old configuration in force as a whole.
func (s *server) apply(ctx context.Context, loaded *config.Config) error {
	running := s.config.Load()
	cfg, waiting := keepRestart(running, loaded)
	if len(waiting) > 0 {
		s.log.WarnContext(ctx, "these keys need a restart; their old values stay", "keys", strings.Join(waiting, ", "))
	}
	cas, ledgers, err := s.issuers(cfg)
	if err != nil {
		return err
	}
	policy, err := rolloutPolicy(cfg)
	if err != nil {
		return err
	}
	s.edge.SetPolicy(edgePolicy(cfg)) // before a group moves: nothing is sent under rights that have ended
	s.outside.set(cfg, s.command(cfg))
	s.config.Store(cfg) // what a rollout that begins here has to prove is in it
	if err := s.rollout.Reconfigure(ctx, policy); err != nil {
		s.config.Store(running)
		s.edge.SetPolicy(edgePolicy(running))
		s.outside.set(running, s.command(running))
		return fmt.Errorf("rollout: %w", err)
	}
	s.setIssuers(cas, ledgers)
	s.quiet.Set(maintenances(cfg))
	s.issuance.SetCertificates(certificates(cfg))
	s.sources.Set(sources(cfg))
	s.enforce(cfg)
	return nil
}

// keepRestart returns loaded with the running values of what cannot change, and the keys that would.
func keepRestart(running, loaded *config.Config) (*config.Config, []string) {
	waiting := config.RestartKeys(running, loaded)
	cfg := config.KeepRestartKeys(running, loaded)
	if cfg.XDS.Limits != running.XDS.Limits { // streams that are open were admitted by them
		cfg.XDS.Limits = running.XDS.Limits
		waiting = append(waiting, "xds.limits")
	}
	return cfg, waiting
}

// enforce makes a configuration the one in force. Its parts have taken it over already.
func (s *server) enforce(cfg *config.Config) {
	live := &admin.Live{Groups: liveGroups(cfg, edgePolicy(cfg))}
	for _, c := range cfg.Certificates {
		live.Certificates = append(live.Certificates, admin.Certificate{
			Name: c.Name, DNSNames: slices.Clone(c.DNSNames), IPAddresses: addresses(c.IPAddresses), Issuers: slices.Clone(c.Issuers), Profile: c.Profile,
		})
	}
	live.Issuers = s.liveIssuers(cfg)
	live.Managed = secretNames(cfg)
	if c := cfg.Challenges.HTTP01; c != nil {
		live.Challenge = c.Address
	}
	for _, l := range cfg.XDS.Listeners { // they never change while we run
		one := admin.SDSListener{Address: l.Address, Groups: l.Groups, Plain: l.Insecure}
		if path, ok := socketPath(l.Address); ok {
			one.Address, one.Unix, one.Plain = path, true, false
		}
		live.SDS = append(live.SDS, one)
	}
	s.shown.Store(live)
	s.config.Store(cfg)
}

// live is what the operator API shows of the configuration in force.
func (s *server) live() admin.Live {
	out := *s.shown.Load()
	out.Ready = s.ready.Load()
	out.SDS = slices.Clone(out.SDS)
	for i, l := range out.SDS {
		out.SDS[i].Names = certificateNames(s.channels.of(l.Address))
	}
	st := s.watcher.Status()
	out.Config = admin.ConfigStatus{OK: st.OK, LoadedAt: st.LoadedAt.UTC()}
	if st.Err != nil {
		out.Config.Error = new(st.Err.Error())
	}
	return out
}

func liveGroups(cfg *config.Config, policy *sds.Policy) []admin.Group {
	out := make([]admin.Group, 0, len(cfg.Groups))
	for _, g := range cfg.Groups {
		out = append(out, admin.Group{
			Name: g.Name, Identities: g.Identities, Allows: func(name string) bool { return policy.Allowed(g.Name, name) },
		})
	}
	return out
}
