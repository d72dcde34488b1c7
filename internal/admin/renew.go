package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
)

const (
	// pollInterval is how often a renewal that waits for its rollout looks.
	pollInterval = 10 * time.Millisecond
	// queueWait is how long a renewal without a wait looks whether the order is refused: one that only queues has begun.
	queueWait = time.Second
	// progressInterval is how often a renewal that waits for its rollout says how far that is.
	progressInterval = time.Second
)

// errStopping ends what only waits when the server shuts down.
var errStopping = errors.New("the server is stopping")

// renew answers with a line for each step, and one for the result. The order goes on when the peer goes away.
func (s *Server) renew(w http.ResponseWriter, r *http.Request) {
	var req RenewRequest
	if err := body(r, &req); err != nil {
		answerError(w, err)
		return
	}
	if req.many() {
		s.renewMany(w, r, req)
		return
	}
	log := s.Log.With("operation", "renew", "by", peerOf(r.Context()).String(), "secret", req.Name)
	log.InfoContext(r.Context(), "operator command", "issuer", req.Issuer, "force", req.Force, "wait", req.Wait, "reason", req.Reason)
	s.record(r, nil, "")
	w.Header().Set("Content-Type", "application/x-ndjson")
	flow := renewal{server: s, request: req, out: json.NewEncoder(w), flush: http.NewResponseController(w).Flush, begin: time.Now()}
	result, err := flow.run(r.Context())
	switch {
	case err == nil:
		flow.say(Renewal{Result: result})
	case r.Context().Err() != nil:
		log.InfoContext(r.Context(), "operator went away; what was begun goes on")
	default:
		_, e := describe(err)
		if _, logged := errors.AsType[*issuer.Error](err); !logged { // a failed order is logged once, by the loop
			log.WarnContext(r.Context(), "operator command refused or failed", "err", e.Message)
			s.record(r, nil, e.Message)
		}
		flow.say(Renewal{Error: e})
	}
}

// renewal is one request under way.
type renewal struct {
	server  *Server
	request RenewRequest
	out     *json.Encoder
	flush   func() error
	begin   time.Time
}

// say sends a line. A peer that went away has no use for an error: its context ends the request.
func (f *renewal) say(line Renewal) {
	_ = f.out.Encode(line)
	_ = f.flush()
}

func (f *renewal) run(ctx context.Context) (*Renewed, error) {
	accepted, err := f.issue(ctx)
	if err != nil {
		return nil, err
	}
	result := &Renewed{Name: f.request.Name}
	if f.request.Wait == "" {
		return result, nil
	}
	if err := f.describe(ctx, accepted, result); err != nil {
		return nil, err
	}
	result.IssuedSeconds = new(time.Since(f.begin).Seconds())
	if f.request.Wait == "issued" {
		return result, nil
	}
	if err := f.await(ctx, accepted.Rollout); err != nil {
		return nil, err
	}
	result.DoneSeconds = new(time.Since(f.begin).Seconds())
	return result, nil
}

// issue orders the certificate and passes its steps on. Without a wait it returns as soon as the order has begun. The end of ctx ends
// the wait alone: the order is the loop's.
func (f *renewal) issue(ctx context.Context) (issuer.Accepted, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var begun <-chan time.Time
	if f.request.Wait == "" {
		timer := time.NewTimer(queueWait)
		defer timer.Stop()
		begun = timer.C
	}
	type outcome struct {
		accepted issuer.Accepted
		err      error
	}
	steps, done := make(chan issuer.Step, 1), make(chan outcome, 1)
	go func() {
		a, err := f.server.Issuer.Renew(ctx, f.request.Name, issuer.Renewal{
			Force: f.request.Force, Issuer: f.request.Issuer, Reason: f.request.Reason, Progress: func(step issuer.Step) {
				select {
				case steps <- step:
				case <-ctx.Done():
				}
			},
		})
		done <- outcome{a, err}
	}()
	tick := time.NewTicker(progressInterval)
	defer tick.Stop()
	var waits error
	for {
		select {
		case step := <-steps:
			if f.request.Wait != "" || step == issuer.StepQueued {
				f.say(Renewal{Step: string(step)})
				continue
			}
		case <-tick.C:
			if w := f.waiting(); w != nil {
				f.say(Renewal{Step: "waits: " + oneLine(w.Message) + ", until " + w.Until.UTC().Format(time.RFC3339), Again: true})
			}
			continue
		case <-begun:
			if w := f.waiting(); w != nil {
				waits = f.notYet(w)
			}
		case o := <-done:
			return o.accepted, explain(f.request.Name, o.err)
		}
		cancel() // only the wait ends
		<-done
		return issuer.Accepted{}, waits
	}
}

