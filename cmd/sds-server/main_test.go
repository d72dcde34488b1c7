package main

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

// serverBinary is the program under test, pairs the certificates that tests import.
var (
	serverBinary string
	pairs        string
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "sds-cli-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // one test runs the program as another user
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// A program with the race detector waits for a second when it ends, each command of each test.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if serverBinary, err = testenv.BuildServer(context.Background(), dir, raceEnabled); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if pairs, err = writePairs(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}
