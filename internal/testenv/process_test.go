package testenv_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestProcessStopKillsAStubbornChildAndSaysSo(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	p, err := testenv.StartProcess(t.Context(), testenv.ProcessOptions{
		Name: "stubborn", Path: "/bin/sh", Args: []string{"-c", "trap '' TERM; echo ready; while :; do sleep 1; done"},
		LogDir: env.Dir, Grace: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitLog(env.Ready(), "ready"); err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "no end within") {
		t.Errorf("got %v, want an error about the missing end", err)
	}
	if p.Running() {
		t.Error("the child runs on")
	}
}

func TestProcessReportsAnEndThatNobodyAskedFor(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	start := func() *testenv.Process {
		p, err := testenv.StartProcess(t.Context(), testenv.ProcessOptions{
			Name: "short", Path: "/bin/sh", Args: []string{"-c", "echo over; exit 3"}, LogDir: env.Dir,
		})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := start()
	<-p.Done()
	if err := p.Stop(); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want an error with the exit status", err)
	}
	p = start()
	if code, err := p.Wait(env.Ready()); err != nil || code != 3 {
		t.Errorf("got %d, %v, want 3", code, err)
	}
	if err := p.Stop(); err != nil {
		t.Errorf("after Wait: %v", err)
	}
	p = start()
	err := p.WaitLog(env.Ready(), "never")
	if err == nil || !strings.Contains(err.Error(), "ended by itself") || !strings.Contains(err.Error(), "over") {
		t.Errorf("got %v, want the end and the log", err)
	}
}

func TestProcessLogBeginsWithItsOwnRun(t *testing.T) {
	t.Parallel()
	env := testenv.NewT(t)
	for _, word := range []string{"first", "second"} {
		p := env.Process(testenv.ProcessOptions{Name: "echo", Path: "/bin/echo", Args: []string{word}})
		if _, err := p.Wait(env.Ready()); err != nil {
			t.Fatal(err)
		}
		if got := p.LogTail(10); got != word {
			t.Errorf("got %q, want %q alone", got, word)
		}
		data, err := os.ReadFile(p.LogFile())
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(string(data), "first\n") {
			t.Errorf("the file %q has lost the first run", data)
		}
	}
}

// This test runs itself in another process, where it fails, or not.
func TestFailedTestShowsLogsAndKeepsItsDirectory(t *testing.T) {
	if fail := os.Getenv("TESTENV_FAIL"); fail != "" {
		failing(t, fail)
		return
	}
	t.Parallel()
	for _, fail := range []string{"yes", "no"} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run", "^TestFailedTestShowsLogsAndKeepsItsDirectory$", "-test.v")
		cmd.Env = append(os.Environ(), "TESTENV_FAIL="+fail)
		out, err := cmd.CombinedOutput()
		failed := fail == "yes"
		if (err != nil) != failed {
			t.Fatalf("fail %s: got %v\n%s", fail, err, out)
		}
		_, rest, found := strings.Cut(string(out), "directory ")
		if !found {
			t.Fatalf("the helper did not run:\n%s", out)
		}
		dir, _, _ := strings.Cut(rest, "\n")
		_, err = os.Stat(dir)
		if kept := err == nil; kept != failed {
			t.Errorf("fail %s: the directory %s is kept: %v, want %v", fail, dir, kept, failed)
		}
		if shown := strings.Contains(string(out), "last words"); shown != failed {
			t.Errorf("fail %s: the log is shown: %v, want %v\n%s", fail, shown, failed, out)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
}

func failing(t *testing.T, fail string) {
	t.Helper()
	env := testenv.NewT(t)
	t.Logf("directory %s", env.Dir)
	p := env.Process(testenv.ProcessOptions{Name: "echo", Path: "/bin/sh", Args: []string{"-c", "echo last; echo words | sed s/^/last\\ /"}})
	if code, err := p.Wait(env.Ready()); err != nil || code != 0 {
		t.Fatal(code, err)
	}
	if fail == "yes" {
		t.Error("as asked for")
	}
}
