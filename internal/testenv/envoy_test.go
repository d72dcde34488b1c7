package testenv_test

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

const staticEnvoy = `
node: {id: from-config, cluster: from-config}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: http
    address: {socket_address: {address: 127.0.0.1, port_value: %d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: http
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: hello}}}]}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
`

func TestEnvoyBootsStaticConfigurationAndAnswers(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	port := env.Port()
	envoy := env.Envoy(testenv.EnvoyOptions{ID: "node-1", Cluster: "canary", Config: fmt.Appendf(nil, staticEnvoy, port)})
	if err := envoy.WaitReady(env.Ready()); err != nil {
		t.Fatal(err)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://127.0.0.1:%d/", port), http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := (&http.Client{}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if body, err := io.ReadAll(resp.Body); err != nil || string(body) != "hello" {
		t.Errorf("got %q, %v, want %q", body, err, "hello")
	}

	dump, err := envoy.AdminGet(t.Context(), "/server_info")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"node-1", "canary"} {
		if !strings.Contains(string(dump), want) {
			t.Errorf("/server_info does not contain %q:\n%s", want, dump)
		}
	}
	if got, err := envoy.Stat(t.Context(), "http.http.downstream_rq_2xx"); err != nil || got != 1 {
		t.Errorf("downstream_rq_2xx: got %d, %v, want 1", got, err)
	}
	if err := envoy.Stop(); err != nil {
		t.Error(err)
	}
}

func TestEnvoyWithBadConfigurationIsReportedWithItsLog(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	envoy := env.Envoy(testenv.EnvoyOptions{Config: []byte("no_such_field: 1\n")})
	err := envoy.WaitReady(env.Ready())
	if err == nil {
		t.Fatal("an Envoy with a bad configuration became ready")
	}
	for _, want := range []string{"ended by itself", "no_such_field"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not contain %q: %v", want, err)
		}
	}
	if err := testenv.ValidateEnvoy(t.Context(), []byte("no_such_field: 1\n")); err == nil {
		t.Error("a bad configuration is valid")
	}
	if err := testenv.ValidateEnvoy(t.Context(), fmt.Appendf(nil, staticEnvoy, env.Port())); err != nil {
		t.Error(err)
	}
}

// This test runs itself in another process, which starts a child and is then killed; the child must be gone with it.
func TestChildDiesWithItsParent(t *testing.T) {
	if dir := os.Getenv("TESTENV_PARENT_DIR"); dir != "" {
		parent(t, dir)
		return
	}
	t.Parallel()
	env := testenv.NewT(t)
	parent := env.Process(testenv.ProcessOptions{
		Name: "parent", Path: os.Args[0], Args: []string{"-test.run", "^TestChildDiesWithItsParent$"}, Env: []string{"TESTENV_PARENT_DIR=" + env.Dir},
	})
	if err := parent.WaitLog(env.Ready(), "child started"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(env.Dir, "pid"))
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Sscan(string(data), &pid); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, 0); err != nil {
		t.Fatalf("the child does not run: %v", err)
	}
	if err := parent.Kill(); err != nil {
		t.Fatal(err)
	}
	err = testenv.Eventually(env.Ready(), func(context.Context) error {
		if gone(pid) {
			return nil
		}
		return fmt.Errorf("process %d lives on", pid)
	})
	if err != nil {
		t.Error(err)
	}
}

// gone reports whether the process has ended; a zombie that nobody has waited for yet has ended, too.
func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

func parent(t *testing.T, dir string) {
	t.Helper()
	child, err := testenv.StartProcess(t.Context(), testenv.ProcessOptions{
		Name: "child", Path: "/bin/sleep", Args: []string{"60"}, LogDir: dir,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "pid"), fmt.Append(nil, child.PID()), 0o600); err != nil {
		t.Fatal(err)
	}
	fmt.Println("child started")
	<-child.Done()
}
