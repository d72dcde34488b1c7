package admin

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/source"
)

func (s *Server) status(*http.Request) (any, error) {
	live, now := s.Live(), time.Now()
	out := Status{
		Version: s.Version, Leader: true, Ready: live.Ready, Config: live.Config, SnapshotLatest: s.Cache.Latest(),
		Certificates: []CertificateStatus{}, Secrets: s.sourced(live), Groups: s.groups(live), Rollouts: []RolloutState{}, Issuers: []IssuerStatus{}, Held: []Hold{},
	}
	for _, st := range s.Issuer.Status() {
		out.Certificates = append(out.Certificates, s.certificate(st, live))
	}
	slices.SortFunc(out.Certificates, func(a, b CertificateStatus) int { return strings.Compare(a.Name, b.Name) })
	for _, r := range s.Rollout.Active() {
		out.Rollouts = append(out.Rollouts, RolloutState{ID: r.ID, State: r.State})
	}
	for _, a := range s.Issuer.Issuers() { // sorted
		out.Issuers = append(out.Issuers, IssuerStatus{Name: a.Issuer, Up: a.Up, Limits: s.limits(a.Issuer, now), Hold: s.waits(a.Issuer, now)})
	}
	for _, h := range s.Rollout.Holds() { // sorted by secret
		out.Held = append(out.Held, held(h))
	}
	return out, nil
}

// certificate joins what the issuance loop knows with what the groups serve.
func (s *Server) certificate(st issuer.Status, live Live) CertificateStatus {
	out := CertificateStatus{
		Name: st.Name, State: string(st.State), NextRenewal: optionalTime(st.NextRenewal), LastRenewal: optionalTime(st.LastRenewal),
		Groups: []GroupVersion{},
	}
	if e := st.Failure; e != nil {
		out.Error = &CertificateError{Kind: string(e.Kind), Message: e.Message, At: e.At.UTC(), Attempts: e.Attempts}
	}
	if w := st.Waiting; w != nil {
		out.Waiting = &Waiting{Kind: optional(string(w.Kind)), Message: w.Message, Until: w.Until.UTC()}
	}
	if a := st.Advice; !a.Start.IsZero() {
		out.RenewalInfo = &RenewalInfo{Start: a.Start.UTC(), End: a.End.UTC(), Explanation: optional(a.Explanation), Asked: a.Asked.UTC()}
	}
	var newest cache.Meta
	for _, g := range live.Groups {
		at, ok := s.Cache.At(g.Name)
		if !ok {
			continue
		}
		version, _ := at.Secrets.Version(st.Name)
		out.Groups = append(out.Groups, GroupVersion{Name: g.Name, Version: optionalVersion(version)})
		m, ok := s.Cache.Meta(st.Name, version)
		if ok && m.Created.After(newest.Created) {
			newest = m
		}
		if ok && m.Ended(time.Now()) { // a newer version elsewhere does not help this group
			out.State = string(issuer.StateExpired)
		}
	}
	slices.SortFunc(out.Groups, func(a, b GroupVersion) int { return strings.Compare(a.Name, b.Name) })
	if newest.Version != "" {
		out.Version, out.Serial, out.Issuer = optionalVersion(newest.Version), &newest.Serial, optional(newest.Issuer)
		out.NotBefore, out.NotAfter = optionalTime(newest.NotBefore), optionalTime(newest.NotAfter)
	}
	return out
}

