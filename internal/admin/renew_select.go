package admin

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/budget"
	"github.com/sds-server/sds-server/pkg/store"
)

// runLife is for how long a renewal of many is gone on with when it is asked for again.
const runLife = 24 * time.Hour

// renewRun is what is kept of a forced renewal of many, so that the same request goes on after an interruption instead of ordering
// everything again.
type renewRun struct {
	Began time.Time `json:"began"`
}

// selected is what a request for many is about.
type selected struct {
	asked   RenewRequest // its names once each
	key     string       // of the run in the store; empty where none is kept
	since   time.Time
	already int
	plan    []issuer.Planned // in the order of urgency
	later   []RenewLater
	notDue  []issuer.Planned
}

// selectMany says what would be ordered, and refuses what selects nothing or does not exist.
func (s *Server) selectMany(ctx context.Context, req RenewRequest) (*selected, error) {
	live := s.Live()
	out := &selected{asked: req}
	slices.Sort(out.asked.Names)
	out.asked.Names = slices.Compact(out.asked.Names)
	if err := s.checkMany(live, &out.asked); err != nil {
		return nil, err
	}
	selection := issuer.Selection{Names: out.asked.Names, IssuedBy: req.IssuedBy}
	all := s.Issuer.Plan(selection)
	if len(all) == 0 {
		return nil, s.selectsNothing(req)
	}
	if req.forced() {
		if err := s.findRun(ctx, out); err != nil {
			return nil, err
		}
	}
	selection.Before = out.since
	now := time.Now()
	for _, p := range s.Issuer.Plan(selection) {
		if !req.forced() && p.Due.After(now) {
			out.notDue = append(out.notDue, p)
			continue
		}
		out.plan = append(out.plan, p)
	}
	if !out.since.IsZero() {
		out.already = len(all) - len(out.plan)
	}
	return out, nil
}

func (s *Server) checkMany(live Live, req *RenewRequest) error {
	switch {
	case req.All == (len(req.Names) > 0):
		return fail(http.StatusBadRequest, "request: either names, or all", "command and server may be of different versions")
	case req.IssuedBy != "" && !req.All:
		return fail(http.StatusBadRequest, "request: issued_by goes with all", "command and server may be of different versions")
	}
	if _, ok := live.issuer(req.Issuer); req.Issuer != "" && !ok {
		return unknownIssuer(live, req.Issuer)
	}
	for _, name := range req.Names {
		if !slices.ContainsFunc(live.Certificates, func(c Certificate) bool { return c.Name == name }) {
			return explain(name, issuer.ErrUnknown)
		}
	}
	return nil
}

// selectsNothing says what there is instead.
func (s *Server) selectsNothing(req RenewRequest) error {
	if req.IssuedBy == "" {
		return fail(http.StatusNotFound, "no certificate is configured", "add one to certificates")
	}
	count := map[string]int{}
	for _, p := range s.Issuer.Plan(issuer.Selection{}) {
		if p.IssuedBy != "" {
			count[p.IssuedBy]++
		}
	}
	var in []string
	for name, n := range count {
		in = append(in, fmt.Sprintf("%s (%d)", name, n))
	}
	if len(in) == 0 {
		return fail(http.StatusNotFound, "no certificate was issued by "+strconv.Quote(req.IssuedBy), "none was issued yet; see `status`")
	}
	slices.Sort(in)
	return fail(http.StatusNotFound, "no certificate was issued by "+strconv.Quote(req.IssuedBy), "certificates come from "+strings.Join(in, ", "))
}

// runKey names the runs of equal requests.
func runKey(req RenewRequest) string {
	parts := append([]string{strconv.FormatBool(req.All), req.IssuedBy, req.Issuer}, req.Names...)
	sum := sha256.Sum256([]byte(strings.Join(parts, "\x00")))
	return store.Key("renewal", hex.EncodeToString(sum[:16]))
}

