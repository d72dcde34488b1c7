package integration

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	stockclient "github.com/envoyproxy/go-control-plane/pkg/client/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// clientSecrets is more than one window of unacknowledged responses.
const clientSecrets = 40

// hidden is a secret that group production may not have.
const hidden = "hidden.internal"

// road is a way to the server.
type road struct {
	name, group, transport string
	dial                   func(s *standalone) *grpc.ClientConn
}

func roads() []road {
	return []road{
		{"unix", "canary", "unix", func(s *standalone) *grpc.ClientConn { return s.dial("unix://"+s.socket, insecure.NewCredentials()) }},
		{"mutual TLS", "production", "tls", func(s *standalone) *grpc.ClientConn {
			dir := filepath.Join(s.Dir, "identity")
			if _, err := os.Stat(dir); err != nil {
				s.run("identity", "issue", "--group", "production", "--node", "client-1", "--out", dir, "-c", s.config)
			}
			pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
			must(s, err)
			ca, err := os.ReadFile(filepath.Join(dir, "ca.crt"))
			must(s, err)
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(ca) {
				s.Fatal("no CA certificate")
			}
			return s.dial(s.address, credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, MinVersion: tls.VersionTLS13}))
		}},
	}
}

func (s *standalone) dial(target string, creds credentials.TransportCredentials) *grpc.ClientConn {
	s.Helper()
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(creds))
	must(s, err)
	s.Cleanup(func() { must(s, conn.Close()) })
	return conn
}

// startClients is a server with secrets for clients that are no Envoys.
func startClients(t *testing.T) (*standalone, []string) {
	t.Helper()
	s := startStandalone(testenv.NewT(t))
	var names []string
	for i := range clientSecrets {
		names = append(names, scaleName(i))
	}
	s.add(append([]string{hidden}, names...)...)
	return s, names
}

func TestClientOfGoControlPlaneThatNamesNothingGetsNothing(t *testing.T) {
	s, names := startClients(t)
	for _, w := range roads() {
		t.Run(w.name, func(t *testing.T) {
			conn := w.dial(s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			client := stockclient.NewADSClient(ctx, &corev3.Node{Id: "stock-" + w.transport, Cluster: w.group}, resource.SecretType)
			must(t, client.InitConnect(conn))
			fetched := make(chan error, 1)
			go func() {
				r, err := client.Fetch()
				if err == nil {
					err = fmt.Errorf("%d secrets came", len(r.Resources))
				}
				fetched <- err
			}()
			s.expectNode("stock-"+w.transport, func(n admin.Node) bool { return n.Connected && len(n.Secrets) == 0 && n.Protocol == "ads-sotw" })
			late := "late-" + w.transport + ".example" // added to both groups at once: a change that another client sees
			s.add(late)
			got := readSotw(t, openSotw(t, conn, true), w, []string{late, names[0]})
			if got[late] != s.serials[late] || got[names[0]] != s.serials[names[0]] {
				t.Errorf("another client got %v", got)
			}
			select {
			case err := <-fetched:
				t.Fatalf("the client was answered: %v", err)
			default:
			}
			cancel()
			if err := <-fetched; status.Code(err) != codes.Canceled {
				t.Errorf("stream ended: %v, want it open until the client left", err)
			}
		})
	}
}

func TestClientsOnTheGeneratedStubsReadEverySecretThatTheyName(t *testing.T) {
	s, names := startClients(t)
	for _, w := range roads() {
		for _, aggregated := range []bool{false, true} {
			for _, delta := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s/delta=%t/ads=%t", w.name, delta, aggregated), func(t *testing.T) {
					conn := w.dial(s)
					want := slices.Clone(names)
					if w.group == "canary" {
						want = append(want, hidden)
					}
					var got map[string]string
					if delta {
						got = readDelta(t, openDelta(t, conn, aggregated), w, append([]string{hidden}, names...))
					} else {
						got = readSotw(t, openSotw(t, conn, aggregated), w, want, hidden)
					}
					for _, name := range want {
						if got[name] != s.serials[name] {
							t.Errorf("%s: serial %q, want %q", name, got[name], s.serials[name])
						}
					}
					if len(got) != len(want) {
						t.Errorf("%d secrets came, want %d", len(got), len(want))
					}
				})
			}
		}
	}
}

