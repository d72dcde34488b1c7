package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Fault is a problem that a person has to solve: a store in use, damaged, full or read-only, a seal key that is missing or
// does not fit. The command line prints Error as `error:` and Hint as `hint:`. Its text names paths and keys, so it never
// goes to an Envoy.
type Fault struct {
	// Path is the file that is at fault, or the key of the entry.
	Path string
	// Message says what is wrong, without the path.
	Message string
	// Hint says what to do; empty where there is nothing to do.
	Hint string
	// Err is the cause; nil where Message says everything.
	Err error
}

// Error returns the path, the message and the cause in one line.
func (f *Fault) Error() string {
	if f.Err == nil {
		return fmt.Sprintf("%s: %s", f.Path, f.Message)
	}
	return fmt.Sprintf("%s: %s: %v", f.Path, f.Message, f.Err)
}

// Unwrap returns the cause.
func (f *Fault) Unwrap() error { return f.Err }

// MediumFault turns err, met while something was done to the file at path, into a Fault whose message and hint fit its cause:
// no space left, a read-only file system, no permission, nothing there. For every other cause the message is the given one.
func MediumFault(path, message string, err error) *Fault {
	fault := &Fault{Path: path, Message: message, Err: cause(err)}
	directory := filepath.Dir(path)
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		fault.Message = message + ", the disk is full"
		fault.Hint = fmt.Sprintf("free some space on the file system of %s; nothing was overwritten", directory)
	case errors.Is(err, syscall.EROFS):
		fault.Message = message + ", the file system is read-only"
		fault.Hint = fmt.Sprintf("mount the file system of %s writable, or choose another directory; nothing was overwritten", directory)
	case errors.Is(err, os.ErrPermission):
		fault.Hint = fmt.Sprintf("let the user of this process (uid %d) read and write %s", os.Geteuid(), path)
	case errors.Is(err, syscall.EIO):
		fault.Hint = fmt.Sprintf("the disk below %s reports errors: see the kernel's log, and keep a copy of the store", directory)
	}
	return fault
}

// cause strips the operation and path that the Fault names already.
func cause(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	if e, ok := errors.AsType[*os.LinkError](err); ok {
		return e.Err
	}
	return err
}

// Publish gives the finished file at temporary the name path, in the same directory, and makes the name durable. It never
// overwrites: if path exists the error is os.ErrExist and path is as it was. The temporary name is gone either way.
func Publish(temporary, path string) error {
	err := os.Link(temporary, path)
	if rmErr := os.Remove(temporary); err == nil {
		err = rmErr
	}
	if err != nil {
		return err
	}
	return SyncDirectory(filepath.Dir(path))
}

// SyncDirectory makes the names in a directory durable. A file system that cannot do that (EINVAL) is not an error: it
// offers nothing better.
func SyncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	err = d.Sync()
	if closeErr := d.Close(); err == nil {
		err = closeErr
	}
	if errors.Is(err, syscall.EINVAL) {
		return nil
	}
	return err
}
