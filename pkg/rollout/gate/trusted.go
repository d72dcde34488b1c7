package gate

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// maxLinks bounds how many symbolic links are followed, as the kernel does.
const maxLinks = 40

// UntrustedError says what others than root and us can change.
type UntrustedError struct {
	// Path is the file, directory or link.
	Path string
	// Problem is what it has or is.
	Problem string
	// Hint is a command that helps.
	Hint string
}

// Error is one line that follows what cannot be trusted, and "that".
func (e *UntrustedError) Error() string {
	return fmt.Sprintf("others can change (%s %s)", e.Path, e.Problem)
}

// CheckCommand returns why a command may not be run: it is not an absolute path of a program, or the program, a directory above it, or the
// configuration that names it can be changed by others than root and us. configFile may be empty. The error is one line without the path of the
// setting.
func CheckCommand(command []string, configFile string) error {
	if len(command) == 0 {
		return errors.New("empty")
	}
	program := command[0]
	if !filepath.IsAbs(program) {
		return fmt.Errorf("want the absolute path of a program, got %q", program)
	}
	info, err := os.Stat(program)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s does not exist", program)
	case err != nil:
		return fmt.Errorf("%s cannot be read: %w", program, systemError(err))
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%s is not a program", program)
	}
	if err := Trusted(program); err != nil {
		return fmt.Errorf("%s is a program that %w", program, err)
	}
	if configFile == "" {
		return nil
	}
	if err := Trusted(configFile); err != nil {
		return fmt.Errorf("no program is run for a configuration that %w", err)
	}
	return nil
}

// Trusted returns why a file could have been changed by others than root and us: the file, a directory on the way to it, or a symbolic link
// there belongs to somebody else or can be written by others. Files in a directory with the sticky bit cannot be replaced by others. The error is
// an UntrustedError, or why something cannot be read.
func Trusted(path string) error {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return fmt.Errorf("cannot be read: %w", err)
	}
	at, rest := "/", strings.Split(absolute, "/")
	if err := trustedAt(at); err != nil {
		return err
	}
	for links := 0; len(rest) > 0; {
		var name string
		name, rest = rest[0], rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			at = filepath.Dir(at)
			continue
		}
		next := filepath.Join(at, name)
		if err := trustedAt(next); err != nil {
			return err
		}
		target, err := os.Readlink(next)
		if err != nil { // no link
			at = next
			continue
		}
		if links++; links > maxLinks {
			return errors.New("cannot be read: too many symbolic links")
		}
		rest = append(strings.Split(target, "/"), rest...)
		if filepath.IsAbs(target) {
			at = "/"
		}
	}
	return nil
}

// trustedAt looks at one file, directory or link, without following it.
func trustedAt(path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("cannot be read: %w", systemError(err))
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok || stat.Uid != 0 && int(stat.Uid) != os.Geteuid() {
		return &UntrustedError{path, "belongs to another user", "chown root " + path}
	}
	sticky := info.IsDir() && info.Mode()&fs.ModeSticky != 0
	if link := info.Mode()&fs.ModeSymlink != 0; !link && !sticky && info.Mode().Perm()&0o022 != 0 {
		return &UntrustedError{path, fmt.Sprintf("has mode %04o", info.Mode().Perm()), "chmod go-w " + path}
	}
	return nil
}

// systemError is the system's word for an error, without the path.
func systemError(err error) error {
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		return pathErr.Err
	}
	return err
}
