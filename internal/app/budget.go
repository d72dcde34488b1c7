package app

import (
	"context"
	"net/netip"

	"golang.org/x/sync/errgroup"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
)

// ledger is that of the CA of an issuer.
func (s *server) ledger(i config.Issuer) (*budget.Ledger, error) {
	o := budget.Options{Issuer: i.Name, Directory: i.Directory, Share: i.Budget.Share}
	for _, l := range i.Budget.Limits {
		o.Limits = append(o.Limits, budget.Limit{Name: l.Name, Burst: l.Burst, Refill: l.Refill})
	}
	return s.budget.Ledger(o)
}

// openBudget reads what has been used up of the limits of the CAs.
func (s *server) openBudget(ctx context.Context) (err error) {
	if s.budget, err = budget.Open(ctx, s.store, s.log.With("part", "budget")); err != nil {
		return err
	}
	return s.registry.Register(s.budget.Collector())
}

// recallIssued tells the ledgers of the certificates that are served: the next one for the same names is a renewal. It matters once, for a
// store that is older than its ledger.
func (s *server) recallIssued(ctx context.Context, cfg *config.Config) error {
	all, ctx := errgroup.WithContext(ctx)
	all.SetLimit(64) // what waits is stored together
	for _, g := range cfg.Groups {
		at, ok := s.cache.At(g.Name)
		if !ok {
			continue
		}
		for name, version := range at.Secrets.All() {
			if m, ok := s.cache.Meta(name, version); ok && m.Source == cache.SourceACME {
				ledger := s.budget.Of(m.Issuer)
				all.Go(func() error { return ledger.Recall(ctx, m.DNSNames, addresses(m.IPAddresses), m.NotBefore) })
			}
		}
	}
	return all.Wait()
}

func addresses(texts []string) []netip.Addr {
	out := make([]netip.Addr, 0, len(texts))
	for _, text := range texts {
		if a, err := netip.ParseAddr(text); err == nil { // they were validated
			out = append(out, a)
		}
	}
	return out
}
