package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// shownLines is how many lines of a command's output are shown.
const shownLines = 15

// step is what is looked at after a command of the README; wait is done before it, where a person would look until it is so.
type step struct {
	command string // how the line begins
	wait    func(*test, context.Context) error
	check   func(t *test, ctx context.Context, out string) error
}

// steps are the lines of the README's tour with Docker, in its order. Each line has to be here.
var steps = []step{
	{command: "docker compose up ", check: (*test).isUp},
	{command: "docker compose exec sds-server sds-server nodes", check: (*test).showsBothNodes},
	{command: "serial() {"},
	{command: "serial 8443; serial 9443", check: (*test).printsSerials},
	{command: "docker compose exec sds-server sds-server renew ", check: (*test).canaryIsNew},
	{command: "docker compose exec sds-server sds-server rollback ", wait: (*test).waiting, check: (*test).canaryIsOld},
	{command: "docker compose exec sds-server sds-server renew ", check: (*test).canaryIsNew},
	{command: "docker compose exec sds-server sds-server rollout status", wait: (*test).waiting, check: (*test).showsWaiting},
	{command: "serial 8443; serial 9443", check: (*test).printsSerials},
	{command: "docker compose exec sds-server sds-server promote --group production", check: (*test).productionIsNew},
	{command: "docker compose exec sds-server sds-server verify", check: (*test).showsServed},
	{command: "docker compose kill sds-server", wait: (*test).rememberVersions, check: (*test).servesWithoutServer},
	{command: "serial 8443; serial 9443", check: (*test).printsSerials},
	{command: "docker compose start sds-server", check: (*test).hasEqualVersions},
	{command: "docker compose down -v", wait: (*test).lastLooks, check: (*test).isGone},
}

// tourLines returns the commands of the README's section about Docker, without their comments.
func tourLines(readme string) ([]string, error) {
	_, rest, ok := strings.Cut(readme, "\n## Try it with Docker\n")
	section, _, _ := strings.Cut(rest, "\n## ")
	_, rest, found := strings.Cut(section, "```sh\n")
	block, _, closed := strings.Cut(rest, "```")
	if !ok || !found || !closed {
		return nil, errors.New("README.md: no commands in a section \"Try it with Docker\"")
	}
	comment := regexp.MustCompile(`\s+# .*$`)
	var lines []string
	for line := range strings.Lines(block) {
		if line = comment.ReplaceAllString(strings.TrimRight(line, "\n"), ""); line != "" {
			lines = append(lines, line)
		}
	}
	return lines, nil
}

// matchTour pairs the lines with the steps.
func matchTour(lines []string) error {
	for i := range max(len(lines), len(steps)) {
		switch {
		case i >= len(lines):
			return fmt.Errorf("README.md: the tour ends before %q", steps[i].command)
		case i >= len(steps) || !strings.HasPrefix(lines[i], steps[i].command):
			return fmt.Errorf("README.md: nothing is checked after line %d of the tour, %q", i+1, lines[i])
		}
	}
	return nil
}

// tour runs the commands of the README one after the other, as they stand there.
func (t *test) tour(ctx context.Context) error {
	text, err := os.ReadFile(filepath.Join(t.project(), "README.md"))
	if err != nil {
		return err
	}
	lines, err := tourLines(string(text))
	if err == nil {
		err = matchTour(lines)
	}
	if err != nil {
		return err
	}
	var functions strings.Builder // of the shell, for the lines after them
	for i, line := range lines {
		if strings.Contains(line, "() {") {
			functions.WriteString(line + "\n")
		}
		if err := t.step(ctx, steps[i], line, functions.String()); err != nil {
			return err
		}
	}
	return nil
}

