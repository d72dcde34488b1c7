package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// The states of a certificate of a batch.
const (
	batchDone     = "done"
	batchIssued   = "issued"
	batchOrdering = "ordering"
	batchWaiting  = "waiting"
	batchFailed   = "failed"
	batchNotDue   = "not_due"
)

const (
	// lookInterval is how often a batch looks at its rollouts while they are few; more of them every progressInterval.
	lookInterval = 100 * time.Millisecond
	fewRollouts  = 100
)

// maxNoted is how many names of a request are written into the audit trail.
const maxNoted = 20

// renewMany answers with lines of progress and a last one that tells of each certificate. What was asked for is the loop's: it goes on when
// the peer goes away.
func (s *Server) renewMany(w http.ResponseWriter, r *http.Request, req RenewRequest) {
	noteNames(r, req)
	of, err := s.selectMany(r.Context(), req)
	if err == nil {
		of.later = s.later(of)
		err = s.beginRun(r.Context(), of)
	}
	if err != nil {
		_, e := describe(err)
		s.record(r, nil, e.Message)
		answerError(w, err)
		return
	}
	log := s.Log.With("operation", "renew", "by", peerOf(r.Context()).String())
	log.InfoContext(r.Context(), "operator command", "certificates", len(of.plan), "already", of.already, "all", req.All, "issued_by", req.IssuedBy,
		"issuer", req.Issuer, "force", req.Force, "wait", req.Wait, "reason", req.Reason)
	s.record(r, []slog.Attr{slog.Int("certificates", len(of.plan)), slog.Int("already", of.already)}, "")
	w.Header().Set("Content-Type", "application/x-ndjson")
	b := &batch{
		renewal:  renewal{server: s, request: req, out: json.NewEncoder(w), flush: http.NewResponseController(w).Flush, begin: time.Now()},
		selected: of, results: make(map[string]batchResult, len(of.plan)), moving: map[uint64][]string{},
	}
	switch err := b.run(r.Context()); {
	case err == nil:
	case r.Context().Err() != nil:
		log.InfoContext(r.Context(), "operator went away; what was begun goes on")
	default:
		_, e := describe(err)
		log.WarnContext(r.Context(), "operator command refused or failed", "err", e.Message)
		b.say(Renewal{Error: e})
	}
}

// noteNames writes what is asked for into the audit trail.
func noteNames(r *http.Request, req RenewRequest) {
	if len(req.Names) == 0 {
		return
	}
	names := slices.Sorted(slices.Values(req.Names))
	text := strings.Join(names[:min(len(names), maxNoted)], ",")
	if more := len(names) - maxNoted; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	commandOf(r).take("names", text)
}

// batch is the renewal of several certificates under way.
type batch struct {
	renewal
	*selected

	results map[string]batchResult // of orders that have ended
	moving  map[uint64][]string    // certificates by the rollout that is waited for
	rollout string                 // what one of these does
}

// batchResult is how one order ended.
type batchResult struct {
	name     string
	accepted issuer.Accepted
	err      error
	everyone bool // every wave has it
}

// run asks the loop for everything at once, which orders the most urgent first, and tells how it goes.
func (b *batch) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var asked sync.WaitGroup
	defer asked.Wait()
	defer cancel() // the waits alone end
	ended := make(chan batchResult, len(b.plan))
	for _, p := range b.plan {
		asked.Go(func() {
			accepted, err := b.server.Issuer.Renew(ctx, p.Name, issuer.Renewal{
				Force: b.asked.forced(), Urgent: b.asked.IssuedBy != "", Wait: true, Issuer: b.asked.Issuer, Reason: b.asked.Reason,
			})
			ended <- batchResult{name: p.Name, accepted: accepted, err: err}
		})
	}
	if err := b.collect(ctx, ended); err != nil {
		return err
	}
	out := b.status(true)
	if out.Done == out.Total {
		if err := b.server.endRun(ctx, b.selected); err != nil {
			return err
		}
	}
	b.say(Renewal{Batch: &out})
	return nil
}

