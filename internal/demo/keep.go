package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ending is the last line of a kept demo's story: it went well. It is not printed.
const ending = "\x00ok"

// keep runs the demo in a process of its own, passes its story on, and returns when the story is told; the process stays.
func keep(ctx context.Context, out io.Writer) error {
	if err := stopKept(ctx, io.Discard); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("own program: %w", err)
	}
	story, write, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe: %w", err)
	}
	defer story.Close()
	log, err := os.CreateTemp("", "sds-demo-*.log")
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	defer os.Remove(log.Name()) // it is shown below where it is wanted
	defer log.Close()
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, "kept")
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the demo: %w", err)
	}
	write.Close()
	ended, err := pass(story, out)
	if err != nil || ended {
		return err
	}
	err = cmd.Wait()
	text, _ := os.ReadFile(log.Name()) // what is missing here is only detail
	return fmt.Errorf("the demo failed (%w): %s", err, strings.TrimSpace(string(text)))
}

// pass copies the story line by line, and reports whether it came to its end.
func pass(story io.Reader, out io.Writer) (ended bool, err error) {
	lines := bufio.NewScanner(story)
	for lines.Scan() {
		if lines.Text() == ending {
			return true, nil
		}
		if _, err := fmt.Fprintln(out, lines.Text()); err != nil {
			return false, err
		}
	}
	if err := lines.Err(); err != nil {
		return false, fmt.Errorf("read the story: %w", err)
	}
	return false, nil
}

// kept is the process that keep starts: the demo, and then nothing until it is told to end.
func kept(ctx context.Context) error {
	syscall.CloseOnExec(storyFD) // else the parts hold it open, and the story never ends
	story := os.NewFile(storyFD, "story")
	if story == nil {
		return errors.New("demo kept: it is started by KEEP=1 only")
	}
	d, err := newDemo(ctx, story)
	if err != nil {
		return err
	}
	defer d.stop() //nolint:errcheck // the process ends, and the kernel ends its children with it
	pid := filepath.Join(d.fleet.Dir, "pid")
	if err := os.WriteFile(pid, []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return fmt.Errorf("process id: %w", err)
	}
	bounded, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := d.tell(bounded); err != nil {
		d.logs()
		_ = os.Remove(pid) // it names a process that is about to end
		return err
	}
	d.next()
	if _, err := fmt.Fprintln(story, ending); err != nil {
		return fmt.Errorf("end of the story: %w", err)
	}
	story.Close()
	<-ctx.Done()
	time.AfterFunc(20*time.Second, func() { os.Exit(1) }) // the kernel ends the children then
	return nil
}
