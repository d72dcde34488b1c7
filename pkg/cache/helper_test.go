package cache

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// newSecret makes a valid pair, for a.example unless other names are given; each call makes another one.
func newSecret(t testing.TB, name string, dnsNames ...string) *secret.Secret {
	t.Helper()
	if len(dnsNames) == 0 {
		dnsNames = []string{"a.example"}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial.Add(serial, big.NewInt(1)), Subject: pkix.Name{CommonName: "a.example"}, DNSNames: dnsNames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), BasicConstraintsValid: true,
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
	commits int         // guarded by mu
	before  func() bool // guarded by mu; fail instead of committing
	after   func() bool // guarded by mu; commit, and lose the answer
}

func (d *disk) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.commits++
	if d.before != nil && d.before() {
		return 0, errDisk
	}
	revision, err := d.Store.Commit(ctx, conditions, operations)
	if err == nil && d.after != nil && d.after() {
		return 0, errDisk
	}
	return revision, err
}

func (d *disk) fail(before, after bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.before, d.after = func() bool { return before }, func() bool { return after }
}

// bench is a cache on a store in a directory of the test, with everything that it logs.
type bench struct {
	*Cache
	t    testing.TB
	disk *disk
	path string
	log  *bytes.Buffer
}

func newBench(t testing.TB, groups ...string) *bench {
	t.Helper()
	b := &bench{t: t, path: filepath.Join(t.TempDir(), "store.db"), log: &bytes.Buffer{}}
	b.open()
	t.Cleanup(func() { b.disk.Close() })
	for _, g := range groups {
		b.plan(func(p *Plan) error { return p.AddGroup(b.ctx(), g) })
	}
	return b
}

func (b *bench) ctx() context.Context { return b.t.Context() }

func (b *bench) open() {
	b.t.Helper()
	db, err := bbolt.Open(bbolt.Options{Path: b.path})
	if err != nil {
		b.t.Fatal(err)
	}
	b.disk = &disk{Store: db}
	b.Cache, err = b.load()
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) load() (*Cache, error) {
	return Open(b.ctx(), Options{Store: b.disk, Log: slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
}

// reopen is a restart.
func (b *bench) reopen() {
	b.t.Helper()
	if err := b.disk.Close(); err != nil {
		b.t.Fatal(err)
	}
	b.open()
}

// plan commits what fill plans.
func (b *bench) plan(fill func(*Plan) error) {
	b.t.Helper()
	p := b.Plan()
	if err := fill(p); err != nil {
		b.t.Fatal(err)
	}
	if err := p.Commit(b.ctx()); err != nil {
		b.t.Fatal(err)
	}
}

// put stores a new version of a secret and moves groups to it.
func (b *bench) put(name string, groups ...string) secret.Version {
	b.t.Helper()
	var version secret.Version
	b.plan(func(p *Plan) error {
		m, _, err := p.PutSecret(b.ctx(), newSecret(b.t, name), Origin{Source: SourceACME, Issuer: "le"})
		if err != nil {
			return err
		}
		version = m.Version
		for _, g := range groups {
			if _, err := p.Move(b.ctx(), g, map[string]secret.Version{name: version}, Why{Reason: "put " + name}); err != nil {
				return err
			}
		}
		return nil
	})
	return version
}

// move moves one group.
func (b *bench) move(group string, why Why, changes map[string]secret.Version) []Entry {
	b.t.Helper()
	var entries []Entry
	b.plan(func(p *Plan) (err error) {
		entries, err = p.Move(b.ctx(), group, changes, why)
		return err
	})
	return entries
}

func (b *bench) at(group string) *Snapshot {
	b.t.Helper()
	at, ok := b.At(group)
	if !ok {
		b.t.Fatalf("group %q is unknown", group)
	}
	return at
}

// state tells everything that is visible, to compare it.
func (b *bench) state() string {
	var out bytes.Buffer
	fmt.Fprintf(&out, "latest %d\n", b.Latest())
	for _, g := range b.Groups() {
		fmt.Fprintf(&out, "%s at %d moves %v\n", g, b.at(g).Number, b.Moves(g))
		for name, v := range b.at(g).Secrets.All() {
			res, number := b.Resource(g, name)
			if res == nil || res.Version != v || number != b.at(g).Number {
				b.t.Errorf("group %q serves %v of %q at %d, its snapshot %d says %s", g, res, name, number, b.at(g).Number, v.Short())
			}
			fmt.Fprintf(&out, "  %s %s\n", name, v)
		}
	}
	return out.String()
}

// newCA makes the certificate of a CA.
func newCA(t testing.TB) []byte { t.Helper(); return newCANamed(t, "CA") }

// newCANamed makes the certificate of a CA of which the name begins like this.
func newCANamed(t testing.TB, name string) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return selfSigned(t, name+rand.Text(), key, time.Now().Add(time.Hour))
}

// selfSigned makes the certificate of a CA that lives for a day at most; one that ends later begins later, too.
func selfSigned(t testing.TB, name string, key *ecdsa.PrivateKey, end time.Time) []byte {
	t.Helper()
	begin := time.Now().Add(-2 * time.Hour)
	if late := end.Add(-24 * time.Hour); late.After(begin) {
		begin = late
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: begin, NotAfter: end,
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
