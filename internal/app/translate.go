package app

import (
	"net/netip"
	"strings"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
)

// edgePolicy says who may be in which group, and have which secrets.
func edgePolicy(cfg *config.Config) *sds.Policy {
	groups := make([]sds.Group, 0, len(cfg.Groups))
	for _, g := range cfg.Groups {
		groups = append(groups, sds.Group{Name: g.Name, Identities: g.Identities, Deny: g.Deny, Secrets: g.Secrets})
	}
	return sds.NewPolicy(groups)
}

func edgeLimits(cfg *config.Config) sds.Limits {
	l := cfg.XDS.Limits
	return sds.Limits{
		StreamsPerPeer: l.StreamsPerPeer, NamesPerStream: l.NamesPerStream, NewStreamsPerSecond: l.NewStreamsPerSecond,
		RequestsPerStreamPerSecond: l.RequestsPerStreamPerSecond, NodesPerIdentity: l.NodesPerIdentity,
		AliasesPerNode: l.AliasesPerNode,
	}
}

func rolloutPolicy(cfg *config.Config) (rollout.Policy, error) {
	managed := map[string]bool{}
	for _, name := range secretNames(cfg) {
		managed[name] = true
	}
	calendar, err := calendarOf(cfg)
	if err != nil {
		return rollout.Policy{}, err
	}
	r := cfg.Rollout
	p := rollout.Policy{
		Waves: r.Waves, Manual: r.Promotion == "manual", AckTimeout: r.AckTimeout, MinAcked: r.MinAcked, NodeGrace: r.NodeGrace,
		EmptyWait: r.EmptyGroup == "wait", Watch: r.Watch, RetryAfter: r.RetryAfter, UndoWindow: r.UndoWindow, Hook: len(r.Hook.Command) > 0,
		Calendar: calendar, Managed: func(name string) bool { return managed[name] },
	}
	for _, g := range r.Gates {
		one := rollout.Gate{Name: g.Name, Max: g.Max, Timeout: g.Timeout}
		if g.MaxIncrease != nil {
			one.MaxIncrease, one.Percent = &g.MaxIncrease.Value, g.MaxIncrease.Percent
		}
		p.Gates = append(p.Gates, one)
	}
	return p, nil
}

// secretNames are the names of all configured secrets.
func secretNames(cfg *config.Config) []string {
	var names []string
	for _, c := range cfg.Certificates {
		names = append(names, c.Name)
	}
	for _, v := range cfg.ValidationContexts {
		names = append(names, v.Name)
	}
	for _, k := range cfg.SessionTicketKeys {
		names = append(names, k.Name)
	}
	for _, g := range cfg.GenericSecrets {
		names = append(names, g.Name)
	}
	return names
}

// certificates are the configured ones, as the issuance loop knows them.
func certificates(cfg *config.Config) []issuer.Certificate {
	out := make([]issuer.Certificate, 0, len(cfg.Certificates))
	for _, c := range cfg.Certificates {
		one := issuer.Certificate{
			Name: c.Name, DNSNames: c.DNSNames, Issuer: c.Issuers[0], KeyType: c.KeyType, Profile: c.Profile,
			RenewBefore: issuer.RenewBefore{Duration: c.RenewBefore.Duration, Fraction: c.RenewBefore.Percent / 100},
		}
		for _, ip := range c.IPAddresses {
			if a, err := netip.ParseAddr(ip); err == nil { // validated when it was loaded
				one.IPAddresses = append(one.IPAddresses, a)
			}
		}
		out = append(out, one)
	}
	return out
}

// socketPath is the path of a unix:// address; false for any other address.
func socketPath(address string) (string, bool) { return strings.CutPrefix(address, "unix://") }

// fleet lets the rollout controller ask the SDS edge.
type fleet struct{ edge *sds.Server }

// Displaces implements rollout.Fleet.
func (f fleet) Displaces(group, name string, dnsNames []string) bool {
	return f.edge.Displaces(group, name, dnsNames)
}

// Progress implements rollout.Fleet.
func (f fleet) Progress(group string, want map[string]secret.Version) []rollout.NodeProgress {
	nodes := f.edge.Progress(group, want)
	out := make([]rollout.NodeProgress, 0, len(nodes))
	for _, n := range nodes {
		p := rollout.NodeProgress{
			Identity: n.Identity, Node: n.Node, Connected: n.Connected, Acked: n.Acked, Since: n.Since, LastSeen: n.LastSeen,
			Returning: n.Returning, Unsubscribed: n.Unsubscribed,
		}
		if n.NACK != nil {
			p.Nacked = &rollout.NACK{Secret: n.NACK.Secret, Version: n.NACK.Version, Message: n.NACK.Message}
		}
		out = append(out, p)
	}
	return out
}
