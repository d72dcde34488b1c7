package docs_test

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

// promtool runs Prometheus' own tool in deploy/prometheus.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	tools, err := testenv.EnsurePrometheus(t.Context(), t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), tools.Promtool, args...)
	cmd.Dir = filepath.Join(root, "deploy", "prometheus")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestAlertsAreRulesOfPrometheus(t *testing.T) {
	promtool(t, "check", "rules", "alerts.yaml")
}

func TestAlertsFireWhenTheyShould(t *testing.T) {
	promtool(t, "test", "rules", "alerts_test.yaml")
}

func TestEachAlertIsTestedBothWays(t *testing.T) {
	alerts, tests := read(t, "deploy/prometheus/alerts.yaml"), read(t, "deploy/prometheus/alerts_test.yaml")
	names := regexp.MustCompile(`- alert: (\w+)`).FindAllStringSubmatch(alerts, -1)
	if len(names) < 15 {
		t.Errorf("got %d alerts, want more", len(names))
	}
	for _, m := range names {
		fires := regexp.MustCompile(`alertname: ` + m[1] + `, exp_alerts: \[\{`).MatchString(tests)
		quiet := strings.Contains(tests, "alertname: "+m[1]+", exp_alerts: []")
		if !fires || !quiet {
			t.Errorf("%s: is tested to fire %v, to be quiet %v", m[1], fires, quiet)
		}
	}
}

func TestAlertsAreOnDocumentedMetrics(t *testing.T) {
	documented := read(t, "docs/metrics.md")
	var used []string
	for _, name := range []string{"alerts.yaml", "alerts_test.yaml"} {
		used = append(used, regexp.MustCompile(`\bsds_[a-z_]+`).FindAllString(read(t, "deploy/prometheus/"+name), -1)...)
	}
	slices.Sort(used)
	used = slices.Compact(used)
	if len(used) < 10 {
		t.Errorf("got %d metrics, want more", len(used))
	}
	for _, metric := range used {
		if !strings.Contains(documented, "| `"+metric+"{") && !strings.Contains(documented, "| `"+metric+"`") {
			t.Errorf("%s is not in docs/metrics.md", metric)
		}
	}
}
