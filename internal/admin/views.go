package admin

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
)

func (s *Server) secrets(r *http.Request) (any, error) {
	metas, err := s.Cache.Secrets(r.Context())
	if err != nil {
		return nil, err
	}
	out := Secrets{Secrets: []SecretHead{}}
	for _, m := range metas { // sorted by name, the newest first
		if n := len(out.Secrets); n > 0 && out.Secrets[n-1].Name == m.Name {
			out.Secrets[n-1].Versions++
			continue
		}
		out.Secrets = append(out.Secrets, SecretHead{
			Name: m.Name, Kind: string(m.Kind), Version: string(m.Version), Serial: optional(m.Serial), NotAfter: optionalTime(m.NotAfter),
			Versions: 1, Source: string(m.Source),
		})
	}
	return out, nil
}

func (s *Server) secret(r *http.Request) (any, error) {
	name := r.PathValue("name")
	metas, err := s.Cache.Versions(r.Context(), name)
	if err != nil {
		return nil, err
	}
	if len(metas) == 0 {
		return nil, fail(http.StatusNotFound, "no secret named "+strconv.Quote(name), "see `secrets list`")
	}
	out := Secret{Name: name, Kind: string(metas[0].Kind), Versions: []SecretVersion{}}
	uses := s.uses(name)
	for _, m := range metas {
		out.Versions = append(out.Versions, uses.version(m))
	}
	return out, nil
}

// uses is what the versions of a secret are kept for.
type uses struct {
	groups  map[secret.Version][]string // that are at a version
	carried map[secret.Version]bool     // by a rollout under way
	held    map[secret.Version]bool
}

func (s *Server) uses(name string) uses {
	u := uses{groups: map[secret.Version][]string{}, carried: map[secret.Version]bool{}, held: map[secret.Version]bool{}}
	for _, g := range s.Live().Groups {
		if at, ok := s.Cache.At(g.Name); ok {
			if have, ok := at.Secrets.Version(name); ok {
				u.groups[have] = append(u.groups[have], g.Name)
			}
		}
	}
	for _, r := range s.Rollout.Active() {
		for _, c := range r.Change {
			if c.Secret == name && c.To != "" {
				u.carried[c.To] = true
			}
		}
	}
	for _, h := range s.Rollout.Holds() {
		if h.Secret == name {
			u.held[h.Version] = true
		}
	}
	return u
}

// version describes a stored version; its state says why it is kept.
func (u uses) version(m cache.Meta) SecretVersion {
	v := SecretVersion{
		Version: string(m.Version), State: "previous", Created: m.Created.UTC(), Issuer: optional(m.Issuer),
		Serial: optional(m.Serial), SHA256: optional(m.SHA256),
		DNSNames: sorted(m.DNSNames), Addresses: sorted(m.IPAddresses), NotBefore: optionalTime(m.NotBefore), NotAfter: optionalTime(m.NotAfter),
		KeyType: optional(m.KeyType), ChainPEM: optional(m.ChainPEM), Groups: sorted(u.groups[m.Version]),
	}
	if m.Profile != nil {
		v.Profile = optional(*m.Profile)
	}
	switch {
	case u.held[m.Version]:
		v.State = "held"
	case len(v.Groups) > 0, u.carried[m.Version]:
		v.State = "current"
	}
	return v
}

func (s *Server) snapshots(r *http.Request) (any, error) {
	heads, err := s.Cache.Heads(r.Context())
	if err != nil {
		return nil, err
	}
	at := map[uint64][]string{}
	for _, g := range s.Live().Groups {
		if snapshot, ok := s.Cache.At(g.Name); ok {
			at[snapshot.Number] = append(at[snapshot.Number], g.Name)
		}
	}
	out := Snapshots{Snapshots: []SnapshotHead{}}
	for _, h := range heads {
		out.Snapshots = append(out.Snapshots, SnapshotHead{
			Number: h.Number, Parent: optional(h.Parent), Reason: h.Reason, Created: h.Created, Groups: sorted(at[h.Number]),
		})
	}
	return out, nil
}

