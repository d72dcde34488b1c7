package app

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
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
	maxNodesOfPush = 1000 // in one entry: a line has its bounds
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
	for _, r := range records {
		if r.Rollout != nil && r.Event.State == rollout.Moving {
			s.announce(r.Rollout)
		}
	}
	s.pushes.moved(entries)
}

// announce begins the records of what the groups of a wave are going to be sent.
func (s *server) announce(r *rollout.Rollout) {
	if r.Wave >= len(r.Waves) {
		return
	}
	for _, g := range r.Waves[r.Wave].Moved {
		for _, c := range r.Change {
			s.edge.Announce(g, c.Secret, c.To)
		}
	}
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

// moveTime is how long a push waits for the record of the move that it follows, at most.
const moveTime = 100 * time.Millisecond

// pushes records pushes in the audit trail. A move wakes the streams a moment before the controller tells what it was: so that both stand in their order, and
// become durable together, a push that comes in between waits for that.
type pushes struct {
	log *audit.Log

	mu      sync.Mutex
	moving  bool         // guarded by mu; a move is stored, and not told yet
	late    *time.Timer  // guarded by mu; ends moving all the same
	waiting []audit.Item // guarded by mu
}

var _ sds.Pushes = (*pushes)(nil)

// Record implements sds.Pushes.
func (p *pushes) Record(pushed func() sds.Push, done func()) {
	item := audit.Item{Entries: func() []audit.Entry { return pushEntries(pushed()) }, Done: func(error) { done() }}
	p.mu.Lock()
	wait := p.moving
	if wait {
		p.waiting = append(p.waiting, item)
	}
	p.mu.Unlock()
	if !wait {
		p.log.Queue(item)
	}
}

// stored is called when a move of a group is durable, before a stream knows of it.
func (p *pushes) stored() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.moving = true
	if p.late != nil {
		p.late.Stop()
	}
	p.late = time.AfterFunc(moveTime, func() { p.moved(nil) })
}

// moved is called with the entries about a move, which stand before those that wait.
func (p *pushes) moved(entries []audit.Entry) {
	p.mu.Lock()
	waiting := p.waiting
	p.moving, p.waiting = false, nil
	if p.late != nil {
		p.late.Stop()
	}
	p.mu.Unlock()
	if len(entries) > 0 {
		waiting = append([]audit.Item{{Entries: func() []audit.Entry { return entries }}}, waiting...)
	}
	if len(waiting) > 0 {
		p.log.Queue(waiting...)
	}
}

// pushEntries are one entry, or several where there are many nodes.
func pushEntries(p sds.Push) []audit.Entry {
	var out []audit.Entry
	for begin := 0; begin < len(p.Nodes); begin += maxNodesOfPush {
		out = append(out, audit.Entry{
			Event: eventPush, Secret: p.Secret, Version: string(p.Version), Group: p.Group, Nodes: p.Nodes[begin:min(begin+maxNodesOfPush, len(p.Nodes))],
			Detail: "to " + strings.Join(p.Identities, ", "),
		})
	}
	return out
}
