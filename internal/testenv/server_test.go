package testenv_test

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestBuiltServerRuns(t *testing.T) {
	t.Parallel()
	path, err := testenv.BuildServer(t.Context(), t.TempDir(), true) // what make test has compiled already
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), path, "version").CombinedOutput()
	if err != nil || len(strings.TrimSpace(string(out))) == 0 {
		t.Errorf("version: got %q, %v", out, err)
	}
}
