package testenv_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/sds-server/sds-server/internal/testenv"
)

// query waits until Prometheus answers a query with text in it.
func query(env *testenv.T, p *testenv.Prometheus, promQL, text string) {
	env.Helper()
	err := testenv.Eventually(env.Ready(), func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, p.URL+"/api/v1/query?query="+url.QueryEscape(promQL), http.NoBody)
		if err != nil {
			return err
		}
		resp, err := (&http.Client{}).Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && !strings.Contains(string(body), text) {
			err = fmt.Errorf("%s: got %s, want something with %s", promQL, body, text)
		}
		return err
	})
	if err != nil {
		env.Fatal(err)
	}
}

func TestPrometheusScrapesItsTargetsAndKeepsItsData(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	registry := prometheus.NewRegistry()
	gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "tested_value"})
	registry.MustRegister(gauge)
	gauge.Set(42.5)
	var paths [2]string
	for i := range paths {
		mux := http.NewServeMux()
		paths[i] = "/metrics"
		if i == 1 {
			paths[i] = "/stats/prometheus"
		}
		mux.Handle(paths[i], promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
		address := env.Address()
		server := &http.Server{Addr: address, Handler: mux}
		served := make(chan error, 1)
		go func() { served <- server.ListenAndServe() }()
		t.Cleanup(func() {
			if err := server.Close(); err != nil {
				t.Error(err)
			}
			if err := <-served; !errors.Is(err, http.ErrServerClosed) {
				t.Error(err)
			}
		})
		paths[i] = "http://" + address + paths[i]
	}
	plain, _ := strings.CutSuffix(strings.TrimPrefix(paths[0], "http://"), "/metrics")
	o := testenv.PrometheusOptions{Targets: []string{plain, paths[1]}}
	p := env.Prometheus(o)
	query(env, p, `tested_value{job="target-0"}`, `"42.5"`)
	query(env, p, `tested_value{job="target-1"}`, `"42.5"`)
	if !strings.HasPrefix(p.URL, "http://127.0.0.1:") {
		t.Errorf("listens on %s, want loopback", p.URL)
	}
	if err := p.Stop(); err != nil {
		t.Fatal(err)
	}
	again := env.Prometheus(testenv.PrometheusOptions{Config: []byte("{}\n")})
	query(env, again, `count_over_time(tested_value{job="target-0"}[5m])`, `"value"`)
}

func TestPrometheusWithBadConfigurationIsReportedWithItsLog(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	_, err := testenv.StartPrometheus(env.Ready(), testenv.PrometheusOptions{Dir: env.Dir, Config: []byte("no_such_key: 1\n")})
	if err == nil || !strings.Contains(err.Error(), "ended by itself") || !strings.Contains(err.Error(), "no_such_key") {
		t.Errorf("got %v, want the end and its reason", err)
	}
}

func TestEnvironmentOverridesPrometheus(t *testing.T) {
	t.Setenv("PROMETHEUS_BIN", "/opt/p/prometheus")
	fail := func(format string, _ ...any) { t.Errorf("unpacks something: %s", format) }
	got, err := testenv.EnsurePrometheus(t.Context(), fail)
	if want := (testenv.PrometheusTools{Prometheus: "/opt/p/prometheus", Promtool: "/opt/p/promtool"}); err != nil || got != want {
		t.Errorf("PROMETHEUS_BIN: got %v, %v, want %v", got, err, want)
	}
	t.Setenv("PROMETHEUS_BIN", "")
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	for _, name := range []string{"prometheus", "promtool"} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	got, err = testenv.EnsurePrometheus(t.Context(), fail)
	if want := (testenv.PrometheusTools{Prometheus: filepath.Join(bin, "prometheus"), Promtool: filepath.Join(bin, "promtool")}); err != nil || got != want {
		t.Errorf("PATH: got %v, %v, want %v", got, err, want)
	}
}

func TestFailedDownloadOfPrometheusLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module m.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	t.Setenv("PROMETHEUS_BIN", "")
	t.Setenv("PATH", dir)
	_, err := testenv.EnsurePrometheus(t.Context(), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "prometheus: ") || !strings.Contains(err.Error(), "apt-get") {
		t.Errorf("got %v, want an error about apt-get", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, ".tools"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}
