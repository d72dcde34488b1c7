package app

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

// pathWatch tells when one of some files may have changed. It watches the directories on the way to them, not the files: a watch on a file
// ends when a new one is renamed over it, and a swapped symbolic link, wherever in the path, changes the file without an event of its own.
type pathWatch struct {
	paths   []string
	watcher *fsnotify.Watcher
}

func newPathWatch(paths []string) (*pathWatch, error) {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	w := &pathWatch{paths: paths, watcher: watcher}
	w.follow()
	return w, nil
}

// follow watches the directories that the paths lead through now. One that cannot be watched is left to the regular look at the files.
func (w *pathWatch) follow() {
	var want []string
	for _, path := range w.paths {
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

func (w *pathWatch) close() { _ = w.watcher.Close() } // there is nothing left to lose

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
