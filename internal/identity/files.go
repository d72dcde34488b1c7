package identity

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// File is one file of an identity.
type File struct {
	Name string
	Data []byte
	Mode fs.FileMode
}

// WriteFiles writes the files into dir, which is made with mode 0700 if it is missing: each to a temporary file, synced, renamed, and
// the directory synced at the end. Files that exist are replaced.
func WriteFiles(dir string, files []File) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	for _, f := range files {
		if err := writeFile(dir, f); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}

func writeFile(dir string, f File) (err error) {
	tmp, err := os.CreateTemp(dir, "."+f.Name+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", f.Name, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp.Name()) // the first error is the one that counts
		}
	}()
	if err := fill(tmp, f); err != nil {
		return fmt.Errorf("write %s: %w", f.Name, err)
	}
	if err := os.Rename(tmp.Name(), filepath.Join(dir, f.Name)); err != nil {
		return fmt.Errorf("write %s: %w", f.Name, err)
	}
	return nil
}

func fill(tmp *os.File, f File) error {
	defer tmp.Close()
	if err := tmp.Chmod(f.Mode); err != nil {
		return err
	}
	if _, err := tmp.Write(f.Data); err != nil {
		return err
	}
	return tmp.Sync()
}
