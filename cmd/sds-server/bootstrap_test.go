package main

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

// TestBootstrapsAreValid has the real Envoy look at every form that `envoy bootstrap` prints.
func TestBootstrapsAreValid(t *testing.T) {
	t.Parallel()
	testenv.NewT(t)
	b := newBox(t, settings{})
	// canary comes over the Unix socket, production over TCP.
	text, err := readText(b.Config())
	b.must(err)
	b.must(writeText(b.Config(), strings.Replace(text, "groups: [canary, production]}", "groups: [canary]}", 1)))
	b.start()
	b.importPair("www", "a1")
	b.importPair("other", "b1")
	identity := filepath.Join(b.Dir, "id")
	b.ok("identity", "issue", "--group", "production", "--node", "p1", "--out", identity)
	forms := map[string][]string{
		"unix":         {"--group", "canary", "--node", "c1"},
		"unix sotw":    {"--group", "canary", "--node", "c1", "--sotw"},
		"unix ads":     {"--group", "canary", "--node", "c1", "--ads"},
		"tls ads sotw": {"--group", "production", "--node", "p1", "--identity", identity, "--ads", "--sotw"},
		"tls":          {"--group", "production", "--node", "p1", "--identity", identity},
		"tls sotw":     {"--group", "production", "--node", "p1", "--identity", identity, "--sotw"},
		"one secret":   {"--group", "production", "--node", "p1", "--identity", identity, "--secret", "www"},
		"a later one":  {"--group", "canary", "--node", "c1", "--secret", "not-yet.example"},
		"no http":      {"--group", "canary", "--node", "c1", "--http", ""},
		"no https":     {"--group", "canary", "--node", "c1", "--https", ""},
		"default node": {"--group", "canary"},
		"on demand":    {"--group", "canary", "--node", "c1", "--on-demand"},
		"on demand, prefetch": {
			"--group", "production", "--node", "p1", "--identity", identity, "--on-demand", "--prefetch", "--secret", "later.example", "--default-name", "www.example",
		},
		"on demand, streams": {"--group", "canary", "--node", "c1", "--on-demand", "--ads=false"},
	}
	for name, args := range forms {
		t.Run(name, func(t *testing.T) { validBootstrap(t, b, args) })
	}

	// `identity issue` has written the file by which Envoy takes up a renewed client certificate, and the bootstrap refers to it.
	out := validBootstrap(t, b, forms["tls"])
	channel := filepath.Join(identity, "channel.yaml")
	if !strings.Contains(out, channel) {
		t.Errorf("channel.yaml is not referenced in %s", out)
	}
	if text, err := readText(channel); err != nil || text != b.ok("envoy", "bootstrap", "--group", "production", "--node", "p1", "--identity", identity, "--channel-secret") {
		t.Errorf("--channel-secret prints something else than what is in channel.yaml: %s (%v)", text, err)
	}
	if out := validBootstrap(t, b, forms["on demand, prefetch"]); !strings.Contains(out, "ads_config") || !strings.Contains(out, `default_value: "www.example"`) ||
		!strings.Contains(out, `prefetch_secret_names: [`) || !strings.Contains(out, `"later.example"`) {
		t.Errorf("not what was asked for: %s", out)
	}
	if out := validBootstrap(t, b, forms["on demand, streams"]); strings.Contains(out, "ads_config") || strings.Contains(out, "prefetch_secret_names") {
		t.Errorf("not what was asked for: %s", out)
	}
	var form struct {
		Config string `json:"config"`
	}
	b.json(&form, append([]string{"envoy", "bootstrap"}, forms["tls"]...)...)
	if form.Config != out {
		t.Errorf("-o json holds another configuration: %s", form.Config)
	}
}

func validBootstrap(t *testing.T, b *box, args []string) string {
	t.Helper()
	out := b.ok(append([]string{"envoy", "bootstrap"}, args...)...)
	if err := testenv.ValidateEnvoy(t.Context(), []byte(out)); err != nil {
		t.Error(fmt.Errorf("%w\n%s", err, out))
	}
	return out
}
