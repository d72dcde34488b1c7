// Command demo runs the product on real parts and tells what happens: `make demo`.
//
// It ends by itself with exit code 0, or 1 when anything failed. With KEEP=1 it leaves everything running in the background, until
// `make demo-stop`.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	// limit bounds the whole demo; with tools in place it takes under a minute.
	limit = 5 * time.Minute
	// storyFD is where the child of a KEEP=1 run tells its story.
	storyFD = 3
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch {
	case len(os.Args) == 2 && os.Args[1] == "stop":
		err = stopKept(ctx, os.Stdout)
	case len(os.Args) == 2 && os.Args[1] == "kept":
		err = kept(ctx)
	case len(os.Args) != 1:
		err = fmt.Errorf("usage: demo [stop]")
	case os.Getenv("KEEP") != "" && os.Getenv("KEEP") != "0":
		err = keep(ctx, os.Stdout)
	default:
		err = runOnce(ctx, os.Stdout)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// runOnce tells the story and ends everything.
func runOnce(ctx context.Context, out io.Writer) error {
	if err := stopKept(ctx, io.Discard); err != nil {
		return err
	}
	d, err := newDemo(ctx, out)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err = d.tell(bounded)
	if err != nil {
		d.logs()
	}
	return errors.Join(err, d.stop())
}

// stopKept ends what a KEEP=1 run has left running, by the process id that it wrote down.
func stopKept(ctx context.Context, out io.Writer) error {
	dir, err := demoDir()
	if err != nil {
		return err
	}
	file := filepath.Join(dir, "pid")
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		_, err := fmt.Fprintln(out, "no demo is running")
		return err
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	if isDemo(pid) {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("stop the demo (pid %d): %w", pid, err)
		}
		ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
		defer cancel()
		err := testenv.Eventually(ctx, func(context.Context) error {
			if isDemo(pid) {
				return fmt.Errorf("the demo (pid %d) is still running", pid)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	_, err = fmt.Fprintln(out, "the demo has ended")
	return err
}

// isDemo reports whether a process is a kept demo, and not another one that got its number.
func isDemo(pid int) bool {
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.HasSuffix(strings.TrimRight(string(cmdline), "\x00"), "\x00kept")
}

func demoDir() (string, error) {
	root, err := testenv.ModuleRoot()
	if err != nil {
		return "", err
	}
	return filepath.Join(root, ".demo"), nil
}
