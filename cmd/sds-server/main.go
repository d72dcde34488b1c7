// Command sds-server is a secret discovery server for fleets of Envoys, and the command line that its operators use.
//
// This package is flags, signals and exit codes; the server itself is built in internal/app.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"syscall"
)

// version is set when a release is built.
var version = "dev"

// The exit codes are part of the interface.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2 // wrong usage or configuration
	exitUnreachable = 3 // the server does not answer
)

func main() {
	// No core file holds a private key (DESIGN 4, invariant 8). It cannot fail: a limit may always be lowered.
	_ = syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{})
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// run executes one command line and returns its exit code.
func run(ctx context.Context, args []string, in io.Reader, out, errs io.Writer) int {
	c := &cli{in: in, out: out, errs: errs}
	root := c.root() //nolint:contextcheck // commands get theirs when they run
	root.SetArgs(args)
	root.SetIn(in)
	root.SetOut(out)
	root.SetErr(errs)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitDone
	}
	if silent, ok := errors.AsType[*exitError](err); ok {
		return silent.code
	}
	if asksForJSON(args) { // the flag may stand behind the one that was wrong, or at a command that reads none
		c.format = formatJSON
	}
	return c.report(err)
}

// exitError ends the command with a code when everything was said already.
type exitError struct{ code int }

func (e *exitError) Error() string { return "exit" }
