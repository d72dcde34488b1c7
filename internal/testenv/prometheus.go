package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// PrometheusOptions says how StartPrometheus runs Prometheus. The zero value of every field but Dir works.
type PrometheusOptions struct {
	// Name is used in errors and for files; default "prometheus". Two in one directory need two names.
	Name string
	// Dir takes configuration, data and log.
	Dir string
	// Port is listened on; default: a free one.
	Port int
	// Targets are scraped: HOST:PORT, or the URL of a page of metrics such as http://127.0.0.1:9901/stats/prometheus.
	Targets []string
	// Interval is the time between two scrapes of a target, and between two evaluations of Rules; default 100 ms.
	Interval time.Duration
	// Rules are files with rules.
	Rules []string
	// Config stands in the place of what Targets, Interval and Rules say.
	Config []byte
	// Binary is the executable; default: EnsurePrometheus.
	Binary string
}

// Prometheus is a running Prometheus. One that is started again in the same directory has the data of before.
type Prometheus struct {
	*Process
	// URL is its base, without a slash at the end.
	URL string
}

// StartPrometheus starts Prometheus on a loopback port and waits until it answers. That something has been scraped is for the caller to wait for.
func StartPrometheus(ctx context.Context, o PrometheusOptions) (*Prometheus, error) {
	if o.Name == "" {
		o.Name = "prometheus"
	}
	p, err := startPrometheus(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return p, nil
}

func startPrometheus(ctx context.Context, o PrometheusOptions) (*Prometheus, error) {
	if o.Binary == "" {
		tools, err := EnsurePrometheus(ctx, nil)
		if err != nil {
			return nil, err
		}
		o.Binary = tools.Prometheus
	}
	if o.Port == 0 {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		o.Port = port
	}
	if o.Config == nil {
		o.Config = o.config()
	}
	file := filepath.Join(o.Dir, o.Name+".yaml")
	if err := os.WriteFile(file, o.Config, 0o600); err != nil {
		return nil, err
	}
	p := &Prometheus{URL: "http://" + loopback(o.Port)}
	var err error
	p.Process, err = StartProcess(ctx, ProcessOptions{
		Name: o.Name, Path: o.Binary, LogDir: o.Dir,
		Args: []string{
			"--config.file=" + file, "--storage.tsdb.path=" + filepath.Join(o.Dir, o.Name+"-data"), "--web.listen-address=" + loopback(o.Port),
		},
	})
	if err != nil {
		return nil, err
	}
	if err := p.WaitHTTP(ctx, p.URL+"/-/ready"); err != nil {
		return nil, errors.Join(err, p.Kill())
	}
	return p, nil
}

// config is the configuration; each target is a job of its own, named target-0 and so on.
func (o PrometheusOptions) config() []byte {
	interval := o.Interval
	if interval == 0 {
		interval = 100 * time.Millisecond
	}
	var b strings.Builder
	fmt.Fprintf(&b, "global: {scrape_interval: %[1]dms, scrape_timeout: %[1]dms, evaluation_interval: %[1]dms}\n", interval.Milliseconds())
	if len(o.Rules) > 0 {
		fmt.Fprintf(&b, "rule_files: [%s]\n", strings.Join(o.Rules, ", "))
	}
	if len(o.Targets) > 0 {
		b.WriteString("scrape_configs:\n")
	}
	for i, target := range o.Targets {
		scheme, path := "http", "/metrics"
		if before, rest, ok := strings.Cut(target, "://"); ok {
			scheme = before
			var tail string
			if target, tail, ok = strings.Cut(rest, "/"); ok {
				path = "/" + tail
			}
		}
		fmt.Fprintf(&b, "- {job_name: target-%d, scheme: %s, metrics_path: %q, static_configs: [{targets: [%q]}]}\n", i, scheme, path, target)
	}
	return []byte(b.String())
}
