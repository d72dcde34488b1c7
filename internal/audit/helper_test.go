package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// buffer is a log that several goroutines write to.
type buffer struct {
	mu  sync.Mutex
	out bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.out.String()
}

// open opens a log until the end of the test.
func open(t testing.TB, path string, change ...func(*Options)) (*Log, *buffer) {
	t.Helper()
	out := &buffer{}
	o := Options{Path: path, Retention: time.Hour, Log: slog.New(slog.NewTextHandler(out, nil)), Registerer: prometheus.NewRegistry()}
	for _, c := range change {
		c(&o)
	}
	l, err := Open(o)
	must(t, err)
	t.Cleanup(func() { _ = l.Close(context.Background()) }) // tests that care close it themselves
	return l, out
}

func newPath(t testing.TB) string { return filepath.Join(t.TempDir(), "audit.jsonl") }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fill appends entries, each durable before the next.
func fill(t testing.TB, l *Log, from, n int) {
	t.Helper()
	for i := range n {
		must(t, l.Append(t.Context(), Entry{Event: "test", Secret: fmt.Sprint("s", from+i), Nodes: []string{"n1", "n2"}, Detail: "größer \"<&>\"\n"}))
	}
}

func closeLog(t testing.TB, l *Log) {
	t.Helper()
	must(t, l.Close(t.Context()))
}

func readFile(t testing.TB, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	must(t, err)
	return text
}

func writeFile(t testing.TB, path string, text []byte) {
	t.Helper()
	must(t, os.WriteFile(path, text, 0o600))
}

// check reads a text as a file.
func check(t testing.TB, text []byte) Report {
	t.Helper()
	r, err := Read(t.Context(), bytes.NewReader(text), nil)
	must(t, err)
	return r
}

// whole wants a file whose chain is whole, and returns its entries.
func whole(t testing.TB, path string) []Entry {
	t.Helper()
	var all []Entry
	r, err := Read(t.Context(), bytes.NewReader(readFile(t, path)), func(e Entry, _ int64) error {
		all = append(all, e)
		return nil
	})
	must(t, err)
	if !r.OK() {
		t.Fatalf("line %d: %s", r.Line, r.Problem)
	}
	return all
}

// events are the entries as text, without their numbers.
func events(entries []Entry) string {
	var out []string
	for _, e := range entries {
		out = append(out, strings.TrimSpace(e.Event+" "+e.Secret))
	}
	return strings.Join(out, ", ")
}

func verified(t testing.TB, l *Log) Report {
	t.Helper()
	r, err := l.Verify(t.Context())
	must(t, err)
	return r
}

func gauge(t testing.TB, c prometheus.Collector, want float64) {
	t.Helper()
	if got := testutil.ToFloat64(c); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

// eventually polls.
func eventually(t testing.TB, what string, check func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	late := time.After(time.Minute)
	for !check() {
		select {
		case <-tick.C:
		case <-late:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

func (l *Log) count() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.commits
}

func wantErr(t testing.TB, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
