// Command summary runs `go test -json` with its own arguments and prints what a person wants to read: one line for each
// package that has passed, the whole output of what has failed, the totals alone on a line, and, last of all, which
// tests were skipped and why. Its exit code is that of go test.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// An interrupt goes to go test by itself, as it is in our process group; we stay to print the totals.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = stderr
	events, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: go test: %v\n", err)
		return 1
	}
	s := newSummary(stdout)
	readErr := s.read(events)
	waitErr := cmd.Wait()
	s.finish()

	if exit, ok := errors.AsType[*exec.ExitError](waitErr); ok && exit.ExitCode() > 0 {
		return exit.ExitCode()
	}
	if err := errors.Join(readErr, waitErr); err != nil {
		fmt.Fprintf(stderr, "error: go test: %v\n", err)
		return 1
	}
	if s.failed > 0 {
		return 1
	}
	return 0
}