// waiting is what keeps the certificate from being ordered, or nil.
func (f *renewal) waiting() *issuer.Waiting {
	for _, st := range f.server.Issuer.Status() {
		if st.Name == f.request.Name {
			return st.Waiting
		}
	}
	return nil
}

// notYet is the answer of a renewal that has not begun, as something keeps it back.
func (f *renewal) notYet(w *issuer.Waiting) error {
	hint := "it is ordered by itself then"
	if !f.request.Force {
		hint += "; --force orders it now"
	}
	return fail(http.StatusConflict, fmt.Sprintf("certificate %q waits until %s: %s", f.request.Name, w.Until.UTC().Format(time.RFC3339), oneLine(w.Message)), hint)
}

// explain gives the loop's own errors a hint.
func explain(name string, err error) error {
	if errors.Is(err, issuer.ErrUnknown) {
		return fail(http.StatusNotFound, "no certificate named "+strconv.Quote(name)+" is configured", "see `status` for those that are; imported secrets are replaced by `secrets import`")
	}
	if errors.Is(err, issuer.ErrUnknownIssuer) {
		return fail(http.StatusNotFound, err.Error(), "see `issuers list`")
	}
	if _, ok := errors.AsType[*issuer.NotDueError](err); ok {
		return fail(http.StatusConflict, err.Error(), "--force orders it now")
	}
	return err
}

func (f *renewal) describe(ctx context.Context, accepted issuer.Accepted, result *Renewed) error {
	metas, err := f.server.Cache.Versions(ctx, f.request.Name)
	if err != nil {
		return err
	}
	for _, m := range metas {
		if m.Version == accepted.Version {
			result.Serial = &m.Serial
		}
	}
	result.Version = optionalVersion(accepted.Version)
	result.Snapshot, result.Rollout = optional(accepted.Snapshot), optional(accepted.Rollout)
	return nil
}

// endedBadly is the answer of a renewal whose rollout did not go through.
func endedBadly(id uint64, r *rollout.Rollout) error {
	return fail(http.StatusConflict, fmt.Sprintf("rollout %d: %s: %s", id, r.State, r.Reason), "see `rollout history`")
}

// await returns when a rollout has ended well.
func (f *renewal) await(ctx context.Context, id uint64) error {
	if id == 0 {
		return nil
	}
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	said, asked := "", time.Time{}
	for {
		r, err := f.server.Rollout.Rollout(ctx, id)
		if err != nil {
			return err
		}
		if text := fmt.Sprintf("rollout %d: %s: %s", id, r.State, r.Reason); text != said {
			said, asked = text, time.Now()
			f.say(Renewal{Step: text})
		}
		if now := time.Now(); now.Sub(asked) >= progressInterval { // no more often: it looks at every rollout
			asked = now
			if left := f.server.left(id); left != "" {
				f.say(Renewal{Step: said + " (" + left + ")", Again: true})
			}
		}
		switch {
		case r.State == rollout.Done:
			return nil
		case r.Joined != 0: // it travels with another one
			id = r.Joined
			continue
		case r.State.Ended():
			return endedBadly(id, r)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-f.server.stopping:
			return fmt.Errorf("rollout %d is %s: %w", id, r.State, errStopping)
		case <-tick.C:
		}
	}
}
