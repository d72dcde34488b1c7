package audit

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sds-server/sds-server/pkg/store"
)

var errInUse = errors.New("another process writes it")

// open opens the file, cuts off what a crash left at its end, and finds the end of its chain. The caller holds commit, or is Open.
func (l *Log) open() error {
	file, err := openFile(l.opts.Path)
	if err != nil {
		return err
	}
	if err := l.adopt(file); err != nil {
		_ = file.Close() // the error that led here is the one to tell
		return err
	}
	return nil
}

// openFile opens the file for appending, locked against other processes, and makes its name durable.
func openFile(path string) (*os.File, error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = errors.New("it is no ordinary file")
	default:
		err = lock(file)
	}
	if err == nil {
		err = store.SyncDirectory(filepath.Dir(path))
	}
	if err != nil {
		_ = file.Close() // as above
		return nil, err
	}
	return file, nil
}

func lock(file *os.File) error {
	err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return errInUse
	}
	return err
}

// adopt takes over an opened file.
func (l *Log) adopt(file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return err
	}
	found, err := findEnd(file, info.Size())
	if err != nil {
		return err
	}
	if torn := info.Size() - found.size; torn > 0 {
		if err := file.Truncate(found.size); err != nil {
			return err
		}
		l.log.Warn("unfinished entry at the end of the audit file cut off", "file", l.opts.Path, "bytes", torn)
		l.Add(Entry{Event: EventRepaired, Detail: fmt.Sprintf("an unfinished entry at the end, of %d bytes, was cut off: the server, or the machine, had ended while it was written", torn)})
	}
	if found.bad > 0 {
		l.damaged(fmt.Sprintf("the last lines are no entries: %d", found.bad))
	}
	_ = os.Remove(temporary(l.opts.Path)) // of a retention that a crash has ended; there is none most of the time
	l.file, l.end = file, found.end
	l.mu.Lock()
	l.shown = standing{found.size, found.end, info}
	l.mu.Unlock()
	return nil
}

// damaged says loudly that somebody else has changed the file.
func (l *Log) damaged(problem string) {
	l.metrics.broken.Set(1)
	l.log.Error("audit file is damaged; `audit verify` names the line", "file", l.opts.Path, "problem", problem)
}

// ending is where a file ends.
type ending struct {
	size int64 // of what is whole
	end  head
	bad  int // lines behind the last intact entry
}

// findEnd looks for the last intact entry. Not whole is a last line without its end, or one with bytes that were never written (zeros, which a file system may
// show after a crash): an entry that nobody was told is durable.
func findEnd(file *os.File, size int64) (ending, error) {
	found := ending{end: head{hash: genesis}}
	whole, err := lastLineEnd(file, size)
	if err != nil {
		return found, err
	}
	found.size = whole
	for line, err := range backward(file, whole) {
		if err != nil {
			return found, err
		}
		e, parseErr := parse(line.text)
		if parseErr == nil {
			found.end = head{e.Seq, e.Hash}
			found.end.seq += uint64(found.bad)
			return found, nil
		}
		if found.bad == 0 && bytes.IndexByte(line.text, 0) >= 0 {
			found.size = line.begin
			continue
		}
		found.bad++
	}
	found.end.seq = uint64(found.bad)
	return found, nil
}

// lastLineEnd returns how many bytes there are up to the last line end.
func lastLineEnd(file *os.File, size int64) (int64, error) {
	const block = 64 << 10
	for size > 0 {
		part := make([]byte, min(size, block))
		if _, err := file.ReadAt(part, size-int64(len(part))); err != nil {
			return 0, fmt.Errorf("read the audit file: %w", err)
		}
		if i := bytes.LastIndexByte(part, '\n'); i >= 0 {
			return size - int64(len(part)) + int64(i) + 1, nil
		}
		size -= int64(len(part))
	}
	return 0, nil
}

// isFull reports whether a disk has no room, or is in trouble: that must not keep the server from serving.
func isFull(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EFBIG)
}

// openFault says what to do about a file that cannot be used.
func openFault(path string, err error) error {
	fault := store.MediumFault(path, "the audit file cannot be opened", err)
	switch {
	case fault.Hint != "":
	case errors.Is(err, errInUse):
		fault.Hint = "is another sds-server running? Each one needs its own audit.file"
	case errors.Is(err, fs.ErrNotExist):
		fault.Hint = "make the directory, or choose another audit.file"
	default:
		fault.Hint = "choose another audit.file"
	}
	return fault
}
