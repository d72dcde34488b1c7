package main

import (
	"context"
	"debug/buildinfo"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	composeVersion = "v2.40.3"
	composeModule  = "github.com/docker/compose/v2"
)

// ensureCompose returns the Compose plugin below .tools/, and builds it where it is missing or of another version. It is built in a module
// of its own, because go install refuses a module that replaces others.
func ensureCompose(ctx context.Context) (string, error) {
	root, err := testenv.ModuleRoot()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, ".tools", "bin")
	path := filepath.Join(dir, "docker-compose")
	if isCompose(path) {
		return path, nil
	}
	fmt.Fprintf(os.Stderr, "building Docker Compose %s (some minutes, once)\n", composeVersion)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(filepath.Dir(dir), "compose.new")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp) // a leftover is harmless
	for _, args := range [][]string{
		{"mod", "init", "compose.new"},
		{"get", composeModule + "@" + composeVersion},
		{
			"build", "-trimpath", "-ldflags", "-s -w -X " + composeModule + "/internal.Version=" + composeVersion,
			"-o", "docker-compose", composeModule + "/cmd",
		},
	} {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = tmp
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("docker compose: %s: %w\n%s", cmd, err, out)
		}
	}
	if err := os.Rename(filepath.Join(tmp, "docker-compose"), path); err != nil {
		return "", err
	}
	if !isCompose(path) {
		return "", fmt.Errorf("docker compose: %s is not %s", path, composeVersion)
	}
	return path, nil
}

// isCompose reports whether a file is Compose of the version that is wanted.
func isCompose(path string) bool {
	info, err := buildinfo.ReadFile(path)
	return err == nil && info.Path == composeModule+"/cmd" && info.Main.Version == composeVersion
}
