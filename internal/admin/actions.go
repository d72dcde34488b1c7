package admin

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/identity"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
)

// maxIdentityDays bounds the life of a node certificate: ten years are that of the channel's CA.
const maxIdentityDays = 825

func operator(r *http.Request, reason string) rollout.Operator {
	return rollout.Operator{By: peerOf(r.Context()).String(), Reason: reason}
}

// importSecret takes a pair in, by the same rules as what a CA issues.
func (s *Server) importSecret(r *http.Request) (any, error) {
	var req ImportRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if slices.Contains(s.Live().Certificates, req.Name) {
		return nil, fail(http.StatusConflict, "secret "+strconv.Quote(req.Name)+" is issued by this server",
			"import under another name, or take the certificate out of the configuration first")
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
	name := r.PathValue("name")
	n, err := s.Rollout.Release(r.Context(), name, secret.Version(r.URL.Query().Get("version")))
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, fail(http.StatusNotFound, "no version of "+strconv.Quote(name)+" is held", "see `status` for what is held")
	}
	return Released{Name: name, Released: n}, nil
}

func (s *Server) promote(r *http.Request) (any, error) {
	req, err := s.group(r)
	if err != nil {
		return nil, err
	}
	if req.To != 0 {
		return s.Rollout.PromoteTo(r.Context(), req.Group, req.To, operator(r, req.Reason))
	}
	return s.Rollout.Promote(r.Context(), req.Group, req.Rollout, operator(r, req.Reason))
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
	return step, err
}

func (s *Server) group(r *http.Request) (GroupRequest, error) {
	var req GroupRequest
	if err := body(r, &req); err != nil {
		return req, err
	}
	live := s.Live()
	if !slices.ContainsFunc(live.Groups, func(g Group) bool { return g.Name == req.Group }) {
		return req, unknownGroup(live, req.Group)
	}
	return req, nil
}

// issueIdentity signs the request of a node whose key was made in the command.
func (s *Server) issueIdentity(r *http.Request) (any, error) {
	var req IdentityRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if s.Identities == nil {
		return nil, fail(http.StatusConflict, "this server has no CA for the xDS channel", "`sds-server init` makes one; without it, bring certificates of your own CA")
	}
	if req.Days < 1 || req.Days > maxIdentityDays {
		return nil, fail(http.StatusBadRequest, "days: not between 1 and "+strconv.Itoa(maxIdentityDays), "")
	}
	live := s.Live()
	i := slices.IndexFunc(live.Groups, func(g Group) bool { return g.Name == req.Group })
	if i < 0 {
		return nil, unknownGroup(live, req.Group)
	}
	uri, err := identity.URI(live.Groups[i].Identities, req.Node)
	if err != nil {
		return nil, fail(http.StatusConflict, err.Error(), "")
	}
	now := time.Now()
	life := time.Duration(req.Days) * 24 * time.Hour
	cert, err := s.Identities.Node([]byte(req.CSRPEM), req.Node, uri, now, life)
	if err != nil {
		return nil, fail(http.StatusBadRequest, err.Error(), "")
	}
	return Identity{Identity: uri, CertPEM: string(cert), CAPEM: string(s.Identities.CertificatePEM()), NotAfter: now.Add(life).UTC()}, nil
}

func list(names []string) string { return strings.Join(names, ", ") }

func compare(a, b string) int { return strings.Compare(a, b) }
