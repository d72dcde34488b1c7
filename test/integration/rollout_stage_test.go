package integration

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/credentials/insecure"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// stage is the server as a process without a CA, with real Envoys in groups that are moved one after the other.
type stage struct {
	*standalone
	stageOptions
	http     string
	envoys   map[string]*testenv.Envoy // by node
	https    map[string]string         // of the Envoys, by node
	loads    map[string]*testenv.Load  // by node
	starts   int
	rendered map[string][]byte // bootstraps, by node
}

// stageOptions say what a stage is made of.
type stageOptions struct {
	groups  []stageGroup
	secrets []string // that the Envoys serve
	later   []string // those of them that are not there from the start
	policy  string   // of rollout, as YAML, without waves
	verify  bool     // by handshakes with the Envoys
}

// stageGroup is a group, and its Envoys.
type stageGroup struct {
	name  string
	nodes int
	more  []string // endpoints of the site to be looked at besides
	with  []string // other groups of its wave
}

// canaryAndProduction is what most tests use.
func canaryAndProduction() []stageGroup {
	return []stageGroup{{name: "canary", nodes: 1}, {name: "production", nodes: 2}}
}

// startStage starts the server and the Envoys, and waits until all of them serve.
func startStage(t *testenv.T, o stageOptions) *stage {
	t.Helper()
	s := &stage{
		standalone: newStandalone(t), stageOptions: o, http: t.Address(), envoys: map[string]*testenv.Envoy{}, https: map[string]string{},
		loads: map[string]*testenv.Load{}, rendered: map[string][]byte{},
	}
	for _, node := range s.nodes() {
		s.https[node] = t.Address()
	}
	s.run("init", "--dir", filepath.Dir(s.config), "--listen", s.address)
	s.configure()
	s.startServer()
	for _, name := range o.secrets {
		if !slices.Contains(o.later, name) {
			s.add(name)
		}
	}
	for _, g := range o.groups {
		for i := range g.nodes {
			s.startNode(g.name, i+1)
		}
	}
	for _, node := range s.nodes() {
		must(t, s.envoys[node].WaitReady(t.Ready()))
		s.serves(node, o.secrets[0], s.serials[o.secrets[0]])
	}
	return s
}

// nodes are the ids of all Envoys.
func (s *stage) nodes() (nodes []string) {
	for _, g := range s.groups {
		for i := range g.nodes {
			nodes = append(nodes, fmt.Sprintf("%s-%d", g.name, i+1))
		}
	}
	return nodes
}

// nodesOf are those of a group.
func (s *stage) nodesOf(group string) []string {
	return slices.DeleteFunc(s.nodes(), func(n string) bool { return !strings.HasPrefix(n, group+"-") })
}

func (s *stage) sdsSocket(group string) string { return filepath.Join(s.Dir, "run", group+".sock") }

// configure writes the configuration; see reload.
func (s *stage) configure() {
	s.Helper()
	var listeners, groups strings.Builder
	var waves []string
	for _, g := range s.groups {
		fmt.Fprintf(&listeners, "    - {address: \"unix://%s\", groups: [%s]}\n", s.sdsSocket(g.name), g.name)
		var endpoints []string
		for _, node := range s.nodesOf(g.name) {
			endpoints = append(endpoints, fmt.Sprintf("{address: %q, node: %s}", s.https[node], node))
		}
		for _, address := range g.more {
			endpoints = append(endpoints, fmt.Sprintf("{address: %q, node: %s-1, server_names: [%s]}", address, g.name, site))
		}
		verify := ""
		if s.verify {
			verify = fmt.Sprintf(", verify: {endpoints: [%s], roots_file: %s, timeout: 3s}", strings.Join(endpoints, ", "), s.ca.File)
		}
		fmt.Fprintf(&groups, "  - {name: %s, identities: [\"unix:uid=%d\"], secrets: [\"*\"]%s}\n", g.name, os.Getuid(), verify)
		for _, other := range g.with {
			fmt.Fprintf(&groups, "  - {name: %s, secrets: [\"*\"]}\n", other)
		}
		waves = append(waves, "["+strings.Join(append(slices.Clone(g.with), g.name), ", ")+"]")
	}
	text := fmt.Sprintf(`data_dir: data
seal: {key_file: seal.key}
admin: {address: "unix://%s"}
http: {address: "%s"}
xds:
  listeners:
%sgroups:
%srollout: {waves: [%s], %s}
`, s.adminSocket, s.http, listeners.String(), groups.String(), strings.Join(waves, ", "), s.policy)
	must(s, os.WriteFile(s.config+".new", []byte(text), 0o600))
	must(s, os.Rename(s.config+".new", s.config))
}