// sourced are the secrets that no CA issues.
func (s *Server) sourced(live Live) []SecretStatus {
	now := time.Now()
	out := []SecretStatus{}
	for _, st := range s.Sources.Status() { // sorted
		one := SecretStatus{
			Name: st.Name, Kind: string(st.Kind), State: sourceState(st, now), Version: optionalVersion(st.Version), NotAfter: optionalTime(st.CAEnd),
			NextRotation: optionalTime(st.Next), Groups: []GroupVersion{},
		}
		switch {
		case st.Err != nil:
			one.Error = new(st.Err.Error())
		case st.Held != "":
			one.Error = &st.Held
		}
		for _, g := range live.Groups {
			if at, ok := s.Cache.At(g.Name); ok {
				version, _ := at.Secrets.Version(st.Name)
				one.Groups = append(one.Groups, GroupVersion{Name: g.Name, Version: optionalVersion(version)})
			}
		}
		slices.SortFunc(one.Groups, func(a, b GroupVersion) int { return strings.Compare(a.Name, b.Name) })
		out = append(out, one)
	}
	return out
}

func sourceState(st source.Status, now time.Time) string {
	switch {
	case !st.CAEnd.IsZero() && st.CAEnd.Before(now):
		return "expired"
	case st.Err != nil:
		return "failing"
	case st.Held != "":
		return "held"
	case st.Version == "":
		return "pending"
	case st.Learning:
		return "learning"
	}
	return "ok"
}

func (s *Server) groups(live Live) []GroupStatus {
	counts := map[string]*GroupStatus{}
	out := make([]GroupStatus, len(live.Groups))
	for i, g := range live.Groups {
		out[i] = GroupStatus{Name: g.Name}
		if at, ok := s.Cache.At(g.Name); ok {
			out[i].Snapshot = at.Number
		}
		counts[g.Name] = &out[i]
	}
	for _, n := range s.SDS.Nodes() {
		g, ok := counts[n.Group]
		if !ok {
			continue
		}
		if n.Connected {
			g.Connected++
		}
		switch n.State {
		case sds.Synced:
			g.Synced++
		case sds.Stale:
			g.Stale++
		case sds.Nacked:
			g.Nacked++
		case sds.Offline:
		}
	}
	slices.SortFunc(out, func(a, b GroupStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

func (s *Server) nodes(r *http.Request) (any, error) {
	group := r.URL.Query().Get("group")
	live := s.Live()
	if group != "" && !slices.ContainsFunc(live.Groups, func(g Group) bool { return g.Name == group }) {
		return nil, unknownGroup(live, group)
	}
	var groups []string
	if group != "" {
		groups = []string{group}
	}
	out := Nodes{Nodes: []Node{}}
	for _, n := range s.SDS.Nodes(groups...) {
		out.Nodes = append(out.Nodes, s.node(n))
	}
	slices.SortStableFunc(out.Nodes, func(a, b Node) int {
		return cmp.Or(strings.Compare(a.ID, b.ID), strings.Compare(a.Group, b.Group), strings.Compare(a.Identity, b.Identity))
	})
	return out, nil
}

func (s *Server) node(n sds.Node) Node {
	out := Node{
		ID: n.ID, Group: n.Group, Identity: n.Identity, Transport: string(n.Transport), Protocol: string(n.Protocol), Connected: n.Connected,
		Since: optionalTime(n.Since), Snapshot: n.Snapshot, State: string(n.State), Secrets: []NodeSecret{},
	}
	for _, of := range n.Secrets {
		one := NodeSecret{Name: of.Name, Want: optionalVersion(of.Want), Sent: versionAt(of.Sent), Acked: versionAt(of.Acked), Served: s.served(n, of)}
		if of.CoveredBy != "" {
			one.CoveredBy = new(of.CoveredBy)
		}
		if of.Nacked != nil {
			one.Nacked = &NackedAt{Version: string(of.Nacked.Version), At: of.Nacked.At.UTC(), Message: of.Nacked.Message}
			if of.Nacked.Secret != "" {
				one.Nacked.Secret = new(of.Nacked.Secret)
			}
		}
		out.Secrets = append(out.Secrets, one)
	}
	return out
}

func versionAt(v *sds.VersionAt) *VersionAt {
	if v == nil {
		return nil
	}
	return &VersionAt{Version: string(v.Version), At: v.At.UTC()}
}
