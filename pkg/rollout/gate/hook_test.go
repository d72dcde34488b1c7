package gate

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/testenv"
)

func sh(script string) Command { return Command{Argv: []string{"/bin/sh", "-c", script}} }

// newHook returns a Hook that ends with the test.
func newHook(tb testing.TB, c Command) (*Hook, woken, *logs) {
	tb.Helper()
	woken, out := newWoken(), new(logs)
	h := NewHook(HookOptions{Command: c, Wake: woken.wake, Log: out.logger()})
	tb.Cleanup(h.Close)
	return h, woken, out
}

// result runs a command for a wave until it is done.
func result(tb testing.TB, c Command, w Wave) Result {
	tb.Helper()
	h, woken, _ := newHook(tb, c)
	if got := h.Run(w); got != (Result{}) {
		tb.Fatalf("got %+v, want nothing yet", got)
	}
	woken.wait(tb)
	got := h.Run(w)
	if !got.Done {
		tb.Fatalf("got %+v after the wake, want it to be done", got)
	}
	return got
}

// eventually waits for a condition of another process.
func eventually(tb testing.TB, what string, condition func() bool) {
	tb.Helper()
	err := testenv.Eventually(tb.Context(), func(context.Context) error {
		if condition() {
			return nil
		}
		return fmt.Errorf("still waiting: %s", what)
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// pidIn waits until a file holds the number of a process.
func pidIn(tb testing.TB, file string) int {
	tb.Helper()
	pid := 0
	eventually(tb, "the number of the process in "+file, func() bool {
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasSuffix(string(text), "\n") {
			return false
		}
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
		return err == nil
	})
	return pid
}

func gone(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(rest, "Z")
}

func TestHookResults(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, script string
		want         Result
	}{
		{"passes", "echo fine", Result{Done: true, OK: true}},
		{"says no", "echo first; echo 'error rate is 4%' >&2; exit 3", Result{Done: true, Failed: "exit code 3: error rate is 4%"}},
		{"says nothing", "exit 1", Result{Done: true, Failed: "exit code 1"}},
		{"last line that says something", "printf 'no\\n\\n  \\n'; exit 1", Result{Done: true, Failed: "exit code 1: no"}},
		{"odd characters", `printf 'a\033[31mb\000c\377\n'; exit 1`, Result{Done: true, Failed: "exit code 1: a [31mb c?"}},
		{"ended by a signal", "echo bye; kill -KILL $$", Result{Done: true, Err: "ended by signal 9 (killed): bye"}},
		{"not found", "exec /no/such/program", Result{Done: true, Failed: "exit code 127: /bin/sh: 1: exec: /no/such/program: not found"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := result(t, sh(tt.script), Wave{Rollout: 1})
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
		})
	}
}

func TestHookKeepsTheEndOfMuchOutput(t *testing.T) {
	t.Parallel()
	h, woken, out := newHook(t, sh(`i=0; while [ $i -lt 5000 ]; do echo "line $i"; i=$((i+1)); done; exit 1`))
	h.Run(Wave{Rollout: 1})
	woken.wait(t)
	if got, want := h.Run(Wave{Rollout: 1}).Failed, "exit code 1: line 4999"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if n := len(out.String()); n < maxOutput || n > 2*maxOutput || !strings.Contains(out.String(), "level=DEBUG") {
		t.Errorf("got %d bytes of log, want the last %d of the output in one debug line", n, maxOutput)
	}
}

func TestHookIsToldTheWaveAndNothingElse(t *testing.T) {
	t.Setenv("TESTED_SECRET", "of the server")
	file := filepath.Join(t.TempDir(), "out")
	w := Wave{Rollout: 7, Wave: 2, Attempt: 3, Groups: []string{"a", "b"}, Secrets: []string{"www.example.com", "sds://other"}}
	c := Command{Argv: []string{"/bin/sh", "-c", `exec > "$1"; env | grep -v -e ^PWD= -e ^SHLVL= -e ^_= | sort; pwd; echo "$# $2"; wc -c`, "sh", file, "two words; $HOME"}}
	if got := result(t, c, w); !got.OK {
		t.Fatalf("got %+v, want OK", got)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	want := `PATH=/usr/sbin:/usr/bin:/sbin:/bin
SDS_GROUPS=a b
SDS_ROLLOUT=7
SDS_SECRETS=www.example.com sds://other
SDS_WAVE=2
/
2 two words; $HOME
0
`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("what the command saw (-want +got):\n%s", diff)
	}
}

func TestHookWithVeryManySecretsIsRun(t *testing.T) {
	t.Parallel()
	var w Wave
	for i := range 10_000 {
		w.Secrets = append(w.Secrets, fmt.Sprintf("secret-with-a-rather-long-name-%d.example.com", i))
	}
	got := result(t, sh(`set -- $SDS_SECRETS; echo "$# and $SDS_SECRETS_LEFT_OUT, $1"; exit 1`), w)
	var told, left int
	if _, err := fmt.Sscanf(got.Failed, "exit code 1: %d and %d, secret-with-a-rather-long-name-0.example.com", &told, &left); err != nil || told < 1000 || told+left != len(w.Secrets) {
		t.Errorf("got %+v, want as many secrets as have room, and how many have not", got)
	}
}

func TestHookRunsOnceForEachAttempt(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "runs")
	h, woken, _ := newHook(t, Command{Argv: []string{"/bin/sh", "-c", `echo "$SDS_ROLLOUT $SDS_WAVE" >> "$0"`, file}})
	var want []string
	for _, w := range []Wave{{Rollout: 1}, {Rollout: 1, Wave: 1}, {Rollout: 1, Wave: 1, Attempt: 1}, {Rollout: 2, Wave: 1, Attempt: 1}} {
		for range 5 {
			h.Run(w)
		}
		woken.wait(t)
		for range 5 {
			if got := h.Run(w); got != (Result{Done: true, OK: true}) {
				t.Errorf("%+v: got %+v, want OK", w, got)
			}
		}
		want = append(want, fmt.Sprintf("%d %d\n", w.Rollout, w.Wave))
	}
	h.Forget(2)
	if got := h.Run(Wave{Rollout: 2, Wave: 1, Attempt: 1}); got.Done {
		t.Errorf("got %+v of a rollout that was forgotten", got)
	}
	woken.wait(t)
	want = append(want, "2 1\n")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Join(want, ""), string(text)); diff != "" {
		t.Errorf("runs (-want +got):\n%s", diff)
	}
}

