package admin

import (
	"errors"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sds-server/sds-server/internal/identity"
)

const (
	day = 24 * time.Hour
	// maxIdentityDays bounds the life of a node certificate.
	maxIdentityDays = 825
)

// issueIdentity signs the request of a node whose key was made in the command.
func (s *Server) issueIdentity(r *http.Request) (any, error) {
	var req IdentityRequest
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if s.Identities == nil {
		return nil, noAuthority()
	}
	life := time.Duration(req.LifeSeconds) * time.Second
	if req.LifeSeconds == 0 {
		if req.Days < 1 || req.Days > maxIdentityDays {
			return nil, fail(http.StatusBadRequest, "a life of "+strconv.Itoa(req.Days)+" days: not between 1 and "+strconv.Itoa(maxIdentityDays), "see --days")
		}
		life = time.Duration(req.Days) * day
	}
	if req.LifeSeconds < 0 || req.LifeSeconds > int64(maxIdentityDays*day/time.Second) {
		return nil, fail(http.StatusBadRequest, "a life that is not between 1 second and "+strconv.Itoa(maxIdentityDays)+" days", "see --life")
	}
	live := s.Live()
	group, ok := live.group(req.Group)
	if !ok {
		return nil, unknownGroup(live, req.Group)
	}
	uri, err := identity.URI(group.Identities, req.Node)
	if errors.Is(err, identity.ErrNoURI) {
		return nil, fail(http.StatusConflict, "group "+strconv.Quote(req.Group)+": "+err.Error(), "add one, such as spiffe://sds-server/"+req.Group+"/*, to the identities of the group")
	}
	if err != nil {
		return nil, fail(http.StatusBadRequest, err.Error(), "")
	}
	return s.sign(req.CSRPEM, req.Group, identity.Holder{Node: req.Node, URI: uri, Life: life})
}

// renewIdentity signs the request of a node that has a certificate already, which may have ended: who asks is an operator, as for a new one.
// Group, name and life stay. The identity has to be one that a group still gives.
func (s *Server) renewIdentity(r *http.Request) (any, error) {
	var req IdentityRenewal
	if err := body(r, &req); err != nil {
		return nil, err
	}
	if s.Identities == nil {
		return nil, noAuthority()
	}
	holder, err := s.Identities.Holder([]byte(req.CertPEM))
	if errors.Is(err, identity.ErrForeign) || errors.Is(err, identity.ErrNoNode) {
		return nil, fail(http.StatusConflict, err.Error(), "renew it where it was made, or make a new one by `identity issue`")
	}
	if err != nil {
		return nil, fail(http.StatusBadRequest, err.Error(), "make a new one by `identity issue`")
	}
	live := s.Live()
	i := slices.IndexFunc(live.Groups, func(g Group) bool {
		uri, err := identity.URI(g.Identities, holder.Node)
		return err == nil && uri == holder.URI
	})
	if i < 0 {
		return nil, fail(http.StatusConflict, "no group has nodes with the identity "+holder.URI+" any more", "make one for a group of today by `identity issue`")
	}
	holder.Life = max(holder.Life, time.Second)
	return s.sign(req.CSRPEM, live.Groups[i].Name, holder)
}

func (s *Server) sign(csrPEM, group string, h identity.Holder) (any, error) {
	cert, err := s.Identities.Node([]byte(csrPEM), h.Node, h.URI, time.Now(), h.Life)
	if err != nil {
		return nil, fail(http.StatusBadRequest, err.Error(), "")
	}
	return Identity{
		Identity: h.URI, Group: group, Node: h.Node, CertPEM: string(cert.PEM), CAPEM: string(s.Identities.CertificatePEM()), NotAfter: cert.NotAfter,
	}, nil
}

func noAuthority() error {
	return fail(http.StatusConflict, "this server has no CA for the xDS channel", "`sds-server init` makes one; without it, bring certificates of your own CA")
}
