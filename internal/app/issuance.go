package app

import (
	"context"
	"fmt"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/acme"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
	"github.com/sds-server/sds-server/pkg/issuer/maintenance"
	"github.com/sds-server/sds-server/pkg/rollout"
)

func (s *server) buildIssuance(ctx context.Context, cfg *config.Config) (err error) {
	if err := s.openBudget(ctx); err != nil {
		return err
	}
	s.responder = &acme.Responder{}
	if s.acme, err = acme.NewMetrics(s.registry); err != nil {
		return err
	}
	s.quiet = maintenance.New(maintenance.Options{Logger: s.log.With("part", "maintenance"), UserAgent: "sds-server/" + s.opts.Version})
	s.quiet.Set(maintenances(cfg))
	s.issuance, err = issuer.New(issuer.Options{
		Store: s.store, Sink: sink{s}, Logger: s.log.With("part", "issuer"), Registerer: s.registry,
		Observer: s.auditIssuance, Hold: s.quiet.Hold,
	})
	if err != nil {
		return err
	}
	cas, ledgers, err := s.issuers(cfg)
	if err != nil {
		return err
	}
	s.setIssuers(cas, ledgers)
	if err := s.recallIssued(ctx, cfg); err != nil {
		return err
	}
	s.issuance.SetCertificates(certificates(cfg))
	return nil
}

// setIssuers puts issuers in force, and their ledgers. Those that were so before and are not among them go.
func (s *server) setIssuers(cas map[string]*acme.Issuer, ledgers []*budget.Ledger) {
	s.budget.Set(ledgers)
	issuers := make(map[string]issuer.Issuer, len(cas))
	for name, ca := range cas {
		issuers[name] = ca
	}
	s.issuance.SetIssuers(issuers)
	for name, ca := range s.cas {
		if cas[name] == nil {
			s.acme.Forget(name)
		}
		if cas[name] != ca {
			ca.Close()
		}
	}
	s.cas = cas
}

// issuers makes the configured issuers, and keeps those in force that would be made anew as they are: their connections, and the
// back-offs of what fails there. One whose limits are other ones is made anew, so that what waited for the old ones tries again. None of them
// asks its CA for anything yet.
func (s *server) issuers(cfg *config.Config) (map[string]*acme.Issuer, []*budget.Ledger, error) {
	out := make(map[string]*acme.Issuer, len(cfg.Issuers))
	var ledgers []*budget.Ledger
	for _, i := range cfg.Issuers {
		ledger, err := s.ledger(i)
		if err != nil {
			return nil, nil, err
		}
		ledgers = append(ledgers, ledger)
		o := acme.Options{
			Name: i.Name, Directory: i.Directory, CAFile: i.CAFile, RootsFile: i.RootsFile, RootsUnchecked: i.Roots == "unchecked",
			Email: i.Email, AcceptTOS: i.AcceptTOS, Profile: i.Profile, Store: s.store, Responder: s.responder, Metrics: s.acme,
			Budget: ledger, Logger: s.log.With("part", "acme"), UserAgent: "sds-server/" + s.opts.Version,
		}
		if i.EAB != nil {
			o.EAB = &acme.EAB{KID: i.EAB.KID, HMACKeyFile: i.EAB.HMACKeyFile}
		}
		if ca := s.cas[i.Name]; ca.Same(o) {
			out[i.Name] = ca
			continue
		}
		made, err := acme.New(o)
		if err != nil {
			return nil, nil, err
		}
		out[i.Name] = made
	}
	return out, ledgers, nil
}

// sink hands what was issued to the rollout controller, and tells the ledger of its CA.
type sink struct{ *server }

var _ issuer.Sink = sink{}

// Accept implements issuer.Sink.
func (s sink) Accept(ctx context.Context, issued issuer.Issued) (issuer.Accepted, error) {
	a, err := s.rollout.Accept(ctx, rollout.Proposal{
		Secret: issued.Secret, Source: cache.SourceACME, Issuer: issued.Issuer, Profile: issued.Profile, Reason: "issued by " + issued.Issuer,
		Conditions: issued.Conditions, Operations: issued.Operations,
	})
	if err != nil {
		return issuer.Accepted{}, fmt.Errorf("store: %w", err)
	}
	err = s.budget.Of(issued.Issuer).Issued(ctx, issued.Secret.DNSNames(), issued.Secret.IPAddresses())
	if err != nil { // the certificate is there; the next one is counted as a new one at the worst
		s.log.WarnContext(ctx, "the ledger of the CA does not know of a certificate", "secret", issued.Secret.Name(), "issuer", issued.Issuer, "err", err)
	}
	return issuer.Accepted{Version: a.Meta.Version, Snapshot: a.Snapshot, Rollout: a.Rollout}, nil
}
