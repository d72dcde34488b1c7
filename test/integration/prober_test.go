package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/verify"
)

// prober looks at one group for a rollout. What the group is at is set by the test, as the rollout would have moved it before.
type prober struct {
	*testenv.T
	*verify.Monitor
	source *movedSource
	woken  chan struct{}
}

// movedSource is a group that is moved while it is looked at.
type movedSource struct {
	mu    sync.Mutex
	group verify.Group              // guarded by mu
	known map[string]secret.Version // guarded by mu; by digest
}

func (s *movedSource) set(g verify.Group) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.group = g
}

func (s *movedSource) knows(digest string, version secret.Version) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known[digest] = version
}

func (s *movedSource) Groups(context.Context, ...string) []verify.Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	return []verify.Group{s.group}
}

func (s *movedSource) Current(_, name string) (verify.Leaf, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.group.Targets {
		for _, w := range t.Secrets {
			if w.Secret == name {
				return w.Leaf, true
			}
		}
	}
	return verify.Leaf{}, false
}

func (s *movedSource) Known(_ context.Context, _, digest string) (secret.Version, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	version, ok := s.known[digest]
	return version, ok
}

func newProber(t *testenv.T) *prober {
	t.Helper()
	p := &prober{T: t, source: &movedSource{known: map[string]secret.Version{}}, woken: make(chan struct{}, 1)}
	var err error
	p.Monitor, err = verify.New(verify.Options{
		Source: p.source, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: prometheus.NewRegistry(),
		Wake: func() {
			select {
			case p.woken <- struct{}{}:
			default:
			}
		},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		must(t, <-done)
	})
	return p
}

// begin asks for a round at an address where leaves are wanted.
func (p *prober) begin(address string, timeout time.Duration, leaves ...verify.Leaf) (end func() verify.Round) {
	p.Helper()
	target := verify.Target{Address: address, Node: "canary-1"}
	want := map[string]secret.Version{}
	for _, l := range leaves {
		target.Secrets = append(target.Secrets, verify.Wanted{Leaf: l, Asked: l.Secret})
		want[l.Secret] = l.Version
	}
	p.source.set(verify.Group{Name: "canary", Timeout: timeout, Targets: []verify.Target{target}})
	since := time.Now()
	p.Look("canary", want, since)
	return func() verify.Round {
		p.Helper()
		for {
			if r := p.Look("canary", want, since); !r.Ended.IsZero() {
				return r
			}
			select {
			case <-p.woken:
			case <-p.Ready().Done():
				p.Fatalf("no round has ended: %+v", p.Look("canary", want, since))
			}
		}
	}
}

// expect checks what a round showed; kind is that of its only finding, empty for none.
func (p *prober) expect(what string, r verify.Round, ok, failed int, kind verify.Kind, unseen bool) {
	p.Helper()
	findings := 1
	if kind == "" {
		findings = 0
	}
	if r.Targets != 1 || r.OK != ok || r.Failed != failed || len(r.Findings) != findings {
		p.Errorf("%s: got %+v, want %d and %d handshakes, and %q", what, r, ok, failed, kind)
	}
	for _, f := range r.Findings {
		if f.Kind != string(kind) || f.Unseen != unseen || f.Node != "canary-1" || f.Message == "" {
			p.Errorf("%s: got %+v, want %s, unseen %v", what, f, kind, unseen)
		}
	}
}

// An Envoy is the proof of a move: good ones, and each way in which one can be bad.
func TestRolloutLooksAtAnEnvoy(t *testing.T) {
	const name, wild = "a.example", "wild"
	o := bootstrap.Options{API: bootstrap.Delta, Secrets: []bootstrap.Secret{{Name: name, DNSNames: []string{name}}, {Name: wild, DNSNames: []string{"*.w.example"}}}}
	e := startBare(t, o)
	ca, err := testenv.NewAuthority(e.Dir, "ca")
	must(t, err)
	stranger, err := testenv.NewAuthority(e.Dir, "stranger")
	must(t, err)
	p := newProber(e.T)
	leaf := func(name string, version secret.Version) verify.Leaf {
		l := leafOf(t, name, version, []byte(e.meta(name, version).ChainPEM), ca.Pool)
		p.source.knows(l.SHA256, version)
		return l
	}

	var serial string
	for range 2 { // a look that comes at once waits for the Envoy
		var v secret.Version
		v, serial = e.put(ca, name, false)
		p.expect("good", p.begin(e.https, time.Minute, leaf(name, v))(), 2, 0, "", false)
	}
	good := leaf(name, e.at(name))
	v, _ := e.put(ca, wild, false, "*.w.example")
	p.expect("wildcard", p.begin(e.https, time.Minute, leaf(wild, v))(), 2, 0, "", false)
	p.expect("both", p.begin(e.https, time.Minute, good, leaf(wild, v))(), 4, 0, "", false)

	bad, _ := e.put(ca, name, true)
	e.nacked(name, bad)
	r := p.begin(e.https, time.Second, leaf(name, bad))()
	p.expect("rejected", r, 0, 2, verify.OldLeaf, false)
	if len(r.Findings) == 1 && (!strings.Contains(r.Findings[0].Message, serial) || r.Findings[0].Version != bad) {
		t.Errorf("got %+v, want that it names the certificate that is served, %s", r.Findings[0], serial)
	}

	foreign, _ := e.put(stranger, name, false)
	p.expect("chain", p.begin(e.https, time.Hour, leaf(name, foreign))(), 0, 2, verify.Chain, false) // an hour: at once

	must(t, e.envoy.Stop())
	p.expect("stopped", p.begin(e.https, time.Second, leaf(name, foreign))(), 0, 2, verify.Refused, true)
	v, _ = e.put(ca, name, false)
	end := p.begin(e.https, time.Minute, leaf(name, v))
	e.startEnvoy(o, e.socket)
	p.expect("started again", end(), 2, 0, "", false)
}

