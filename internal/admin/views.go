package admin

import (
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
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
			Name: m.Name, Kind: string(m.Kind), Version: string(m.Version), Serial: m.Serial, NotAfter: m.NotAfter,
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
	for _, m := range metas {
		out.Versions = append(out.Versions, s.version(m))
	}
	return out, nil
}

// version describes a stored version; its state says why it is kept.
func (s *Server) version(m cache.Meta) SecretVersion {
	v := SecretVersion{
		Version: string(m.Version), State: "previous", Created: m.Created, Issuer: optional(m.Issuer), Serial: m.Serial, SHA256: m.SHA256,
		DNSNames: m.DNSNames, NotBefore: m.NotBefore, NotAfter: m.NotAfter, KeyType: m.KeyType, ChainPEM: m.ChainPEM, Groups: []string{},
	}
	if v.DNSNames == nil {
		v.DNSNames = []string{}
	}
	for _, g := range s.Live().Groups {
		if at, ok := s.Cache.At(g.Name); ok {
			if have, _ := at.Secrets.Version(m.Name); have == m.Version {
				v.State = "current"
				v.Groups = append(v.Groups, g.Name)
			}
		}
	}
	slices.Sort(v.Groups)
	for _, h := range s.Rollout.Holds() {
		if h.Secret == m.Name && h.Version == m.Version {
			v.State = "held"
		}
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
		groups := append([]string{}, at[h.Number]...)
		slices.Sort(groups)
		out.Snapshots = append(out.Snapshots, SnapshotHead{
			Number: h.Number, Parent: optional(h.Parent), Reason: h.Reason, Created: h.Created, Groups: groups,
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
		Number: snapshot.Number, Parent: optional(snapshot.Parent), Reason: snapshot.Reason, Created: snapshot.Created, Secrets: []NameVersion{},
	}
	for name, v := range snapshot.Secrets.All() {
		out.Secrets = append(out.Secrets, NameVersion{Name: name, Version: string(v)})
	}
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
		out.Changes = append(out.Changes, DiffEntry{Secret: name, From: optional(string(have)), To: optional(string(v))})
	}
	slices.SortFunc(out.Changes, func(a, b DiffEntry) int { return compare(a.Secret, b.Secret) })
	return out, nil
}

func (s *Server) rollouts(r *http.Request) (any, error) {
	list := s.Rollout.Active()
	if r.URL.Query().Has("all") {
		history, err := s.Rollout.History(r.Context())
		if err != nil {
			return nil, err
		}
		live := map[uint64]*rollout.Rollout{}
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
	out := Rollouts{Rollouts: []Rollout{}}
	for _, a := range list {
		out.Rollouts = append(out.Rollouts, printed(a))
	}
	return out, nil
}

// printed turns a rollout into its pinned form.
func printed(r *rollout.Rollout) Rollout {
	out := Rollout{ID: r.ID, State: r.State, Reason: r.Reason, Started: r.Started, Wave: r.Wave, Log: r.Log, Change: []Change{}, Waves: []Wave{}}
	for _, c := range r.Change {
		out.Change = append(out.Change, Change{
			Secret: c.Secret, From: optional(string(c.From)), To: optional(string(c.To)), Kind: c.Kind,
		})
	}
	for _, w := range r.Waves {
		out.Waves = append(out.Waves, Wave{
			Groups: w.Groups, State: w.State, Snapshot: optional(w.Snapshot), Nodes: w.Nodes, Gates: []struct{}{},
		})
	}
	return out
}

func (s *Server) bootstrap(r *http.Request) (any, error) {
	live, name := s.Live(), r.PathValue("group")
	i := slices.IndexFunc(live.Groups, func(g Group) bool { return g.Name == name })
	if i < 0 {
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
	for _, c := range live.Certificates {
		names[c] = nil
	}
	for _, m := range slices.Backward(metas) { // the newest last
		names[m.Name] = m.DNSNames
	}
	for n, dns := range names {
		if live.Groups[i].Allows(n) {
			info.Secrets = append(info.Secrets, BootstrapSecret{Name: n, DNSNames: dns})
		}
	}
	slices.SortFunc(info.Secrets, func(a, b BootstrapSecret) int { return compare(a.Name, b.Name) })
	return info, nil
}

func unknownGroup(live Live, name string) error {
	names := make([]string, 0, len(live.Groups))
	for _, g := range live.Groups {
		names = append(names, g.Name)
	}
	return fail(http.StatusNotFound, "no group named "+strconv.Quote(name), "configured are: "+list(names))
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
