package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

// engine is a Docker engine of our own, and the client for it.
type engine struct {
	process *testenv.Process
	env     []string
}

// startEngine starts dockerd with all its files below dir, and waits until it answers. composePlugin is the executable of Compose.
func startEngine(ctx context.Context, dir, composePlugin string) (*engine, error) {
	plugins := filepath.Join(dir, "config", "cli-plugins")
	if err := os.MkdirAll(plugins, 0o700); err != nil {
		return nil, err
	}
	if err := os.Symlink(composePlugin, filepath.Join(plugins, "docker-compose")); err != nil {
		return nil, err
	}
	socket := "unix://" + filepath.Join(dir, "docker.sock")
	e := &engine{env: []string{"DOCKER_HOST=" + socket, "DOCKER_CONFIG=" + filepath.Join(dir, "config"), "HOME=" + dir}}
	path, err := exec.LookPath("dockerd")
	if err != nil {
		return nil, err
	}
	e.process, err = testenv.StartProcess(ctx, testenv.ProcessOptions{
		Path: path, LogDir: dir, Grace: time.Minute,
		Args: []string{
			"--host", socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
			"--pidfile", filepath.Join(dir, "docker.pid"),
		},
	})
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = testenv.Eventually(bounded, func(ctx context.Context) error {
		if !e.process.Running() {
			return nil
		}
		_, err := e.docker(ctx, nil, "version")
		return err
	})
	if !e.process.Running() {
		err = errors.New("dockerd ended by itself")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w\n%s", err, e.process.LogTail(20)), e.process.Stop())
	}
	return e, nil
}

// docker runs the client and returns its standard output.
func (e *engine) docker(ctx context.Context, in io.Reader, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), e.env...)
	cmd.Stdin = in
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("docker %s: %w\n%s%s", args[0], err, out.String(), errs.String())
	}
	return out.String(), nil
}
