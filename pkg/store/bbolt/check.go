package bbolt

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// checkTimeout ends a check that damage has sent in circles; 1 GB takes a few seconds.
	checkTimeout = 2 * time.Minute
	// checkStack ends a walk over pages that refer to each other in a circle; sound trees are a few pages deep.
	checkStack = 64 << 20
	// maxComplaints is how many problems of its pages make further reading pointless.
	maxComplaints = 100
	// outputBytes is how much of a child's output is kept.
	outputBytes = 64 << 10
)

// Check reads the whole store at path, read-only: the pages and their order, the free list, every value with its checksum,
// and that no revision is greater than the store's. It returns nil or a *store.Fault. Damage can end the process by a signal
// that Go cannot catch, so only a process that does nothing else may call it: see CheckInChild.
func Check(ctx context.Context, path string) error {
	defer debug.SetMaxStack(debug.SetMaxStack(checkStack))
	if err := ctx.Err(); err != nil {
		return err
	}
	file, err := openFile(Options{Path: path, ReadOnly: true})
	if err != nil {
		return err
	}
	tx, err := file.Begin(false)
	if err != nil {
		return store.MediumFault(path, "store cannot be read", err)
	}
	if err := checkSize(path, tx); err != nil {
		return errors.Join(err, tx.Rollback(), file.Close())
	}
	if err := checkPages(path, tx); err != nil {
		// Neither the transaction nor the file is closed: bbolt's walk may still be on its way, and would run into unmapped
		// memory. The process is about to end.
		return err
	}
	err = checkLayout(path, tx)
	if err == nil {
		err = checkEntries(ctx, path, tx)
	}
	return errors.Join(err, tx.Rollback(), file.Close())
}

// checkPages walks over the pages, then runs bbolt's own check and reports its first complaint and how many there are. It gives up at maxComplaints:
// where pages refer to each other in a circle the walk would never end.
func checkPages(path string, tx *bolt.Tx) error {
	file, err := os.Open(path)
	if err != nil {
		return store.MediumFault(path, "store cannot be read", err)
	}
	size := tx.DB().Info().PageSize
	walk := &pages{file: file, pageSize: size, count: uint64(tx.Size()) / uint64(size)}
	err = walk.check(uint64(tx.ID()))
	// Only read from: closing can lose nothing.
	_ = file.Close()
	if err != nil {
		return damaged(path, "its pages do not fit together", err)
	}
	var first error
	count := 0
	for err := range tx.Check() {
		if first == nil {
			first = err
		}
		if count++; count == maxComplaints {
			return damaged(path, fmt.Sprintf("its pages do not fit together (%d complaints or more)", count), first)
		}
	}
	switch count {
	case 0:
		return nil
	case 1:
		return damaged(path, "its pages do not fit together", first)
	}
	return damaged(path, fmt.Sprintf("its pages do not fit together (%d complaints)", count), first)
}

// checkEntries reads every value and counts.
func checkEntries(ctx context.Context, path string, tx *bolt.Tx) error {
	want, err := readState(tx)
	if err != nil {
		return err
	}
	got := state{revision: want.revision}
	err = tx.Bucket(entriesBucket).ForEach(func(key, raw []byte) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		_, revision, err := split(key, raw)
		switch {
		case err != nil:
			return damaged(path, fmt.Sprintf("the checksum of entry %.100q does not match", key), nil)
		case revision < 1 || revision > want.revision:
			return damaged(path, fmt.Sprintf("entry %.100q has revision %d, the store is at %d", key, revision, want.revision), nil)
		}
		got.add(raw)
		return nil
	})
	switch {
	case err != nil:
		return err
	case got.count != want.count:
		return damaged(path, fmt.Sprintf("it has %d entries, there were %d", got.count, want.count), nil)
	case got != want:
		return damaged(path, "it holds entries that are older than the store", nil)
	}
	return nil
}

// report is what the child of CheckInChild writes to its standard output, as one line of JSON.
type report struct {
	OK      bool   `json:"ok"`
	Path    string `json:"path,omitempty"`
	Message string `json:"message,omitempty"`
	Hint    string `json:"hint,omitempty"`
}

// ReportCheck is the body of the child that CheckInChild starts: it runs Check, writes the result to out in the form that
// CheckInChild reads, and returns the exit code, 0 for a sound store and 1 otherwise.
func ReportCheck(ctx context.Context, path string, out io.Writer) int {
	result, code := report{OK: true}, 0
	if err := Check(ctx, path); err != nil {
		result, code = report{Path: path, Message: err.Error()}, 1
		if fault, ok := errors.AsType[*store.Fault](err); ok {
			result = report{Path: fault.Path, Message: fault.Message, Hint: fault.Hint}
			if fault.Err != nil {
				result.Message += ": " + fault.Err.Error()
			}
		}
	}
	if err := json.NewEncoder(out).Encode(result); err != nil {
		return 1
	}
	return code
}

// CheckInChild runs command, with path as its last argument, which must call ReportCheck with its standard output, and
// returns nil if the store is sound. Whatever happens to the child (a signal, a panic, silence for two minutes) becomes one
// *store.Fault. A path where there is nothing is sound: Open will make it.
func CheckInChild(ctx context.Context, command []string, path string) error {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if len(command) == 0 {
		return errors.New("store check: no command")
	}
	limited, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	arguments := append(append([]string(nil), command[1:]...), path)
	child := exec.CommandContext(limited, command[0], arguments...)
	child.Env = append(os.Environ(), "GOTRACEBACK=none")
	child.WaitDelay = time.Second
	var out, complaint head
	child.Stdout, child.Stderr = &out, &complaint
	err := child.Run()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if limited.Err() != nil {
		return damaged(path, fmt.Sprintf("its check did not end within %v", checkTimeout), nil)
	}
	exit, exited := errors.AsType[*exec.ExitError](err)
	if err != nil && !exited {
		return fmt.Errorf("store check: %w", err)
	}
	var result report
	if json.Unmarshal(out.kept, &result) == nil && result.OK == (err == nil) {
		if result.OK {
			return nil
		}
		return &store.Fault{Path: result.Path, Message: result.Message, Hint: result.Hint}
	}
	return explainCrash(path, exit, complaint.kept)
}

// explainCrash says what ended a child that gave no report. Only SIGKILL, by which the kernel ends what takes too much
// memory, may come from outside: then nothing is known about the store.
func explainCrash(path string, exit *exec.ExitError, complaint []byte) error {
	if exit == nil {
		return &store.Fault{Path: path, Message: "store could not be checked: the check ended without a result"}
	}
	state := exit.String()
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() && status.Signal() == syscall.SIGKILL {
		return &store.Fault{
			Path: path, Message: "store could not be checked: the check was killed", Err: errors.New(state),
			Hint: "is there enough memory? try `sds-server store check`",
		}
	}
	for line := range strings.Lines(string(complaint)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "fatal error: ") || strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "[signal ") ||
			strings.HasPrefix(line, "unexpected fault address") || strings.HasPrefix(line, "runtime: goroutine stack exceeds") {
			state = line
			break
		}
	}
	return damaged(path, "reading it ends the process", errors.New(state))
}

// head is a writer that keeps the first outputBytes and takes the rest without a word.
type head struct{ kept []byte }

// Write keeps what there is room for.
func (h *head) Write(p []byte) (int, error) {
	h.kept = append(h.kept, p[:min(outputBytes-len(h.kept), len(p))]...)
	return len(p), nil
}
