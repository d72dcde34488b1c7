package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/sds-server/sds-server/internal/testenv"
)

// standIn is an image made of local files, in place of an official one. It offers what docker-compose.yaml and Dockerfile rely on, and no
// more: if one of them begins to use another property of the official image, this test fails until somebody has looked it up there.
type standIn struct {
	repository string
	changes    []string // instructions of a Dockerfile
	fill       func(ctx context.Context, a *archive, tag, work string) error
}

var standIns = []standIn{
	{
		// Of the official image (distribution/docker/Dockerfile-envoy of envoyproxy/envoy, stage envoy): an entry point that runs its
		// arguments, Envoy in the PATH, and what an Ubuntu has of shells and coreutils.
		repository: "envoyproxy/envoy",
		changes:    []string{`ENTRYPOINT ["/docker-entrypoint.sh"]`, `CMD ["envoy", "-c", "/etc/envoy/envoy.yaml"]`},
		fill:       fillEnvoy,
	},
	{
		// Of the official image (Dockerfile.release of letsencrypt/pebble): the program as entry point, and the repository's test/ as
		// /test. There is nothing else in it, also no shell.
		repository: "ghcr.io/letsencrypt/pebble",
		changes:    []string{`ENTRYPOINT ["/app"]`},
		fill:       fillPebble,
	},
	{
		// Of the official image: Go in the PATH, a shell, mkdir, and the certificates of the web's CAs. The modules come from files, and the
		// compiler's cache is that of the run before, so that only what has changed since is compiled again.
		repository: "golang",
		changes: []string{
			"ENV PATH=/usr/local/go/bin:/usr/bin:/bin", "ENV GOPATH=/go", "ENV GOTOOLCHAIN=local", "ENV GOPROXY=file:///modules",
			"ENV GOCACHE=/cache", "WORKDIR /go",
		},
		fill: fillGo,
	},
}

// importImages makes the stand-ins for all official images that the files in dir name, and returns their names.
func importImages(ctx context.Context, e *engine, dir, work string) ([]string, error) {
	names, err := officialImages(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		repository, tag, _ := strings.Cut(name, ":")
		i := slices.IndexFunc(standIns, func(s standIn) bool { return s.repository == repository })
		if i < 0 {
			return nil, fmt.Errorf("image %s: there is no stand-in for it", name)
		}
		if err := standIns[i].load(ctx, e, tag, work); err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
	}
	return names, nil
}

