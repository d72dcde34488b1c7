package sds

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// both runs a test in a bubble with each protocol: both variants, of SDS and of ADS.
func both(t *testing.T, test func(t *testing.T, protocol Protocol)) {
	t.Helper()
	for _, p := range []Protocol{SotW, Delta, ADSSotW, ADSDelta} {
		t.Run(string(p), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { test(t, p) })
		})
	}
}

// issuer makes certificates that pkg/secret accepts.
type issuer struct {
	cert   *x509.Certificate
	key    *ecdsa.PrivateKey
	leaf   *ecdsa.PrivateKey // one for all: making keys takes time
	serial atomic.Int64
	sans   int // more names in each secret, to make it larger
}

func newIssuer(t testing.TB) *issuer {
	t.Helper()
	ca := &issuer{key: newKey(t), leaf: newKey(t)}
	ca.serial.Store(1)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(10 * 365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &ca.key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	if ca.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return ca
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func (ca *issuer) issue(t testing.TB, template *x509.Certificate) (certPEM, keyPEM []byte) {
	t.Helper()
	template.SerialNumber = big.NewInt(ca.serial.Add(1))
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(90 * 24 * time.Hour)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &ca.leaf.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.MarshalPKCS8PrivateKey(ca.leaf)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})
}

// secret makes a new version of a secret, with the CA certificate in its chain.
func (ca *issuer) secret(t testing.TB, name string) *secret.Secret {
	t.Helper()
	names := []string{"www.example"}
	for i := range ca.sans {
		names = append(names, fmt.Sprintf("www-%d.example", i))
	}
	chain, key := ca.issue(t, &x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw})...)
	s, err := secret.ParseCertificate(name, chain, key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// client returns the TLS configuration of an Envoy with URI and DNS SANs.
func (ca *issuer) client(t testing.TB, notAfter time.Time, sans ...string) *tls.Config {
	t.Helper()
	template := &x509.Certificate{NotAfter: notAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	for _, san := range sans {
		if name, ok := strings.CutPrefix(san, dnsPrefix); ok {
			template.DNSNames = append(template.DNSNames, name)
			continue
		}
		uri, err := url.Parse(san)
		if err != nil {
			t.Fatal(err)
		}
		template.URIs = append(template.URIs, uri)
	}
	return &tls.Config{Certificates: []tls.Certificate{ca.pair(t, template)}, RootCAs: ca.pool(), ServerName: "sds.example"}
}

// server returns the TLS configuration of a listener.
func (ca *issuer) server(t testing.TB) *tls.Config {
	t.Helper()
	template := &x509.Certificate{DNSNames: []string{"sds.example"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	return &tls.Config{
		Certificates: []tls.Certificate{ca.pair(t, template)}, ClientCAs: ca.pool(), ClientAuth: tls.VerifyClientCertIfGiven,
		NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13,
	}
}

func (ca *issuer) pair(t testing.TB, template *x509.Certificate) tls.Certificate {
	t.Helper()
	pair, err := tls.X509KeyPair(ca.issue(t, template))
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func (ca *issuer) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// fleet is a server with its cache, and what it logged.
type fleet struct {
	*Server
	cache    *cache.Cache
	ca       *issuer
	registry *prometheus.Registry
	log      *recorder
	changes  atomic.Int64 // calls of OnChange
	buffer   *bufconn.Listener
	store    *disk
	limits   Limits
	groups   []Group
	pushes   Pushes
	stopRun  func()
}

// recorder keeps the messages of a log, and its text.
type recorder struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.Write(p)
}

func (r *recorder) String() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.text.String()
}

// everything gives one group every name to anybody who may come.
func everything(names ...string) []Group {
	var groups []Group
	for _, n := range names {
		groups = append(groups, Group{Name: n, Secrets: []string{"*"}})
	}
	return groups
}

// newFleet makes a server for groups that listens on a buffer in memory.
func newFleet(t testing.TB, limits Limits, groups ...Group) *fleet {
	t.Helper()
	if len(groups) == 0 {
		groups = everything("canary")
	}
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(t.TempDir(), "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &fleet{ca: newIssuer(t), log: &recorder{}, store: &disk{Store: db}, limits: limits, groups: groups}
	f.start(t)
	return f
}

// start makes a server over what is stored.
func (f *fleet) start(t testing.TB) {
	t.Helper()
	var err error
	if f.cache, err = cache.Open(t.Context(), cache.Options{Store: f.store, Log: slog.New(slog.DiscardHandler)}); err != nil {
		t.Fatal(err)
	}
	p := f.cache.Plan()
	for _, g := range f.groups {
		if err := p.AddGroup(t.Context(), g.Name); err != nil {
			t.Fatal(err)
		}
	}
	commit(t, p)
	f.registry = prometheus.NewRegistry()
	log := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	f.Server, err = New(t.Context(), Options{
		Cache: f.cache, Policy: NewPolicy(f.groups), Limits: f.limits, Replica: "replica-1", Log: log, Registerer: f.registry, Store: f.store, Pushes: f.pushes,
		OnChange: func(string) { f.changes.Add(1) },
	})
	if err != nil {
		t.Fatal(err)
	}
	server := f.Server
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- server.Run(ctx) }()
	f.stopRun = sync.OnceFunc(func() {
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(f.stopRun)
	var names []string
	for _, g := range f.groups {
		names = append(names, g.Name)
	}
	f.buffer = f.listen(t, Listener{Groups: names})
}

// restart ends the server and starts another one over the same store.
func (f *fleet) restart(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	f.Shutdown(ctx)
	f.stopRun()
	f.start(t)
}

// disk is a store of which the commits can be made to fail.
type disk struct {
	store.Store
	broken  atomic.Bool
	commits atomic.Int64
}

var errBroken = errors.New("disk is broken")

// Commit implements store.Store.
func (d *disk) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	if d.broken.Load() {
		return 0, errBroken
	}
	d.commits.Add(1)
	return d.Store.Commit(ctx, conditions, operations)
}

// listen serves on one more buffer until the test ends.
func (f *fleet) listen(t testing.TB, l Listener) *bufconn.Listener {
	t.Helper()
	buffer := bufconn.Listen(256 << 10)
	l.Listener = buffer
	f.serve(t, l)
	return buffer
}

func (f *fleet) serve(t testing.TB, l Listener) {
	t.Helper()
	server, served := f.Server, make(chan error, 1)
	go func() { served <- server.Serve(context.Background(), l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		server.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func commit(t testing.TB, p *cache.Plan) {
	t.Helper()
	if err := p.Commit(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// rotate moves a group to a new version of each named secret, and returns that of the last.
func (f *fleet) rotate(t testing.TB, group string, names ...string) secret.Version {
	t.Helper()
	var version secret.Version
	for chunk := range slices.Chunk(names, 40) { // of what one commit may hold
		p := f.cache.Plan()
		changes := map[string]secret.Version{}
		for _, name := range chunk {
			m, _, err := p.PutSecret(context.Background(), f.ca.secret(t, name), cache.Origin{Source: cache.SourceImport})
			if err != nil {
				t.Fatal(err)
			}
			changes[name], version = m.Version, m.Version
		}
		if _, err := p.Move(context.Background(), group, changes, cache.Why{Reason: "test"}); err != nil {
			t.Fatal(err)
		}
		commit(t, p)
	}
	return version
}

// move puts a group at a version of a secret that is stored; an empty version removes the name.
func (f *fleet) move(t testing.TB, group, name string, version secret.Version) {
	t.Helper()
	p := f.cache.Plan()
	if _, err := p.Move(context.Background(), group, map[string]secret.Version{name: version}, cache.Why{Reason: "test"}); err != nil {
		t.Fatal(err)
	}
	commit(t, p)
}

// dial opens a connection to a buffer.
func dial(t testing.TB, buffer *bufconn.Listener, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	creds := insecure.NewCredentials()
	if config != nil {
		creds = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient("passthrough:///sds.example", grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return buffer.DialContext(ctx) }),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := conn.Close(); err != nil && status.Code(err) != codes.Canceled {
			t.Error(err)
		}
	})
	return conn
}

// node returns the view of one node.
func (f *fleet) node(t testing.TB, id string) Node {
	t.Helper()
	for _, n := range f.Nodes() {
		if n.ID == id {
			return n
		}
	}
	t.Fatalf("node %q is not known", id)
	return Node{}
}

// counter returns the value of a metric with one label.
func (f *fleet) counter(t testing.TB, name, label string) float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, family := range families {
		for _, m := range family.GetMetric() {
			for _, l := range m.GetLabel() {
				if family.GetName() == name && l.GetValue() == label {
					sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
				}
			}
		}
	}
	return sum
}
