package main

import (
	"bytes"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
)

// output is what a running command has written so far.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer // guarded by mu
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) count(text string) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.Count(o.b.String(), text)
}

// TestWatchGoesOnUntilItIsInterrupted also restarts the server under a watch.
func TestWatchGoesOnUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	p := b.start()
	watches := [][]string{{"status", "--watch"}, {"nodes", "--watch", "-o", "json"}, {"rollout", "status", "--watch"}}
	texts := []string{"latest snapshot", `"nodes": []`, "no rollout is under way"}
	var running []*exec.Cmd
	var outs, errs [3]output
	for i, args := range watches {
		cmd := exec.CommandContext(t.Context(), b.binary, append(args, "-c", b.Config())...)
		cmd.Stdout, cmd.Stderr = &outs[i], &errs[i]
		b.must(cmd.Start())
		running = append(running, cmd)
	}
	seen := func(o *[3]output, texts []string, n []int) {
		t.Helper()
		for i := range watches {
			b.eventually(func() error {
				if got := o[i].count(texts[i]); got < n[i] {
					return fmt.Errorf("%v has shown %q %d times", watches[i], texts[i], got)
				}
				return nil
			})
		}
	}
	seen(&outs, texts, []int{2, 2, 1}) // the last one tells news only
	b.must(p.Stop())
	lost := "the server is not reachable"
	seen(&errs, []string{lost, lost, lost}, []int{1, 1, 1})
	b.start()
	b.importPair("www", "a1")
	var before [3]int
	for i := range watches {
		before[i] = outs[i].count(texts[i])
	}
	texts[2], before[2] = "every wave is done", 0
	for i := range watches {
		b.eventually(func() error {
			if got := outs[i].count(texts[i]); got <= before[i] {
				return fmt.Errorf("%v has shown nothing since the restart", watches[i])
			}
			return nil
		})
	}
	b.importPair("www", "a2") // it begins and ends between two looks
	b.eventually(func() error {
		if outs[2].count("(renewal www ") == 0 {
			return errors.New("the renewal was missed")
		}
		return nil
	})
	for i, cmd := range running {
		b.must(cmd.Process.Signal(syscall.SIGINT))
		if err := cmd.Wait(); err != nil {
			exit, _ := errors.AsType[*exec.ExitError](err)
			t.Errorf("%v: %v %v, want exit code 0", watches[i], err, exit)
		}
		if outs[i].count("\x1b") != 0 {
			t.Errorf("%v speaks to a terminal that is not there", watches[i])
		}
	}
}

// TestReleasedVersionIsSentAgain has a node refuse a version, and an operator release it.
func TestReleasedVersionIsSentAgain(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	b.start()
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.importPair("www", "a1")
	b.eventually(func() error { return n.has("www", "") })
	n.refuse("not this one")
	b.importPair("www", "a2")
	s := b.status(func(s admin.Status) error {
		if len(s.Held) != 1 || s.Held[0].Kind != "hard" {
			return fmt.Errorf("held: %v", s.Held)
		}
		return nil
	})
	held := s.Held[0].Version
	n.refuse("")
	b.refused(1, "held (hard)", "promote", "--group", "canary")
	b.ok("secrets", "release", "www", "--version", held[:12])
	b.eventually(func() error { return n.has("www", held) })
	b.status(func(s admin.Status) error {
		if len(s.Held)+len(s.Rollouts) != 0 || s.Groups[1].Snapshot != s.SnapshotLatest {
			return fmt.Errorf("held %v, rollouts %v, groups %v", s.Held, s.Rollouts, s.Groups)
		}
		return nil
	})
}
