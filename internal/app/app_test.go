package app

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

// site is the secret of these tests.
const site = "www.example.com"

// hookedStore lets a test look at each commit, and fail it.
type hookedStore struct {
	store.Store
	before func() error // nil: nothing
}

// Commit implements store.Store.
func (h *hookedStore) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	if h.before != nil {
		if err := h.before(); err != nil {
			return 0, err
		}
	}
	return h.Store.Commit(ctx, conditions, operations)
}

// parts is the parts of a server, built as for serve, that neither listen nor run.
type parts struct {
	*server
	testing.TB
	file      string
	store     *hookedStore
	authority *testenv.Authority
}

// newParts builds the parts on the files of dir, which are made where they are not there.
func newParts(t testing.TB, dir string, edits ...string) *parts {
	t.Helper()
	p := &parts{TB: t, file: filepath.Join(dir, "s", "sds-server.yaml")}
	if _, err := os.Stat(p.file); errors.Is(err, os.ErrNotExist) {
		_, err := Init(t.Context(), InitOptions{Dir: filepath.Dir(p.file), Listen: "127.0.0.1:18000"})
		must(t, err)
		p.configure("  promotion: auto", "  watch: 0s\n  empty_group: skip\n  promotion: auto")
	}
	var err error
	p.authority, err = testenv.NewAuthority(dir, "site")
	must(t, err)
	cfg := p.configure(edits...)
	p.server = &server{opts: Options{ConfigFile: p.file}, log: slog.New(slog.DiscardHandler), registry: prometheus.NewRegistry()}
	db, err := bbolt.Open(bbolt.Options{Path: StoreFile(cfg)})
	must(t, err)
	sealed, err := seal.Open(t.Context(), db, cfg.Seal.KeyFile)
	must(t, err)
	t.Cleanup(func() { must(t, sealed.Close()) })
	p.store = &hookedStore{Store: sealed}
	p.server.store = p.store
	closeAudit, err := p.openAudit(t.Context(), cfg)
	must(t, err)
	t.Cleanup(closeAudit)
	must(t, p.build(t.Context(), cfg, nil))
	p.channels = &channels{authority: p.identities, log: p.log}
	p.enforce(cfg)
	p.watcher = config.NewWatcher(config.WatcherOptions{Path: p.file, Initial: cfg, Apply: p.apply, Logger: p.log})
	return p
}

// configure replaces pairs of texts in the configuration, and loads it.
func (p *parts) configure(edits ...string) *config.Config {
	p.Helper()
	text, err := os.ReadFile(p.file)
	must(p, err)
	for pair := range slices.Chunk(edits, 2) {
		if !strings.Contains(string(text), pair[0]) {
			p.Fatalf("the configuration has no %q:\n%s", pair[0], text)
		}
		text = []byte(strings.Replace(string(text), pair[0], pair[1], 1))
	}
	must(p, os.WriteFile(p.file, text, 0o600))
	cfg, err := config.Load(p.file)
	must(p, err)
	return cfg
}

// issue makes a certificate for site that ends in so many days.
func (p *parts) issue(days int) *secret.Secret {
	p.Helper()
	return p.issueUntil(time.Now().Add(time.Duration(days) * 24 * time.Hour))
}

func (p *parts) issueUntil(end time.Time) *secret.Secret {
	p.Helper()
	leaf, err := p.authority.Issue(testenv.LeafOptions{DNSNames: []string{site}, NotBefore: end.Add(-90 * 24 * time.Hour), NotAfter: end})
	must(p, err)
	ca, err := os.ReadFile(p.authority.File)
	must(p, err)
	s, err := secret.ParseCertificate(site, slices.Concat(leaf.CertPEM, ca), leaf.KeyPEM)
	must(p, err)
	return s
}

// accept proposes a new certificate for site that ends at the given time.
func (p *parts) accept(end time.Time) cache.Meta {
	p.Helper()
	a, err := p.rollout.Accept(p.Context(), rollout.Proposal{Secret: p.issueUntil(end), Source: cache.SourceImport, Reason: "test"})
	must(p, err)
	return a.Meta
}

// body is what a group is sent for site.
func (p *parts) body(group string) []byte {
	p.Helper()
	r, _ := p.cache.Resource(group, site)
	if r == nil {
		p.Fatalf("%s serves nothing", group)
	}
	return r.Body()
}

// absent is a node of the first wave that does not answer. As it is not connected, a wave waits for it for node_grace.
type absent struct{}

// Progress implements rollout.Fleet.
func (absent) Displaces(string, string, []string) bool { return false }

func (absent) Progress(group string, _ map[string]secret.Version) []rollout.NodeProgress {
	if group != "canary" {
		return nil
	}
	return []rollout.NodeProgress{{Identity: "unix:uid=0", Node: "n1", LastSeen: time.Now()}}
}

// TestVersionUnderWayIsJudgedAnewAfterARestart: a NACK that came just before the end may be lost with the process, and an Envoy ACKs bytes
// that it has rejected when they come again (facts of Envoy 1.40). What was on its way goes out as other bytes, what was not as the same.
func TestVersionUnderWayIsJudgedAnewAfterARestart(t *testing.T) {
	dir := t.TempDir()
	var moving, still []byte
	t.Run("before", func(t *testing.T) {
		p := newParts(t, dir, "promotion: auto", "promotion: manual")
		policy, err := rolloutPolicy(p.config.Load())
		must(t, err)
		p.rollout, err = rollout.New(t.Context(), rollout.Options{
			Cache: p.cache, Store: p.store, Fleet: absent{}, Policy: policy, Log: p.log,
		})
		must(t, err)
		p.accept(time.Now().Add(60 * 24 * time.Hour))
		p.accept(time.Now().Add(61 * 24 * time.Hour))
		if active := p.rollout.Active(); len(active) != 1 || active[0].State != rollout.Moving {
			t.Fatalf("got rollouts %v, want one that is moving", active)
		}
		moving, still = p.body("canary"), p.body("production")
		if bytes.Equal(moving, still) {
			t.Fatal("canary and production have the same version")
		}
	})
	p := newParts(t, dir)
	if got := p.body("canary"); bytes.Equal(got, moving) {
		t.Error("canary is sent the same bytes again, which a node may have rejected")
	}
	if got := p.body("production"); !bytes.Equal(got, still) {
		t.Error("production is sent other bytes of a version that was not on its way")
	}
}

