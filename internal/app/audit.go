package app

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// The events of the audit trail that the server itself records. Those of rollouts are "rollout_" and the state.
const (
	eventStarted   = "server_started"
	eventStopped   = "server_stopped"
	eventReloaded  = "config_reloaded"
	eventRefused   = "config_refused"
	eventIssued    = "certificate_issued"
	eventRenewed   = "certificate_renewed"
	eventFailed    = "certificate_failed"
	eventRollout   = "rollout"
	eventHeld      = "version_held"
	eventReleased  = "version_released"
	eventPush      = "push"
	eventRetracted = "push_retracted"
)

// openAudit opens the audit file, and returns what closes it.
func (s *server) openAudit(ctx context.Context, cfg *config.Config) (func(), error) {
	log, err := audit.Open(audit.Options{
		Path: cfg.AuditFile(), Retention: cfg.Audit.Retention, Log: s.log.With("part", "audit"), Registerer: s.registry,
	})
	if err != nil {
		return nil, err
	}
	s.audit = log
	return func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if err := log.Close(ctx); err != nil {
			s.log.ErrorContext(ctx, "close the audit file", "err", err)
		}
	}, nil
}

// auditRollouts records what a commit of the rollout controller did.
func (s *server) auditRollouts(_ context.Context, records []rollout.Record) {
	var entries []audit.Entry
	for _, r := range records {
		switch {
		case r.Rollout != nil:
			entries = append(entries, transitions(r)...)
		case r.Ended:
			entries = append(entries, audit.Entry{Event: eventReleased, Secret: r.Hold.Secret, Version: string(r.Hold.Version), Detail: string(r.Hold.Kind)})
		default:
			s.reissuer.held()
			entries = append(entries, audit.Entry{
				Event: eventHeld, Secret: r.Hold.Secret, Version: string(r.Hold.Version), Detail: fmt.Sprintf("%s: %s", r.Hold.Kind, r.Hold.Reason),
			})
		}
	}
	s.audit.Add(entries...)
}

// transitions are one for each changed secret, so that each can be found by its name.
func transitions(r rollout.Record) []audit.Entry {
	one := audit.Entry{
		At: r.Event.At, Event: eventRollout + "_" + string(r.Event.State), Who: r.Event.By,
		Detail: fmt.Sprintf("rollout %d: %s", r.Rollout.ID, r.Event.Reason),
	}
	if w := r.Rollout.Wave; w < len(r.Rollout.Waves) {
		one.Group = strings.Join(r.Rollout.Waves[w].Groups, ",")
	}
	out := make([]audit.Entry, 0, len(r.Rollout.Change))
	for _, c := range r.Rollout.Change {
		one.Secret, one.Version = c.Secret, string(c.To)
		out = append(out, one)
	}
	return out
}

// auditIssuance records how an order ended.
func (s *server) auditIssuance(_ context.Context, o issuer.Outcome) {
	e := audit.Entry{Event: eventIssued, Secret: o.Secret, Version: string(o.Version)}
	switch {
	case o.Failure != nil:
		e.Event, e.Detail = eventFailed, fmt.Sprintf("%s, attempt %d: %s", o.Failure.Kind, o.Attempts, o.Failure.Error())
	default:
		if o.Renewed {
			e.Event = eventRenewed
		}
		e.Detail = fmt.Sprintf("by %s, serial %s, until %s", o.Issuer, o.Serial, o.NotAfter.UTC().Format(time.RFC3339))
	}
	s.audit.Add(e)
}

// auditReload records a new configuration, or one that is not taken over.
func (s *server) auditReload(_ context.Context, err error) {
	e := audit.Entry{Event: eventReloaded, Detail: s.opts.ConfigFile}
	if err != nil {
		e.Event, e.Detail = eventRefused, fmt.Sprintf("%s: %s", s.opts.ConfigFile, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	s.audit.Add(e)
}
