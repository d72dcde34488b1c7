package sds

import (
	"fmt"
	"slices"
	"strings"
)

// byListener stands for an identity glob where the listener's groups decide, which is so without TLS.
const byListener = "listener"

// Explanation says why an identity may have a secret, or may not.
type Explanation struct {
	Identity string             `json:"identity"`
	Secret   string             `json:"secret"`
	Allowed  bool               `json:"allowed"` // in at least one group
	Groups   []GroupExplanation `json:"groups"`  // all there are, in the order of the configuration
	Reason   string             `json:"reason"`
}

// GroupExplanation is the part of one group. A rule that does not decide is null.
type GroupExplanation struct {
	Name         string  `json:"name"`
	IdentityRule *string `json:"identity_rule"` // the first glob of identities that fits, or "listener"
	DenyRule     *string `json:"deny_rule"`     // the first glob of deny that fits; it wins
	SecretRule   *string `json:"secret_rule"`   // the first glob of secrets that fits
	CoveredBy    *string `json:"covered_by"`    // the secret whose certificate is given under this name, which is no secret's own; SecretRule is of that one
	Allowed      bool    `json:"allowed"`
}

// Explain returns which rules of the policy in force decide whether a peer may have a secret, and by which certificate a name is covered that is
// no secret's own. The peer has one identity.
func (s *Server) Explain(peer Peer, name string) Explanation {
	p := s.rights.Load().policy
	return p.explain(peer, name, func(group string) string {
		if res := s.wanted(p, group, name); res != nil {
			return res.Name
		}
		return name
	})
}

// Explain returns which rules decide whether a peer may have a secret. The peer has one identity.
func (p *Policy) Explain(peer Peer, name string) Explanation {
	return p.explain(peer, name, func(string) string { return name })
}

// explain is told which secret the name stands for in a group.
func (p *Policy) explain(peer Peer, name string, standsFor func(group string) string) Explanation {
	e := Explanation{Identity: peer.key(), Secret: name, Groups: []GroupExplanation{}}
	for _, r := range p.groups {
		g := GroupExplanation{Name: r.name}
		if i := slices.IndexFunc(r.deny, func(g pathGlob) bool { return g.match(canonical(e.Identity)) }); i >= 0 {
			g.DenyRule = new(r.deny[i].String())
		}
		if i := slices.IndexFunc(r.identities, func(g pathGlob) bool { return g.match(canonical(e.Identity)) }); i >= 0 {
			g.IdentityRule = new(r.identities[i].String())
		}
		secretName := standsFor(r.name)
		if secretName != name {
			g.CoveredBy = new(secretName)
		}
		if i := slices.IndexFunc(r.secrets, func(g glob) bool { return g.match(secretName) }); i >= 0 {
			g.SecretRule = new(r.secrets[i].String())
		}
		_, admitted := r.admits(peer)
		switch {
		case admitted && g.IdentityRule == nil:
			g.IdentityRule = new(byListener)
		case !admitted && g.DenyRule == nil:
			g.IdentityRule = nil // it may fit, but no listener lets the identity into this group
		}
		g.Allowed = admitted && g.SecretRule != nil
		e.Allowed = e.Allowed || g.Allowed
		e.Groups = append(e.Groups, g)
	}
	e.Reason = e.reason()
	return e
}

// reason is one sentence about all groups.
func (e Explanation) reason() string {
	var in, allowed, denied []string
	for _, g := range e.Groups {
		switch {
		case g.DenyRule != nil:
			denied = append(denied, fmt.Sprintf("group %q denies the identity by %q", g.Name, *g.DenyRule))
		case g.IdentityRule != nil:
			in = append(in, g.Name)
			if g.Allowed {
				why := fmt.Sprintf("group %q has the identity by %q and the secret by %q", g.Name, *g.IdentityRule, *g.SecretRule)
				if g.CoveredBy != nil {
					why = fmt.Sprintf("group %q has the identity by %q, and the name by the certificate of the secret %q, which it has by %q",
						g.Name, *g.IdentityRule, *g.CoveredBy, *g.SecretRule)
				}
				allowed = append(allowed, why)
			}
		}
	}
	choice := ""
	if len(in) > 1 {
		choice = "; the node has to name one of its groups in node.cluster: " + strings.Join(in, ", ")
	}
	switch {
	case len(allowed) > 0:
		return strings.Join(allowed, "; ") + choice
	case len(in) > 0:
		return "no rule of the identity's groups has the secret: " + strings.Join(in, ", ")
	case len(denied) > 0:
		return strings.Join(denied, "; ")
	}
	return "no group has the identity"
}
