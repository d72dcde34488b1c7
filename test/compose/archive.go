package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// archive is the content of an image: a tar stream, in which nothing comes twice.
type archive struct {
	tar  *tar.Writer
	seen map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{tar: tar.NewWriter(w), seen: map[string]bool{"/": true}}
}

// dir adds a directory, and those above it.
func (a *archive) dir(name string, mode int64) error {
	if a.seen[name] {
		return nil
	}
	if err := a.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	a.seen[name] = true
	return a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name[1:] + "/", Mode: mode})
}

// file adds a file with a content.
func (a *archive) file(name string, data []byte, mode int64) error {
	return a.stream(name, bytes.NewReader(data), int64(len(data)), mode)
}

func (a *archive) stream(name string, r io.Reader, size, mode int64) error {
	if a.seen[name] {
		return nil
	}
	if err := a.dir(path.Dir(name), 0o755); err != nil {
		return err
	}
	a.seen[name] = true
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name[1:], Mode: mode, Size: size}); err != nil {
		return err
	}
	_, err := io.CopyN(a.tar, r, size)
	return err
}

// copy adds a file of this machine, under the same name where name is "".
func (a *archive) copy(host, name string) error {
	if name == "" {
		name = host
	}
	f, err := os.Open(host)
	if err != nil {
		return err
	}
	defer f.Close() // only read
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return a.stream(name, f, info.Size(), int64(info.Mode().Perm()|0o444))
}

// tree adds everything below a directory of this machine; symbolic links are left out.
func (a *archive) tree(host, name string) error {
	return filepath.WalkDir(host, func(file string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(host, file)
		if err != nil {
			return err
		}
		return a.copy(file, path.Join(name, filepath.ToSlash(rel)))
	})
}

// library finds the paths in what ldd prints.
var library = regexp.MustCompile(`(?m)(?:=> |^\s*)(/\S+) \(`)

// program adds an executable of this machine, and the shared libraries that it needs; name is "" for the same name.
func (a *archive) program(host, name string) error {
	if err := a.copy(host, name); err != nil {
		return err
	}
	out, err := exec.Command("ldd", host).CombinedOutput() //nolint:noctx // it reads one file
	if err != nil && !strings.Contains(string(out), "not a dynamic executable") {
		return fmt.Errorf("ldd %s: %w\n%s", host, err, out)
	}
	for _, m := range library.FindAllStringSubmatch(string(out), -1) {
		if err := a.copy(m[1], ""); err != nil {
			return err
		}
	}
	return nil
}

// programs adds executables by their base names, as they are found here, below /usr/bin; what a shell script begins with is also there as
// /bin/NAME.
func (a *archive) programs(names ...string) error {
	for _, name := range names {
		host, err := exec.LookPath(name)
		if err != nil {
			return err
		}
		for _, dir := range []string{"/bin/", "/usr/bin/"} {
			if err := a.program(host, dir+name); err != nil {
				return err
			}
		}
	}
	return nil
}
