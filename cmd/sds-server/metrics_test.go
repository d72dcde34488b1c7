package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc/credentials"

	"github.com/sds-server/sds-server/internal/testenv"
)

func readText(path string) (string, error) {
	b, err := os.ReadFile(path)
	return string(b), err
}

// writeText replaces a file as a whole: a server that looks while it is written would find a part of it.
func writeText(path, text string) error {
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// TestMetricsAreDocumented compares docs/metrics.md with what a server shows that has issued, failed, been refused and denied.
func TestMetricsAreDocumented(t *testing.T) {
	t.Parallel()
	extra, _ := otherKinds(t)
	_, s := pebble(t, settings{Manual: true, Certs: []string{"issued.example"}, Dead: "dead.example", Extra: extra})
	served := startListener(t, "a1")
	s.Verify = fmt.Sprintf(`{endpoints: [{address: "%s"}], timeout: 100ms}`, served.address)
	s.IssuerExtra = `, budget: {limits: [{name: exact_set, burst: 5, refill: 34h}]}`
	b := newBox(t, s)
	b.start()
	b.importPair("www", "a1")
	n := connect(t, b.SDSSocket(), "n1", "canary", "www", "issued.example")
	b.eventually(func() error { return n.has("issued.example", "") })
	n.refuse("no thanks")
	b.importPair("www", "a2")
	connect(t, b.SDSSocket(), "n2", "nowhere", "www")

	dir := filepath.Join(b.Dir, "id")
	b.ok("identity", "issue", "--group", "production", "--node", "n3", "--out", dir)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	b.must(err)
	ca, err := readText(filepath.Join(dir, "ca.crt"))
	b.must(err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ca))
	connectBy(t, b.SDS, credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS13}),
		"n3", "production", "www")

	b.run("verify") // what it says is for other tests

	want := documented(t)
	b.eventually(func() error {
		_, text := b.fetch("/metrics", "")
		if diff := cmp.Diff(want, gathered(text)); diff != "" {
			return fmt.Errorf("docs/metrics.md (-), /metrics (+):\n%s", diff)
		}
		return nil
	})
}

func TestSeriesGoWithTheirSecret(t *testing.T) {
	t.Parallel()
	_, s := pebble(t, settings{Certs: []string{"issued.example"}, Dead: "dead.example"})
	b := newBox(t, s)
	b.start()
	shows := func(text string, want bool) {
		t.Helper()
		b.eventually(func() error {
			_, body := b.fetch("/metrics", "")
			if strings.Contains(body, text) != want {
				return fmt.Errorf("%q shown: %v, want %v", text, !want, want)
			}
			return nil
		})
	}
	shows(`sds_certificate_not_after_timestamp_seconds{issuer="ca",secret="issued.example"}`, true)
	shows(`sds_certificate_renewal_failing{kind="temporary",secret="dead.example"} 1`, true)
	s.Certs, s.Dead = nil, ""
	b.configure(s)
	shows(`secret="issued.example"`, false)
	shows(`secret="dead.example"`, false)
	shows(`issuer="dead"`, false)
}

// documented reads the table of docs/metrics.md: labels by name.
func documented(t *testing.T) map[string][]string {
	t.Helper()
	root, err := testenv.ModuleRoot()
	if err != nil {
		t.Fatal(err)
	}
	text, err := readText(filepath.Join(root, "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	metrics := map[string][]string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(sds_[a-z_]+)(?:\\{([a-z_,]+)\\})?` \\| (gauge|counter|histogram) \\| [^|]+ \\|$").FindAllStringSubmatch(text, -1) {
		metrics[m[3]+" "+m[1]] = slices.Sorted(slices.Values(strings.FieldsFunc(m[2], func(r rune) bool { return r == ',' })))
	}
	if rows := strings.Count(text, "\n| `sds_"); rows != len(metrics) || rows == 0 {
		t.Fatalf("docs/metrics.md has %d rows, %d of which could be read", rows, len(metrics))
	}
	return metrics
}

// gathered reads the text format: labels by name, ours only.
func gathered(text string) map[string][]string {
	kinds := map[string]string{}
	labels := map[string]map[string]bool{}
	label := regexp.MustCompile(`([a-z_]+)="`)
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "# TYPE sds_"); ok {
			fields := strings.Fields(rest)
			kinds["sds_"+fields[0]] = fields[1]
			continue
		}
		end := strings.IndexAny(line, "{ ")
		if !strings.HasPrefix(line, "sds_") || end < 0 {
			continue
		}
		name := line[:end]
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, ok := strings.CutSuffix(name, suffix); ok && kinds[base] == "histogram" {
				name = base
			}
		}
		if labels[name] == nil {
			labels[name] = map[string]bool{}
		}
		for _, m := range label.FindAllStringSubmatch(line, -1) {
			if m[1] != "le" {
				labels[name][m[1]] = true
			}
		}
	}
	metrics := map[string][]string{}
	for name, kind := range kinds {
		metrics[kind+" "+name] = slices.Sorted(maps.Keys(labels[name]))
	}
	return metrics
}
