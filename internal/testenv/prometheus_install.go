package testenv

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// PrometheusTools are the paths of Prometheus' executables.
type PrometheusTools struct {
	Prometheus string
	Promtool   string
}

// EnsurePrometheus returns Prometheus and promtool: those that PROMETHEUS_BIN names (promtool stands beside it), else those on the PATH, else
// those of Debian's package, which is unpacked into .tools/prometheus where it is missing. Nothing is installed on the system, and no service
// begins. Any version will do. Several processes may call it at once: one unpacks, the others wait. logf may be nil.
func EnsurePrometheus(ctx context.Context, logf func(format string, args ...any)) (PrometheusTools, error) {
	if logf == nil {
		logf = func(string, ...any) {}
	}
	if t, ok := systemPrometheus(); ok {
		return t, nil
	}
	root, err := ModuleRoot()
	if err != nil {
		return PrometheusTools{}, err
	}
	in := installer{dir: filepath.Join(root, ".tools"), logf: logf}
	if t, ok := in.prometheus(); ok {
		return t, nil
	}
	unlock, err := in.lock()
	if err != nil {
		return PrometheusTools{}, err
	}
	defer unlock()
	if t, ok := in.prometheus(); ok { // another process was first
		return t, nil
	}
	if err := in.installPrometheus(ctx); err != nil {
		return PrometheusTools{}, fmt.Errorf("prometheus: %w", err)
	}
	if t, ok := in.prometheus(); ok {
		return t, nil
	}
	return PrometheusTools{}, fmt.Errorf("prometheus: unpacked below %s, but not found there", in.dir)
}

// systemPrometheus returns what the environment names, or what is on the PATH.
func systemPrometheus() (PrometheusTools, bool) {
	if path := os.Getenv("PROMETHEUS_BIN"); path != "" {
		return PrometheusTools{path, filepath.Join(filepath.Dir(path), "promtool")}, true
	}
	server, err := exec.LookPath("prometheus")
	if err != nil {
		return PrometheusTools{}, false
	}
	tool, err := exec.LookPath("promtool")
	return PrometheusTools{server, tool}, err == nil
}

// prometheus returns what was unpacked.
func (in installer) prometheus() (PrometheusTools, bool) {
	bin := filepath.Join(in.dir, "prometheus", "usr", "bin")
	t := PrometheusTools{filepath.Join(bin, "prometheus"), filepath.Join(bin, "promtool")}
	for _, path := range []string{t.Prometheus, t.Promtool} {
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			return PrometheusTools{}, false
		}
	}
	return t, true
}

// installPrometheus unpacks Debian's package beside the final place and renames it. Where the system's lists of packages are missing or old,
// it fetches lists of its own: those of the system stay as they are.
func (in installer) installPrometheus(ctx context.Context) error {
	in.logf("unpacking Prometheus (Debian package prometheus)")
	tmp, err := os.MkdirTemp(in.dir, "prometheus.new")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp) // a leftover is harmless
	if err := in.download(ctx, tmp, "prometheus"); err != nil {
		return err
	}
	packages, err := filepath.Glob(filepath.Join(tmp, "prometheus_*.deb"))
	if err != nil || len(packages) != 1 {
		return errors.Join(err, fmt.Errorf("apt-get download left %d packages, want one", len(packages)))
	}
	unpacked := filepath.Join(tmp, "root")
	if err := in.run(ctx, nil, "dpkg-deb", "-x", packages[0], unpacked); err != nil {
		return err
	}
	final := filepath.Join(in.dir, "prometheus")
	if err := os.RemoveAll(final); err != nil {
		return err
	}
	return os.Rename(unpacked, final)
}

// download fetches the file of a Debian package into dir.
func (in installer) download(ctx context.Context, dir, name string) error {
	in.dir = dir // where apt-get puts the file
	apt := []string{"-q", "-o", "APT::Sandbox::User=root", "-o", "Dir::Cache::archives=" + dir}
	first := in.run(ctx, nil, "apt-get", append(apt, "download", name)...)
	if first == nil {
		return nil
	}
	lists := filepath.Join(dir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o700); err != nil {
		return err
	}
	apt = append(apt, "-o", "Dir::State::lists="+lists, "-o", "Dir::Cache="+dir)
	for _, command := range [][]string{{"update"}, {"download", name}} {
		if err := in.run(ctx, nil, "apt-get", append(apt, command...)...); err != nil {
			return errors.Join(first, err)
		}
	}
	return nil
}
