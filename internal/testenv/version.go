package testenv

import (
	"cmp"
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// EnvoyVersionOf returns the version that an Envoy executable states, as "1.40.0".
func EnvoyVersionOf(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("%s --version: %w", path, err)
	}
	// "PATH  version: COMMIT/1.40.0/Clean/RELEASE/BoringSSL"; a build from main has "-dev" behind the number.
	m := regexp.MustCompile(`version: [0-9a-f]+/(\d+\.\d+\.\d+)[/-]`).FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("%s --version: no version in %.200q", path, out)
	}
	return string(m[1]), nil
}

// NeedEnvoy skips a test when the Envoy under test is older than the first version that has a feature, such as "1.37" for
// "on-demand certificates". On EnvoyVersion nothing is ever skipped: a newer minimum fails the test.
func NeedEnvoy(tb testing.TB, minimum, feature string) {
	tb.Helper()
	if compareVersions(minimum, EnvoyVersion) > 0 {
		tb.Fatalf("%s: needs Envoy %s, newer than the tested %s", feature, minimum, EnvoyVersion)
	}
	if version, ok := EnvoyAtLeast(tb, minimum); !ok {
		tb.Skipf("needs Envoy %s or newer for %s; this is %s", minimum, feature, version)
	}
}

// envoyFeatures are what a configuration can have that the oldest Envoy of "make test-envoys" refuses.
var envoyFeatures = []struct{ text, minimum, name string }{
	{"envoy.tls.certificate_selectors.on_demand_secret", "1.37", "on-demand certificates"},
}

// EnvoyAtLeast returns the version of the Envoy under test and whether it is the minimum or newer, for a test that shows both what newer
// ones do and what older ones do.
func EnvoyAtLeast(tb testing.TB, minimum string) (version string, ok bool) {
	tb.Helper()
	tools, err := EnsureTools(tb.Context(), tb.Logf)
	if err == nil {
		version, err = EnvoyVersionOf(tb.Context(), tools.Envoy)
	}
	if err != nil {
		tb.Fatal(err)
	}
	return version, compareVersions(version, minimum) >= 0
}

// compareVersions compares dotted numbers; a part that is missing is 0.
func compareVersions(a, b string) int {
	as, bs := strings.Split(a, "."), strings.Split(b, ".")
	for i := range max(len(as), len(bs)) {
		if c := cmp.Compare(versionPart(as, i), versionPart(bs, i)); c != 0 {
			return c
		}
	}
	return 0
}

func versionPart(parts []string, i int) int {
	if i >= len(parts) {
		return 0
	}
	n, err := strconv.Atoi(parts[i])
	if err != nil {
		panic(fmt.Sprintf("version part %q is no number", parts[i]))
	}
	return n
}
