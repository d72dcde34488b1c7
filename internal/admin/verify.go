package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"

	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/verify"
)

// verify answers with a line for each handshake, one for each group, and a last one. It ends when the peer goes away.
func (s *Server) verify(w http.ResponseWriter, r *http.Request) {
	var req VerifyRequest
	if err := body(r, &req); err != nil {
		answerError(w, err)
		return
	}
	live := s.Live()
	groups := live.Groups
	if req.Group != "" {
		g, ok := live.group(req.Group)
		if !ok {
			answerError(w, unknownGroup(live, req.Group))
			return
		}
		groups = []Group{g}
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-ctx.Done():
		}
	}()
	w.Header().Set("Content-Type", "application/x-ndjson")
	out, flush := json.NewEncoder(w), http.NewResponseController(w).Flush
	say := func(line VerifyLine) { // a peer that went away has no use for an error: its context ends the request
		_ = out.Encode(line)
		_ = flush()
	}
	for _, g := range groups {
		report, err := s.Verify.Verify(ctx, g.Name, func(r verify.Result) { say(VerifyLine{Handshake: new(handshake(r))}) })
		switch {
		case errors.Is(err, verify.ErrNotConfigured):
			say(VerifyLine{Group: &VerifiedGroup{Name: g.Name, Skipped: []string{}}})
		case err != nil && r.Context().Err() == nil:
			_, e := describe(errStopping)
			say(VerifyLine{Error: e})
			return
		case err != nil:
			return
		default:
			say(VerifyLine{Group: &VerifiedGroup{
				Name: g.Name, Configured: true, OK: report.OK, Failed: report.Failed, Skipped: append([]string{}, report.Skipped...),
			}})
		}
	}
	say(VerifyLine{Done: true})
}

// handshake turns a result into its printed form.
func handshake(r verify.Result) VerifiedHandshake {
	want := r.Want()
	out := VerifiedHandshake{
		Group: r.Group, Address: r.Address, Node: optional(r.Node), ServerName: r.ServerName, Client: string(r.Client), Secret: want.Secret,
		Want: string(want.Version), OK: r.Failure == nil, At: r.At, Attempts: r.Attempts, Completed: r.Completed, ClientCertificate: r.ClientCertificate,
	}
	if r.Latency > 0 {
		out.Seconds = new(r.Latency.Seconds())
	}
	if r.Shown != nil {
		out.Served = &ServedLeaf{Serial: r.Shown.Serial, Version: optionalVersion(r.Shown.Version), SHA256: r.Shown.SHA256, NotAfter: r.Shown.NotAfter}
	}
	if f := r.Failure; f != nil {
		out.Error = &HandshakeError{Kind: string(f.Kind), Message: oneLine(f.Message), Hint: f.Hint}
	}
	return out
}

// served is what the last handshake with a node showed of a secret.
func (s *Server) served(n sds.Node, one sds.NodeSecret) *ServedAt {
	name := one.Name
	if one.CoveredBy != "" {
		name = one.CoveredBy
	}
	seen := s.Verify.Served(n.Group, verify.NodeKey{Identity: n.Identity, ID: n.ID}, name)
	if seen == nil {
		return nil
	}
	return &ServedAt{Serial: seen.Serial, Version: optionalVersion(seen.Version), At: seen.At.UTC()}
}
