package admin

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
)

// minVersionPrefix is how many digits of a version name it: what tables show.
const minVersionPrefix = 12

func operator(r *http.Request, reason string) rollout.Operator {
	return rollout.Operator{By: peerOf(r.Context()).String(), Reason: reason}
}

// checkVersion refuses what is too short to name a version of a secret; empty stands for no choice.
func checkVersion(name, version string) error {
	if version == "" || len(version) >= minVersionPrefix {
		return nil
	}
	return fail(http.StatusBadRequest, "version "+strconv.Quote(version)+": at least "+strconv.Itoa(minVersionPrefix)+" digits name one", "see `secrets history "+name+"`")
}

// importSecret takes a pair in, by the same rules as what a CA issues.
func (s *Server) importSecret(r *http.Request) (any, error) {
	var req ImportRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(s.Live().Certificates, func(c Certificate) bool { return c.Name == req.Name }) {
		return nil, fail(http.StatusConflict, "secret "+strconv.Quote(req.Name)+" is issued by this server",
			"import under another name, or take the certificate out of the configuration first")
	}
	if slices.Contains(s.Live().Managed, req.Name) {
		return nil, fail(http.StatusConflict, "secret "+strconv.Quote(req.Name)+" stands in the configuration",
			"import under another name, or take it out of the configuration first")
	}
	parsed, err := secret.ParseCertificate(req.Name, []byte(req.ChainPEM), []byte(req.KeyPEM))
	if err != nil {
		return nil, err
	}
	want := secret.Expectation{DNSNames: parsed.DNSNames(), IPAddresses: parsed.IPAddresses()}
	if err := parsed.Validate(time.Now(), want); err != nil {
		return nil, err
	}
	reason := "import"
	if req.Reason != "" {
		reason += ": " + req.Reason
	}
	a, err := s.Rollout.Accept(r.Context(), rollout.Proposal{
		Secret: parsed, Source: cache.SourceImport, By: peerOf(r.Context()).String(), Reason: reason,
	})
	if err != nil {
		return nil, err
	}
	return Accepted{
		Name: a.Meta.Name, Version: string(a.Meta.Version), Serial: a.Meta.Serial, Snapshot: a.Snapshot, Rollout: optional(a.Rollout),
	}, nil
}

func (s *Server) release(r *http.Request) (any, error) {
	name, version := r.PathValue("name"), r.URL.Query().Get("version")
	if err := checkVersion(name, version); err != nil {
		return nil, err
	}
	n, err := s.Rollout.Release(r.Context(), name, secret.Version(version))
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fail(http.StatusNotFound, "no such version of "+strconv.Quote(name)+" is held", "see `status` for what is held")
	}
	return Released{Name: name, Released: n}, nil
}

func (s *Server) promote(r *http.Request) (any, error) {
	req, err := s.group(r)
	if err != nil {
		return nil, err
	}
	if req.To != 0 {
		step, err := s.Rollout.PromoteTo(r.Context(), req.Group, req.To, operator(r, req.Reason))
		return stepped(step), err
	}
	promote := s.Rollout.Promote
	if req.SkipEarlier {
		promote = s.Rollout.PromoteAhead
	}
	p, err := promote(r.Context(), req.Group, req.Rollout, operator(r, req.Reason))
	return Promotion{
		Group: p.Group, Rollouts: append([]uint64{}, p.Rollouts...), Changes: append([]string{}, p.Changes...),
		Groups: append([]string{}, p.Groups...), Snapshot: p.Snapshot, Already: p.Already,
	}, err
}

func (s *Server) rollback(r *http.Request) (any, error) {
	req, err := s.group(r)
	if err != nil {
		return nil, err
	}
	var step rollout.Step
	if req.To != 0 {
		step, err = s.Rollout.RollbackTo(r.Context(), req.Group, req.To, operator(r, req.Reason))
	} else {
		step, err = s.Rollout.Rollback(r.Context(), req.Group, operator(r, req.Reason))
	}
	if errors.Is(err, rollout.ErrNothingToUndo) {
		return nil, fail(http.StatusConflict, err.Error(), "`rollback --to N` goes to any earlier snapshot; see `snapshots list`")
	}
	return stepped(step), err
}

// stepped turns a step into its pinned form.
func stepped(s rollout.Step) Step {
	out := Step{
		Group: s.Group, From: s.From, Snapshot: s.Snapshot, Rollouts: append([]uint64{}, s.Rollouts...), Changes: []DiffEntry{}, Held: sorted(s.Held),
	}
	for _, e := range s.Changes {
		out.Changes = append(out.Changes, DiffEntry{Secret: e.Secret, From: optionalVersion(e.From), To: optionalVersion(e.To)})
	}
	slices.SortFunc(out.Changes, func(a, b DiffEntry) int { return strings.Compare(a.Secret, b.Secret) })
	return out
}

func (s *Server) group(r *http.Request) (GroupRequest, error) {
	var req GroupRequest
	if err := body(r, &req); err != nil {
		return req, err
	}
	live := s.Live()
	if _, ok := live.group(req.Group); !ok {
		return req, unknownGroup(live, req.Group)
	}
	return req, nil
}