// expectNode waits until a node is as wanted.
func (s *standalone) expectNode(id string, want func(admin.Node) bool) {
	s.Helper()
	must(s, testenv.Eventually(s.Ready(), func(ctx context.Context) error {
		var nodes admin.Nodes
		if err := s.admin.Get(ctx, "/v1/nodes", &nodes); err != nil {
			return err
		}
		for _, n := range nodes.Nodes {
			if n.ID == id && want(n) {
				return nil
			}
		}
		return fmt.Errorf("nodes %+v", nodes.Nodes)
	}))
}

type (
	sotwStream  = grpc.BidiStreamingClient[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]
	deltaStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
)

func openSotw(t *testing.T, conn *grpc.ClientConn, aggregated bool) (stream sotwStream) {
	t.Helper()
	var err error
	if aggregated {
		stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context())
	} else {
		stream, err = secretv3.NewSecretDiscoveryServiceClient(conn).StreamSecrets(t.Context())
	}
	must(t, err)
	return stream
}

func openDelta(t *testing.T, conn *grpc.ClientConn, aggregated bool) (stream deltaStream) {
	t.Helper()
	var err error
	if aggregated {
		stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(t.Context())
	} else {
		stream, err = secretv3.NewSecretDiscoveryServiceClient(conn).DeltaSecrets(t.Context())
	}
	must(t, err)
	return stream
}

func (w road) node(protocol string) *corev3.Node {
	return &corev3.Node{Id: protocol + "-" + w.transport, Cluster: w.group}
}

// readSotw names secrets, and others of which nothing will come, until it has all; it ACKs each response. It returns serials by name.
func readSotw(t *testing.T, stream sotwStream, w road, names []string, others ...string) map[string]string {
	t.Helper()
	asked := slices.Compact(slices.Sorted(slices.Values(slices.Concat(names, others))))
	request := &discoveryv3.DiscoveryRequest{Node: w.node("sotw"), TypeUrl: resource.SecretType, ResourceNames: asked}
	must(t, stream.Send(request))
	got := map[string]string{}
	for len(got) < len(names) {
		r, err := stream.Recv()
		must(t, err)
		for _, packed := range r.GetResources() {
			name, serial := openSecret(t, packed)
			got[name] = serial
		}
		must(t, stream.Send(&discoveryv3.DiscoveryRequest{
			TypeUrl: resource.SecretType, ResourceNames: asked, VersionInfo: r.GetVersionInfo(), ResponseNonce: r.GetNonce(),
		}))
	}
	return got
}

// readDelta names secrets until each was answered, and ACKs each response. It returns serials by name, without those that were removed.
func readDelta(t *testing.T, stream deltaStream, w road, names []string) map[string]string {
	t.Helper()
	must(t, stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: w.node("delta"), TypeUrl: resource.SecretType, ResourceNamesSubscribe: names}))
	got := map[string]string{}
	for answered := 0; answered < len(names); {
		r, err := stream.Recv()
		must(t, err)
		for _, res := range r.GetResources() {
			name, serial := openSecret(t, res.GetResource())
			got[name] = serial
		}
		for _, name := range r.GetRemovedResources() {
			if name != hidden {
				t.Errorf("%q was removed", name)
			}
		}
		answered += len(r.GetResources()) + len(r.GetRemovedResources())
		must(t, stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resource.SecretType, ResponseNonce: r.GetNonce()}))
	}
	return got
}

// openSecret returns the name of a secret and the serial of its certificate, for which its private key has to be the right one.
func openSecret(t *testing.T, packed *anypb.Any) (name, serial string) {
	t.Helper()
	var s tlsv3.Secret
	must(t, packed.UnmarshalTo(&s))
	chain := s.GetTlsCertificate().GetCertificateChain().GetInlineBytes()
	_, err := tls.X509KeyPair(chain, s.GetTlsCertificate().GetPrivateKey().GetInlineBytes())
	must(t, err)
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return s.GetName(), testenv.Serial(leaf)
}