func (s *Server) snapshot(r *http.Request) (any, error) {
	snapshot, err := s.find(r, "number")
	if err != nil {
		return nil, err
	}
	out := Snapshot{
		Number: snapshot.Number, Parent: optional(snapshot.Parent), Reason: snapshot.Reason, Created: snapshot.Created.UTC(), Secrets: []NameVersion{},
	}
	for name, v := range snapshot.Secrets.All() {
		out.Secrets = append(out.Secrets, NameVersion{Name: name, Version: string(v)})
	}
	slices.SortFunc(out.Secrets, func(a, b NameVersion) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func (s *Server) find(r *http.Request, part string) (*cache.Snapshot, error) {
	n, err := strconv.ParseUint(r.PathValue(part), 10, 64)
	if err != nil {
		return nil, fail(http.StatusBadRequest, "snapshot "+strconv.Quote(r.PathValue(part))+": not a number", "see `snapshots list`")
	}
	return s.Cache.Snapshot(r.Context(), n)
}

func (s *Server) diff(r *http.Request) (any, error) {
	from, err := s.find(r, "number")
	if err != nil {
		return nil, err
	}
	to, err := s.find(r, "other")
	if err != nil {
		return nil, err
	}
	out := Diff{From: from.Number, To: to.Number, Changes: []DiffEntry{}}
	for name, v := range from.Secrets.Diff(to.Secrets) {
		have, _ := from.Secrets.Version(name)
		out.Changes = append(out.Changes, DiffEntry{Secret: name, From: optionalVersion(have), To: optionalVersion(v)})
	}
	slices.SortFunc(out.Changes, func(a, b DiffEntry) int { return strings.Compare(a.Secret, b.Secret) })
	return out, nil
}

func (s *Server) bootstrap(r *http.Request) (any, error) {
	live, name := s.Live(), r.PathValue("group")
	group, ok := live.group(name)
	if !ok {
		return nil, unknownGroup(live, name)
	}
	info := BootstrapInfo{Group: name, Challenge: live.Challenge, Secrets: []BootstrapSecret{}, Server: []string{}}
	l := slices.IndexFunc(live.SDS, func(l SDSListener) bool { return len(l.Groups) == 0 || slices.Contains(l.Groups, name) })
	if l < 0 {
		return nil, fail(http.StatusConflict, "no SDS listener serves group "+strconv.Quote(name), "add the group to `groups` of a listener under xds.listeners")
	}
	info.Listener, info.Unix, info.Plaintext, info.Server = live.SDS[l].Address, live.SDS[l].Unix, live.SDS[l].Plain, append(info.Server, live.SDS[l].Names...)
	metas, err := s.Cache.Secrets(r.Context())
	if err != nil {
		return nil, err
	}
	names := map[string][]string{}
	for _, m := range slices.Backward(metas) { // the newest last
		delete(names, m.Name)
		if m.Kind == secret.KindTLSCertificate { // what else a listener is to have is for a person to say
			names[m.Name] = m.DNSNames
		}
	}
	for _, c := range live.Certificates { // also those that were never issued
		names[c.Name] = c.DNSNames
	}
	for n, dns := range names {
		if group.Allows(n) {
			info.Secrets = append(info.Secrets, BootstrapSecret{Name: n, DNSNames: sorted(dns)})
		}
	}
	slices.SortFunc(info.Secrets, func(a, b BootstrapSecret) int { return strings.Compare(a.Name, b.Name) })
	return info, nil
}

func unknownGroup(live Live, name string) error {
	names := make([]string, 0, len(live.Groups))
	for _, g := range live.Groups {
		names = append(names, g.Name)
	}
	return fail(http.StatusNotFound, "no group named "+strconv.Quote(name), "configured are: "+strings.Join(names, ", "))
}

// sorted returns a sorted copy, never nil: an empty list is [].
func sorted(names []string) []string {
	out := append([]string{}, names...)
	slices.Sort(out)
	return out
}

// optional is nil for a zero value: absent is null.
func optional[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

func optionalTime(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}

func optionalVersion(v secret.Version) *string { return optional(string(v)) }
