// Command summary runs `go test -json` with its own arguments and prints what a person wants to read: one line for each
// package that has passed, the whole output of what has failed, the totals alone on a line, and, last of all, which
// tests were skipped and why. Its exit code is that of go test.
//
// With -envoys "VERSION..." before the arguments it does so once for each version of Envoy, and ends with a table of them. With -last REGEXP behind that, tests that
// match are run on the last version alone.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// An interrupt goes to go test by itself, as it is in our process group; we stay to print the totals.
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer cancel()
	if len(args) > 2 && args[0] == "-envoys" {
		p := plan{versions: strings.Fields(args[1]), args: args[2:]}
		if len(p.args) > 2 && p.args[0] == "-last" {
			p.last, p.args = p.args[1], p.args[2:]
		}
		return p.run(ctx, stdout, stderr)
	}
	_, code := runTests(ctx, args, nil, stdout, stderr)
	return code
}

// runTests is one run of go test, with more environment variables than ours.
func runTests(ctx context.Context, args, env []string, stdout, stderr io.Writer) (*summary, int) {
	s := newSummary(stdout)
	cmd := exec.CommandContext(context.WithoutCancel(ctx), "go", append([]string{"test", "-json"}, args...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = stderr
	events, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintf(stderr, "error: go test: %v\n", err)
		return s, 1
	}
	readErr := s.read(events)
	waitErr := cmd.Wait()
	s.finish()

	if exit, ok := errors.AsType[*exec.ExitError](waitErr); ok && exit.ExitCode() > 0 {
		return s, exit.ExitCode()
	}
	if err := errors.Join(readErr, waitErr); err != nil {
		fmt.Fprintf(stderr, "error: go test: %v\n", err)
		return s, 1
	}
	if s.failed > 0 {
		return s, 1
	}
	return s, 0
}
