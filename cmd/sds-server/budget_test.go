package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	maxBinary = 60 << 20
	maxIdle   = 40 << 20
)

// TestBudgets measures the program as it is shipped: its size, and what it takes when it idles with three certificates.
func TestBudgets(t *testing.T) {
	root, err := testenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	shipped := filepath.Join(t.TempDir(), "sds-server")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", shipped, "./cmd/sds-server")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v: %s", err, out)
	}
	info, err := os.Stat(shipped)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("binary, stripped: %.1f MB", megabytes(info.Size()))
	if info.Size() > maxBinary {
		t.Errorf("the binary has %d bytes, want at most %d", info.Size(), maxBinary)
	}

	b := newBox(t, settings{})
	b.binary = shipped
	begin := time.Now()
	p := b.start()
	t.Logf("ready after %d ms", time.Since(begin).Milliseconds())
	for i, pair := range []string{"a1", "a2", "b1"} {
		b.importPair(fmt.Sprintf("s%d", i), pair)
	}
	nodes := []*node{connect(t, b.SDSSocket(), "n1", "canary", "s0", "s1", "s2"), connect(t, b.SDSSocket(), "n2", "production", "s0", "s1", "s2")}
	for _, n := range nodes {
		b.eventually(func() error { return n.has("s2", "") })
	}
	var most, last int64
	idle, cancel := b.within(10 * time.Second)
	defer cancel()
	_ = testenv.Eventually(idle, func(context.Context) error { // it always runs to the end: the process is looked at while it idles
		last = resident(t, p.PID())
		most = max(most, last)
		return errors.New("still looking")
	})
	t.Logf("resident, idle with 3 certificates and 2 nodes: %.1f MB at most, %.1f MB after 10 s", megabytes(most), megabytes(last))
	if last > maxIdle {
		t.Errorf("the idle server takes %d bytes, want at most %d", last, maxIdle)
	}
}

func megabytes(bytes int64) float64 { return float64(bytes) / (1 << 20) }

// resident returns the resident set of a process.
func resident(t *testing.T, pid int) int64 {
	t.Helper()
	text, err := readText(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return kb << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}