// step runs one line, and looks at what it should have done. No handshake may have failed since the beginning.
func (t *test) step(ctx context.Context, s step, line, functions string) error {
	if s.wait != nil {
		if err := bounded(ctx, func(ctx context.Context) error { return s.wait(t, ctx) }); err != nil {
			return fmt.Errorf("before %q: %w", line, err)
		}
	}
	t.say("$ %s", line)
	begin := time.Now()
	out, err := t.shell(ctx, functions+line)
	if err != nil {
		return fmt.Errorf("%s: %w", line, err)
	}
	t.show(out)
	if time.Since(begin) > 2*time.Second {
		t.took(line[:min(len(line), 50)], begin)
	}
	if s.check != nil {
		err = bounded(ctx, func(ctx context.Context) error { return s.check(t, ctx, out) })
	}
	for group, load := range t.load {
		if load.Failed() > 0 {
			err = errors.Join(err, fmt.Errorf("%s: %d handshakes failed: %w", group, load.Failed(), errors.Join(load.Errors()...)))
		}
	}
	if err != nil {
		return fmt.Errorf("after %q: %w", line, err)
	}
	return nil
}

// bounded gives a look at the state of things its time: all that is waited for takes seconds.
func bounded(ctx context.Context, look func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return look(ctx)
}

// show prints what a command has printed, its last lines: the output of a build is long.
func (t *test) show(out string) {
	lines := slices.Collect(strings.Lines(strings.TrimSpace(out)))
	for _, line := range lines[max(0, len(lines)-shownLines):] {
		t.say("   %s", strings.TrimRight(line, "\n"))
	}
}

// shell runs a line in the project, and returns its standard output.
func (t *test) shell(ctx context.Context, line string) (string, error) {
	cmd := exec.CommandContext(ctx, "bash", "-euo", "pipefail", "-c", line)
	cmd.Dir = t.project()
	cmd.Env = append(os.Environ(), t.engine.env...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%w\n%s%s", err, out.String(), errs.String())
	}
	return out.String(), nil
}

// ask runs a command of the server with -o json.
func (t *test) ask(ctx context.Context, answer any, command string) error {
	out, err := t.shell(ctx, "docker compose exec -T sds-server sds-server "+command+" -o json")
	if err != nil {
		return err
	}
	if err := json.Unmarshal([]byte(out), answer); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	return nil
}

// isUp: the command returns when everything is healthy, which has to include a certificate soon after.
func (t *test) isUp(ctx context.Context, _ string) error {
	if err := t.startLoad(ctx); err != nil {
		return err
	}
	if t.serials[canary] != t.serials[production] {
		return fmt.Errorf("canary serves %s, production %s", t.serials[canary], t.serials[production])
	}
	return t.synced(ctx)
}

// synced waits until both Envoys are connected and have what they should have.
func (t *test) synced(ctx context.Context) error {
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		var n admin.Nodes
		if err := t.ask(ctx, &n, "nodes"); err != nil {
			return err
		}
		if len(n.Nodes) != 2 || slices.ContainsFunc(n.Nodes, func(n admin.Node) bool { return n.State != "SYNCED" || !n.Connected }) {
			return fmt.Errorf("nodes are %+v", n.Nodes)
		}
		return nil
	})
}

func (t *test) showsBothNodes(_ context.Context, out string) error {
	for _, want := range []string{`canary-1 +canary +SYNCED +unix `, `production-1 +production +SYNCED +tls `} {
		if !regexp.MustCompile(want).MatchString(out) {
			return fmt.Errorf("nothing like %q", want)
		}
	}
	return nil
}

