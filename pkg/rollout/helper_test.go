package rollout

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// newSecret makes a valid pair that lives for a while; each call makes another one.
func newSecret(t testing.TB, name string, life time.Duration) *secret.Secret {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: "a.example"}, DNSNames: []string{"a.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := secret.ParseCertificate(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

var errDisk = errors.New("disk full")

// disk is a store that can fail, and counts its commits.
type disk struct {
	store.Store
	mu      sync.Mutex
	commits int              // guarded by mu
	before  func(n int) bool // guarded by mu; fail instead of committing
	after   func(n int) bool // guarded by mu; commit, and lose the answer
}

func (d *disk) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commits++
	if d.before != nil && d.before(d.commits) {
		return 0, errDisk
	}
	revision, err := d.Store.Commit(ctx, conditions, operations)
	if err == nil && d.after != nil && d.after(d.commits) {
		return 0, errDisk
	}
	return revision, err
}

func (d *disk) hooks(before, after func(n int) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before, d.after = before, after
}

func (d *disk) full(full bool) { d.hooks(func(int) bool { return full }, nil) }

func (d *disk) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.commits
}

// logs is a buffer that several goroutines write to.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// rig is a controller on a store in a directory of the test, with a scripted fleet.
type rig struct {
	t      testing.TB
	disk   *disk
	path   string
	memory *memory // in place of the file; nil: there is none
	made   int64   // secrets, where they are to be the same each time
	cache  *cache.Cache
	c      *Controller
	fleet  *fleet
	prober *probes
	meters *meters
	hook   *command
	policy Policy
	log    *logs
	events []string         // what Released was told
	needed []secret.Version // what Refers says

	refersTo func(name string, v secret.Version) bool // likewise, if not nil
}

func waves(promotion string, groups ...string) Policy {
	p := Policy{
		Manual: promotion == "manual", AckTimeout: time.Minute, NodeGrace: 10 * time.Minute, RetryAfter: time.Hour,
		Managed: func(string) bool { return true },
	}
	for _, g := range groups {
		p.Waves = append(p.Waves, strings.Fields(g))
	}
	return p
}

func newRig(t testing.TB, policy Policy) *rig {
	t.Helper()
	return newRigOn(t, policy, nil)
}

// newRigOn is newRig on a store in memory.
func newRigOn(t testing.TB, policy Policy, in *memory) *rig {
	t.Helper()
	r := &rig{t: t, memory: in, path: filepath.Join(t.TempDir(), "store.db"), fleet: &fleet{}, policy: policy, log: &logs{}, meters: &meters{}, hook: &command{}}
	r.prober = &probes{fleet: r.fleet, blinded: true}
	r.open()
	t.Cleanup(func() { r.disk.Close() })
	r.reconfigure(policy)
	return r
}

func (r *rig) ctx() context.Context { return r.t.Context() }

func (r *rig) open() {
	r.t.Helper()
	r.disk = &disk{Store: r.memory}
	if r.memory == nil {
		db, err := bbolt.Open(bbolt.Options{Path: r.path})
		if err != nil {
			r.t.Fatal(err)
		}
		r.disk = &disk{Store: db}
	}
	var err error
	log := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if r.cache, err = cache.Open(r.ctx(), cache.Options{Store: r.disk, Log: log}); err != nil {
		r.t.Fatal(err)
	}
	r.c, err = New(r.ctx(), Options{Cache: r.cache, Store: r.disk, Fleet: r.fleet, Policy: r.policy, Log: log, Released: r.released, Refers: r.refers, Prober: r.prober, Gates: r.meters, Hook: r.hook})
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) refers(name string) func(secret.Version) bool {
	return func(v secret.Version) bool {
		return slices.Contains(r.needed, v) || r.refersTo != nil && r.refersTo(name, v)
	}
}

func (r *rig) released(name string, v secret.Version) {
	r.events = append(r.events, name+" "+v.Short())
	r.fleet.edit(func() {
		for _, n := range r.fleet.nodes {
			delete(n.nacked[name], v)
		}
	})
}

// crash ends the server without a word; what runs then knows the store only.
func (r *rig) crash() {
	r.t.Helper()
	if err := r.disk.Close(); err != nil {
		r.t.Fatal(err)
	}
	r.open()
}

// restart is a crash after which the nodes come back.
func (r *rig) restart() {
	r.t.Helper()
	r.fleet.forget(true)
	r.crash()
	r.reconfigure(r.policy)
}

func (r *rig) reconfigure(p Policy) {
	r.t.Helper()
	r.policy = p
	if err := r.c.Reconfigure(r.ctx(), p); err != nil {
		r.t.Fatal(err)
	}
}

