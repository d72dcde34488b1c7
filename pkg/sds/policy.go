package sds

import (
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Transport is how a peer is connected.
type Transport string

// The transports, as the nodes command shows them.
const (
	Unix      Transport = "unix"
	TLS       Transport = "tls"
	Plaintext Transport = "plaintext"
)

// dnsPrefix marks an identity that is a DNS SAN.
const dnsPrefix = "dns:"

// Peer is who stands at the other end of a connection, as far as it is proven.
type Peer struct {
	// Transport is how it is connected.
	Transport Transport
	// Identities are all that the peer may call itself: URI SANs as they are, DNS SANs as dns:NAME, unix:uid=N, or plaintext.
	// They are empty over TLS without a client certificate.
	Identities []string
	// Groups are the groups of the listener; empty where the identity alone decides.
	Groups []string
	// Expires is when the peer's certificate chain ends; zero where there is none.
	Expires time.Time
	// Address is where it connects from: loopback for a Unix socket, and not valid where that is not known. It is no identity.
	Address netip.Addr
}

// key is what limits are counted by.
func (p Peer) key() string {
	if len(p.Identities) == 0 {
		return ""
	}
	return p.Identities[0]
}

// Group is the rights of one node group.
type Group struct {
	// Name is the group's name.
	Name string
	// Identities are globs of who may be a node of the group. `*` does not cross a slash.
	Identities []string
	// Deny are globs of who may not, whatever Identities says. One such identity in a certificate is enough.
	Deny []string
	// Secrets are globs of the secret names that nodes of the group may have. `*` is any run of characters.
	Secrets []string
}

// Policy says which identity may be in which group, and which names a group may have. It is immutable.
type Policy struct {
	groups []*rules
	byName map[string]*rules
}

type rules struct {
	name       string
	identities []pathGlob
	deny       []pathGlob
	secrets    []glob
}

// NewPolicy compiles groups. Without a group nobody may have anything.
func NewPolicy(groups []Group) *Policy {
	p := &Policy{byName: make(map[string]*rules, len(groups))}
	for _, g := range groups {
		r := &rules{name: g.Name, identities: identityGlobs(g.Identities), deny: identityGlobs(g.Deny)}
		for _, pattern := range g.Secrets {
			r.secrets = append(r.secrets, newGlob(pattern))
		}
		p.groups = append(p.groups, r)
		p.byName[g.Name] = r
	}
	return p
}

func identityGlobs(patterns []string) []pathGlob {
	globs := make([]pathGlob, len(patterns))
	for i, pattern := range patterns {
		globs[i] = newPathGlob(canonical(pattern))
	}
	return globs
}

// canonical lower-cases DNS identities, which have no case (RFC 4343, Section 2). URIs stay as they are.
func canonical(identity string) string {
	if len(identity) >= len(dnsPrefix) && strings.EqualFold(identity[:len(dnsPrefix)], dnsPrefix) {
		return strings.ToLower(identity)
	}
	return identity
}

// grant is one group that a peer may be in, and the identity by which.
type grant struct{ identity, group string }

// Decide returns the group of a peer that names cluster in its node, and the identity that gives it the right. Several allowed
// groups need a cluster that is the name of one of them; a cluster never widens. The error says why there is no group; it becomes
// UNAUTHENTICATED or PERMISSION_DENIED.
func (p *Policy) Decide(peer Peer, cluster string) (identity, group string, err error) {
	grants, err := p.grants(peer)
	if err != nil {
		return "", "", err
	}
	if len(grants) == 1 {
		return grants[0].identity, grants[0].group, nil
	}
	for _, g := range grants {
		if g.group == cluster {
			return g.identity, g.group, nil
		}
	}
	return "", "", errGroupNotNamed
}

// grants lists the groups that the peer may be in; it is an error if there is none.
func (p *Policy) grants(peer Peer) ([]grant, error) {
	if len(peer.Identities) == 0 {
		return nil, errNoCertificate
	}
	var grants []grant
	for _, r := range p.groups {
		if identity, ok := r.admits(peer); ok {
			grants = append(grants, grant{identity, r.name})
		}
	}
	if len(grants) == 0 {
		return nil, errUnknownIdentity
	}
	return grants, nil
}

// permits reports whether the peer may still be in a group.
func (p *Policy) permits(peer Peer, group string) bool {
	r, ok := p.byName[group]
	if !ok {
		return false
	}
	_, ok = r.admits(peer)
	return ok
}

// keeps reports whether a node that was in a group by an identity may be there again, as far as the identity says.
func (p *Policy) keeps(transport Transport, identity, group string) bool {
	peer := Peer{Transport: transport, Identities: []string{identity}}
	if transport != TLS {
		peer.Groups = []string{group} // its listener's, which only a restart changes
	}
	return p.permits(peer, group)
}

// admits returns the identity by which the peer may be in the group. Over TLS the identity decides, and a listener with groups
// narrows it; elsewhere the listener's groups decide. Deny wins everywhere.
func (r *rules) admits(peer Peer) (string, bool) {
	if len(peer.Groups) > 0 && !slices.Contains(peer.Groups, r.name) {
		return "", false
	}
	if slices.ContainsFunc(peer.Identities, func(identity string) bool { return matchAny(r.deny, identity) }) {
		return "", false
	}
	for _, identity := range peer.Identities {
		if matchAny(r.identities, identity) {
			return identity, true
		}
	}
	if peer.Transport != TLS && len(peer.Groups) > 0 {
		return peer.Identities[0], true
	}
	return "", false
}

func matchAny(globs []pathGlob, identity string) bool {
	identity = canonical(identity)
	return slices.ContainsFunc(globs, func(g pathGlob) bool { return g.match(identity) })
}

// Allowed reports whether nodes of a group may have the named secret.
func (p *Policy) Allowed(group, name string) bool {
	r, ok := p.byName[group]
	return ok && slices.ContainsFunc(r.secrets, func(g glob) bool { return g.match(name) })
}
