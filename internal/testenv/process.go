package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// ProcessOptions says what StartProcess runs.
type ProcessOptions struct {
	// Name is used in errors and for the log file; default: the base name of Path.
	Name string
	// Path is the executable.
	Path string
	Args []string
	// Env is added to the environment of this process ("NAME=value").
	Env []string
	// WorkDir is the child's working directory; default: that of this process.
	WorkDir string
	// LogDir takes NAME.log, to which standard output and error are appended.
	LogDir string
	// Grace is the time between SIGTERM and SIGKILL in Stop; default 10 s.
	Grace time.Duration
}

// Process is a running child. Its methods may be called from several goroutines.
type Process struct {
	name    string
	pid     int
	proc    *os.Process
	logFile string
	logFrom int64 // where this run's output begins in the log file
	grace   time.Duration
	done    chan struct{}
	err     error       // written before done is closed
	known   atomic.Bool // the caller knows of the end: it killed the child or has waited for it
}

// StartProcess starts a child that is killed by the kernel when this process ends. ctx bounds the start alone.
func StartProcess(ctx context.Context, o ProcessOptions) (*Process, error) {
	if o.Name == "" {
		o.Name = filepath.Base(o.Path)
	}
	if o.LogDir == "" {
		return nil, fmt.Errorf("%s: no log directory", o.Name)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	logFile := filepath.Join(o.LogDir, o.Name+".log")
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	info, err := log.Stat()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", o.Name, err), log.Close())
	}

	cmd := exec.CommandContext(context.WithoutCancel(ctx), o.Path, o.Args...)
	cmd.Env = append(os.Environ(), o.Env...)
	cmd.Dir = o.WorkDir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}

	p := &Process{name: o.Name, logFile: logFile, logFrom: info.Size(), grace: o.Grace, done: make(chan struct{})}
	if p.grace == 0 {
		p.grace = 10 * time.Second
	}
	started := make(chan error, 1)
	go func() {
		// The death signal comes when the *thread* that started the child ends, not the process. So the goroutine that
		// starts the child keeps its thread for itself until the child has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		_ = log.Close() // the child has its own descriptor; nothing was written through this one
		if err == nil {
			p.proc, p.pid = cmd.Process, cmd.Process.Pid
		}
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", o.Name, err)
	}
	return p, nil
}

// Name is the name in errors and of the log file.
func (p *Process) Name() string { return p.name }

// PID is the process id of the child.
func (p *Process) PID() int { return p.pid }

// LogFile is the path of the file with the child's output.
func (p *Process) LogFile() string { return p.logFile }

// Done is closed when the child has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Running reports whether the child has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Wait waits for the end of the child and returns its exit code, -1 when a signal ended it.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-ctx.Done():
		return 0, fmt.Errorf("%s: still running: %w", p.name, ctx.Err())
	case <-p.done:
		p.known.Store(true)
	}
	if exit, ok := errors.AsType[*exec.ExitError](p.err); ok {
		return exit.ExitCode(), nil
	}
	if p.err != nil {
		return 0, fmt.Errorf("%s: %w", p.name, p.err)
	}
	return 0, nil
}

// Signal sends a signal to the child. A child that has ended is no error.
func (p *Process) Signal(s os.Signal) error {
	if err := p.proc.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("%s: signal %v: %w", p.name, s, err)
	}
	return nil
}

// Kill ends the child with SIGKILL and waits until it is gone.
func (p *Process) Kill() error {
	p.known.Store(true)
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return err
	}
	<-p.done
	return nil
}

// Stop ends the child with SIGTERM. It is an error when the child does not end within the grace (it is then killed), or
// when it had ended by itself with another exit code than 0 and nobody has asked for that with Wait.
func (p *Process) Stop() error {
	wasRunning := p.Running()
	if err := p.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	timer := time.NewTimer(p.grace)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		return errors.Join(fmt.Errorf("%s: no end within %v of SIGTERM", p.name, p.grace), p.Kill())
	}
	if !wasRunning && p.err != nil && !p.known.Load() {
		return fmt.Errorf("%s: ended by itself: %w", p.name, p.err)
	}
	return nil
}

// Log returns all output of this run.
func (p *Process) Log() (string, error) {
	f, err := os.Open(p.logFile)
	if err != nil {
		return "", fmt.Errorf("%s: log: %w", p.name, err)
	}
	defer f.Close() // only read
	data, err := io.ReadAll(io.NewSectionReader(f, p.logFrom, 1<<30))
	if err != nil {
		return "", fmt.Errorf("%s: log: %w", p.name, err)
	}
	return string(data), nil
}

// LogTail returns the last lines of the output, or says why it cannot.
func (p *Process) LogTail(lines int) string {
	log, err := p.Log()
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(log, "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// WaitLog waits until the output of this run contains text.
func (p *Process) WaitLog(ctx context.Context, text string) error {
	return p.eventually(ctx, func(context.Context) error {
		log, err := p.Log()
		if err != nil {
			return err
		}
		if !strings.Contains(log, text) {
			return fmt.Errorf("the log does not contain %q", text)
		}
		return nil
	})
}

// WaitHTTP waits until a GET of url answers 200.
func (p *Process) WaitHTTP(ctx context.Context, url string) error {
	return p.eventually(ctx, func(ctx context.Context) error {
		_, err := get(ctx, localClient(), url)
		return err
	})
}

// eventually is Eventually, but gives up as soon as the child has ended.
func (p *Process) eventually(ctx context.Context, check func(context.Context) error) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("ended by itself: %v", p.err)) //nolint:errorlint // the cause is text for a person
		case <-stop:
		}
	}()
	if err := Eventually(ctx, check); err != nil {
		if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, ctx.Err()) {
			err = fmt.Errorf("%w; %w", cause, err)
		}
		return fmt.Errorf("%s: %w\nlast lines of %s:\n%s", p.name, err, p.logFile, p.LogTail(15))
	}
	return nil
}

// localClient makes a client that keeps no connection, so that a restarted child is never asked over an old one.
func localClient() *http.Client {
	return &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true},
	}
}

// get returns the body of a 200 answer; any other status is an error.
func get(ctx context.Context, client *http.Client, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // only read
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", url, resp.Status, bytes.TrimSpace(body))
	}
	return body, nil
}
