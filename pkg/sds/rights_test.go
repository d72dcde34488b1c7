package sds

import (
	"crypto/tls"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"github.com/sds-server/sds-server/pkg/secret"
)

// twoGroups give each identity under its name one group.
func twoGroups(deny ...string) []Group {
	return []Group{
		{Name: "canary", Identities: []string{"spiffe://edge.example/canary/*", "dns:edge-1.example"}, Deny: deny, Secrets: []string{"*"}},
		{Name: "production", Identities: []string{"spiffe://edge.example/production/*"}, Secrets: []string{"shared", "only-*"}},
	}
}

// mutual returns a fleet with a listener for mutual TLS.
func mutual(t *testing.T) (*fleet, func(config *tls.Config) *grpc.ClientConn) {
	t.Helper()
	f := newFleet(t, Limits{}, twoGroups()...)
	buffer := f.listen(t, Listener{TLS: f.ca.server(t)})
	return f, func(config *tls.Config) *grpc.ClientConn { return dial(t, buffer, config) }
}

func TestForbiddenNameIsAnsweredAsUnknown(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		f.rotate(t, "production", "shared", "private")
		e := newEnvoy(t, connect(f.ca.client(t, time.Time{}, "spiffe://edge.example/production/1")), protocol, &corev3.Node{Id: "edge-1"})
		e.subscribe("private")
		e.expectRemoved("private")
		e.subscribe("missing")
		e.expectRemoved("missing")
		f.rotate(t, "production", "private")
		e.silent()
		e.subscribe("shared")
		e.expect("shared")
		e.silent()
		if got := f.counter(t, "sds_denied_total", reasonName); got != 2 {
			t.Errorf("%v forbidden names counted, want 2", got)
		}
	})
}

func TestNodeIsSentItsOwnGroupOnly(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		f.rotate(t, "canary", "shared")
		f.rotate(t, "production", "shared")
		canary := newEnvoy(t, connect(f.ca.client(t, time.Time{}, "dns:edge-1.example")), protocol, &corev3.Node{Id: "edge-1", Cluster: "production"})
		canary.subscribe("shared")
		mine := canary.expect("shared")
		production := newEnvoy(t, connect(f.ca.client(t, time.Time{}, "spiffe://edge.example/production/1")), protocol, &corev3.Node{Id: "edge-1", Cluster: "canary"})
		production.subscribe("shared")
		if production.expect("shared").chain == mine.chain {
			t.Error("both groups were sent the same bytes")
		}
		f.rotate(t, "production", "shared")
		production.expect("shared")
		canary.silent()
		if n := len(f.Nodes()); n != 2 {
			t.Errorf("%d nodes, want 2: the same id under two identities is two nodes", n)
		}
	})
}

func TestPeersWithoutRightsAreRefused(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		anonymous := f.ca.client(t, time.Time{}, "spiffe://edge.example/canary/1")
		anonymous.Certificates = nil
		for _, test := range []struct {
			config *tls.Config
			code   codes.Code
		}{
			{anonymous, codes.Unauthenticated},
			{f.ca.client(t, time.Time{}), codes.Unauthenticated}, // a certificate without a name
			{f.ca.client(t, time.Time{}, "spiffe://edge.example/other/1"), codes.PermissionDenied},
			{newIssuer(t).client(t, time.Time{}, "spiffe://edge.example/canary/1"), codes.Unavailable}, // another CA: no connection
		} {
			test.config.RootCAs = f.ca.pool()
			e := newEnvoyAnyway(t, connect(test.config), protocol)
			e.refused(test.code)
		}
	})
}

// newEnvoyAnyway opens a stream that may be refused before its first request.
func newEnvoyAnyway(t *testing.T, conn *grpc.ClientConn, protocol Protocol) *envoy {
	t.Helper()
	ctx := t.Context()
	e := &envoy{t: t, protocol: protocol, answers: make(chan answer, 10), ended: make(chan error, 1), cancel: func() {}}
	desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
	method := map[Protocol]string{
		SotW:     secretv3.SecretDiscoveryService_StreamSecrets_FullMethodName,
		Delta:    secretv3.SecretDiscoveryService_DeltaSecrets_FullMethodName,
		ADSSotW:  discoveryv3.AggregatedDiscoveryService_StreamAggregatedResources_FullMethodName,
		ADSDelta: discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResources_FullMethodName,
	}[protocol]
	stream, err := conn.NewStream(ctx, desc, method)
	if err == nil {
		err = stream.RecvMsg(&corev3.Node{})
	}
	e.ended <- err
	return e
}

func TestStreamEndsWhenTheCertificateExpires(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		f.rotate(t, "canary", "a")
		config := f.ca.client(t, time.Now().Add(time.Hour), "spiffe://edge.example/canary/1")
		e := newEnvoy(t, connect(config), protocol, &corev3.Node{Id: "edge-1"})
		e.subscribe("a")
		e.expect("a")
		<-time.After(59 * time.Minute)
		e.silent()
		<-time.After(2 * time.Minute)
		e.refused(codes.Unauthenticated)
	})
}

