package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
)

// manySecrets is more than Envoy's default circuit breaker lets through: without ADS each secret is a request that never ends.
const manySecrets = 1100

// The secrets do not exist, which makes no difference to the circuit breaker: each is a stream all the same.
func TestExamplesAndBootstrapsTakeMoreThan1024Secrets(t *testing.T) {
	e := testenv.NewT(t)
	s := startStandalone(e)
	names := make([]string, manySecrets)
	for i := range names {
		names[i] = fmt.Sprintf("missing-%04d.example", i)
	}
	configs := exampleConfigs(t, s, names)
	for _, api := range []bootstrap.API{bootstrap.Delta, bootstrap.SotW} {
		configs["bootstrap "+string(api)] = scaleConfig(e, fixedNames(api, names...), e.Address(), s.socket)
	}
	for name, config := range configs {
		t.Run(name, func(t *testing.T) {
			e := testenv.NewT(t)
			envoy := e.Envoy(testenv.EnvoyOptions{Config: config})
			must(t, envoy.WaitAdmin(e.Ready()))
			must(t, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
				stats, err := envoy.Stats(ctx, `^cluster\.sds_server\.upstream_rq_(active|pending_overflow)$`)
				if err != nil {
					return err
				}
				active, overflow := stats["cluster.sds_server.upstream_rq_active"], stats["cluster.sds_server.upstream_rq_pending_overflow"]
				if n, err := strconv.Atoi(active); err != nil || n < manySecrets || overflow != "0" { // some have secrets of other kinds besides
					return fmt.Errorf("%s streams are open and %s were kept back, want %d and none", active, overflow, manySecrets)
				}
				return nil
			}))
			must(t, envoy.Kill())
		})
	}
}

// exampleConfigs are the examples without ADS, with more secrets, and with the server of this test behind the cluster sds_server.
func exampleConfigs(t *testing.T, s *standalone, names []string) map[string][]byte {
	t.Helper()
	root, err := testenv.ModuleRoot()
	must(t, err)
	files, err := filepath.Glob(filepath.Join(root, "examples", "envoy", "*.yaml"))
	must(t, err)
	configs, seen := map[string][]byte{}, map[string]bool{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		must(t, err)
		if !strings.Contains(string(data), "static_resources:") || !strings.Contains(string(data), "cluster_name: sds_server\n                      retry_policy") {
			continue // not a whole bootstrap, or all secrets share one stream
		}
		var config map[string]any
		must(t, yaml.Unmarshal(data, &config))
		x := &expansion{names: names, socket: s.socket}
		x.walk(config)
		if x.lists == 0 || x.clusters != 1 {
			t.Fatalf("%s: %d lists of secrets and %d clusters of sds-server were found", file, x.lists, x.clusters)
		}
		way, err := json.Marshal([]any{x.source, x.cluster})
		must(t, err)
		if seen[string(way)] {
			continue // what differs is no matter of the circuit breaker
		}
		seen[string(way)] = true
		configs[filepath.Base(file)], err = json.Marshal(config)
		must(t, err)
	}
	if len(configs) < 2 {
		t.Fatalf("%d ways without ADS were found, want delta and state of the world", len(configs))
	}
	return configs
}

// expansion changes a configuration in place.
type expansion struct {
	names           []string
	socket          string
	lists, clusters int
	source, cluster any // as they are now
}

func (x *expansion) walk(v any) {
	switch v := v.(type) {
	case map[string]any:
		if v["name"] == "sds_server" {
			x.clusters++
			delete(v, "transport_socket")
			v["load_assignment"] = json.RawMessage(fmt.Sprintf(
				`{"cluster_name": "sds_server", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": %q}}}}]}]}`, x.socket))
			x.cluster = v
			return
		}
		if kind, _ := v["@type"].(string); strings.HasSuffix(kind, ".UpstreamTlsContext") {
			return // takes one certificate
		}
		if list, ok := v["tls_certificate_sds_secret_configs"].([]any); ok {
			x.lists++
			v["tls_certificate_sds_secret_configs"] = x.expand(list)
		}
		if _, ok := v["port_value"]; ok {
			v["address"], v["port_value"] = "127.0.0.1", 0
		}
		for _, inner := range v {
			x.walk(inner)
		}
	case []any:
		for _, inner := range v {
			x.walk(inner)
		}
	}
}

// expand gives each name the settings of the first secret of a list.
func (x *expansion) expand(list []any) []any {
	first, ok := list[0].(map[string]any)
	if !ok {
		return list
	}
	x.source = first["sds_config"]
	out := make([]any, len(x.names))
	for i, name := range x.names {
		out[i] = map[string]any{"name": name, "sds_config": first["sds_config"]}
	}
	return out
}