// reload has the running server take up the configuration.
func (s *stage) reload() {
	s.Helper()
	before := s.status()
	s.configure()
	must(s, testenv.Eventually(s.Ready(), func(ctx context.Context) error {
		now := s.status()
		if !now.Config.OK {
			return fmt.Errorf("configuration refused: %s", *now.Config.Error)
		}
		if !now.Config.LoadedAt.After(before.Config.LoadedAt) {
			return fmt.Errorf("the configuration of %s is in force", before.Config.LoadedAt)
		}
		return nil
	}))
}

// startServer starts the server, also again after it was killed.
func (s *stage) startServer() {
	s.Helper()
	s.starts++
	s.process = s.Process(testenv.ProcessOptions{Name: fmt.Sprintf("sds-server-%d", s.starts), Path: binary(s), Args: []string{"serve", "-c", s.config}})
	must(s, s.process.WaitHTTP(s.Ready(), "http://"+s.http+"/readyz"))
}

// startNode starts an Envoy of a group; edits are pairs of texts of its bootstrap, the old one and the new one.
func (s *stage) startNode(group string, number int, edits ...string) {
	s.Helper()
	node := fmt.Sprintf("%s-%d", group, number)
	o := bootstrap.Options{
		NodeID: node, Cluster: group, AdminAddress: s.Address(), HTTPSAddress: s.https[node], SDS: bootstrap.SDS{UnixPath: s.sdsSocket(group)}, API: bootstrap.ADSDelta,
	}
	for _, name := range s.secrets {
		o.Secrets = append(o.Secrets, bootstrap.Secret{Name: name, DNSNames: []string{name}})
	}
	config, err := bootstrap.Render(o)
	must(s, err)
	s.rendered[node], err = testenv.Substitute(config, edits...)
	must(s, err)
	s.envoys[node] = s.Envoy(testenv.EnvoyOptions{Name: node, Config: s.rendered[node]})
}

// load begins handshakes with all Envoys that go on until the end of the test.
func (s *stage) load() {
	s.Helper()
	for node, address := range s.https {
		s.loads[node] = gentleLoad(s.T, address, s.ca.Pool)
	}
}

// good ends the loads of nodes; none of their handshakes may have failed.
func (s *stage) good(nodes ...string) {
	s.Helper()
	for _, node := range nodes {
		l := s.loads[node]
		must(s, l.WaitMade(s.Ready(), 5)) // the last one has begun after everything else
		l.Stop()
		if l.Failed() > 0 {
			s.Errorf("%s: %d handshakes made, %d failed: %v", node, l.Made(), l.Failed(), l.Errors())
		}
	}
}

// brings imports a certificate of an authority under its name as DNS name, and returns what the server says.
func (s *stage) brings(ca *testenv.Authority, name string) admin.Accepted {
	s.Helper()
	return s.bringsWith(ca, name, testenv.LeafOptions{DNSNames: []string{name}})
}

func (s *stage) bringsWith(ca *testenv.Authority, name string, o testenv.LeafOptions) (a admin.Accepted) {
	s.Helper()
	leaf, err := ca.Issue(o)
	must(s, err)
	root, err := os.ReadFile(ca.File)
	must(s, err)
	request := admin.ImportRequest{Name: name, ChainPEM: string(leaf.CertPEM) + string(root), KeyPEM: string(leaf.KeyPEM)}
	must(s, s.admin.Post(s.Context(), "/v1/secrets", request, &a))
	if a.Rollout == nil {
		s.Fatalf("%s: no rollout begins: %+v", name, a)
	}
	return a
}

// bringsAll imports a good certificate for each name at the same time.
func (s *stage) bringsAll(names ...string) map[string]admin.Accepted {
	s.Helper()
	all := map[string]admin.Accepted{}
	var mu sync.Mutex
	var group sync.WaitGroup
	for _, name := range names {
		group.Go(func() {
			a := s.brings(s.ca, name)
			mu.Lock()
			defer mu.Unlock()
			all[name] = a
		})
	}
	group.Wait()
	return all
}

func (s *stage) status() (st admin.Status) {
	s.Helper()
	must(s, s.admin.Get(s.Context(), "/v1/status", &st))
	return st
}

// seen is a rollout as it is now; one that goes on with another one is followed there.
func (s *stage) seen(id uint64) admin.Rollout {
	s.Helper()
	for {
		var r admin.Rollouts
		must(s, s.admin.Get(s.Context(), fmt.Sprintf("/v1/rollouts/%d", id), &r))
		if r.Rollouts[0].Joined == nil {
			return r.Rollouts[0]
		}
		id = *r.Rollouts[0].Joined
	}
}

