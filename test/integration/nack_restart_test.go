package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// bareEdge is the SDS edge with nobody who takes a rejected version back: the group stays at it, as where a NACK of one node alone waits for
// an operator. One Envoy stands at it.
type bareEdge struct {
	*testenv.T
	store  store.Store
	cache  *cache.Cache
	server *sds.Server
	socket string
	https  string
	envoy  *testenv.Envoy
	stop   func()
}

func startBareEdge(t *testing.T, api bootstrap.API, names ...string) *bareEdge {
	t.Helper()
	e := newBareEdge(t)
	e.startEnvoy(fixedNames(api, names...), e.socket)
	return e
}

// startBare is one whose Envoy has other options; its addresses are filled in.
func startBare(t *testing.T, o bootstrap.Options) *bareEdge {
	t.Helper()
	e := newBareEdge(t)
	e.startEnvoy(o, e.socket)
	return e
}

// fixedNames are the options of an Envoy that asks for some names.
func fixedNames(api bootstrap.API, names ...string) bootstrap.Options {
	o := bootstrap.Options{API: api}
	for _, n := range names {
		o.Secrets = append(o.Secrets, bootstrap.Secret{Name: n, DNSNames: []string{n}})
	}
	return o
}

// newBareEdge is one without an Envoy.
func newBareEdge(t *testing.T) *bareEdge {
	t.Helper()
	e := &bareEdge{T: testenv.NewT(t)}
	e.socket, e.https = filepath.Join(e.Dir, "run", "s"), e.Address()
	var err error
	e.store, err = bbolt.Open(bbolt.Options{Path: filepath.Join(e.Dir, "data", "store.db")})
	must(t, err)
	t.Cleanup(func() { must(t, e.store.Close()) })
	e.start()
	t.Cleanup(func() { e.stop() })
	return e
}

// startEnvoy starts the Envoy at a socket, with each old text of its configuration replaced by the new one that follows it.
func (e *bareEdge) startEnvoy(o bootstrap.Options, socket string, oldnew ...string) {
	e.Helper()
	o.NodeID, o.Cluster, o.AdminAddress, o.HTTPSAddress = "canary-1", "canary", e.Address(), e.https
	o.SDS = bootstrap.SDS{UnixPath: socket}
	config, err := bootstrap.Render(o)
	must(e, err)
	config, err = testenv.Substitute(config, oldnew...)
	must(e, err)
	e.envoy = e.Envoy(testenv.EnvoyOptions{Name: "canary", Config: config})
	must(e, e.envoy.WaitReady(e.Ready()))
}

// start makes a server over what is stored, and opens the socket.
func (e *bareEdge) start() {
	e.Helper()
	log := slog.New(slog.NewTextHandler(e.Output(), nil))
	var err error
	e.cache, err = cache.Open(e.Context(), cache.Options{Store: e.store, Log: log})
	must(e, err)
	plan := e.cache.Plan()
	must(e, plan.AddGroup(e.Context(), "canary"))
	must(e, plan.Commit(e.Context()))
	e.server, err = sds.New(e.Context(), sds.Options{
		Cache: e.cache, Policy: sds.NewPolicy([]sds.Group{{Name: "canary", Secrets: []string{"*"}}}), Replica: "test", Log: log,
		Registerer: prometheus.NewRegistry(), Store: e.store,
	})
	must(e, err)
	l, err := sds.ListenUnix(e.Context(), e.socket, 0o600, -1, -1)
	must(e, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.Context()))
	server, ended := e.server, make(chan error, 2)
	go func() { ended <- server.Run(ctx) }()
	go func() { ended <- server.Serve(ctx, sds.Listener{Listener: l, Unix: true, Groups: []string{"canary"}}) }()
	e.stop = func() {
		bounded, done := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer done()
		server.Shutdown(bounded)
		cancel()
		for range 2 {
			must(e, <-ended)
		}
	}
}

func (e *bareEdge) restart() {
	e.Helper()
	e.stop()
	e.start()
}

