package admin

import (
	"cmp"
	"context"
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
)

// rollouts lists those under way; with "since" besides them every one that began after the rollout of that number, with "all" every stored one, and
// with "secret" only those that change it.
func (s *Server) rollouts(r *http.Request) (any, error) {
	list := s.Rollout.Active()
	if since := r.URL.Query().Get("since"); since != "" {
		var err error
		if list, err = s.newer(r.Context(), list, since); err != nil {
			return nil, err
		}
	}
	if r.URL.Query().Has("all") {
		history, err := s.Rollout.History(r.Context())
		if err != nil {
			return nil, err
		}
		live := map[uint64]*rollout.Rollout{} // with nodes counted as they are now
		for _, a := range list {
			live[a.ID] = a
		}
		for i, h := range history {
			if a, ok := live[h.ID]; ok {
				history[i] = a
			}
		}
		list = history
	}
	name := r.URL.Query().Get("secret")
	out := Rollouts{Rollouts: []Rollout{}}
	for _, a := range list {
		if name == "" || slices.ContainsFunc(a.Change, func(c rollout.Change) bool { return c.Secret == name }) {
			out.Rollouts = append(out.Rollouts, printed(a))
		}
	}
	return out, nil
}

// newer adds what began after a rollout and has ended. Numbers have no gaps.
func (s *Server) newer(ctx context.Context, active []*rollout.Rollout, since string) ([]*rollout.Rollout, error) {
	n, err := strconv.ParseUint(since, 10, 64)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "rollout "+strconv.Quote(since)+": not a number", "see `rollout history`")
	}
	list := active
	for id := n + 1; ; id++ {
		if slices.ContainsFunc(active, func(a *rollout.Rollout) bool { return a.ID == id }) {
			continue
		}
		one, err := s.Rollout.Rollout(ctx, id)
		if errors.Is(err, rollout.ErrNoRollout) {
			break
		}
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	slices.SortFunc(list, func(a, b *rollout.Rollout) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// rollout answers with one rollout, in the form of a list.
func (s *Server) rollout(r *http.Request) (any, error) {
	id, err := rolloutID(r)
	if err != nil {
		return nil, err
	}
	one, err := s.findRollout(r.Context(), id)
	if err != nil {
		return nil, err
	}
	return Rollouts{Rollouts: []Rollout{printed(one)}}, nil
}

func rolloutID(r *http.Request) (uint64, error) {
	id, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return 0, fail(http.StatusBadRequest, "rollout "+strconv.Quote(r.PathValue("id"))+": not a number", "see `rollout history`")
	}
	return id, nil
}

// findRollout returns a rollout under way as it is seen now, or one that has ended as it is stored.
func (s *Server) findRollout(ctx context.Context, id uint64) (*rollout.Rollout, error) {
	for _, a := range s.Rollout.Active() {
		if a.ID == id {
			return a, nil
		}
	}
	return s.Rollout.Rollout(ctx, id)
}

// printed turns a rollout into its pinned form.
func printed(r *rollout.Rollout) Rollout {
	out := Rollout{
		ID: r.ID, State: r.State, Reason: r.Reason, Started: r.Started.UTC(), Finished: optionalTime(r.Finished), Deadline: optionalTime(r.Deadline),
		Paused: r.Paused, TakingBack: r.Unwind != nil, Joined: optional(r.Joined), Change: changes(r), Wave: r.Wave, Waves: []Wave{}, Log: []Event{},
	}
	for i := range r.Waves {
		out.Waves = append(out.Waves, wave(r, &r.Waves[i]))
	}
	for _, e := range r.Log {
		out.Log = append(out.Log, Event{At: e.At.UTC(), State: e.State, Reason: e.Reason, By: optional(e.By)})
	}
	return out
}

// changes are those of a rollout, sorted by secret.
func changes(r *rollout.Rollout) []Change {
	out := []Change{}
	for _, c := range r.Change {
		out = append(out, Change{Secret: c.Secret, From: optionalVersion(c.From), To: optionalVersion(c.To), Kind: c.Kind, Left: optional(c.Left)})
	}
	slices.SortStableFunc(out, func(a, b Change) int { return strings.Compare(a.Secret, b.Secret) })
	return out
}

func wave(r *rollout.Rollout, w *rollout.Wave) Wave {
	out := Wave{
		Groups: sorted(w.Groups), State: w.State, Snapshot: optional(w.Snapshot), Nodes: w.Nodes, Gates: []Gate{},
		Handshakes: Handshakes{OK: w.Handshakes.OK, Failed: w.Handshakes.Failed, LastError: optional(w.Handshakes.LastError)},
	}
	if w.State == rollout.Watching {
		out.Watch, out.Watched = new(w.Watch), new(w.Watched)
		if !r.Paused && !r.Parked && !r.State.Ended() { // else nobody knows
			out.Ends = optionalTime(w.Ends)
		}
	}
	for _, g := range w.Gates {
		out.Gates = append(out.Gates, Gate{Name: g.Name, Value: g.Value, Before: g.Before, Max: g.Max, OK: g.OK, Error: optional(g.Error)})
	}
	slices.SortFunc(out.Gates, func(a, b Gate) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *Server) startRollout(r *http.Request) (any, error) {
	var req StartRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if err := checkVersion(req.Secret, req.Version); err != nil {
		return nil, err
	}
	done, err := s.Rollout.Start(r.Context(), req.Secret, secret.Version(req.Version), operator(r, req.Reason))
	if err != nil {
		return nil, aboutVersions(err, req.Secret)
	}
	return s.controlled(r.Context(), done)
}

// aboutVersions gives an error that has no hint the place where versions are listed.
func aboutVersions(err error, name string) error {
	if code, e := describe(err); e.Hint == "" {
		return fail(code, e.Message, "see `secrets history "+name+"`")
	}
	return err
}

// control is what an operator asks of one rollout.
func (s *Server) control(do func(context.Context, uint64, rollout.Operator) (rollout.Control, error)) func(*http.Request) (any, error) {
	return func(r *http.Request) (any, error) {
		id, err := rolloutID(r)
		if err != nil {
			return nil, err
		}
		var req ReasonRequest
		if err := body(r, &req); err != nil {
			return nil, err
		}
		done, err := do(r.Context(), id, operator(r, req.Reason))
		if err != nil {
			return nil, err
		}
		return s.controlled(r.Context(), done)
	}
}

// controlled says what became of a rollout, with what it has moved and what of it is held.
func (s *Server) controlled(ctx context.Context, done rollout.Control) (any, error) {
	out := Controlled{ID: optional(done.ID), State: done.State, Reason: done.Reason, Already: done.Already, Change: []Change{}, Groups: []string{}, Held: []string{}}
	if done.ID == 0 {
		return out, nil
	}
	one, err := s.Rollout.Rollout(ctx, done.ID)
	if errors.Is(err, rollout.ErrNoRollout) { // it was done, all the same
		return out, nil
	}
	if err != nil {
		return nil, err
	}
	out.Change = changes(one)
	for _, w := range one.Waves {
		out.Groups = append(out.Groups, w.Moved...)
	}
	for _, h := range s.Rollout.Holds() {
		if slices.ContainsFunc(one.Change, func(c rollout.Change) bool { return c.Secret == h.Secret && c.To == h.Version }) {
			out.Held = append(out.Held, h.Secret+" "+h.Version.Short())
		}
	}
	return out, nil
}

func (s *Server) hold(r *http.Request) (any, error) {
	name := r.PathValue("name")
	var req HoldRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if err := checkVersion(name, req.Version); err != nil {
		return nil, err
	}
	before, carrying := s.Rollout.Holds(), s.Rollout.Active()
	h, err := s.Rollout.Hold(r.Context(), name, secret.Version(req.Version), operator(r, req.Reason))
	if err != nil {
		return nil, aboutVersions(err, name)
	}
	out := HeldVersion{Hold: held(h), Rollouts: []uint64{}, Groups: []string{}}
	out.Already = slices.ContainsFunc(before, func(b rollout.Hold) bool {
		return b.Secret == h.Secret && b.Version == h.Version && b.Kind == h.Kind && b.Since.Equal(h.Since)
	})
	for _, a := range carrying {
		if slices.ContainsFunc(a.Change, func(c rollout.Change) bool { return c.Secret == name && c.To == h.Version && c.Left == "" }) {
			out.Rollouts = append(out.Rollouts, a.ID)
		}
	}
	for _, g := range s.Live().Groups {
		if at, ok := s.Cache.At(g.Name); ok {
			if have, _ := at.Secrets.Version(name); have == h.Version {
				out.Groups = append(out.Groups, g.Name)
			}
		}
	}
	slices.Sort(out.Groups)
	return out, nil
}

func held(h rollout.Hold) Hold {
	return Hold{Secret: h.Secret, Version: string(h.Version), Kind: h.Kind, Reason: h.Reason, Since: h.Since.UTC(), Deadline: optionalTime(h.Deadline)}
}

// left says how far a watch under way is, for those who wait for it; empty if none is.
func (s *Server) left(id uint64) string {
	for _, a := range s.Rollout.Active() {
		if a.ID != id || a.Wave >= len(a.Waves) {
			continue
		}
		var parts []string
		w := wave(a, &a.Waves[a.Wave])
		if w.State == rollout.Moving {
			parts = append(parts, strconv.Itoa(w.Nodes.Acked)+" of "+strconv.Itoa(w.Nodes.Expected)+" ACKed")
		}
		if n := w.Handshakes.OK + w.Handshakes.Failed; n > 0 {
			parts = append(parts, strconv.Itoa(w.Handshakes.OK)+" of "+strconv.Itoa(n)+" handshakes OK")
		}
		if w.Ends != nil {
			parts = append(parts, max(0, time.Until(*w.Ends)).Round(time.Second).String()+" left")
		}
		return strings.Join(parts, ", ")
	}
	return ""
}
