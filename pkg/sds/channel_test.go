package sds

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// seen makes a client remember the serial of the server's certificate at its last handshake.
func seen(config *tls.Config) *atomic.Pointer[string] {
	var serial atomic.Pointer[string]
	config.VerifyConnection = func(state tls.ConnectionState) error {
		serial.Store(new(state.PeerCertificates[0].SerialNumber.String()))
		return nil
	}
	return &serial
}

func serialOf(config *tls.Config) string { return config.Certificates[0].Leaf.SerialNumber.String() }

// canaryNode opens a stream of a node in canary, on a connection of its own, and reads one secret.
func canaryNode(t *testing.T, conn *grpc.ClientConn, id string) *envoy {
	t.Helper()
	e := newEnvoy(t, conn, Delta, &corev3.Node{Id: id})
	e.subscribe("a")
	e.expect("a")
	return e
}

func TestReplacedCertificateIsForNewConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, twoGroups()...)
		f.rotate(t, "canary", "a")
		first, second := f.ca.server(t), f.ca.server(t)
		channel := NewChannel(first)
		buffer := f.listen(t, Listener{Channel: channel})
		config := f.ca.client(t, time.Time{}, "spiffe://edge.example/canary/1")
		serial := seen(config)
		old := canaryNode(t, dial(t, buffer, config), "edge-1")
		if got := *serial.Load(); got != serialOf(first) {
			t.Errorf("serial %s, want %s", got, serialOf(first))
		}

		if closed := channel.Replace(second); closed != 0 {
			t.Errorf("%d connections closed by a new server certificate", closed)
		}
		canaryNode(t, dial(t, buffer, config), "edge-2")
		if got := *serial.Load(); got != serialOf(second) {
			t.Errorf("serial %s after the replacement, want %s", got, serialOf(second))
		}
		f.rotate(t, "canary", "a")
		old.expect("a") // the stream has stayed
	})
}

func TestConnectionsOfARemovedClientCAAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, twoGroups()...)
		f.rotate(t, "canary", "a")
		other := newIssuer(t)
		both, alone := f.ca.server(t), f.ca.server(t)
		both.ClientCAs.AddCert(other.cert)
		channel := NewChannel(both)
		buffer := f.listen(t, Listener{Channel: channel})
		config := other.client(t, time.Time{}, "spiffe://edge.example/canary/2")
		config.RootCAs = f.ca.pool()
		kept := canaryNode(t, dial(t, buffer, f.ca.client(t, time.Time{}, "spiffe://edge.example/canary/1")), "edge-1")
		removed := canaryNode(t, dial(t, buffer, config), "edge-2")

		if closed := channel.Replace(alone); closed != 1 {
			t.Errorf("%d connections closed, want 1", closed)
		}
		removed.refused(codes.Unavailable)
		kept.silent()
		f.rotate(t, "canary", "a")
		kept.expect("a")
		newEnvoyAnyway(t, dial(t, buffer, config), Delta).refused(codes.Unavailable)
		if n := len(channel.open()); n != 1 {
			t.Errorf("%d connections are tracked, want 1", n)
		}
	})
}

func TestHandshakeUnderTheOldClientCAIsNotKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, twoGroups()...)
		other := newIssuer(t)
		both, alone := f.ca.server(t), f.ca.server(t)
		both.ClientCAs.AddCert(other.cert)
		channel := NewChannel(both)
		both.VerifyConnection = func(tls.ConnectionState) error { // the last moment of a handshake
			channel.Replace(alone)
			return nil
		}
		buffer := f.listen(t, Listener{Channel: channel})
		config := other.client(t, time.Time{}, "spiffe://edge.example/canary/2")
		config.RootCAs = f.ca.pool()
		newEnvoyAnyway(t, dial(t, buffer, config), Delta).refused(codes.Unavailable)
		if n := len(channel.open()); n != 0 {
			t.Errorf("%d connections are tracked, want none", n)
		}
	})
}

// TestConnectionEndsWithItsCertificate would fail if only the stream ended: the next one would come by the same connection.
func TestConnectionEndsWithItsCertificate(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		f.rotate(t, "canary", "a")
		config := f.ca.client(t, time.Now().Add(time.Hour), "spiffe://edge.example/canary/1")
		current := config.Certificates[0]
		config.Certificates = nil
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &current, nil }
		conn := connect(config)
		e := newEnvoy(t, conn, protocol, &corev3.Node{Id: "edge-1"})
		e.subscribe("a")
		e.expect("a")
		<-time.After(50 * time.Minute)
		current = f.ca.client(t, time.Now().Add(time.Hour), "spiffe://edge.example/canary/1").Certificates[0]
		<-time.After(9 * time.Minute)
		e.silent()
		<-time.After(time.Minute + 2*statusGrace)
		e.refused(codes.Unauthenticated)
		next := newEnvoy(t, conn, protocol, &corev3.Node{Id: "edge-1"})
		next.subscribe("a")
		next.expect("a")
	})
}