// collect takes over how the orders end and, where that is waited for, their rollouts. Without a wait it returns after a moment: by then it is
// known what the budget does not let through.
func (b *batch) collect(ctx context.Context, ended <-chan batchResult) error {
	var begun <-chan time.Time
	if b.asked.Wait == "" {
		timer := time.NewTimer(queueWait)
		defer timer.Stop()
		begun = timer.C
	}
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	said := time.Now()
	b.progress()
	for len(b.results) < len(b.plan) || len(b.moving) > 0 {
		select {
		case r := <-ended:
			b.results[r.name] = r
			if id := r.accepted.Rollout; r.err == nil && b.asked.Wait == "done" && id != 0 {
				b.moving[id] = append(b.moving[id], r.name)
			}
		case <-begun:
			return nil
		case now := <-tick.C:
			told := now.Sub(said) >= progressInterval
			if told || len(b.moving) <= fewRollouts {
				if err := b.look(ctx); err != nil {
					return err
				}
			}
			if told {
				said = now
				b.progress()
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-b.server.stopping:
			return errStopping
		}
	}
	return nil
}

func (b *batch) progress() { b.say(Renewal{Batch: new(b.status(false)), Again: true}) }

// look takes over which rollouts have ended. One that ends otherwise than well fails its certificates, and no other ones.
func (b *batch) look(ctx context.Context) error {
	b.rollout = ""
	for id, names := range b.moving {
		r, err := b.server.Rollout.Rollout(ctx, id)
		switch {
		case err != nil:
			return err
		case r.State == rollout.Done:
		case r.Joined != 0: // it travels with another one
			delete(b.moving, id)
			b.moving[r.Joined] = append(b.moving[r.Joined], names...)
			continue
		case r.State.Ended():
			err = endedBadly(id, r)
		default:
			b.rollout = fmt.Sprintf("rollout %d: %s: %s", id, r.State, r.Reason)
			continue
		}
		delete(b.moving, id)
		for _, name := range names {
			one := b.results[name]
			one.err, one.everyone = err, err == nil
			b.results[name] = one
		}
	}
	return nil
}

// names are those that are ordered.
func (b *batch) names() []string {
	out := make([]string, 0, len(b.plan))
	for _, p := range b.plan {
		out = append(out, p.Name)
	}
	slices.Sort(out)
	return out
}

// status counts how it stands; whole tells of each certificate as well.
func (b *batch) status(whole bool) RenewBatch {
	out := RenewBatch{
		Over: whole, Total: len(b.plan) + len(b.notDue), Since: optionalTime(b.since), Already: b.already, Step: optional(b.rollout), Later: []RenewLater{},
		Certificates: []RenewedCertificate{}, Seconds: time.Since(b.begin).Seconds(),
	}
	status := make(map[string]issuer.Status, len(b.plan))
	for _, st := range b.server.Issuer.Status() {
		status[st.Name] = st
	}
	add := func(c RenewedCertificate, count *int) {
		*count++
		if c.State == batchWaiting && c.Until != nil && (out.Until == nil || c.Until.Before(*out.Until)) {
			out.Until = c.Until
		}
		if whole {
			out.Certificates = append(out.Certificates, c)
		}
	}
	for _, name := range b.names() {
		c := b.certificate(name, status[name])
		add(c, map[string]*int{batchDone: &out.Done, batchIssued: &out.Issued, batchOrdering: &out.Ordering, batchWaiting: &out.Waiting, batchFailed: &out.Failed, batchNotDue: &out.NotDue}[c.State])
	}
	for _, p := range b.notDue {
		add(RenewedCertificate{Name: p.Name, State: batchNotDue, Until: optionalTime(p.Due)}, &out.NotDue)
	}
	if whole {
		out.Later = b.later
	}
	slices.SortFunc(out.Certificates, func(x, y RenewedCertificate) int { return strings.Compare(x.Name, y.Name) })
	return out
}

// certificate tells how one stands: as its order ended, or as the loop has it.
func (b *batch) certificate(name string, st issuer.Status) RenewedCertificate {
	c := RenewedCertificate{Name: name, State: batchOrdering}
	r, ended := b.results[name]
	notDue, isNotDue := errors.AsType[*issuer.NotDueError](r.err)
	switch {
	case ended && r.accepted.Version != "":
		c.State, c.Version, c.Rollout = batchDone, optionalVersion(r.accepted.Version), optional(r.accepted.Rollout)
		switch {
		case r.err != nil:
			c.State, c.Message = batchFailed, new(oneLine(r.err.Error()))
		case b.asked.Wait == "done" && !r.everyone && r.accepted.Rollout != 0:
			c.State = batchIssued
		}
	case ended && isNotDue:
		c.State, c.Until = batchNotDue, optionalTime(notDue.Until)
	case ended && r.err != nil:
		c.State, c.Message = batchFailed, new(oneLine(r.err.Error()))
		if st.Failure != nil {
			c.Until = optionalTime(st.Failure.NotBeforeTry)
		}
	case ended:
		c.State = batchDone
	case st.Waiting != nil:
		c.State, c.Message, c.Until = batchWaiting, new(oneLine(st.Waiting.Message)), optionalTime(st.Waiting.Until)
	}
	return c
}
