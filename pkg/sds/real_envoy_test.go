package sds

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/secret"
)

// realEnvoy takes ports of its two listeners, the api_type, and the socket.
const realEnvoy = `
node: {id: edge-1, cluster: canary}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: a
    address: {socket_address: {address: 127.0.0.1, port_value: %[1]d}}
    filter_chains: [{transport_socket: &tls {name: envoy.transport_sockets.tls, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
      common_tls_context: {tls_certificate_sds_secret_configs: [{name: a, sds_config: &sds {resource_api_version: V3, api_config_source: {
        api_type: %[3]s, transport_api_version: V3, grpc_services: [{envoy_grpc: {cluster_name: sds}}]}}}]}}},
      filters: &filters [{name: envoy.filters.network.tcp_proxy, typed_config: {
        "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: tcp, cluster: sds}}]}]
  - name: b
    address: {socket_address: {address: 127.0.0.1, port_value: %[2]d}}
    filter_chains: [{transport_socket: {name: envoy.transport_sockets.tls, typed_config: {
      "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext,
      common_tls_context: {tls_certificate_sds_secret_configs: [{name: b, sds_config: *sds}]}}}, filters: *filters}]
  clusters:
  - name: sds
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: sds, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %[4]s}}}}]}]}
`

func TestRealEnvoyServesEveryVersion(t *testing.T) {
	for api, protocol := range map[string]Protocol{"GRPC": SotW, "DELTA_GRPC": Delta} {
		t.Run(string(protocol), func(t *testing.T) {
			env := testenv.NewT(t)
			f := newFleet(t, Limits{})
			f.rotate(t, "canary", "a", "b")
			path := filepath.Join(env.Dir, "run", "s")
			l, err := ListenUnix(t.Context(), path, 0o600, -1, -1)
			if err != nil {
				t.Fatal(err)
			}
			f.serve(t, Listener{Listener: l, Unix: true, Groups: []string{"canary"}})
			ports := map[string]int{"a": env.Port(), "b": env.Port()}
			envoy := env.Envoy(testenv.EnvoyOptions{Config: fmt.Appendf(nil, realEnvoy, ports["a"], ports["b"], api, path)})
			if err := envoy.WaitReady(env.Ready()); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				for name, port := range ports {
					want := f.rotate(t, "canary", name)
					f.served(t, name, port, want)
				}
			}
			n := f.node(t, "edge-1")
			if n.State != Synced || n.Protocol != protocol || n.Transport != Unix || len(n.Secrets) != 2 {
				t.Errorf("node %+v, want SYNCED with two secrets", n)
			}
			if got := f.counter(t, "sds_streams", "canary"); got != 2 {
				t.Errorf("%v streams, want 2", got)
			}
			if got, err := envoy.Stat(t.Context(), "sds.a.update_rejected"); got != 0 || err != nil {
				t.Errorf("%d rejected, %v; want none", got, err)
			}
			if got, err := envoy.Stats(t.Context(), `^sds\.a\.control_plane\.identifier$`); got["sds.a.control_plane.identifier"] != `"replica-1"` || err != nil {
				t.Errorf("identifier %v, %v", got, err)
			}
		})
	}
}

// served waits until the node has acknowledged a version and a handshake shows it.
func (f *fleet) served(t *testing.T, name string, port int, want secret.Version) {
	t.Helper()
	meta, ok := f.cache.Meta(name, want)
	if !ok {
		t.Fatalf("version %s is not known", want.Short())
	}
	dialer := &tls.Dialer{Config: &tls.Config{RootCAs: f.ca.pool(), ServerName: "www.example"}}
	err := testenv.Eventually(t.Context(), func(ctx context.Context) error {
		if p := f.Progress("canary", map[string]secret.Version{name: want}); len(p) != 1 || !p[0].Acked {
			return fmt.Errorf("progress %+v", p)
		}
		conn, err := dialer.DialContext(ctx, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			return err
		}
		secured, ok := conn.(*tls.Conn)
		if !ok {
			return fmt.Errorf("connection is a %T", conn)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(secured.ConnectionState().PeerCertificates[0].Raw)); sum != meta.SHA256 {
			err = fmt.Errorf("certificate %s is served, want %s", sum, meta.SHA256)
		}
		return errors.Join(err, conn.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}
