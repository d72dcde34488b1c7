// Package issuertest has what the tests of the issuance loop and of its issuers share: a store in memory that fails on demand, and
// a CA that signs without asking.
package issuertest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// ErrFault is what a Store says when a test makes it fail.
var ErrFault = errors.New("the medium failed")

// Store is a store.Store in memory, without Watch. Its hooks fail a commit before or after it is durable.
type Store struct {
	mu       sync.Mutex
	entries  map[string]store.Entry // guarded by mu
	revision int64                  // guarded by mu
	history  map[string][][]byte    // guarded by mu; nil: none is kept

	hooks  sync.Mutex
	before func([]store.Operation) error // guarded by hooks
	after  func([]store.Operation) error // guarded by hooks
	read   func(key string) error        // guarded by hooks
}

var _ store.Store = (*Store)(nil)

// NewStore makes an empty store.
func NewStore() *Store {
	return &Store{entries: make(map[string]store.Entry), history: make(map[string][][]byte)}
}

// Forget makes the store keep no history, for tests in which years pass.
func (s *Store) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.history = nil
}

// Hook sets what is called with each commit, before and after it is durable; an error is the commit's. Nil takes a hook away.
// The hooks may set hooks, and nothing else of the store.
func (s *Store) Hook(before, after func([]store.Operation) error) {
	s.hooks.Lock()
	defer s.hooks.Unlock()
	s.before, s.after = before, after
}

// HookRead sets what is called with the key of each Get and the prefix of each List; an error is theirs.
func (s *Store) HookRead(read func(key string) error) {
	s.hooks.Lock()
	defer s.hooks.Unlock()
	s.read = read
}

// History returns every value that was ever put at key, oldest first.
func (s *Store) History(key string) [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.history[key])
}

// Get implements store.Store.
func (s *Store) Get(ctx context.Context, key string) (store.Entry, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fault(ctx, key); err != nil {
		return store.Entry{}, err
	}
	e, ok := s.entries[key]
	if !ok {
		return store.Entry{}, store.ErrNotFound
	}
	return e, nil
}

// List implements store.Store.
func (s *Store) List(ctx context.Context, prefix string) ([]store.Entry, int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.fault(ctx, prefix); err != nil {
		return nil, 0, err
	}
	var out []store.Entry
	for _, key := range slices.Sorted(maps.Keys(s.entries)) {
		if strings.HasPrefix(key, prefix) {
			out = append(out, s.entries[key])
		}
	}
	return out, s.revision, nil
}

// fault is called with mu held.
func (s *Store) fault(ctx context.Context, key string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.hooks.Lock()
	read := s.read
	s.hooks.Unlock()
	if read == nil {
		return nil
	}
	return read(key)
}

func (s *Store) hooked() (before, after func([]store.Operation) error) {
	s.hooks.Lock()
	defer s.hooks.Unlock()
	return s.before, s.after
}

// Commit implements store.Store.
func (s *Store) Commit(ctx context.Context, conditions []store.Condition, operations []store.Operation) (int64, error) {
	if err := errors.Join(ctx.Err(), store.CheckCommit(conditions, operations)); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	before, after := s.hooked()
	if before != nil {
		if err := before(operations); err != nil {
			return 0, err
		}
	}
	for _, c := range conditions {
		if s.entries[c.Key].Revision != c.Revision {
			return 0, store.ErrConflict
		}
	}
	s.revision++
	for _, o := range operations {
		if o.Delete {
			delete(s.entries, o.Key)
			continue
		}
		s.entries[o.Key] = store.Entry{Key: o.Key, Value: slices.Clone(o.Value), Revision: s.revision}
		if s.history != nil {
			s.history[o.Key] = append(s.history[o.Key], slices.Clone(o.Value))
		}
	}
	if after != nil {
		if err := after(operations); err != nil {
			return 0, err
		}
	}
	return s.revision, nil
}

// Watch is not offered.
func (*Store) Watch(context.Context, string, int64) (<-chan []store.Event, error) {
	return nil, errors.New("no watch in this store")
}

// Close implements store.Store.
func (*Store) Close() error { return nil }

// Authority is a CA with one intermediate.
type Authority struct {
	// Roots holds the root alone.
	Roots *x509.CertPool

	root, intermediate *x509.Certificate
	key                *ecdsa.PrivateKey // of the intermediate
}

// Leaf says what is signed.
type Leaf struct {
	Name        string
	DNSNames    []string
	IPAddresses []netip.Addr
	NotBefore   time.Time
	NotAfter    time.Time
}

// NewAuthority makes a CA that is valid from 1990 to 2100, so that it can be used under fake clocks.
func NewAuthority() (*Authority, error) {
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a := &Authority{Roots: x509.NewCertPool()}
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	root := caTemplate("test root")
	if a.root, err = sign(root, root, &rootKey.PublicKey, rootKey); err != nil {
		return nil, err
	}
	if a.intermediate, err = sign(caTemplate("test intermediate"), a.root, &a.key.PublicKey, rootKey); err != nil {
		return nil, err
	}
	a.Roots.AddCert(a.root)
	return a, nil
}

func caTemplate(name string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Date(1990, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
}

func serial() *big.Int {
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(err) // the system has no randomness
	}
	return n.Add(n, big.NewInt(1))
}

func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// Sign makes the chain of a leaf for a public key: leaf and intermediate, PEM.
func (a *Authority) Sign(l Leaf, public *ecdsa.PublicKey) ([]byte, error) {
	template := &x509.Certificate{
		SerialNumber: serial(), DNSNames: l.DNSNames, NotBefore: l.NotBefore, NotAfter: l.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, ip := range l.IPAddresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.AsSlice()))
	}
	leaf, err := sign(template, a.intermediate, public, a.key)
	if err != nil {
		return nil, err
	}
	return slices.Concat(encode(leaf), encode(a.intermediate)), nil
}

func encode(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// Secret makes a secret with a new key.
func (a *Authority) Secret(l Leaf) (*secret.Secret, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return a.secret(l, key)
}

func (a *Authority) secret(l Leaf, key *ecdsa.PrivateKey) (*secret.Secret, error) {
	chain, err := a.Sign(l, &key.PublicKey)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	s, err := secret.ParseCertificate(l.Name, chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	if err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	return s, nil
}
