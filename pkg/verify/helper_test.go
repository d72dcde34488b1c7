package verify

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	site   = "www.a.example"
	nobody = "127.0.0.1:1" // no test listens there
)

// pki is a CA of a test.
type pki struct {
	cert *x509.Certificate
	key  crypto.Signer
	pool *x509.CertPool
}

var rsaKeys = sync.OnceValues(func() ([2]*rsa.PrivateKey, error) { //nolint:gochecknoglobals // making them is slow
	var keys [2]*rsa.PrivateKey
	for i := range keys {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return keys, err
		}
		keys[i] = key
	}
	return keys, nil
})

func rsaKey(t testing.TB, i int) *rsa.PrivateKey {
	t.Helper()
	keys, err := rsaKeys()
	if err != nil {
		t.Fatal(err)
	}
	return keys[i]
}

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	p := &pki{key: ecKey(t), pool: x509.NewCertPool()}
	p.cert = p.sign(t, &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}, p.key.Public())
	p.pool.AddCert(p.cert)
	return p
}

func (p *pki) sign(t testing.TB, template *x509.Certificate, public crypto.PublicKey) *x509.Certificate {
	t.Helper()
	parent := p.cert
	if parent == nil {
		parent = template
	}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, p.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// pair is a certificate for names with its key.
func (p *pki) pair(t testing.TB, key crypto.Signer, names ...string) tls.Certificate {
	t.Helper()
	number, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	leaf := p.sign(t, &x509.Certificate{
		SerialNumber: number, DNSNames: names, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public())
	return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// leaf describes a pair as what is wanted.
func (p *pki) leaf(pair tls.Certificate, name string, version secret.Version) Leaf {
	sum := sha256.Sum256(pair.Leaf.Raw)
	l := Leaf{
		Secret: name, Version: version, SHA256: hex.EncodeToString(sum[:]), KeyType: "ecdsa-p256", DNSNames: pair.Leaf.DNSNames, NotAfter: pair.Leaf.NotAfter,
		Roots: Roots{Pool: p.pool, Name: "the roots of the test"},
	}
	if _, ok := pair.PrivateKey.(*rsa.PrivateKey); ok {
		l.KeyType = "rsa-2048"
	}
	return l
}

// listener is a TLS server of a test that keeps what it saw.
type listener struct {
	address string

	mu      sync.Mutex
	config  *tls.Config // guarded by mu
	until   int         // guarded by mu; handshakes before next is in force
	next    *tls.Config // guarded by mu
	resumed int         // guarded by mu
	states  []tls.ConnectionState
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// serve answers handshakes at a new address until the end of the test.
func serve(t testing.TB, config *tls.Config) *listener {
	t.Helper()
	return answer(t, listen(t), config)
}

// answer answers handshakes at a listener until the end of the test.
func answer(t testing.TB, l net.Listener, config *tls.Config) *listener {
	t.Helper()
	s := &listener{address: l.Addr().String(), config: config}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { s.answer(conn) })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		conns.Wait()
	})
	return s
}

// after puts another configuration in force after some handshakes.
func (s *listener) after(handshakes int, config *tls.Config) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.until, s.next = handshakes, config
}

func (s *listener) answer(raw net.Conn) {
	s.mu.Lock()
	config := s.config
	s.mu.Unlock()
	conn := tls.Server(raw, config)
	defer conn.Close() // nobody listens to its error
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	if conn.HandshakeContext(context.Background()) != nil {
		return
	}
	state := conn.ConnectionState()
	s.mu.Lock()
	if s.states = append(s.states, state); s.next != nil && len(s.states) == s.until {
		s.config = s.next
	}
	if state.DidResume {
		s.resumed++
	}
	s.mu.Unlock()
	_, _ = conn.Read(make([]byte, 1)) // until the client says goodbye
}

// wants is a Source with fixed groups.
type wants struct {
	mu      sync.Mutex
	groups  []Group                   // guarded by mu
	current map[string]Leaf           // guarded by mu; by secret
	known   map[string]secret.Version // guarded by mu; by digest
	asked   []time.Time               // guarded by mu; calls of Groups
	looks   int                       // guarded by mu; calls of Current: one before each handshake
	before  func(look int)            // called before each Current, which waits for it
}

func (w *wants) Groups(_ context.Context, names ...string) []Group {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = append(w.asked, time.Now())
	return slices.DeleteFunc(slices.Clone(w.groups), func(g Group) bool { return len(names) > 0 && !slices.Contains(names, g.Name) })
}

func (w *wants) Current(_, name string) (Leaf, bool) {
	w.mu.Lock()
	w.looks++
	look := w.looks
	w.mu.Unlock()
	if w.before != nil {
		w.before(look)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	l, ok := w.current[name]
	return l, ok
}

func (w *wants) Known(_ context.Context, _, digest string) (secret.Version, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	v, ok := w.known[digest]
	return v, ok
}

// look makes the checks of targets and returns the results in order.
func look(t *testing.T, w *wants, timeout time.Duration, targets ...Target) []Result {
	t.Helper()
	r := &runner{source: w, slots: slots{make(chan struct{}, 4)}}
	var results []Result
	r.run(t.Context(), Plan(Group{Name: "g", Timeout: timeout, Targets: targets}), func(one Result) { results = append(results, one) })
	return results
}

func target(address string, leaves ...Leaf) Target {
	t := Target{Address: address, Node: "n", Nodes: []NodeKey{{"id", "n"}}}
	for _, l := range leaves {
		t.Secrets = append(t.Secrets, Wanted{Leaf: l, Asked: l.Secret})
	}
	return t
}

func noCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }

func testLog(t testing.TB) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

// background runs something until the end of the test.
func background(t testing.TB, run func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("background: %v", err)
		}
	})
}

// eventually polls until something holds.
func eventually(t *testing.T, holds func() bool) {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for !holds() {
		select {
		case <-deadline:
			t.Fatal("it does not come to hold")
		case <-time.After(10 * time.Millisecond):
		}
	}
}
