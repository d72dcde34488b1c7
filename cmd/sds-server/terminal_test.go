package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is a pseudo-terminal: what is written to slave is in output.
type terminal struct {
	slave  *os.File
	output output
}

func openTerminal(t *testing.T) *terminal {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		t.Skip("this machine has no pseudo-terminals")
	}
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{slave: slave}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(&term.output, master) // it ends with an error when nobody has the slave any more
	}()
	t.Cleanup(func() {
		_ = slave.Close() // the reader ends
		<-done
		_ = master.Close()
	})
	return term
}

// shows waits until the terminal has shown a text n times.
func (term *terminal) shows(b *box, text string, n int) {
	b.Helper()
	b.eventually(func() error {
		if got := term.output.count(text); got < n {
			return fmt.Errorf("%q was shown %d times, want %d", text, got, n)
		}
		return nil
	})
}

const clearScreen = "\x1b[H\x1b[2J"

// TestWatchOnATerminalRedraws looks at rollouts in place, and ends with the one that is watched.
func TestWatchOnATerminalRedraws(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{Manual: true})
	b.start()
	b.importPair("www", "a1")
	b.newest("www", 0, "done")
	b.importPair("www", "a2")
	id := b.newest("www", 1, "waiting").ID
	all, one := openTerminal(t), openTerminal(t)
	watchAll := exec.CommandContext(t.Context(), b.binary, "rollout", "status", "--watch", "-c", b.Config())
	watchOne := exec.CommandContext(t.Context(), b.binary, "rollout", "status", fmt.Sprint(id), "--watch", "-c", b.Config())
	watchAll.Stdout, watchOne.Stdout = all.slave, one.slave
	b.must(watchAll.Start())
	b.must(watchOne.Start())
	all.shows(b, clearScreen+"ROLLOUT   STATE", 2)
	one.shows(b, clearScreen+"ROLLOUT", 2)
	b.ok("promote", "--group", "production")
	if err := watchOne.Wait(); err != nil {
		t.Errorf("the watch of rollout %d: %v, want exit code 0", id, err)
	}
	one.shows(b, "every wave is done", 1)
	all.shows(b, clearScreen+"no rollout is under way", 1)
	b.must(watchAll.Process.Signal(syscall.SIGINT))
	if err := watchAll.Wait(); err != nil {
		t.Errorf("the watch: %v, want exit code 0", err)
	}
}

// TestRenewalShowsHowFarItsRolloutIs waits for a node that is away, and then for the watch of two waves.
func TestRenewalShowsHowFarItsRolloutIs(t *testing.T) {
	t.Parallel()
	b, _, _, _ := issuedBox(t, settings{Watch: "2s"})
	n := connect(t, b.SDSSocket(), "n1", "canary", "issued.example")
	b.eventually(func() error { return n.has("issued.example", "") })
	n.close()
	b.eventually(func() error {
		if out := b.ok("nodes"); !strings.Contains(out, "OFFLINE") {
			return fmt.Errorf("n1 is not offline in %s", out)
		}
		return nil
	})
	term := openTerminal(t)
	renew := exec.CommandContext(t.Context(), b.binary, "renew", "issued.example", "--force", "--wait", "-c", b.Config())
	renew.Stderr = term.slave
	b.must(renew.Start())
	term.shows(b, "\r\x1b[Kissued.example: rollout 2: moving: ", 1) // in place of the one before
	term.shows(b, "(0 of 1 ACKed)", 2)
	connect(t, b.SDSSocket(), "n1", "canary", "issued.example")
	term.shows(b, "s left)", 1)
	if err := renew.Wait(); err != nil {
		t.Errorf("renew --wait: %v", err)
	}
	term.shows(b, "issued.example: rollout 2: done: every wave is done\r\n", 1)
}
