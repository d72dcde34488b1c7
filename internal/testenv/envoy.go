package testenv

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
)

// EnvoyOptions says how StartEnvoy runs an Envoy.
type EnvoyOptions struct {
	// Name is used in errors and for files; default "envoy". Two Envoys in one directory need two names.
	Name string
	// ID and Cluster overrule node.id and node.cluster of Config where they are set.
	ID, Cluster string
	// Config is the whole bootstrap, as YAML.
	Config []byte
	// Dir takes the configuration and the log.
	Dir string
	// Binary is the executable; default: EnsureTools.
	Binary string
	// Args are added to the command line ("--log-level", "debug").
	Args []string
}

// Envoy is a running Envoy.
type Envoy struct {
	*Process
	addressFile string
}

// StartEnvoy starts an Envoy without hot restart, because that needs a base id which parallel Envoys fight for, and
// with one worker. It returns when the process runs; see WaitReady.
func StartEnvoy(ctx context.Context, o EnvoyOptions) (*Envoy, error) {
	if o.Name == "" {
		o.Name = "envoy"
	}
	if o.Binary == "" {
		tools, err := EnsureTools(ctx, nil)
		if err != nil {
			return nil, err
		}
		o.Binary = tools.Envoy
	}
	config := filepath.Join(o.Dir, o.Name+".yaml")
	if err := os.WriteFile(config, o.Config, 0o600); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	addressFile := filepath.Join(o.Dir, o.Name+".admin")
	if err := os.Remove(addressFile); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", o.Name, err) // an old file would lead to the wrong Envoy
	}
	args := []string{
		"-c", config, "--disable-hot-restart", "--concurrency", "1",
		"--admin-address-path", addressFile, "--drain-time-s", "1",
	}
	if o.ID != "" {
		args = append(args, "--service-node", o.ID)
	}
	if o.Cluster != "" {
		args = append(args, "--service-cluster", o.Cluster)
	}
	p, err := StartProcess(ctx, ProcessOptions{Name: o.Name, Path: o.Binary, Args: append(args, o.Args...), LogDir: o.Dir})
	if err != nil {
		return nil, err
	}
	return &Envoy{Process: p, addressFile: addressFile}, nil
}

// ValidateEnvoy runs `envoy --mode validate` on a bootstrap; the error holds Envoy's output.
func ValidateEnvoy(ctx context.Context, config []byte) error {
	tools, err := EnsureTools(ctx, nil)
	if err != nil {
		return err
	}
	dir, err := ShortDir()
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // a leftover is harmless
	path := filepath.Join(dir, "envoy.yaml")
	if err := os.WriteFile(path, config, 0o600); err != nil {
		return fmt.Errorf("envoy: %w", err)
	}
	cmd := exec.CommandContext(ctx, tools.Envoy, "--mode", "validate", "--disable-hot-restart", "-l", "warning", "-c", path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("envoy --mode validate: %w\n%s", err, out)
	}
	return nil
}

// AdminAddress is "127.0.0.1:port" of the admin interface; Envoy tells it early in its start, long before it is ready.
func (e *Envoy) AdminAddress() (string, error) {
	data, err := os.ReadFile(e.addressFile)
	if err != nil {
		return "", fmt.Errorf("%s: admin address: %w", e.Name(), err)
	}
	address := strings.TrimSpace(string(data))
	if _, _, err := net.SplitHostPort(address); err != nil {
		return "", fmt.Errorf("%s: admin address: %w", e.Name(), err)
	}
	return address, nil
}

// AdminGet returns the answer of the admin interface to path ("/certs"); another status than 200 is an error.
func (e *Envoy) AdminGet(ctx context.Context, path string) ([]byte, error) {
	address, err := e.AdminAddress()
	if err != nil {
		return nil, err
	}
	body, err := get(ctx, localClient(), "http://"+address+path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", e.Name(), err)
	}
	return body, nil
}

// Ready returns nil when Envoy is LIVE: every listener is open, every static secret has come or has timed out.
func (e *Envoy) Ready(ctx context.Context) error {
	_, err := e.AdminGet(ctx, "/ready")
	return err
}

// WaitReady waits until Ready, at most 30 s where ctx has no deadline.
func (e *Envoy) WaitReady(ctx context.Context) error {
	return e.eventually(ctx, e.Ready)
}

// WaitAdmin waits until the admin interface answers, ready or not.
func (e *Envoy) WaitAdmin(ctx context.Context) error {
	return e.eventually(ctx, func(ctx context.Context) error {
		_, err := e.AdminGet(ctx, "/server_info")
		return err
	})
}

// Stats returns the statistics whose names match the regular expression filter ("" for all), as Envoy prints them: a
// number for counters and gauges, a quoted string for text.
func (e *Envoy) Stats(ctx context.Context, filter string) (map[string]string, error) {
	path := "/stats"
	if filter != "" {
		path += "?filter=" + url.QueryEscape(filter)
	}
	body, err := e.AdminGet(ctx, path)
	if err != nil {
		return nil, err
	}
	stats := make(map[string]string)
	for line := range strings.Lines(string(body)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ": "); ok {
			stats[name] = value
		}
	}
	return stats, nil
}

// Stat returns one counter or gauge by its exact name.
func (e *Envoy) Stat(ctx context.Context, name string) (int64, error) {
	stats, err := e.Stats(ctx, "^"+regexp.QuoteMeta(name)+"$")
	if err != nil {
		return 0, err
	}
	value, ok := stats[name]
	if !ok {
		return 0, fmt.Errorf("%s: no statistic %q", e.Name(), name)
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: statistic %q: %w", e.Name(), name, err)
	}
	return n, nil
}

// Substitute replaces each old text by the new one that follows it, all at once, for the addresses and paths of an
// example configuration. A text that does not occur is an error: the example is not what the caller thinks.
func Substitute(config []byte, oldnew ...string) ([]byte, error) {
	for i := 0; i < len(oldnew); i += 2 {
		if !strings.Contains(string(config), oldnew[i]) {
			return nil, fmt.Errorf("substitute: %q does not occur", oldnew[i])
		}
	}
	return []byte(strings.NewReplacer(oldnew...).Replace(string(config))), nil
}
