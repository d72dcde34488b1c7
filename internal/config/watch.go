package config

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

// defaultDebounce is how long changes are gathered: editors and package managers write a file in several steps.
const defaultDebounce = 200 * time.Millisecond

// WatcherOptions are the parts of a Watcher.
type WatcherOptions struct {
	// Path of the configuration file.
	Path string
	// Initial is the configuration that runs now.
	Initial *Config
	// Signals ask for a reload, usually SIGHUP. nil means none.
	Signals <-chan os.Signal
	// Apply takes over a new valid configuration that differs from the last applied one. It is called from Run, one call at
	// a time. If it fails, the reload has failed, and the next one calls it again.
	Apply func(ctx context.Context, cfg *Config) error
	// Observe is told of each new configuration that was taken over (nil), and of each that was not. Default: nobody.
	Observe func(ctx context.Context, err error)
	Logger  *slog.Logger
	// Debounce is the time from the first change to the reload; default 200 ms.
	Debounce time.Duration
}

// ReloadStatus is how the last load went.
type ReloadStatus struct {
	OK bool
	// LoadedAt is when a file was last found valid and was taken over; it stays when a later load fails.
	LoadedAt time.Time
	// Err is nil if OK.
	Err error
}

// Watcher reloads the configuration when the file changes or a signal asks for it. A file with problems changes nothing:
// it is logged once, and the old configuration stays.
type Watcher struct {
	options WatcherOptions
	load    func(path string) (*Config, error)
	// applied and lastContent belong to Run.
	applied     *Config
	lastContent [sha256.Size]byte

	mu     sync.Mutex
	status ReloadStatus // guarded by mu
}

// NewWatcher returns a Watcher for the file that options.Initial was loaded from. Its status is OK from now.
func NewWatcher(options WatcherOptions) *Watcher {
	if options.Debounce == 0 {
		options.Debounce = defaultDebounce
	}
	return &Watcher{
		options: options,
		load:    Load,
		applied: options.Initial,
		status:  ReloadStatus{OK: true, LoadedAt: time.Now()},
	}
}

// Status returns how the last load went. It can be called from everywhere.
func (w *Watcher) Status() ReloadStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// Run reloads until ctx ends; it returns nil then. Where the file cannot be watched, signals still work.
func (w *Watcher) Run(ctx context.Context) error {
	changes := make(chan struct{}, 1)
	files, err := newFileWatch(w.options.Path)
	if err != nil {
		w.options.Logger.WarnContext(ctx, "configuration file is not watched, only SIGHUP reloads it", "err", err)
		w.loop(ctx, changes)
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { files.run(ctx, changes, w.options.Logger) })
	notify(changes) // what changed between the first load and now
	w.loop(ctx, changes)
	cancel()
	wg.Wait()
	return nil
}

// loop gathers changes and signals for one debounce from the first on, then reloads. The timer is not started anew by
// later changes: a directory that never rests (a log in it) could put a reload off for ever.
func (w *Watcher) loop(ctx context.Context, changes <-chan struct{}) {
	var (
		due   <-chan time.Time
		asked bool
	)
	for {
		select {
		case <-ctx.Done():
			return
		case <-changes:
		case _, ok := <-w.options.Signals:
			if !ok {
				w.options.Signals = nil // closed: nobody will ask any more
				continue
			}
			asked = true
		case <-due:
			w.reload(ctx, asked)
			due, asked = nil, false
			continue
		}
		if due == nil {
			due = time.After(w.options.Debounce)
		}
	}
}

// reload loads the file and applies it if it means something else than what runs. Content that was looked at before is
// looked at again only if asked: the files that it names may have changed.
func (w *Watcher) reload(ctx context.Context, asked bool) {
	content := fingerprint(w.options.Path)
	if content == w.lastContent && !asked {
		return
	}
	w.lastContent = content
	cfg, err := w.load(w.options.Path)
	if err == nil && !cfg.Equal(w.applied) {
		if err = w.options.Apply(ctx, cfg); err == nil {
			w.applied = cfg
			w.observe(ctx, nil)
			w.options.Logger.InfoContext(ctx, "configuration reloaded", "file", w.options.Path)
		} else {
			err = fmt.Errorf("apply: %w", err)
		}
	}
	if err != nil {
		w.options.Logger.ErrorContext(ctx, "configuration not reloaded, the old one stays", "file", w.options.Path, "err", err)
		w.observe(ctx, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.status.OK, w.status.Err = err == nil, err
	if err == nil {
		w.status.LoadedAt = time.Now()
	}
}

func (w *Watcher) observe(ctx context.Context, err error) {
	if w.options.Observe != nil {
		w.options.Observe(ctx, err)
	}
}

// fingerprint is a digest of the file's content; that of an unreadable file is zero with a mark.
func fingerprint(path string) [sha256.Size]byte {
	data, err := os.ReadFile(path)
	if err != nil {
		return sha256.Sum256([]byte("unreadable: " + err.Error()))
	}
	return sha256.Sum256(data)
}

// notify leaves a wake-up in a channel of capacity 1.
func notify(changes chan<- struct{}) {
	select {
	case changes <- struct{}{}:
	default:
	}
}

// fileWatch tells when a file may have changed. It watches directories, not the file: a watch on the file itself ends when
// an editor renames a new one over it, or when Kubernetes swaps the symbolic link of a mounted ConfigMap.
type fileWatch struct {
	path    string
	real    string // path with symbolic links followed, "" while it does not exist
	watcher *fsnotify.Watcher
}

func newFileWatch(path string) (*fileWatch, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch files: %w", err)
	}
	f := &fileWatch{path: path, watcher: watcher}
	if err := watcher.Add(filepath.Dir(path)); err != nil {
		_ = watcher.Close() // nothing was watched, so nothing is lost
		return nil, fmt.Errorf("watch directory: %w", err)
	}
	f.follow()
	return f, nil
}

// follow looks where the path leads now, watches the directory there, and reports whether that is another place.
func (f *fileWatch) follow() bool {
	target, err := filepath.EvalSymlinks(f.path)
	if err != nil {
		target = ""
	}
	if target == f.real {
		return false
	}
	old := f.real
	f.real = target
	if dir := filepath.Dir(target); target != "" && !slices.Contains(f.watcher.WatchList(), dir) {
		// Without this watch a change by way of the link is still seen, and so is SIGHUP.
		_ = f.watcher.Add(dir)
	}
	if old != "" && filepath.Dir(old) != filepath.Dir(f.path) && filepath.Dir(old) != filepath.Dir(target) {
		// The old place may be gone, and its watch with it.
		_ = f.watcher.Remove(filepath.Dir(old))
	}
	return true
}

// run sends to changes until ctx ends. Events of other files in the same directories are left out.
func (f *fileWatch) run(ctx context.Context, changes chan<- struct{}, logger *slog.Logger) {
	defer func() { _ = f.watcher.Close() }() // there is nothing left to lose
	for {
		select {
		case <-ctx.Done():
			return
		case event, ok := <-f.watcher.Events:
			if !ok {
				return
			}
			if moved := f.follow(); moved || event.Name == f.path || event.Name == f.real {
				notify(changes)
			}
		case err, ok := <-f.watcher.Errors:
			if !ok {
				return
			}
			// Events were lost, so the file may have changed.
			logger.WarnContext(ctx, "watching the configuration file", "err", err)
			notify(changes)
		}
	}
}