// put moves the group to a new certificate and returns its version and serial. One that is broken has the key of another. Its DNS names are
// the secret's name, unless others are given.
func (e *bareEdge) put(ca *testenv.Authority, name string, broken bool, dnsNames ...string) (secret.Version, string) {
	e.Helper()
	if len(dnsNames) == 0 {
		dnsNames = []string{name}
	}
	leaf, err := ca.Issue(testenv.LeafOptions{DNSNames: dnsNames})
	must(e, err)
	key, version := leaf.KeyPEM, secret.Version(fmt.Sprintf("%064x", time.Now().UnixNano()))
	if broken {
		other, err := ca.Issue(testenv.LeafOptions{DNSNames: []string{name}})
		must(e, err)
		key = other.KeyPEM
	}
	root, err := os.ReadFile(ca.File)
	must(e, err)
	record, err := json.Marshal(map[string]any{
		"name": name, "kind": secret.KindTLSCertificate, "version": version, "created": time.Now().UTC(), "source": cache.SourceImport,
		"dns_names": dnsNames, "not_after": time.Now().Add(time.Hour), "chain_pem": string(slices.Concat(leaf.CertPEM, root)), "key_pem": string(key),
	})
	must(e, err)
	_, err = e.store.Commit(e.Context(), nil, []store.Operation{store.Put(store.Key("secret", name, string(version)), record)})
	must(e, err)
	plan := e.cache.Plan()
	_, err = plan.Move(e.Context(), "canary", map[string]secret.Version{name: version}, cache.Why{Reason: "test"})
	must(e, err)
	must(e, plan.Commit(e.Context()))
	return version, testenv.Serial(leaf.TLS.Leaf)
}

func (e *bareEdge) serves(name, serial string) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		leaf, _, err := testenv.Handshake(ctx, e.https, name, nil)
		if err == nil && testenv.Serial(leaf) != serial {
			err = fmt.Errorf("%s is served under %s, want %s", testenv.Serial(leaf), name, serial)
		}
		return err
	}))
}

// nacked waits until the node is connected with its NACK of a version on record, and returns the message.
func (e *bareEdge) nacked(name string, version secret.Version) (message string) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(context.Context) error {
		for _, n := range e.server.Nodes() {
			i := slices.IndexFunc(n.Secrets, func(s sds.NodeSecret) bool { return s.Name == name && s.Nacked != nil && s.Nacked.Version == version })
			if n.State == sds.Nacked && i >= 0 {
				message = n.Secrets[i].Nacked.Message
				return nil
			}
		}
		return fmt.Errorf("nodes %+v", e.server.Nodes())
	}))
	return message
}

// rejections is what Envoy counts; of ADS there is one counter for all secrets, too.
func (e *bareEdge) rejections(name string) string {
	e.Helper()
	stat := "sds." + name + ".update_rejected"
	values, err := e.envoy.Stats(e.Ready(), "^"+strings.ReplaceAll(stat, ".", `\.`)+"$")
	must(e, err)
	return values[stat]
}

func TestNackedBytesAreSentOnceAlsoAfterARestart(t *testing.T) {
	for _, api := range []bootstrap.API{bootstrap.Delta, bootstrap.SotW, bootstrap.ADSDelta, bootstrap.ADSSotW} {
		t.Run(string(api), func(t *testing.T) {
			const bad, good = "bad.example", "good.example"
			e := startBareEdge(t, api, bad, good)
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			_, old := e.put(ca, bad, false)
			_, other := e.put(ca, good, false)
			e.serves(bad, old)
			e.serves(good, other)

			version, _ := e.put(ca, bad, true)
			message := e.nacked(bad, version)
			if message == "" {
				t.Error("the NACK has no message")
			}
			for range 2 {
				e.restart()
				if got := e.nacked(bad, version); got != message {
					t.Errorf("message after the restart %q, want %q", got, message)
				}
				_, next := e.put(ca, good, false) // the other secret goes on
				e.serves(good, next)
				e.serves(bad, old)
				if got := e.rejections(bad); got != "1" {
					t.Errorf("%s rejections, want 1: the bad bytes are sent once", got)
				}
			}
			_, renewed := e.put(ca, bad, false)
			e.serves(bad, renewed)
		})
	}
}
