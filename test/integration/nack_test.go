package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// edge is the SDS edge with the rollout controller in this process, so that a test can put a version into the store that no validation has
// seen: what Envoy says to it cannot be had otherwise.
type edge struct {
	*testenv.T
	store   store.Store
	cache   *cache.Cache
	server  *sds.Server
	rollout *rollout.Controller
	policy  rollout.Policy
	envoys  map[string]*testenv.Envoy
	https   map[string]string
}

var edgeGroups = []string{"canary", "production"}

func startEdge(t *testing.T, api bootstrap.API, names ...string) *edge {
	t.Helper()
	e := newEdge(t)
	for _, g := range edgeGroups {
		e.startNode(g, api, names)
	}
	return e
}

// newEdge makes an edge without Envoys.
func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{T: testenv.NewT(t), policy: edgePolicy(), envoys: map[string]*testenv.Envoy{}, https: map[string]string{}}
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	var err error
	e.store, err = bbolt.Open(bbolt.Options{Path: filepath.Join(e.Dir, "data", "store.db")})
	must(t, err)
	t.Cleanup(func() { must(t, e.store.Close()) })
	e.cache, err = cache.Open(t.Context(), cache.Options{Store: e.store, Log: log})
	must(t, err)
	var groups []sds.Group
	for _, g := range edgeGroups {
		groups = append(groups, sds.Group{Name: g, Secrets: []string{"*"}})
	}
	e.server, err = sds.New(t.Context(), sds.Options{
		Cache: e.cache, Policy: sds.NewPolicy(groups), Replica: "test", Log: log, Registerer: prometheus.NewRegistry(), Store: e.store,
		OnChange: func(string) { e.rollout.Wake() },
	})
	must(t, err)
	e.rollout, err = rollout.New(t.Context(), rollout.Options{Cache: e.cache, Store: e.store, Fleet: ledger{e.server}, Policy: e.policy, Log: log, Released: e.server.Release, Refers: e.server.Refers})
	must(t, err)
	must(t, e.rollout.Reconfigure(t.Context(), e.policy))
	e.background(e.rollout.Run)
	e.background(e.server.Run)
	return e
}

func edgePolicy() rollout.Policy {
	return rollout.Policy{
		Waves: [][]string{{"canary"}, {"production"}}, AckTimeout: time.Minute, NodeGrace: 10 * time.Minute, RetryAfter: time.Hour,
		Managed: func(string) bool { return true },
	}
}

// background runs a part until the end of the test.
func (e *edge) background(run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.Context()))
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	e.Cleanup(func() {
		cancel()
		if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
			e.Errorf("background: %v", err)
		}
	})
}

func (e *edge) startNode(group string, api bootstrap.API, names []string) {
	e.Helper()
	var secrets []bootstrap.Secret
	for _, n := range names {
		secrets = append(secrets, bootstrap.Secret{Name: n, DNSNames: []string{n}})
	}
	e.startEnvoy(group, bootstrap.Options{API: api, Secrets: secrets})
}

// startEnvoy starts the Envoy of a group with a listener of its own at the server; the addresses are filled in.
func (e *edge) startEnvoy(group string, o bootstrap.Options) {
	e.Helper()
	socket := filepath.Join(e.Dir, group, "s")
	l, err := sds.ListenUnix(e.Context(), socket, 0o600, -1, -1)
	must(e, err)
	e.background(func(ctx context.Context) error {
		return e.server.Serve(ctx, sds.Listener{Listener: l, Unix: true, Groups: []string{group}})
	})
	e.https[group] = e.Address()
	o.NodeID, o.Cluster, o.AdminAddress, o.HTTPSAddress = group+"-1", group, e.Address(), e.https[group]
	o.SDS = bootstrap.SDS{UnixPath: socket}
	config, err := bootstrap.Render(o)
	must(e, err)
	e.envoys[group] = e.Envoy(testenv.EnvoyOptions{Name: group, Config: config})
	must(e, e.envoys[group].WaitReady(e.Ready()))
}

// ledger lets the controller ask the edge, as the server does.
type ledger struct{ server *sds.Server }

func (l ledger) Displaces(group, name string, dnsNames []string) bool {
	return l.server.Displaces(group, name, dnsNames)
}

func (l ledger) Progress(group string, want map[string]secret.Version) []rollout.NodeProgress {
	var out []rollout.NodeProgress
	for _, n := range l.server.Progress(group, want) {
		p := rollout.NodeProgress{Identity: n.Identity, Node: n.Node, Connected: n.Connected, Acked: n.Acked, Since: n.Since, LastSeen: n.LastSeen}
		if n.NACK != nil {
			p.Nacked = &rollout.NACK{Secret: n.NACK.Secret, Version: n.NACK.Version, Message: n.NACK.Message}
		}
		out = append(out, p)
	}
	return out
}

// accept takes in a good certificate for a secret and returns its serial. Its DNS names are the secret's name, unless others are given.
func (e *edge) accept(ca *testenv.Authority, name string, dnsNames ...string) string {
	e.Helper()
	if len(dnsNames) == 0 {
		dnsNames = []string{name}
	}
	leaf, err := ca.Issue(testenv.LeafOptions{DNSNames: dnsNames})
	must(e, err)
	root, err := os.ReadFile(ca.File)
	must(e, err)
	s, err := secret.ParseCertificate(name, slices.Concat(leaf.CertPEM, root), leaf.KeyPEM)
	must(e, err)
	_, err = e.rollout.Accept(e.Context(), rollout.Proposal{Secret: s, Source: cache.SourceImport, Reason: "test"})
	must(e, err)
	return s.Serial()
}

