package testenv

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"
)

// tailLines is how much of each log a failed test shows.
const tailLines = 60

// T runs parts for one test, ends them with it, and fails the test where one cannot be started. When the test has
// failed, T prints the tail of each log and keeps the directory.
type T struct {
	testing.TB
	// Dir is a fresh directory with a short path (see ShortDir), removed at the end of a test that has passed.
	Dir string
	// Tools are the installed executables.
	Tools Tools
}

// NewT installs the tools and prepares a directory.
func NewT(tb testing.TB) *T {
	tb.Helper()
	tools, err := EnsureTools(tb.Context(), tb.Logf)
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := ShortDir()
	if err != nil {
		tb.Fatal(err)
	}
	t := &T{TB: tb, Dir: dir, Tools: tools}
	tb.Cleanup(func() {
		if tb.Failed() {
			tb.Logf("logs and files are kept in %s", dir)
			return
		}
		if err := os.RemoveAll(dir); err != nil {
			tb.Errorf("directory: %v", err)
		}
	})
	return t
}

// Ready returns a context for a wait: 30 s, and no longer than the test.
func (t *T) Ready() context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Port is FreePort.
func (t *T) Port() int {
	t.Helper()
	port, err := FreePort()
	t.must(err)
	return port
}

// Address is FreeAddress.
func (t *T) Address() string {
	t.Helper()
	address, err := FreeAddress()
	t.must(err)
	return address
}

// Process starts a child; LogDir is the directory of T where it is empty.
func (t *T) Process(o ProcessOptions) *Process {
	t.Helper()
	if o.LogDir == "" {
		o.LogDir = t.Dir
	}
	p, err := StartProcess(t.Context(), o)
	t.must(err)
	t.endAtCleanup(p, p.Stop)
	return p
}

// Envoy starts an Envoy; Dir is that of T where it is empty. The caller waits with WaitReady. Where the configuration has what only newer
// Envoys know, the test is skipped on an older one, see NeedEnvoy.
func (t *T) Envoy(o EnvoyOptions) *Envoy {
	t.Helper()
	for _, f := range envoyFeatures {
		if bytes.Contains(o.Config, []byte(f.text)) {
			NeedEnvoy(t, f.minimum, f.name)
		}
	}
	if o.Dir == "" {
		o.Dir = t.Dir
	}
	e, err := StartEnvoy(t.Context(), o)
	t.must(err)
	t.endAtCleanup(e.Process, e.Kill)
	return e
}

// Pebble starts Pebble; Dir is that of T where it is empty.
func (t *T) Pebble(o PebbleOptions) *Pebble {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.Dir
	}
	p, err := StartPebble(t.Context(), o)
	t.must(err)
	t.endAtCleanup(p.Process, p.Kill)
	return p
}

// Prometheus starts a Prometheus; Dir is that of T where it is empty.
func (t *T) Prometheus(o PrometheusOptions) *Prometheus {
	t.Helper()
	if o.Dir == "" {
		o.Dir = t.Dir
	}
	p, err := StartPrometheus(t.Context(), o)
	t.must(err)
	t.endAtCleanup(p.Process, p.Kill)
	return p
}

func (t *T) must(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (t *T) endAtCleanup(p *Process, end func() error) {
	t.Cleanup(func() {
		if err := end(); err != nil {
			t.Errorf("end of %s: %v", p.Name(), err)
		}
		if t.Failed() {
			t.Logf("last lines of %s:\n%s", p.LogFile(), p.LogTail(tailLines))
		}
	})
}

// Proxy starts a proxy in front of a Pebble.
func (t *T) Proxy(pebble *Pebble) *Proxy {
	t.Helper()
	p, err := pebble.StartProxy(t.Context())
	t.must(err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("proxy: %v", err)
		}
	})
	return p
}

// Load starts a load of handshakes that ends with the test; the caller looks at the numbers.
func (t *T) Load(o LoadOptions) *Load {
	t.Helper()
	l := StartLoad(t.Context(), o)
	t.Cleanup(func() {
		l.Stop()
		if t.Failed() {
			t.Logf("load on %s: %d handshakes made, %d failed: %v", o.Address, l.Made(), l.Failed(), l.Errors())
		}
	})
	return l
}