// node adds a connected node that answers at once.
func (r *rig) node(id, group string, names ...string) *node {
	n := &node{id: id, group: group, names: names, serves: map[string]secret.Version{}, received: map[string]secret.Version{}}
	n.reset()
	n.connect()
	r.fleet.edit(func() { r.fleet.nodes = append(r.fleet.nodes, n) })
	return n
}

func (r *rig) edit(n *node, change func(*node)) { r.fleet.edit(func() { change(n) }) }

// step lets the controller look once.
func (r *rig) step() {
	r.t.Helper()
	if _, err := r.c.step(r.ctx()); err != nil {
		r.t.Fatal(err)
	}
}

// settle runs nodes and controller until nothing changes any more.
func (r *rig) settle() {
	r.t.Helper()
	last := ""
	for range 1000 {
		r.step()
		r.fleet.deliver(r.cache)
		r.step()
		now := r.picture()
		if now == last {
			return
		}
		last = now
	}
	r.t.Fatalf("it does not come to rest: %s", last)
}

// picture is everything that is visible, to compare it.
func (r *rig) picture() string {
	var out bytes.Buffer
	for _, g := range r.cache.Groups() {
		at, _ := r.cache.At(g)
		fmt.Fprintln(&out, g, at.Number, maps.Collect(at.Secrets.All()), r.cache.Moves(g))
	}
	for _, a := range r.c.Active() {
		fmt.Fprintln(&out, a.ID, string(must(json.Marshal(a))))
	}
	fmt.Fprintln(&out, r.c.Holds())
	return out.String()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// accept takes a new version of a secret in.
func (r *rig) accept(name string) secret.Version {
	r.t.Helper()
	return r.acceptFor(name, 90*24*time.Hour)
}

func (r *rig) acceptFor(name string, life time.Duration) secret.Version {
	r.t.Helper()
	return r.take(r.newSecret(name, life))
}

// take takes a secret in that may be known to be bad.
func (r *rig) take(s *secret.Secret) secret.Version {
	r.t.Helper()
	a, err := r.c.Accept(r.ctx(), Proposal{Secret: s, Source: cache.SourceACME, Issuer: "le", Reason: "issued by le"})
	if err != nil {
		r.t.Fatal(err)
	}
	return a.Meta.Version
}

// newSecret makes a pair that there was not yet: on a store in memory the same one for the same history.
func (r *rig) newSecret(name string, life time.Duration) *secret.Secret {
	r.t.Helper()
	if r.memory == nil {
		return newSecret(r.t, name, life)
	}
	r.made++
	return seededSecret(r.t, name, r.made, life)
}

// serve takes a new version in and settles.
func (r *rig) serve(name string) secret.Version {
	r.t.Helper()
	v := r.accept(name)
	r.settle()
	return v
}

// promote lets everything go that waits for a group, and settles.
func (r *rig) promote(group string) {
	r.t.Helper()
	if _, err := r.c.Promote(r.ctx(), group, 0, Operator{By: "alice"}); err != nil {
		r.t.Fatal(err)
	}
	r.settle()
}

func (r *rig) at(group, name string) secret.Version {
	r.t.Helper()
	at, ok := r.cache.At(group)
	if !ok {
		r.t.Fatalf("group %q is unknown", group)
	}
	v, _ := at.Secrets.Version(name)
	return v
}

// want checks what groups serve under a name: "group=version", where the versions are given by short names.
func (r *rig) want(name string, want map[string]secret.Version) {
	r.t.Helper()
	for _, g := range slices.Sorted(maps.Keys(want)) {
		if got := r.at(g, name); got != want[g] {
			r.t.Errorf("group %s serves %q version %s, want %s", g, name, short(got), short(want[g]))
		}
	}
}

// all is the same version in every group of the policy.
func (r *rig) all(v secret.Version) map[string]secret.Version {
	m := map[string]secret.Version{}
	for _, g := range r.policy.Groups() {
		m[g] = v
	}
	return m
}

// states lists the rollouts ever made with their states: "1 done".
func (r *rig) states() []string {
	r.t.Helper()
	history, err := r.c.History(r.ctx())
	if err != nil {
		r.t.Fatal(err)
	}
	var states []string
	for _, h := range history {
		states = append(states, fmt.Sprintf("%d %s", h.ID, h.State))
	}
	return states
}

func (r *rig) wantStates(want ...string) {
	r.t.Helper()
	if got := r.states(); !slices.Equal(got, want) {
		r.t.Errorf("rollouts are %q, want %q", got, want)
	}
}

// held returns the kind of the hold on a version, or "".
func (r *rig) held(name string, v secret.Version) HoldKind {
	for _, h := range r.c.Holds() {
		if h.Secret == name && h.Version == v {
			return h.Kind
		}
	}
	return ""
}

// get returns one rollout.
func (r *rig) get(id uint64) *Rollout {
	r.t.Helper()
	one, err := r.c.Rollout(r.ctx(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return one
}
