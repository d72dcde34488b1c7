package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"
)

// container is what `docker inspect` says of one.
type container struct {
	Name  string
	State struct {
		Status   string
		ExitCode int
		Pid      int
		Health   *struct{ Status string }
	}
	RestartCount int
	HostConfig   struct {
		ReadonlyRootfs bool
		Privileged     bool
		CapAdd         []string
		CapDrop        []string
		SecurityOpt    []string
		PortBindings   map[string][]struct{ HostIP string } // "HostIp" in JSON; the decoder ignores case
	}
	Config struct {
		User        string
		Healthcheck *struct{ Test []string }
	}
}

// lastLooks: what is running is what docker-compose.yaml promises, and `docker compose up` can be repeated.
func (t *test) lastLooks(ctx context.Context) error {
	if err := t.promoteOnce(ctx); err != nil {
		return fmt.Errorf("a rotation after the restart: %w", err)
	}
	begin := time.Now()
	if _, err := t.shell(ctx, "docker compose up -d --wait"); err != nil {
		return err
	}
	if err := t.synced(ctx); err != nil {
		return err
	}
	t.took("docker compose up again: nothing is lost", begin)
	if err := t.inspect(ctx); err != nil {
		return err
	}
	return t.stopLoad()
}

// promoteOnce renews, and promotes.
func (t *test) promoteOnce(ctx context.Context) error {
	if _, err := t.shell(ctx, "docker compose exec -T sds-server sds-server renew "+secretName+" --force --wait=issued"); err != nil {
		return err
	}
	if err := t.canaryIsNew(ctx, ""); err != nil {
		return err
	}
	if err := t.waiting(ctx); err != nil {
		return err
	}
	if _, err := t.shell(ctx, "docker compose exec -T sds-server sds-server promote --group production"); err != nil {
		return err
	}
	return t.productionIsNew(ctx, "")
}

func (t *test) inspect(ctx context.Context) error {
	ids, err := t.engine.docker(ctx, nil, "ps", "--all", "--quiet")
	if err != nil {
		return err
	}
	text, err := t.engine.docker(ctx, nil, append([]string{"inspect"}, strings.Fields(ids)...)...)
	if err != nil {
		return err
	}
	var containers []container
	if err := json.Unmarshal([]byte(text), &containers); err != nil {
		return err
	}
	if len(containers) != 7 {
		return fmt.Errorf("%d containers, want 7", len(containers))
	}
	var errs []error
	healthy, running := 0, 0
	for _, c := range containers {
		if err := c.check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", c.Name[1:], err))
		}
		if c.State.Health != nil {
			healthy++
		}
		if c.State.Pid != 0 {
			running++
		}
	}
	if healthy != 3 || running != 4 {
		errs = append(errs, fmt.Errorf("%d containers are running and %d have a health check, want 4 and 3", running, healthy))
	}
	for _, service := range []string{canary, production} { // those that have a shell
		out, err := t.shell(ctx, "docker compose exec -T "+service+" sh -c '(: > /written) && echo written || true' 2>&1")
		if err != nil {
			errs = append(errs, err)
		}
		if !strings.Contains(out, "Read-only file system") {
			errs = append(errs, fmt.Errorf("%s: a write to the root file system ended with %q", service, out))
		}
	}
	t.say("   %d containers: none as root, no capability, root file systems read-only, ports on loopback; %d healthy", len(containers), healthy)
	return errors.Join(errs...)
}

// check compares one container with the promises, and its process with what the kernel says of it.
func (c container) check() error {
	var errs []error
	if uid, gid, ok := strings.Cut(c.Config.User, ":"); !ok || uid == "0" || gid == "0" || uid == "root" {
		errs = append(errs, fmt.Errorf("user %q", c.Config.User))
	}
	h := c.HostConfig
	if !h.ReadonlyRootfs {
		errs = append(errs, errors.New("the root file system can be written"))
	}
	if h.Privileged || len(h.CapAdd) > 0 || !slices.Equal(h.CapDrop, []string{"ALL"}) || !slices.Contains(h.SecurityOpt, "no-new-privileges:true") {
		errs = append(errs, errors.New("more rights than needed"))
	}
	for port, bindings := range h.PortBindings {
		for _, b := range bindings {
			if b.HostIP != "127.0.0.1" {
				errs = append(errs, fmt.Errorf("port %s is published on %q", port, b.HostIP))
			}
		}
	}
	if c.Config.Healthcheck != nil && (c.State.Health == nil || c.State.Health.Status != "healthy") {
		errs = append(errs, fmt.Errorf("health: %+v", c.State.Health))
	}
	if c.State.Status == "exited" && c.State.ExitCode != 0 || c.RestartCount > 0 {
		errs = append(errs, fmt.Errorf("%s with exit code %d, %d restarts", c.State.Status, c.State.ExitCode, c.RestartCount))
	}
	if c.State.Pid != 0 {
		errs = append(errs, checkProcess(c.State.Pid))
	}
	return errors.Join(errs...)
}

// checkProcess: no user or group of a process is root's, it has no capability, and it cannot get any.
func checkProcess(pid int) error {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	fields := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		fields[key] = strings.Fields(value)
	}
	for _, key := range []string{"Uid", "Gid"} {
		if len(fields[key]) != 4 || slices.Contains(fields[key], "0") {
			return fmt.Errorf("process %d has %s %v", pid, key, fields[key])
		}
	}
	if slices.Contains(fields["Groups"], "0") {
		return fmt.Errorf("process %d has the groups %v", pid, fields["Groups"])
	}
	for key, want := range map[string]string{
		"CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000", "NoNewPrivs": "1",
	} {
		if !slices.Equal(fields[key], []string{want}) {
			return fmt.Errorf("process %d has %s %v, want %s", pid, key, fields[key], want)
		}
	}
	return nil
}

// isGone: `docker compose down -v` leaves no container, volume or network.
func (t *test) isGone(ctx context.Context, _ string) error {
	for _, kind := range []string{"container", "volume", "network"} {
		args := []string{kind, "ls", "--filter", "label=com.docker.compose.project", "--quiet"}
		if kind == "container" {
			args = append(args, "--all")
		}
		left, err := t.engine.docker(ctx, nil, args...)
		if err != nil {
			return err
		}
		if left != "" {
			return fmt.Errorf("a %s is left: %s", kind, left)
		}
	}
	return nil
}