// findRun looks for a run of the same request that is to be gone on with.
func (s *Server) findRun(ctx context.Context, of *selected) error {
	of.key = runKey(of.asked)
	if of.asked.Again {
		return nil
	}
	entry, err := s.Store.Get(ctx, of.key)
	switch {
	case errors.Is(err, store.ErrNotFound):
		return nil
	case err != nil:
		return err
	}
	var run renewRun
	if err := json.Unmarshal(entry.Value, &run); err != nil {
		return fmt.Errorf("stored value at %s: %w", of.key, err)
	}
	if time.Since(run.Began) < runLife {
		of.since = run.Began
	}
	return nil
}

// beginRun notes that a forced renewal of many has begun, before the first order.
func (s *Server) beginRun(ctx context.Context, of *selected) error {
	if of.key == "" || !of.since.IsZero() {
		return nil
	}
	value, err := json.Marshal(renewRun{Began: time.Now().UTC()})
	if err != nil {
		return fmt.Errorf("encode %s: %w", of.key, err)
	}
	_, err = s.Store.Commit(ctx, nil, []store.Operation{store.Put(of.key, value)})
	return err
}

// endRun forgets a run of which nothing is left: the same request begins anew.
func (s *Server) endRun(ctx context.Context, of *selected) error {
	if of.key == "" {
		return nil
	}
	_, err := s.Store.Commit(ctx, nil, []store.Operation{store.Delete(of.key)})
	return err
}

// forecast says which certificates the budgets do not let be ordered at once, by name: at the earliest, with the reserve.
func (s *Server) forecast(of *selected) map[string]budget.Fit {
	names := map[string]Certificate{}
	for _, c := range s.Live().Certificates {
		names[c.Name] = c
	}
	wanted := map[string][]budget.Wanted{} // by issuer, in the order of urgency
	for _, p := range of.plan {
		at := cmp.Or(of.asked.Issuer, p.Issuer)
		wanted[at] = append(wanted[at], budget.Wanted{Name: p.Name, DNSNames: p.DNSNames, IPAddresses: names[p.Name].IPAddresses})
	}
	now, out := time.Now(), map[string]budget.Fit{}
	for name, list := range wanted {
		for _, fit := range s.Budget.Of(name).Forecast(now, list) {
			if fit.At.After(now) {
				out[fit.Name] = fit
			}
		}
	}
	return out
}

// later are those that cannot be ordered within a day.
func (s *Server) later(of *selected) []RenewLater {
	out := []RenewLater{}
	for name, fit := range s.forecast(of) {
		if time.Until(fit.At) > runLife {
			out = append(out, RenewLater{Name: name, At: fit.At.UTC(), Limit: fit.Limit, Scope: optional(fit.Scope)})
		}
	}
	slices.SortFunc(out, func(a, b RenewLater) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// planRenewal says what a renewal would order, in which order, and what the budget says. It changes nothing.
func (s *Server) planRenewal(r *http.Request) (any, error) {
	var req RenewRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if req.Name != "" {
		req.Names, req.Name = append(req.Names, req.Name), ""
	}
	of, err := s.selectMany(r.Context(), req)
	if err != nil {
		return nil, err
	}
	now, fits := time.Now(), s.forecast(of)
	out := RenewPlan{Since: optionalTime(of.since), Already: of.already, NotDue: len(of.notDue), Certificates: []PlannedRenewal{}}
	for i, p := range of.plan {
		one := PlannedRenewal{
			Name: p.Name, Position: i + 1, Issuer: cmp.Or(req.Issuer, p.Issuer), IssuedBy: optional(p.IssuedBy), NotAfter: optionalTime(p.NotAfter),
			Due: optionalTime(p.Due), Urgent: p.Urgent || req.IssuedBy != "",
		}
		if fit, late := fits[p.Name]; late {
			one.At, one.Limit, one.Scope = optionalTime(fit.At), optional(fit.Limit), optional(fit.Scope)
		}
		if hold := s.waits(one.Issuer, now); hold != nil && !one.Urgent && !req.forced() {
			one.Hold = &hold.Reason
		}
		out.Certificates = append(out.Certificates, one)
	}
	slices.SortFunc(out.Certificates, func(a, b PlannedRenewal) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}
