// Package watch tells when files may have changed: by a new content, a rename over them, or a symbolic link that was swapped, as Kubernetes
// does it, wherever in their paths.
//
// It only says that something may be new; what is there now the caller finds by reading. Some file systems tell of no changes, so a look
// at the files now and then has to stand beside it.
package watch

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// maxLinks is how many symbolic links a path may have; the kernel's own limit.
const maxLinks = 40

// Paths watches some files. It watches the directories on the way to them, not the files: a watch on a file ends when a new one is renamed
// over it, and a swapped symbolic link, wherever in the path, changes the file without an event of its own. So there are events of other
// files in the same directories, too.
//
// Its methods are for one goroutine.
type Paths struct {
	watcher *fsnotify.Watcher
}

// New watches the files at these absolute paths, whether they exist or not. Close it at the end.
func New(paths []string) (*Paths, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	w := &Paths{watcher: watcher}
	w.Follow(paths)
	return w, nil
}

// Events receives when something has changed. It is never closed before Close.
func (w *Paths) Events() <-chan fsnotify.Event { return w.watcher.Events }

// Errors receives when events were lost.
func (w *Paths) Errors() <-chan error { return w.watcher.Errors }

// Follow watches the directories that the paths lead through now, and no others. It has to be called after each change: what was a directory may be a
// link by now. One that cannot be watched is left to the caller's regular look at the files.
func (w *Paths) Follow(paths []string) {
	var want []string
	for _, path := range paths {
		want = append(want, directories(path)...)
	}
	watched := w.watcher.WatchList()
	for _, dir := range watched {
		if !slices.Contains(want, dir) {
			_ = w.watcher.Remove(dir) // it may be gone, and its watch with it
		}
	}
	for _, dir := range want {
		if !slices.Contains(watched, dir) {
			_ = w.watcher.Add(dir)
		}
	}
}

// Close ends the watch.
func (w *Paths) Close() { _ = w.watcher.Close() } // there is nothing left to lose

// directories are those in which a change can make an absolute path lead to another file: the one of the file, and that of each symbolic
// link on the way. They hold no symbolic links themselves.
func directories(path string) []string {
	var found []string
	links := 0
	dir, rest := "/", strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for len(rest) > 0 {
		next := filepath.Join(dir, rest[0])
		rest = rest[1:]
		target, err := os.Readlink(next)
		if err != nil { // no link, or not there
			if len(rest) == 0 {
				found = append(found, dir)
			}
			dir = next
			continue
		}
		found = append(found, dir)
		if links++; links > maxLinks {
			break
		}
		if filepath.IsAbs(target) {
			dir = "/"
		}
		rest = append(strings.Split(strings.Trim(target, "/"), "/"), rest...)
	}
	slices.Sort(found)
	return slices.Compact(found)
}