// at is the version that the group is at.
func (e *bareEdge) at(name string) secret.Version {
	e.Helper()
	at, ok := e.cache.At("canary")
	if !ok {
		e.Fatal("no group canary")
	}
	version, _ := at.Secrets.Version(name)
	return version
}

// Each certificate of a pair is a round of its own, whatever TLS 1.3 is shown; and a listener that demands client certificates is judged by its leaf.
func TestRolloutLooksAtPairsAndAtListenersThatDemandClientCertificates(t *testing.T) {
	k := startKinds(t, false, "")
	k.write("ca.pem", certText(k.pki.root.cert))
	k.extra = fmt.Sprintf("validation_contexts: [{name: corp-ca, ca_files: [%s]}]", k.file("ca.pem"))
	k.configure()
	k.expect("canary", k.pki.client(t), true)
	p := newProber(k.T)
	leaf := func(name, keyType string) verify.Leaf {
		st, err := k.shown(name)
		must(t, err)
		l := leafOf(t, name, secret.Version(st.Versions[0].Version), []byte(*st.Versions[0].ChainPEM), poolOf(k.pki))
		l.KeyType = keyType
		return l
	}
	rsa, ec := leaf("rsa", "rsa-2048"), leaf("ecdsa", "ecdsa-p256")
	pairs, clients := k.address("canary", "pairs"), k.address("canary", "clients")
	p.expect("pair", p.begin(pairs, time.Minute, rsa, ec)(), 3, 0, "", false)
	p.expect("client certificates", p.begin(clients, time.Minute, ec)(), 2, 0, "", false)

	other := ec
	other.SHA256, other.Version = strings.Repeat("0", 64), "other"
	p.expect("pair with one that is wrong", p.begin(pairs, time.Second, rsa, other)(), 1, 2, verify.OtherLeaf, false)
	p.expect("client certificates, another leaf", p.begin(clients, time.Second, other)(), 0, 2, verify.OtherLeaf, false)
}

// shown is what `secrets show` prints.
func (k *kinds) shown(name string) (s admin.Secret, err error) {
	out, err := k.run(k.Context(), "secrets", "show", name, "-o", "json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &s)
	}
	return s, err
}

// What nodes serve is known again soon after the server was started again, long before the first round in the background.
func TestServedIsKnownSoonAfterARestart(t *testing.T) {
	k := startKinds(t, false, "")
	k.write("roots.pem", certText(k.pki.root.cert))
	k.setVerify(fmt.Sprintf(`, verify: {endpoints: [{address: "%s", node: canary-1, server_names: [%s]}], roots_file: roots.pem}`, k.address("canary", "pairs"), site), "")
	must(t, k.server.Stop())
	k.server = k.Process(testenv.ProcessOptions{Name: "sds-server-2", Path: binary(t), Args: []string{"serve", "-c", k.file("sds-server.yaml")}})
	must(t, k.server.WaitHTTP(k.Ready(), "http://"+k.http+"/readyz"))
	ready := time.Now()
	k.eventually(func(ctx context.Context) error {
		out, err := k.run(ctx, "nodes", "--group", "canary", "-o", "json")
		if err != nil {
			return err
		}
		var nodes admin.Nodes
		if err := json.Unmarshal([]byte(out), &nodes); err != nil {
			return err
		}
		served := 0
		for _, n := range nodes.Nodes {
			for _, s := range n.Secrets {
				if s.Served != nil && s.Served.Serial == k.serial[s.Name] {
					served++
				}
			}
		}
		if served != 2 {
			return fmt.Errorf("%d certificates are known to be served, want 2: %s", served, out)
		}
		return nil
	})
	t.Logf("served is known %v after the server was ready", time.Since(ready).Round(time.Millisecond))

	k.setVerify(fmt.Sprintf(`, verify: {endpoints: [{address: "%s", server_names: [else.example]}], server_names: [%s]}`, k.address("canary", "pairs"), site), "")
	if v, code := k.verified("canary"); code != 1 || len(v.Handshakes) != 0 {
		t.Errorf("an endpoint for another name: exit %d, %+v; want no handshake", code, v)
	}
}