// reaches waits until a rollout is in a state, which it has to come to before any other end.
func (s *stage) reaches(a admin.Accepted, state rollout.State) (r admin.Rollout) {
	s.Helper()
	must(s, testenv.Eventually(s.Ready(), func(context.Context) error {
		r = s.seen(*a.Rollout)
		if r.State == state {
			return nil
		}
		if r.State.Ended() {
			s.Fatalf("%s: rollout %d ended as %s (%s), want %s; its log: %s", a.Name, r.ID, r.State, r.Reason, state, logged(r))
		}
		return fmt.Errorf("%s: rollout %d is %s (%s), want %s", a.Name, r.ID, r.State, r.Reason, state)
	}))
	return r
}

// logged is the log of a rollout, line by line.
func logged(r admin.Rollout) string {
	var b strings.Builder
	for _, e := range r.Log {
		fmt.Fprintf(&b, "\n  %s %s: %s", e.At.Format("15:04:05.000"), e.State, e.Reason)
	}
	return b.String()
}

// states is the log of a rollout, without what comes again at once.
func states(r admin.Rollout) (all []string) {
	for _, e := range r.Log {
		all = append(all, string(e.State))
	}
	return slices.Compact(all)
}

// serves waits until a handshake with an Envoy shows a certificate.
func (s *stage) serves(node, name, serial string) {
	s.Helper()
	must(s, testenv.Eventually(s.Ready(), func(ctx context.Context) error {
		leaf, _, err := testenv.Handshake(ctx, s.https[node], name, nil)
		if err != nil {
			return fmt.Errorf("%s: %w", node, err)
		}
		if got := testenv.Serial(leaf); got != serial {
			return fmt.Errorf("%s serves %s under %s, want %s", node, got, name, serial)
		}
		return nil
	}))
}

// allServe waits until all Envoys show a certificate.
func (s *stage) allServe(name, serial string) {
	s.Helper()
	for _, node := range s.nodes() {
		s.serves(node, name, serial)
	}
}

// held waits until exactly one version is held, for a reason that has the text.
func (s *stage) held(a admin.Accepted, kind rollout.HoldKind, text string) {
	s.Helper()
	must(s, testenv.Eventually(s.Ready(), func(context.Context) error {
		h := s.status().Held
		if len(h) != 1 || h[0].Kind != kind || h[0].Version != a.Version || !strings.Contains(h[0].Reason, text) {
			return fmt.Errorf("held are %+v, want %s of %s (%s), because of %q", h, a.Version[:12], a.Name, kind, text)
		}
		return nil
	}))
}

// unseen fails where a version was ever sent to a group, or shown to a client there.
func (s *stage) unseen(group string, a admin.Accepted) {
	s.Helper()
	for _, e := range s.audited("push", a.Name) {
		if e.Version == a.Version && e.Group == group {
			s.Errorf("%s was sent version %s of %s: %+v", group, a.Version[:12], a.Name, e)
		}
	}
	for _, node := range s.nodesOf(group) {
		if l := s.loads[node]; l != nil {
			if seen, ok := l.Seen(a.Serial); ok {
				s.Errorf("%s showed %s to %d clients", node, a.Serial, seen.Count)
			}
		}
	}
}

// audited are the entries about a secret, of one kind of event; empty: of all.
func (s *stage) audited(event, name string) []auditEntry {
	s.Helper()
	var list admin.AuditEntries
	must(s, s.admin.Get(s.Context(), "/v1/audit?"+url.Values{"event": {event}, "secret": {name}}.Encode(), &list))
	var entries []auditEntry
	for _, e := range list.Entries { // they come oldest first
		entries = append(entries, auditEntry{e.Event, e.Version, e.Group, e.Nodes, e.Detail})
	}
	return entries
}

type auditEntry struct {
	Event, Version, Group string
	Nodes                 []string
	Detail                string
}

// silent is a node on the generated stubs that subscribes to one secret, ACKs what it gets first, and answers nothing after that. leave ends it.
func (s *stage) silent(group, node, name string) (leave func()) {
	s.Helper()
	conn := s.dial("unix://"+s.sdsSocket(group), insecure.NewCredentials())
	ctx, cancel := context.WithCancel(s.Context())
	s.Cleanup(cancel)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	must(s, err)
	must(s, stream.Send(&discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: node, Cluster: group}, TypeUrl: resource.SecretType, ResourceNamesSubscribe: []string{name},
	}))
	r, err := stream.Recv()
	must(s, err)
	must(s, stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResponseNonce: r.GetNonce()}))
	s.expectNode(node, func(n admin.Node) bool { return n.State == "SYNCED" })
	return cancel
}

var _ testing.TB = (*stage)(nil)
