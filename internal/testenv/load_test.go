package testenv_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

// tlsServer is a Go TLS server with a certificate that can be changed.
type tlsServer struct {
	address string
	leaf    atomic.Pointer[tls.Certificate]
	refuse  atomic.Bool
	resumed atomic.Int64
}

func newTLSServer(t *testing.T, first testenv.Leaf, clients *x509.CertPool) *tlsServer {
	t.Helper()
	s := &tlsServer{}
	s.leaf.Store(&first.TLS)
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if s.refuse.Load() {
				return nil, errors.New("refused")
			}
			return s.leaf.Load(), nil
		},
	}
	if clients != nil {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, clients
	}
	l, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	s.address = l.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { s.serve(conn) })
		}
	})
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		serving.Wait()
	})
	return s
}

func (s *tlsServer) serve(conn net.Conn) {
	defer conn.Close()
	tc := conn.(*tls.Conn)
	if tc.HandshakeContext(context.Background()) == nil && tc.ConnectionState().DidResume {
		s.resumed.Add(1)
	}
	var buf [1]byte
	_, _ = conn.Read(buf[:]) // until the client closes
}

func issue(t *testing.T, a *testenv.Authority, names ...string) testenv.Leaf {
	t.Helper()
	leaf, err := a.Issue(testenv.LeafOptions{DNSNames: names})
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func authority(t *testing.T) *testenv.Authority {
	t.Helper()
	a, err := testenv.NewAuthority(t.TempDir(), "test")
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestLoadSeesAChangedCertificateWithNoFailure(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	ca := authority(t)
	old, renewed := issue(t, ca, "a.example"), issue(t, ca, "a.example")
	server := newTLSServer(t, old, nil)
	load := env.Load(testenv.LoadOptions{Address: server.address, ServerName: "a.example", Roots: ca.Pool})

	first, err := load.WaitSerial(env.Ready(), testenv.Serial(old.TLS.Leaf))
	if err != nil {
		t.Fatal(err)
	}
	if err := load.WaitMade(env.Ready(), 20); err != nil {
		t.Fatal(err)
	}
	serial := testenv.Serial(renewed.TLS.Leaf)
	if _, ok := load.FirstSeen(serial); ok {
		t.Error("the new certificate was seen before it was served")
	}
	server.leaf.Store(&renewed.TLS)
	second, err := load.WaitSerial(env.Ready(), serial)
	if err != nil {
		t.Fatal(err)
	}
	if !second.After(first) {
		t.Errorf("the new certificate was first seen at %v, the old one at %v", second, first)
	}
	load.Stop()
	made := load.Made()
	sum := 0
	for _, seen := range load.Serials() {
		sum += seen.Count
	}
	if made < 22 || sum != made || load.Failed() != 0 {
		t.Errorf("got %d made, %d by serial, %d failed (%v), want equal numbers and 0 failed", made, sum, load.Failed(), load.Errors())
	}
	if n := server.resumed.Load(); n != 0 {
		t.Errorf("%d handshakes were resumed, want 0", n)
	}
}

func TestLoadCountsEachFailure(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	ca := authority(t)
	server := newTLSServer(t, issue(t, ca, "a.example"), nil)
	load := env.Load(testenv.LoadOptions{Address: server.address, ServerName: "a.example", Roots: ca.Pool, Workers: 1})
	if err := load.WaitMade(env.Ready(), 5); err != nil {
		t.Fatal(err)
	}
	server.refuse.Store(true)
	err := testenv.Eventually(env.Ready(), func(context.Context) error {
		if load.Failed() < 12 {
			return errors.New("too few failures")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	load.Stop()
	if got := len(load.Errors()); got != 10 {
		t.Errorf("got %d errors kept, want the first 10", got)
	}
}

func TestHandshakeChecksOnlyWhatItIsAskedTo(t *testing.T) {
	t.Parallel()
	ca, stranger := authority(t), authority(t)
	leaf := issue(t, ca, "a.example")
	server := newTLSServer(t, leaf, nil)
	for _, tc := range []struct {
		name, sni string
		roots     *x509.CertPool
		ok        bool
	}{
		{"right name and root", "a.example", ca.Pool, true},
		{"wrong name", "b.example", ca.Pool, false},
		{"wrong root", "a.example", stranger.Pool, false},
		{"not verified", "b.example", nil, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, chain, err := testenv.Handshake(t.Context(), server.address, tc.sni, tc.roots)
			if (err == nil) != tc.ok {
				t.Fatalf("got error %v, want success %v", err, tc.ok)
			}
			if err == nil && (!got.Equal(leaf.TLS.Leaf) || len(chain) != 1) {
				t.Errorf("got serial %s in a chain of %d, want %s alone", testenv.Serial(got), len(chain), testenv.Serial(leaf.TLS.Leaf))
			}
		})
	}
}

func TestHandshakeFailsWhenTheServerRefusesTheClientAfterwards(t *testing.T) {
	t.Parallel()
	ca := authority(t)
	server := newTLSServer(t, issue(t, ca, "a.example"), ca.Pool)
	if _, _, err := testenv.Handshake(t.Context(), server.address, "a.example", ca.Pool); err == nil {
		t.Error("a handshake without a client certificate succeeded")
	}
	client := issue(t, ca)
	config := &tls.Config{RootCAs: ca.Pool, ServerName: "a.example", Certificates: []tls.Certificate{client.TLS}}
	if _, _, err := testenv.HandshakeConfig(t.Context(), server.address, config); err != nil {
		t.Errorf("with a client certificate: %v", err)
	}
}

func TestLoadOnEnvoyCountsWhatEnvoyCounts(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	ca := authority(t)
	leaf := issue(t, ca, "a.example")
	certFile, keyFile := filepath.Join(env.Dir, "a.crt"), filepath.Join(env.Dir, "a.key")
	if err := leaf.Write(certFile, keyFile); err != nil {
		t.Fatal(err)
	}
	port := env.Port()
	transport := fmt.Sprintf(`
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates: [{certificate_chain: {filename: %q}, private_key: {filename: %q}}]
      filters:`, certFile, keyFile)
	config := strings.Replace(fmt.Sprintf(staticEnvoy, port), "\n    - filters:", transport, 1)
	envoy := env.Envoy(testenv.EnvoyOptions{Config: []byte(config)})
	if err := envoy.WaitReady(env.Ready()); err != nil {
		t.Fatal(err)
	}
	load := env.Load(testenv.LoadOptions{Address: fmt.Sprintf("127.0.0.1:%d", port), ServerName: "a.example", Roots: ca.Pool, Workers: 4})
	if err := load.WaitMade(env.Ready(), 300); err != nil {
		t.Fatal(err)
	}
	load.Stop()
	if load.Failed() != 0 {
		t.Errorf("%d handshakes failed: %v", load.Failed(), load.Errors())
	}
	stats, err := envoy.Stats(t.Context(), `^listener\..*\.ssl\.(handshake|connection_error|session_reused)$`)
	if err != nil {
		t.Fatal(err)
	}
	prefix := fmt.Sprintf("listener.127.0.0.1_%d.ssl.", port)
	for name, want := range map[string]string{"handshake": strconv.Itoa(load.Made()), "connection_error": "0", "session_reused": "0"} {
		if got := stats[prefix+name]; got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
