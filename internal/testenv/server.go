package testenv

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// BuildServer builds our binary into dir, with the race detector where race is set, and returns its path. Build it once
// for a test binary, in TestMain; the compiler's cache makes the second build cheap.
func BuildServer(ctx context.Context, dir string, race bool) (string, error) {
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "sds-server")
	args := []string{"build", "-o", path}
	env := "CGO_ENABLED=0"
	if race {
		args = append(args, "-race")
		env = "CGO_ENABLED=1"
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/sds-server")...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), env)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build sds-server: %w\n%s", err, out)
	}
	return path, nil
}