// officialImages lists the images that docker-compose.yaml and Dockerfile name and do not build, each once.
func officialImages(dir string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "docker-compose.yaml"))
	if err != nil {
		return nil, err
	}
	var file struct {
		Services map[string]struct {
			Image string `yaml:"image"`
			Build any    `yaml:"build"`
		} `yaml:"services"`
	}
	if err := yaml.Unmarshal(text, &file); err != nil {
		return nil, fmt.Errorf("docker-compose.yaml: %w", err)
	}
	var names []string
	for _, service := range file.Services {
		if service.Build == nil {
			names = append(names, service.Image)
		}
	}
	if text, err = os.ReadFile(filepath.Join(dir, "Dockerfile")); err != nil {
		return nil, err
	}
	for _, m := range regexp.MustCompile(`(?m)^FROM (\S+:\S+) AS `).FindAllStringSubmatch(string(text), -1) {
		names = append(names, m[1])
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// load streams the image into the engine.
func (s standIn) load(ctx context.Context, e *engine, tag, work string) error {
	args := []string{"import"}
	for _, change := range s.changes {
		args = append(args, "--change", change)
	}
	r, w := io.Pipe()
	filled := make(chan error, 1)
	go func() {
		a := newArchive(w)
		err := s.fill(ctx, a, tag, work)
		if err == nil {
			err = a.tar.Close()
		}
		_ = w.CloseWithError(err) // always nil
		filled <- err
	}()
	_, err := e.docker(ctx, r, append(args, "-", s.repository+":"+tag)...)
	_ = r.Close() // always nil; it lets the writer go on if the engine has given up
	if fillErr := <-filled; fillErr != nil {
		return fillErr
	}
	return err
}

// pebbleModule has the files that are in Pebble's image.
const pebbleModule = "github.com/letsencrypt/pebble/v2@" + testenv.PebbleVersion

// entryPoint does what that of the official image does with arguments that begin with the name of a program.
const entryPoint = "#!/bin/sh\nset -e\nexec \"$@\"\n"

func fillEnvoy(ctx context.Context, a *archive, tag, _ string) error {
	if want := "v" + testenv.EnvoyVersion; tag != want {
		return fmt.Errorf("installed is %s", want)
	}
	tools, err := testenv.EnsureTools(ctx, nil)
	if err != nil {
		return err
	}
	if err := a.dir("/tmp", 0o1777); err != nil {
		return err
	}
	if err := a.file("/docker-entrypoint.sh", []byte(entryPoint), 0o755); err != nil {
		return err
	}
	if err := a.program(tools.Envoy, "/usr/local/bin/envoy"); err != nil {
		return err
	}
	return a.programs("sh", "bash", "grep", "install", "mkdir", "chgrp", "chmod", "sleep")
}

func fillPebble(ctx context.Context, a *archive, tag, _ string) error {
	if "v"+tag != testenv.PebbleVersion {
		return fmt.Errorf("installed is %s", testenv.PebbleVersion)
	}
	tools, err := testenv.EnsureTools(ctx, nil)
	if err != nil {
		return err
	}
	if err := a.program(tools.Pebble, "/app"); err != nil {
		return err
	}
	source, err := goCommand(ctx, "", nil, "mod", "download", "-json", pebbleModule)
	if err != nil {
		return err
	}
	var module struct{ Dir string }
	if err := json.Unmarshal([]byte(source), &module); err != nil {
		return err
	}
	return a.tree(filepath.Join(module.Dir, "test"), "/test")
}

func fillGo(ctx context.Context, a *archive, tag, work string) error {
	root, err := goCommand(ctx, "", nil, "env", "GOROOT", "GOVERSION", "GOMODCACHE")
	if err != nil {
		return err
	}
	env := strings.Fields(root)
	if len(env) != 3 || env[1] != "go"+tag {
		return fmt.Errorf("installed is %s", env[1])
	}
	// A module cache of its own has what this module needs, and nothing else.
	modules := filepath.Join(work, "modules")
	if _, err := goCommand(ctx, "", []string{
		"GOMODCACHE=" + modules, "GOPROXY=file://" + filepath.Join(env[2], "cache", "download"), "GOFLAGS=-modcacherw",
	}, "mod", "download"); err != nil {
		return err
	}
	if err := a.tree(filepath.Join(modules, "cache", "download"), "/modules"); err != nil {
		return err
	}
	cache, err := warmCache(ctx)
	if err != nil {
		return err
	}
	if err := a.tree(cache, "/cache"); err != nil {
		return err
	}
	for _, dir := range []string{"bin", "pkg", "src", "lib"} {
		if err := a.tree(filepath.Join(env[0], dir), "/usr/local/go/"+dir); err != nil {
			return err
		}
	}
	for _, name := range []string{"go.env", "VERSION"} {
		if err := a.copy(filepath.Join(env[0], name), "/usr/local/go/"+name); err != nil {
			return err
		}
	}
	if err := a.copy("/etc/ssl/certs/ca-certificates.crt", ""); err != nil {
		return err
	}
	if err := a.dir("/tmp", 0o1777); err != nil {
		return err
	}
	return a.programs("sh", "mkdir")
}

// warmCache compiles what Dockerfile compiles, with the same settings, and returns the compiler's cache.
func warmCache(ctx context.Context) (string, error) {
	root, err := testenv.ModuleRoot()
	if err != nil {
		return "", err
	}
	cache := filepath.Join(root, ".tools", "compose-cache")
	_, err = goCommand(ctx, root, []string{"CGO_ENABLED=0", "GOCACHE=" + cache}, "build", "-trimpath", "-o", os.DevNull, "./cmd/sds-server")
	return cache, err
}

// goCommand runs the go command in a directory ("" is the working directory), and returns its output.
func goCommand(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w", cmd, err)
	}
	return string(out), nil
}
