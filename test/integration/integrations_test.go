package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// integration is one section of docs/integrations.md. Its blocks are run as they stand there, with other addresses and paths.
type integration struct {
	name, secret, group string
	socket              string // in the document; empty for mutual TLS
	envoySocket         string // where it differs
}

func integrations() []integration {
	return []integration{
		{name: "envoy-gateway", secret: "www.example.com", group: "gateway", socket: "/run/sds-server/sds.sock"},
		{
			name: "istio", secret: "sds://www.example.com", group: "gateway", socket: "/var/run/secrets/credential-uds/socket",
			envoySocket: "./var/run/secrets/credential-uds/socket",
		},
		{name: "consul", secret: "www.example.com", group: "consul"},
	}
}

func TestEnvoyOfOtherControlPlanesIsServed(t *testing.T) {
	for _, i := range integrations() {
		t.Run(i.name, func(t *testing.T) {
			e := testenv.NewT(t)
			blocks := integrationBlocks(t, i.name)
			s, socket := i.serve(e, blocks["sds-server"])
			s.addAs(i.secret, "www.example.com")
			https, envoy := i.boot(s, blocks, socket)
			s.servedAs(envoy, https, i.secret)
			s.addAs(i.secret, "www.example.com")
			s.servedAs(envoy, https, i.secret)
			s.expectNode("gateway-1", func(n admin.Node) bool {
				return n.Protocol == "sotw" && n.Group == i.group && n.State == "SYNCED" && len(n.Secrets) == 1 && n.Secrets[0].Name == i.secret
			})
		})
	}
}

// integrationBlocks returns the blocks of one section that are marked, by kind.
func integrationBlocks(t *testing.T, name string) map[string]string {
	t.Helper()
	root, err := testenv.ModuleRoot()
	must(t, err)
	document, err := os.ReadFile(filepath.Join(root, "docs", "integrations.md"))
	must(t, err)
	blocks := map[string]string{}
	for _, part := range strings.Split(string(document), "<!-- run: ")[1:] {
		title, rest, ok := strings.Cut(part, " -->\n```yaml\n")
		block, _, closed := strings.Cut(rest, "```\n")
		section, kind, _ := strings.Cut(title, " ")
		if !ok || !closed {
			t.Fatalf("the mark %q is not followed by a block of YAML", title)
		}
		if section == name {
			blocks[kind] = block
		}
	}
	for _, kind := range []string{"sds-server", "tls", "cluster"} {
		if blocks[kind] == "" {
			t.Fatalf("docs/integrations.md has no block %q", name+" "+kind)
		}
	}
	return blocks
}

// serve starts the server with the block of the document.
func (i integration) serve(e *testenv.T, block string) (s *standalone, socket string) {
	e.Helper()
	replace := []string{"0.0.0.0:18000", e.Address()}
	if i.socket != "" {
		socket = filepath.Join(e.Dir, "sds", "s.sock")
		replace = []string{i.socket, socket, "sds-server:envoy", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())}
	}
	// What a user would wait for is nothing that this test looks at.
	replace = append(replace, "rollout: {", "rollout: {watch: 0s, empty_group: skip, ")
	config, err := testenv.Substitute([]byte(block), replace...)
	must(e, err)
	s = newStandalone(e)
	if socket == "" {
		s.address = replace[1]
	}
	s.start(string(config))
	return s, socket
}

// boot starts an Envoy with what the control plane generates.
func (i integration) boot(s *standalone, blocks map[string]string, socket string) (https string, envoy *testenv.Envoy) {
	s.Helper()
	cluster := []byte(blocks["cluster"])
	var err error
	if socket == "" {
		dir := filepath.Join(s.Dir, "identity")
		s.run("identity", "issue", "--group", i.group, "--node", "gateway-1", "--out", dir, "-c", s.config)
		_, port, _ := strings.Cut(s.address, ":")
		cluster, err = testenv.Substitute(cluster, "18000", port, "/etc/envoy/sds", dir)
	} else {
		inEnvoy := i.socket
		if i.envoySocket != "" {
			inEnvoy = i.envoySocket
		}
		cluster, err = testenv.Substitute(cluster, inEnvoy, socket)
	}
	must(s, err)
	https = s.Address()
	_, port, _ := strings.Cut(https, ":")
	config, err := testenv.Substitute([]byte(integrationEnvoy), "HTTPS_PORT", port, "COMMON_TLS_CONTEXT", flow(s, []byte(blocks["tls"])), "CLUSTER", flow(s, cluster))
	must(s, err)
	envoy = s.Envoy(testenv.EnvoyOptions{Config: config})
	must(s, envoy.WaitReady(s.Ready()))
	return https, envoy
}

// flow is a block of YAML on one line.
func flow(t testing.TB, block []byte) string {
	t.Helper()
	var v any
	must(t, yaml.Unmarshal(block, &v))
	line, err := json.Marshal(v)
	must(t, err)
	return string(line)
}

// integrationEnvoy is what a gateway has besides; its id and cluster are the control plane's.
const integrationEnvoy = `
node: {id: gateway-1, cluster: anything}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: https
    address: {socket_address: {address: 127.0.0.1, port_value: HTTPS_PORT}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context: COMMON_TLS_CONTEXT
      filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: https
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters:
          - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - CLUSTER
`

// servedAs waits until the newest certificate of a secret is served.
func (s *standalone) servedAs(envoy *testenv.Envoy, https, name string) {
	s.Helper()
	err := testenv.Eventually(s.Ready(), func(ctx context.Context) error {
		leaf, _, err := testenv.Handshake(ctx, https, "www.example.com", s.ca.Pool)
		if err != nil {
			return err
		}
		if got, want := testenv.Serial(leaf), s.serials[name]; got != want {
			return fmt.Errorf("certificate %s is served, want %s", got, want)
		}
		return nil
	})
	if err != nil {
		s.Fatalf("%v\n%s", err, envoy.LogTail(20))
	}
}
