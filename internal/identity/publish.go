package identity

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// The layout of a directory that Publish writes is that of volumes in Kubernetes, which Envoy's watched_directory is made for:
//
//	tls.crt -> ..data/tls.crt
//	tls.key -> ..data/tls.key
//	..data -> ..version-123
//	..version-123/{tls.crt,tls.key}
const (
	dataLink      = "..data"
	versionPrefix = "..version-"
)

// Publish replaces files of dir all at once, by the rename of one symbolic link: a reader, or a machine that stops, has all of the old ones
// or all of the new ones. dir is made with mode 0700 if it is missing. A file keeps the owner and the mode that it has; what others see of
// dir they see of the files' own directory. Plain files from elsewhere are taken over into the layout first, with their content; a symbolic
// link that leads elsewhere is an error.
func Publish(dir string, files []File) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	p, err := newPublisher(dir)
	if err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	defer p.close()
	if err := p.publish(files); err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	return nil
}

// publisher is a directory that is locked.
type publisher struct {
	dir  string
	lock *os.File
	info fs.FileInfo
}

func newPublisher(dir string) (*publisher, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	info, err := lock.Stat()
	if err == nil {
		err = syscall.Flock(int(lock.Fd()), syscall.LOCK_EX)
	}
	if err != nil {
		_ = lock.Close() // nothing was written
		return nil, err
	}
	return &publisher{dir: dir, lock: lock, info: info}, nil
}

func (p *publisher) close() { _ = p.lock.Close() } // only read from; it ends the lock

func (p *publisher) path(name string) string { return filepath.Join(p.dir, name) }

func (p *publisher) publish(files []File) error {
	held := make([]os.FileInfo, len(files))
	foreign := false
	for i, f := range files {
		ours, err := p.linked(f.Name)
		if err != nil {
			return err
		}
		info, err := os.Stat(p.path(f.Name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return err
		default:
			held[i], foreign = info, foreign || !ours
		}
	}
	if foreign {
		if err := p.adopt(files, held); err != nil {
			return err
		}
	}
	if err := p.swap(files, held); err != nil {
		return err
	}
	for _, f := range files {
		if err := p.link(f.Name); err != nil {
			return err
		}
	}
	if err := p.lock.Sync(); err != nil {
		return err
	}
	return p.clean()
}

// linked reports whether a name is a link of the layout, or absent.
func (p *publisher) linked(name string) (bool, error) {
	info, err := os.Lstat(p.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil || info.Mode()&fs.ModeSymlink == 0 {
		return false, err
	}
	target, err := os.Readlink(p.path(name))
	if err != nil {
		return false, err
	}
	if target != filepath.Join(dataLink, name) {
		return false, fmt.Errorf("%s is a symbolic link to %s, which this program did not make", name, target)
	}
	return true, nil
}

// adopt brings files that are there into the layout, with the content that they have: at each step a reader finds the same.
func (p *publisher) adopt(files []File, held []os.FileInfo) error {
	var old []File
	var info []os.FileInfo
	for i, f := range files {
		if held[i] == nil {
			continue
		}
		data, err := os.ReadFile(p.path(f.Name))
		if err != nil {
			return err
		}
		old, info = append(old, File{Name: f.Name, Data: data, Mode: f.Mode}), append(info, held[i])
	}
	if err := p.swap(old, info); err != nil {
		return err
	}
	for _, f := range old {
		if err := p.link(f.Name); err != nil {
			return err
		}
	}
	return p.lock.Sync()
}

// swap writes files into a directory of their own, and makes that the one that the names lead to.
func (p *publisher) swap(files []File, held []os.FileInfo) error {
	version, err := os.MkdirTemp(p.dir, versionPrefix+"*")
	if err != nil {
		return err
	}
	if err := p.fill(version, files, held); err != nil {
		return errors.Join(err, os.RemoveAll(version))
	}
	if err := p.symlink(filepath.Base(version), dataLink); err != nil {
		return errors.Join(err, os.RemoveAll(version))
	}
	return nil
}

func (p *publisher) fill(version string, files []File, held []os.FileInfo) error {
	if err := WriteFiles(version, files); err != nil {
		return err
	}
	for i, f := range files {
		if held[i] == nil {
			continue
		}
		path := filepath.Join(version, f.Name)
		if err := sameOwner(path, held[i]); err != nil {
			return fmt.Errorf("keep the owner of %s: %w", f.Name, err)
		}
		if err := os.Chmod(path, held[i].Mode().Perm()); err != nil {
			return err
		}
	}
	_ = sameOwner(version, p.info) // of a directory only the rights count
	return os.Chmod(version, p.info.Mode().Perm())
}

// sameOwner gives a new file the owner and group of another.
func sameOwner(path string, like os.FileInfo) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	is, ok := info.Sys().(*syscall.Stat_t)
	want, known := like.Sys().(*syscall.Stat_t)
	if !ok || !known {
		return errors.New("this system does not tell owners")
	}
	if is.Gid != want.Gid {
		if err := os.Chown(path, -1, int(want.Gid)); err != nil {
			return err
		}
	}
	if is.Uid != want.Uid {
		return os.Chown(path, int(want.Uid), -1)
	}
	return nil
}

// link makes a name lead to the file in the current version.
func (p *publisher) link(name string) error {
	if info, err := os.Lstat(p.path(name)); err == nil && info.Mode()&fs.ModeSymlink != 0 {
		return nil // looked at by linked
	}
	return p.symlink(filepath.Join(dataLink, name), name)
}

// symlink makes or replaces a symbolic link in one step.
func (p *publisher) symlink(target, name string) error {
	tmp := p.path("." + strings.TrimLeft(name, ".") + ".new") // of a run that was cut off, it is in the way; the lock keeps others out
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return err
	}
	return os.Rename(tmp, p.path(name))
}

// clean removes every version but the current one: they hold private keys.
func (p *publisher) clean() error {
	current, err := os.Readlink(p.path(dataLink))
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(p.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), versionPrefix) && e.Name() != current {
			errs = append(errs, os.RemoveAll(p.path(e.Name())))
		}
	}
	return errors.Join(errs...)
}