func TestReloadEndsStreamsThatLostTheirGroup(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		f.rotate(t, "canary", "a")
		open := func(san, id string) *envoy {
			e := newEnvoy(t, connect(f.ca.client(t, time.Time{}, san)), protocol, &corev3.Node{Id: id})
			e.subscribe("a")
			e.expect("a")
			return e
		}
		stolen, kept := open("spiffe://edge.example/canary/1", "edge-1"), open("spiffe://edge.example/canary/2", "edge-2")
		idle := newEnvoy(t, connect(f.ca.client(t, time.Time{}, "spiffe://edge.example/canary/1")), protocol, &corev3.Node{Id: "edge-3"})
		f.SetPolicy(NewPolicy(twoGroups("spiffe://edge.example/canary/1")))
		stolen.refused(codes.PermissionDenied)
		idle.refused(codes.PermissionDenied) // also before its first request
		kept.silent()
		f.rotate(t, "canary", "a")
		kept.expect("a")
	})
}

func TestReloadMovesNodesToTheirNewGroup(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		f.rotate(t, "canary", "shared")
		f.rotate(t, "production", "shared")
		config := f.ca.client(t, time.Time{}, "spiffe://edge.example/canary/1")
		e := newEnvoy(t, connect(config), protocol, &corev3.Node{Id: "edge-1"})
		e.subscribe("shared")
		e.expect("shared")
		groups := twoGroups()
		groups[0].Identities, groups[1].Identities = groups[1].Identities, groups[0].Identities
		f.SetPolicy(NewPolicy(groups))
		e.refused(codes.PermissionDenied)
		e = newEnvoy(t, connect(config), protocol, &corev3.Node{Id: "edge-1"})
		e.subscribe("shared")
		e.expect("shared")
		if n := f.node(t, "edge-1"); n.Group != "production" {
			t.Errorf("group %q, want production", n.Group)
		}
		if p := f.Progress("canary", map[string]secret.Version{"shared": "x"}); len(p) != 1 || !p[0].Unsubscribed {
			t.Errorf("the old group still counts the node: %+v", p)
		}
	})
}

func TestReloadRemovesAndSendsNames(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		e.expect("b")
		f.SetPolicy(NewPolicy([]Group{{Name: "canary", Secrets: []string{"b"}}}))
		e.expectRemoved("a")
		f.rotate(t, "canary", "a")
		e.silent()
		f.SetPolicy(NewPolicy(everything("canary")))
		e.expect("a")
		e.silent()
	})
}

func TestUnixPeerIsItsUser(t *testing.T) {
	f := newFleet(t, Limits{})
	f.rotate(t, "canary", "a")
	path := filepath.Join(t.TempDir(), "run", "sds.sock")
	l, err := ListenUnix(t.Context(), path, 0o600, -1, -1)
	if err != nil {
		t.Fatal(err)
	}
	f.serve(t, Listener{Listener: l, Unix: true, Groups: []string{"canary"}})
	conn := dialUnix(t, path)
	e := newEnvoy(t, conn, Delta, &corev3.Node{Id: "edge-1"})
	e.subscribe("a")
	e.next()
	n := f.node(t, "edge-1")
	if want := "unix:uid=" + uid(); n.Identity != want || n.Transport != Unix {
		t.Errorf("identity %q over %s, want %q over unix", n.Identity, n.Transport, want)
	}
	f.SetPolicy(NewPolicy([]Group{{Name: "canary", Secrets: []string{"*"}, Deny: []string{"unix:uid=" + uid()}}}))
	e.refused(codes.PermissionDenied)
}

func TestListenerNeedsAProofOrLoopback(t *testing.T) {
	f := newFleet(t, Limits{})
	listen := func(address string) net.Listener {
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for name, l := range map[string]Listener{
		"no groups":      {Listener: listen("127.0.0.1:0")},
		"not loopback":   {Listener: listen("0.0.0.0:0"), Groups: []string{"canary"}},
		"TLS and Unix":   {Listener: listen("127.0.0.1:0"), Groups: []string{"canary"}, TLS: &tls.Config{}, Unix: true},
		"Unix, no group": {Listener: listen("127.0.0.1:0"), Unix: true},
	} {
		if err := f.Serve(t.Context(), l); err == nil {
			t.Errorf("%s: no error", name)
		}
		if _, err := l.Accept(); err == nil {
			t.Errorf("%s: the listener is open", name)
		}
	}
}

func TestTLSConfigReadsFiles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{}, twoGroups()...)
		f.rotate(t, "canary", "a")
		directory := t.TempDir()
		write := func(name string, content []byte) string {
			path := filepath.Join(directory, name)
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
		pair := f.ca.server(t).Certificates[0]
		chain := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]})
		cert, key := write("tls.crt", chain), write("tls.key", keyPEM(t, f.ca))
		ca := write("ca.crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.ca.cert.Raw}))
		config, err := TLSConfig(cert, key, ca)
		if err != nil {
			t.Fatal(err)
		}
		buffer := f.listen(t, Listener{TLS: config})
		e := newEnvoy(t, dial(t, buffer, f.ca.client(t, time.Time{}, "dns:edge-1.example")), Delta, &corev3.Node{Id: "edge-1"})
		e.subscribe("a")
		e.expect("a")

		empty := write("empty", nil)
		for name, files := range map[string][3]string{
			"no certificate": {empty, key, ca}, "no key": {cert, empty, ca}, "no CA": {cert, key, empty}, "missing CA": {cert, key, "/nowhere/ca"},
		} {
			if _, err := TLSConfig(files[0], files[1], files[2]); err == nil {
				t.Errorf("%s: no error", name)
			}
		}
	})
}
