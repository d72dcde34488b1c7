package testenv_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

// recorder is a test that notes how it ends, and goes on.
type recorder struct {
	testing.TB
	skipped, failed string
}

func (r *recorder) Skipf(format string, args ...any)  { r.skipped = fmt.Sprintf(format, args...) }
func (r *recorder) Fatalf(format string, args ...any) { r.failed = fmt.Sprintf(format, args...) }

func TestNeedEnvoySkipsOnlyOnOlderOnes(t *testing.T) {
	for _, tc := range []struct {
		name, stated, minimum string
		skipped, failed       string
	}{
		{name: "older", stated: "1.36.3", minimum: "1.37", skipped: "needs Envoy 1.37 or newer for a moon; this is 1.36.3"},
		{name: "first", stated: "1.37.0", minimum: "1.37"},
		{name: "newer, by number and not by text", stated: "1.100.0", minimum: "1.37"},
		{name: "older patch", stated: "1.38.2", minimum: "1.38.3", skipped: "needs Envoy 1.38.3 or newer for a moon; this is 1.38.2"},
		{name: "the tested one", stated: testenv.EnvoyVersion, minimum: testenv.EnvoyVersion},
		{
			name: "newer than the tested one", stated: "1.42.0", minimum: "1.41",
			failed: "a moon: needs Envoy 1.41, newer than the tested " + testenv.EnvoyVersion,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			stateVersion(t, tc.stated)
			r := &recorder{TB: t}
			testenv.NeedEnvoy(r, tc.minimum, "a moon")
			if r.skipped != tc.skipped || r.failed != tc.failed {
				t.Errorf("got skip %q, failure %q; want %q, %q", r.skipped, r.failed, tc.skipped, tc.failed)
			}
		})
	}
}

// stateVersion has the Envoy under test be a program that states a version.
func stateVersion(t *testing.T, version string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "envoy")
	script := fmt.Sprintf("#!/bin/sh\necho\necho '%s  version: ddabe691e1aaa74b/%s/Clean/RELEASE/BoringSSL'\n", path, version)
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("ENVOY_BIN", path)
	t.Setenv("PEBBLE_BIN", "/opt/pebble")
}

func TestConfigurationThatAnOlderEnvoyRefusesSkipsTheTest(t *testing.T) {
	stateVersion(t, "1.36.3")
	r := &recorder{TB: t}
	env := &testenv.T{TB: r, Dir: t.TempDir()}
	env.Envoy(testenv.EnvoyOptions{Config: []byte("name: envoy.tls.certificate_selectors.on_demand_secret\n")}) // the recorder goes on
	if want := "needs Envoy 1.37 or newer for on-demand certificates; this is 1.36.3"; r.skipped != want {
		t.Errorf("got skip %q, want %q", r.skipped, want)
	}
	r.skipped = ""
	env.Envoy(testenv.EnvoyOptions{Config: []byte("name: anything.else\n")})
	if r.skipped != "" {
		t.Errorf("got skip %q, want none", r.skipped)
	}
}

func TestInstalledEnvoyStatesItsVersion(t *testing.T) {
	path, err := testenv.EnsureEnvoy(t.Context(), testenv.EnvoyVersion, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := testenv.EnvoyVersionOf(t.Context(), path); err != nil || got != testenv.EnvoyVersion {
		t.Errorf("got %q, %v, want %s", got, err, testenv.EnvoyVersion)
	}
}

func TestNoEnvoyNoVersion(t *testing.T) {
	if got, err := testenv.EnvoyVersionOf(t.Context(), "/bin/echo"); err == nil {
		t.Errorf("got %q, want an error", got)
	}
}
