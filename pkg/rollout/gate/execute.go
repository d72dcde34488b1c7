package gate

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxOutput is how much of the end of a command's output is kept, in bytes.
	maxOutput = 4 << 10
	// maxVariable bounds the lists in the environment: the kernel starts no program with a variable over 128 KiB.
	maxVariable = 100 << 10
	// outputGrace is how long the rest of the output is read after the end of the command and its group: a process that has left the group may
	// hold the pipe open for ever.
	outputGrace = 200 * time.Millisecond
)

// outcome is how a run ended.
type outcome struct {
	err    error // why there is no exit code
	code   int
	output string // the end of it
	took   time.Duration
}

func (o outcome) result() Result {
	last := ""
	if line := lastLine(o.output); line != "" {
		last = ": " + line
	}
	switch {
	case o.err != nil:
		return Result{Done: true, Err: oneLine(o.err.Error() + last)}
	case o.code != 0:
		return Result{Done: true, Failed: oneLine(fmt.Sprintf("exit code %d%s", o.code, last))}
	}
	return Result{Done: true, OK: true}
}

// lastLine is the last line of output that says something: programs end with what was wrong.
func lastLine(output string) string {
	lines := strings.Split(strings.TrimSpace(output), "\n")
	return oneLine(lines[len(lines)-1])
}

// execute runs the command for a wave until it ends, its time-out, or the end of ctx. Whatever it started ends with it.
func execute(ctx context.Context, c Command, w Wave) outcome {
	if err := CheckCommand(c.Argv, c.ConfigFile); err != nil {
		return outcome{err: err}
	}
	begin := time.Now()
	reading, writing, err := os.Pipe()
	if err != nil {
		return outcome{err: err}
	}
	defer reading.Close() // only read
	// The signal for the death of the parent comes when the thread that started the child ends; so the goroutine keeps its thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), c.Argv[0], c.Argv[1:]...) // killed below, with its group
	cmd.Env, cmd.Dir = environment(w), "/"
	cmd.Stdout, cmd.Stderr = writing, writing
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	err = cmd.Start()
	_ = writing.Close() // the child has its own; nothing was written through this one
	if err != nil {
		return outcome{err: fmt.Errorf("%s cannot be run: %w", c.Argv[0], systemError(err))}
	}
	var kept tail
	var output sync.WaitGroup
	output.Go(func() { kept.readFrom(reading) })
	late := end(ctx, cmd, c.Timeout)
	_ = reading.SetReadDeadline(time.Now().Add(outputGrace)) // pipes can have one
	output.Wait()
	o := outcome{output: string(kept.bytes), took: time.Since(begin), code: cmd.ProcessState.ExitCode()}
	switch status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); {
	case late:
		o.err = fmt.Errorf("no end within %s", c.Timeout)
	case ctx.Err() != nil:
		o.err = errors.New("ended, since it is not wanted any more")
	case ok && status.Signaled():
		o.err = fmt.Errorf("ended by signal %d (%s)", status.Signal(), status.Signal())
	}
	return o
}

// end waits for the end of a command, and makes it end at the time-out or the end of ctx. Then it kills what is left of its process group. It
// reports whether the time was over.
func end(ctx context.Context, cmd *exec.Cmd, timeout time.Duration) (late bool) {
	pid := cmd.Process.Pid
	ended := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case <-ended:
			return
		case <-timer.C:
			late = true
		case <-ctx.Done():
		}
		kill(pid)
	})
	// It is not reaped before its group is gone: as long as it is a zombie, no other process can have its number.
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	close(ended)
	killer.Wait()
	kill(pid)
	_ = cmd.Wait() // its state says all; the output is files of ours
	return late
}

// kill kills a process group and its first process, which may have left the group. That they have ended is no error.
func kill(pid int) {
	_ = syscall.Kill(-pid, syscall.SIGKILL)
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// environment is all that a command is told.
func environment(w Wave) []string {
	env := []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
		"SDS_ROLLOUT=" + strconv.FormatUint(w.Rollout, 10),
		"SDS_WAVE=" + strconv.Itoa(w.Wave),
	}
	for _, list := range []struct {
		name  string
		names []string
	}{{"SDS_GROUPS", w.Groups}, {"SDS_SECRETS", w.Secrets}} {
		text, left := join(list.names)
		env = append(env, list.name+"="+text)
		if left > 0 {
			env = append(env, fmt.Sprintf("%s_LEFT_OUT=%d", list.name, left))
		}
	}
	return env
}

// join returns names with spaces between them, as many as have room, and how many were left out.
func join(names []string) (text string, left int) {
	var b strings.Builder
	for i, name := range names {
		if b.Len()+1+len(name) > maxVariable {
			return b.String(), len(names) - i
		}
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(name)
	}
	return b.String(), 0
}

// tail keeps the end of what is read.
type tail struct{ bytes []byte }

// readFrom reads until the end of the file, or of the time to read.
func (t *tail) readFrom(f *os.File) {
	buffer := make([]byte, maxOutput)
	for {
		n, err := f.Read(buffer)
		t.bytes = append(t.bytes, buffer[:n]...)
		t.bytes = t.bytes[max(0, len(t.bytes)-maxOutput):]
		if err != nil {
			return
		}
	}
}
