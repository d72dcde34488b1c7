package app

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
)

// apply takes over a new configuration: groups, rollout, issuers and certificates are live, the rest waits for a restart.
// It runs one at a time. What can fail comes first, so that a failure leaves the old configuration in force as a whole.
func (s *server) apply(ctx context.Context, loaded *config.Config) error {
	running := s.config.Load()
	if keys := config.RestartKeys(running, loaded); len(keys) > 0 {
		s.log.WarnContext(ctx, "these keys need a restart; their old values stay", "keys", strings.Join(keys, ", "))
	}
	cfg := config.KeepRestartKeys(running, loaded)
	issuersChanged := !reflect.DeepEqual(cfg.Issuers, running.Issuers)
	issuers, err := s.issuers(cfg)
	if err != nil {
		return err
	}
	if err := s.rollout.Reconfigure(ctx, rolloutPolicy(cfg)); err != nil {
		return fmt.Errorf("rollout: %w", err)
	}
	s.edge.SetPolicy(edgePolicy(cfg))
	if issuersChanged { // else their connections and nonces stay
		s.issuance.SetIssuers(issuers)
	}
	s.issuance.SetCertificates(certificates(cfg))
	s.config.Store(cfg)
	return nil
}

// live is what the operator API shows of the configuration in force.
func (s *server) live() admin.Live {
	cfg := s.config.Load()
	out := admin.Live{Ready: s.ready.Load(), Groups: liveGroups(cfg), Config: admin.ConfigStatus{OK: true}}
	if s.watcher != nil {
		st := s.watcher.Status()
		out.Config = admin.ConfigStatus{OK: st.OK, LoadedAt: st.LoadedAt.UTC()}
		if st.Err != nil {
			out.Config.Error = new(st.Err.Error())
		}
	}
	for _, i := range cfg.Issuers {
		out.Issuers = append(out.Issuers, i.Name)
	}
	for _, c := range cfg.Certificates {
		out.Certificates = append(out.Certificates, c.Name)
	}
	if c := cfg.Challenges.HTTP01; c != nil {
		out.Challenge = c.Address
	}
	for _, l := range cfg.XDS.Listeners {
		one := admin.SDSListener{Address: l.Address, Groups: l.Groups, Plain: l.Insecure}
		if path, ok := socketPath(l.Address); ok {
			one.Address, one.Unix, one.Plain = path, true, false
		}
		if l.TLS != nil {
			one.Names = certificateNames(l.TLS.CertFile, l.TLS.KeyFile)
		}
		out.SDS = append(out.SDS, one)
	}
	return out
}

func liveGroups(cfg *config.Config) []admin.Group {
	policy := edgePolicy(cfg)
	out := make([]admin.Group, 0, len(cfg.Groups))
	for _, g := range cfg.Groups {
		out = append(out, admin.Group{
			Name: g.Name, Identities: g.Identities, Allows: func(name string) bool { return policy.Allowed(g.Name, name) },
		})
	}
	return out
}