// TestHookThatHangsIsKilledWithItsChildren, also where children hold the output open, and where the command itself has ended.
func TestHookThatHangsIsKilledWithItsChildren(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name, script string
		timeout      time.Duration
		want         Result
	}{
		{"the command waits", `sleep 600 & echo $! > "$0.new"; mv "$0.new" "$0"; echo waiting; wait`, 500 * time.Millisecond, Result{Done: true, Err: "no end within 500ms: waiting"}},
		{"the command ignores signals", `trap '' TERM INT HUP; sleep 600 & echo $! > "$0.new"; mv "$0.new" "$0"; wait`, 500 * time.Millisecond, Result{Done: true, Err: "no end within 500ms"}},
		{"the command has ended", `sleep 600 & echo $! > "$0.new"; mv "$0.new" "$0"; echo left; exit 2`, time.Minute, Result{Done: true, Failed: "exit code 2: left"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "pid")
			c := Command{Argv: []string{"/bin/sh", "-c", tt.script, file}, Timeout: tt.timeout}
			if diff := cmp.Diff(tt.want, result(t, c, Wave{})); diff != "" {
				t.Errorf("result (-want +got):\n%s", diff)
			}
			child := pidIn(t, file)
			eventually(t, "the child's end", func() bool { return gone(child) })
		})
	}
}

