package testenv_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestEnvironmentOverridesTools(t *testing.T) {
	t.Setenv("ENVOY_BIN", "/opt/envoy")
	t.Setenv("PEBBLE_BIN", "/opt/pebble")
	got, err := testenv.EnsureTools(t.Context(), func(format string, _ ...any) { t.Errorf("installs something: %s", format) })
	if want := (testenv.Tools{Envoy: "/opt/envoy", Pebble: "/opt/pebble"}); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
}

func TestFailedInstallationNamesTheToolAndLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte("module m.example\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	t.Setenv("ENVOY_BIN", "/opt/envoy")
	t.Setenv("GOPROXY", "off")
	t.Setenv("GOMODCACHE", filepath.Join(dir, "empty"))
	_, err := testenv.EnsureTools(t.Context(), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "pebble "+testenv.PebbleVersion+": ") {
		t.Errorf("got %v, want an error about pebble", err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, ".tools"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			t.Errorf("%s is left behind", e.Name())
		}
	}
}