// printsSerials: the line of the shell shows what our own handshakes have seen.
func (t *test) printsSerials(_ context.Context, out string) error {
	got := strings.Fields(strings.ToLower(strings.ReplaceAll(out, "serial=", "")))
	if want := []string{t.serials[canary], t.serials[production]}; !slices.Equal(got, want) {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// serves waits until an Envoy serves another certificate than before ("", or a certain one) to new clients; the other keeps its own.
func (t *test) serves(ctx context.Context, group, serial string) error {
	before := t.serials[group]
	err := testenv.Eventually(ctx, func(ctx context.Context) error {
		leaf, _, err := testenv.Handshake(ctx, https[group], secretName, nil)
		if err != nil {
			return err
		}
		got := testenv.Serial(leaf)
		if got == before || serial != "" && got != serial {
			return fmt.Errorf("%s serves %s, before it was %s, wanted is %s", group, got, before, serial)
		}
		t.serials[group] = got
		return nil
	})
	if err != nil {
		return err
	}
	for other, address := range https {
		leaf, _, err := testenv.Handshake(ctx, address, secretName, nil)
		if err != nil {
			return err
		}
		if got := testenv.Serial(leaf); got != t.serials[other] {
			return fmt.Errorf("%s serves %s, want %s", other, got, t.serials[other])
		}
	}
	return nil
}

func (t *test) canaryIsNew(ctx context.Context, _ string) error { return t.serves(ctx, canary, "") }

// canaryIsOld: canary went back to what production still serves.
func (t *test) canaryIsOld(ctx context.Context, _ string) error {
	return t.serves(ctx, canary, t.serials[production])
}

func (t *test) productionIsNew(ctx context.Context, _ string) error {
	if err := t.serves(ctx, production, t.serials[canary]); err != nil {
		return err
	}
	return t.synced(ctx)
}

// waiting waits until a rollout waits for its promotion.
func (t *test) waiting(ctx context.Context) error {
	return testenv.Eventually(ctx, func(ctx context.Context) error {
		var r admin.Rollouts
		if err := t.ask(ctx, &r, "rollout status"); err != nil {
			return err
		}
		if len(r.Rollouts) != 1 || r.Rollouts[0].State != "waiting" {
			return fmt.Errorf("rollouts are %+v", r.Rollouts)
		}
		return nil
	})
}

func (t *test) showsWaiting(_ context.Context, out string) error {
	if !strings.Contains(out, "waiting") {
		return errors.New("nothing waits")
	}
	return nil
}

func (t *test) showsServed(ctx context.Context, _ string) error {
	var v admin.Verification
	if err := t.ask(ctx, &v, "verify"); err != nil {
		return err
	}
	for _, g := range v.Groups {
		if !v.Served || !g.Configured || g.OK == 0 || g.Failed > 0 {
			return fmt.Errorf("got %+v", v)
		}
	}
	return nil
}

// acked returns what each node has ACKed.
func (t *test) acked(ctx context.Context) (map[string]string, error) {
	var n admin.Nodes
	if err := t.ask(ctx, &n, "nodes"); err != nil {
		return nil, err
	}
	versions := map[string]string{}
	for _, node := range n.Nodes {
		for _, s := range node.Secrets {
			if s.Name == secretName && s.Acked != nil {
				versions[node.ID] = s.Acked.Version
			}
		}
	}
	return versions, nil
}

func (t *test) rememberVersions(ctx context.Context) (err error) {
	if err := t.synced(ctx); err != nil {
		return err
	}
	if t.versions, err = t.acked(ctx); err == nil && len(t.versions) != 2 {
		err = fmt.Errorf("ACKed are %v", t.versions)
	}
	return err
}

// servesWithoutServer: the container has ended by SIGKILL and stays so, and the Envoys serve on.
func (t *test) servesWithoutServer(ctx context.Context, _ string) error {
	goals := map[string]int{}
	for group, load := range t.load {
		goals[group] = load.Made() + 200
	}
	err := testenv.Eventually(ctx, func(context.Context) error {
		for group, load := range t.load {
			if made := load.Made(); made < goals[group] && load.Failed() == 0 { // a failed one is reported by step
				return fmt.Errorf("%s: %d of %d handshakes made", group, made, goals[group])
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	state, err := t.engine.docker(ctx, nil, "inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", "sds-server")
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(state); got != "exited 137" {
		return fmt.Errorf("the server is %q, want that it was killed", got)
	}
	return nil
}

// hasEqualVersions: after the start both Envoys come back by themselves, with what they had, and rotation goes on.
func (t *test) hasEqualVersions(ctx context.Context, _ string) error {
	begin := time.Now()
	if err := t.synced(ctx); err != nil {
		return err
	}
	t.took("both Envoys connected again", begin)
	versions, err := t.acked(ctx)
	if err != nil {
		return err
	}
	for node, version := range t.versions {
		if versions[node] != version {
			return fmt.Errorf("%s had version %s before the server was killed, and %s after", node, version, versions[node])
		}
	}
	return nil
}