// TestHookWhoseChildLeavesTheGroup: such a child cannot be found, but its hold on the output keeps nobody.
func TestHookWhoseChildLeavesTheGroup(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "pid")
	c := Command{Argv: []string{"/bin/sh", "-c", `setsid sh -c 'echo $$ > "$0.new"; mv "$0.new" "$0"; exec sleep 600' "$0" & while [ ! -e "$0" ]; do :; done; echo done; exit 4`, file}}
	got := result(t, c, Wave{})
	child := pidIn(t, file)
	defer func() { _ = syscall.Kill(child, syscall.SIGKILL) }() // it is this test's
	if got != (Result{Done: true, Failed: "exit code 4: done"}) {
		t.Errorf("got %+v, want exit code 4", got)
	}
	if gone(child) {
		t.Error("the child has ended: this test looks at nothing")
	}
}

// TestHookThatIsNotWantedIsEnded by another attempt, by Forget, and by Close.
func TestHookThatIsNotWantedIsEnded(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	begin := func(h *Hook, w Wave) (pid int) {
		h.Run(w)
		return pidIn(t, filepath.Join(dir, fmt.Sprintf("%d-%d", w.Rollout, w.Wave)))
	}
	h, woken, _ := newHook(t, Command{Argv: []string{"/bin/sh", "-c", `f="$0/$SDS_ROLLOUT-$SDS_WAVE"; echo $$ > "$f.new"; mv "$f.new" "$f"; sleep 600; exit 0`, dir}})
	first := begin(h, Wave{Rollout: 1})
	second := begin(h, Wave{Rollout: 1, Wave: 1})
	other := begin(h, Wave{Rollout: 2})
	eventually(t, "the end of the earlier wave's run", func() bool { return gone(first) })
	if gone(second) || gone(other) {
		t.Error("the run for another wave or rollout has ended, too")
	}
	h.Forget(1)
	eventually(t, "the end of the forgotten run", func() bool { return gone(second) })
	h.Close()
	if !gone(other) {
		t.Error("Close left a run behind")
	}
	if got := h.Run(Wave{Rollout: 3}); got != (Result{}) {
		t.Errorf("got %+v after Close, want nothing", got)
	}
	if n := len(woken); n != 0 {
		t.Errorf("woken %d times for runs that nobody wants", n)
	}
}

func TestHookBeginsAFewAtOnce(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h, woken, _ := newHook(t, Command{Argv: []string{"/bin/sh", "-c", `: > "$0/$SDS_ROLLOUT"; while [ ! -e "$0/go" ]; do sleep 0.02; done; ls "$0" | grep -vc go`, dir}})
	const all = hookSlots + 3
	for id := range uint64(all) {
		h.Run(Wave{Rollout: id})
	}
	begun := func() int {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	eventually(t, "the first runs", func() bool { return begun() >= hookSlots })
	if n := begun(); n != hookSlots {
		t.Errorf("got %d runs at once, want %d", n, hookSlots)
	}
	if err := os.WriteFile(filepath.Join(dir, "go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range all {
		woken.wait(t)
	}
	for id := range uint64(all) {
		if got := h.Run(Wave{Rollout: id}); !got.OK {
			t.Errorf("%d: got %+v, want OK", id, got)
		}
	}
}

func TestHookThatChanges(t *testing.T) {
	t.Parallel()
	h, woken, _ := newHook(t, Command{})
	if got := h.Run(Wave{Rollout: 1}); got != (Result{Done: true, OK: true}) {
		t.Errorf("no command: got %+v, want OK", got)
	}
	h.SetCommand(sh("exit 5"))
	h.Run(Wave{Rollout: 1})
	woken.wait(t)
	h.SetCommand(sh("exit 6"))
	if got, want := h.Run(Wave{Rollout: 1}).Failed, "exit code 5"; got != want {
		t.Errorf("got %q of the run that had begun, want %q", got, want)
	}
	h.Run(Wave{Rollout: 1, Attempt: 1})
	woken.wait(t)
	if got, want := h.Run(Wave{Rollout: 1, Attempt: 1}).Failed, "exit code 6"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