// TestRightsComeBeforeMoves: on a reload nothing is moved, and so nothing is sent, under rights that have ended; and where the moves fail, the
// old rights stay.
func TestRightsComeBeforeMoves(t *testing.T) {
	p := newParts(t, t.TempDir())
	p.accept(time.Now().Add(60 * 24 * time.Hour))
	allowed := func(group string) bool {
		e := p.edge.Explain(sds.Peer{Identities: []string{"spiffe://sds-server/" + group + "/n1"}}, site)
		return e.Allowed
	}
	if !allowed("production") || allowed("late") {
		t.Fatal("the rights before the reload are not those of the configuration")
	}
	next := p.configure(
		`identities: ["spiffe://sds-server/production/*"], secrets: ["*"]`, `identities: ["spiffe://sds-server/production/*"], secrets: ["other"]`,
		"rollout:\n", "  - {name: late, identities: [\"spiffe://sds-server/late/*\"], secrets: [\"*\"]}\nrollout:\n",
		"[production]]", "[production], [late]]",
	)
	commits := 0
	broken := errors.New("disk full")
	p.store.before = func() error {
		commits++
		if allowed("production") || !allowed("late") {
			t.Error("a group is moved under the old rights")
		}
		return broken
	}
	if err := p.apply(t.Context(), next); !errors.Is(err, broken) {
		t.Fatalf("got %v, want the store's error", err)
	}
	if commits == 0 {
		t.Fatal("the reload committed nothing: this test looks at nothing")
	}
	if !allowed("production") || allowed("late") {
		t.Error("the reload failed, and its rights are in force")
	}
	p.store.before = func() error {
		if allowed("production") || !allowed("late") {
			t.Error("a group is moved under the old rights")
		}
		return nil
	}
	must(t, p.apply(t.Context(), next))
	if allowed("production") || !allowed("late") {
		t.Error("the reload succeeded, and its rights are not in force")
	}
}

// TestTheGroupThatEndsFirstCounts: a renewal that waits for its promotion hides neither in the metric nor in status that what the others serve
// ends, or has ended.
func TestTheGroupThatEndsFirstCounts(t *testing.T) {
	late := time.Now().Add(60 * 24 * time.Hour).Truncate(time.Second)
	for _, row := range []struct {
		name  string
		first time.Time // end of what production goes on serving
		state string
	}{
		{"ends", time.Now().Add(10 * 24 * time.Hour).Truncate(time.Second), "ok"},
		{"has ended", time.Now().Add(-time.Hour).Truncate(time.Second), "expired"},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := newParts(t, t.TempDir(), "promotion: auto", "promotion: manual", "groups:\n",
				"issuers: [{name: ca, directory: \"https://127.0.0.1:1/dir\", accept_tos: true}]\n"+
					"certificates: [{name: "+site+", dns_names: ["+site+"], issuers: [ca]}]\ngroups:\n")
			first := p.accept(row.first)
			second := p.accept(late)
			plan := p.cache.Plan() // where the first one has ended, the second one went to all groups at once
			_, err := plan.Move(t.Context(), "production", map[string]secret.Version{site: first.Version}, cache.Why{Reason: "test"})
			must(t, err)
			must(t, plan.Commit(t.Context()))
			p.serveAdmin()
			if got := p.gauge("sds_certificate_not_after_timestamp_seconds"); got != float64(row.first.Unix()) {
				t.Errorf("metric: got %v, want %v, the end of what production serves", got, row.first.Unix())
			}
			var st admin.Status
			must(t, admin.NewClient(p.adminSocket()).Get(t.Context(), "/v1/status", &st))
			if len(st.Certificates) != 1 {
				t.Fatalf("got %d certificates, want 1", len(st.Certificates))
			}
			c := st.Certificates[0]
			if row.state == "expired" != (c.State == "expired") {
				t.Errorf("status: got state %q, want %q", c.State, row.state)
			}
			want := []admin.GroupVersion{{Name: "canary", Version: new(string(second.Version))}, {Name: "production", Version: new(string(first.Version))}}
			if len(c.Groups) != 2 || *c.Groups[0].Version != *want[0].Version || *c.Groups[1].Version != *want[1].Version {
				t.Errorf("status: got groups %+v, want %+v", c.Groups, want)
			}
		})
	}
}

func (p *parts) adminSocket() string {
	path, _ := socketPath(p.config.Load().Admin.Address)
	return path
}

// serveAdmin answers the operator API until the test ends.
func (p *parts) serveAdmin() {
	p.Helper()
	l, err := admin.Listen(p.Context(), p.adminSocket(), false, func(uint32) bool { return true })
	must(p, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.Context()))
	done := make(chan error, 1)
	go func() { done <- p.admin.Serve(ctx, l) }()
	p.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.Error(err)
		}
	})
}

// gauge is the value of a metric of one series.
func (p *parts) gauge(name string) float64 {
	p.Helper()
	families, err := p.registry.Gather()
	must(p, err)
	for _, f := range families {
		if f.GetName() == name && len(f.GetMetric()) == 1 {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	p.Fatalf("there is not one series of %s", name)
	return 0
}