func TestRenewedNodeComesBackBeforeTheOldCertificateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, twoGroups()...)
		f.rotate(t, "canary", "a")
		channel := NewChannel(f.ca.server(t))
		buffer := f.listen(t, Listener{Channel: channel})
		start := time.Now()
		ending := func(want int) {
			t.Helper()
			if got := channel.Ending(time.Now()); len(got) != want {
				t.Errorf("ending: %v, want %d", got, want)
			}
		}
		config := f.ca.client(t, start.Add(5*time.Hour), "spiffe://edge.example/canary/1") // a life of 6 h, one of them over
		current := config.Certificates[0]
		config.Certificates = nil
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &current, nil }
		conn := dial(t, buffer, config)
		e := canaryNode(t, conn, "edge-1")
		ends := func(want time.Time) {
			t.Helper()
			if got := f.NodeCertificates(channel)["canary"]; !got.Equal(want.Truncate(time.Second)) {
				t.Errorf("the first certificate of canary ends at %v, want %v", got, want)
			}
		}
		ends(start.Add(5 * time.Hour))
		<-time.After(3 * time.Hour)
		renewed := time.Now().Add(5 * time.Hour)
		current = f.ca.client(t, renewed, "spiffe://edge.example/canary/1").Certificates[0]
		<-time.After(time.Hour - time.Second)
		e.silent()
		<-time.After(2 * time.Second) // 5/6 of the life are over
		e.refused(codes.Unavailable)
		canaryNode(t, conn, "edge-1")
		ends(renewed)
		ending(0)

		// One that was not renewed comes back with the same certificate, and is left in peace until the end.
		<-time.After(3*time.Hour + time.Second)
		last := canaryNode(t, conn, "edge-1")
		ending(1)
		<-time.After(58 * time.Minute)
		last.silent()
		ends(renewed)
		<-time.After(3 * time.Minute)
		last.refused(codes.Unauthenticated)
		if got := f.NodeCertificates(channel); len(got) != 0 {
			t.Errorf("got %v, want no group: nobody is connected", got)
		}
	})
}

func TestEarliestNodeCertificateCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, twoGroups()...)
		f.rotate(t, "canary", "a")
		channel := NewChannel(f.ca.server(t))
		buffer := f.listen(t, Listener{Channel: channel})
		early, late := time.Now().Add(100*time.Hour), time.Now().Add(200*time.Hour)
		canaryNode(t, dial(t, buffer, f.ca.client(t, late, "spiffe://edge.example/canary/1")), "edge-1")
		canaryNode(t, dial(t, buffer, f.ca.client(t, early, "dns:Edge-1.example")), "edge-2")
		newEnvoyAnyway(t, dial(t, buffer, f.ca.client(t, time.Now().Add(time.Hour), "spiffe://edge.example/none/1")), Delta).refused(codes.PermissionDenied)
		got := f.NodeCertificates(channel)
		if len(got) != 1 || !got["canary"].Equal(early.Truncate(time.Second)) {
			t.Errorf("got %v, want canary at %v", got, early)
		}
	})
}

func TestDamagedBundleIsRefused(t *testing.T) {
	f := newIssuer(t)
	directory := t.TempDir()
	write := func(name string, content []byte) string {
		path := filepath.Join(directory, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	pair := f.server(t).Certificates[0]
	cert := write("tls.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}))
	key := write("tls.key", keyPEM(t, f))
	one := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.cert.Raw})
	two := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: newIssuer(t).cert.Raw})
	if config, err := TLSConfig(cert, key, write("good", slices.Concat(one, []byte("# a comment\n"), two))); err != nil || config.ClientCAs.Equal(f.pool()) {
		t.Errorf("a bundle of two: %v, or only the first was read", err)
	}
	for name, content := range map[string][]byte{
		"cut":    slices.Concat(one, two[:len(two)/2]),
		"broken": slices.Concat(one, bytes.Replace(two, []byte("-----END CERTIFICATE-----"), nil, 1)),
		"junk":   slices.Concat(one, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no certificate")})),
		"empty":  nil,
	} {
		if _, err := TLSConfig(cert, key, write(name, content)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