// sneak stores a version that validation would refuse, and has it rolled out.
func (e *edge) sneak(ca *testenv.Authority, name string, dnsNames ...string) secret.Version {
	e.Helper()
	if len(dnsNames) == 0 {
		dnsNames = []string{name}
	}
	leaf, err := ca.Issue(testenv.LeafOptions{DNSNames: []string{name}})
	must(e, err)
	other, err := ca.Issue(testenv.LeafOptions{DNSNames: []string{name}})
	must(e, err)
	version := secret.Version(fmt.Sprintf("%064x", time.Now().UnixNano()))
	record, err := json.Marshal(map[string]any{
		"name": name, "kind": secret.KindTLSCertificate, "version": version, "created": time.Now().UTC(), "source": cache.SourceImport,
		"dns_names": dnsNames, "not_after": time.Now().Add(time.Hour), "chain_pem": string(leaf.CertPEM), "key_pem": string(other.KeyPEM),
	})
	must(e, err)
	_, err = e.store.Commit(e.Context(), nil, []store.Operation{store.Put(store.Key("secret", name, string(version)), record)})
	must(e, err)
	must(e, e.rollout.Reconfigure(e.Context(), e.policy))
	return version
}

func (e *edge) serves(group, name, serial string) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		leaf, _, err := testenv.Handshake(ctx, e.https[group], name, nil)
		if err != nil {
			return err
		}
		if got := testenv.Serial(leaf); got != serial {
			return fmt.Errorf("%s serves %s under %s, want %s", group, got, name, serial)
		}
		return nil
	}))
}

func TestRejectedVersionGoesBackByItselfAndProductionNeverSeesIt(t *testing.T) {
	for _, api := range []bootstrap.API{bootstrap.Delta, bootstrap.SotW, bootstrap.ADSDelta, bootstrap.ADSSotW} {
		t.Run(string(api), func(t *testing.T) {
			const bad, good = "bad.example", "good.example"
			e := startEdge(t, api, bad, good)
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			old, other := e.accept(ca, bad), e.accept(ca, good)
			for _, g := range edgeGroups {
				e.serves(g, bad, old)
				e.serves(g, good, other)
			}

			version := e.sneak(ca, bad)
			e.expectHold(version)
			if active := e.rollout.Active(); len(active) != 0 {
				t.Errorf("rollouts under way: %+v", active)
			}
			e.expectNodes(bad, version)

			next := e.accept(ca, good) // a secret of the same node goes on
			for _, g := range edgeGroups {
				e.serves(g, bad, old)
				e.serves(g, good, next)
			}
			renewed := e.accept(ca, bad) // and so does the next version of the bad one
			for _, g := range edgeGroups {
				e.serves(g, bad, renewed)
			}
		})
	}
}

// An Envoy ACKs bytes that it rejected before without applying them: what is released has to be judged anew.
func TestReleasedVersionIsJudgedAnew(t *testing.T) {
	for _, api := range []bootstrap.API{bootstrap.Delta, bootstrap.SotW} {
		t.Run(string(api), func(t *testing.T) {
			const name = "bad.example"
			e := startEdge(t, api, name)
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			old := e.accept(ca, name)
			for _, g := range edgeGroups {
				e.serves(g, name, old)
			}
			version := e.sneak(ca, name)
			e.expectHold(version)
			for range 2 {
				first := e.rollout.Holds()[0].Since
				_, err = e.rollout.Release(t.Context(), name, "")
				must(t, err)
				must(t, testenv.Eventually(e.Ready(), func(context.Context) error {
					if h := e.rollout.Holds(); len(h) != 1 || !h[0].Since.After(first) {
						return fmt.Errorf("holds %+v, want a new one of %s", h, version.Short())
					}
					return nil
				}))
				for _, g := range edgeGroups {
					e.serves(g, name, old)
				}
				if at, _ := e.cache.At("production"); at != nil {
					if v, _ := at.Secrets.Version(name); v == version {
						t.Fatal("production was moved to the released version that canary rejects")
					}
				}
			}
		})
	}
}

// expectHold waits until the version is held as the culprit.
func (e *edge) expectHold(version secret.Version) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(context.Context) error {
		holds := e.rollout.Holds()
		if len(holds) != 1 || holds[0].Kind != rollout.Hard || holds[0].Version != version {
			return fmt.Errorf("holds %+v, want a hard one of %s", holds, version.Short())
		}
		return nil
	}))
}

// expectNodes checks that canary's NACK is on record with Envoy's message, and that production was never sent the version.
func (e *edge) expectNodes(name string, version secret.Version) {
	e.Helper()
	nacked := map[string]string{}
	for _, n := range e.server.Nodes() {
		for _, s := range n.Secrets {
			if s.Nacked != nil {
				nacked[n.ID+" "+s.Name] = s.Nacked.Message
			}
			if n.Group == "production" && s.Sent != nil && s.Sent.Version == version {
				e.Errorf("production was sent %s", version.Short())
			}
		}
	}
	if keys := slices.Sorted(maps.Keys(nacked)); !slices.Equal(keys, []string{"canary-1 " + name}) {
		e.Errorf("NACKs on record: %v, want that of canary-1 for %s alone", keys, name)
	}
	if got := nacked["canary-1 "+name]; got == "" {
		e.Error("the NACK has no message")
	}
	rejected, err := e.envoys["canary"].Stats(e.Ready(), "sds."+name+".update_rejected")
	must(e, err)
	for stat, value := range rejected {
		if value != "1" {
			e.Errorf("%s: %s, want 1: the bad bytes are sent once", stat, value)
		}
	}
}
