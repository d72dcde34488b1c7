package config

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// recorder counts what a Watcher does.
type recorder struct {
	mu      sync.Mutex
	applied []*Config
	fail    error
	log     bytes.Buffer
}

func (r *recorder) apply(_ context.Context, cfg *Config) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.applied = append(r.applied, cfg)
	return nil
}

func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *recorder) count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if what == "applied" {
		return len(r.applied)
	}
	return strings.Count(r.log.String(), what)
}

func (r *recorder) options(path string, initial *Config, signals <-chan os.Signal) WatcherOptions {
	return WatcherOptions{
		Path: path, Initial: initial, Signals: signals, Apply: r.apply,
		Logger: slog.New(slog.NewTextHandler(r, nil)),
	}
}

const (
	logGood = "configuration reloaded"
	logBad  = "configuration not reloaded"
)

// changed returns a minimal configuration with another promotion.
func changed(t *testing.T) string {
	t.Helper()
	return readTestdata(t, "good/minimal.yaml")["minimal"] + "rollout: {promotion: manual}\n"
}

// loopTest runs the loop of a Watcher in a synctest bubble, without files being watched.
type loopTest struct {
	*recorder

	t       *testing.T
	dir     string
	watcher *Watcher
	changes chan struct{}
	signals chan os.Signal
}

func inLoop(t *testing.T, test func(l *loopTest)) {
	t.Helper()
	dir := newDir(t)
	initial, err := loadIn(t, dir, readTestdata(t, "good/minimal.yaml")["minimal"], false)
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		l := &loopTest{recorder: &recorder{}, t: t, dir: dir, changes: make(chan struct{}, 1), signals: make(chan os.Signal, 1)}
		l.watcher = NewWatcher(l.options(initial.file(), initial, l.signals))
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { l.watcher.loop(ctx, l.changes) })
		test(l)
		cancel()
		wg.Wait()
	})
}

// pass lets fake time go by.
func (l *loopTest) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func (l *loopTest) want(applied, good, bad int) {
	l.t.Helper()
	got := [3]int{l.count("applied"), l.count(logGood), l.count(logBad)}
	if want := [3]int{applied, good, bad}; got != want {
		l.t.Errorf("got %v applied, logged as good and logged as bad, want %v", got, want)
	}
}

func TestChangesAreGatheredForOneDebounce(t *testing.T) {
	inLoop(t, func(l *loopTest) {
		write(t, l.dir, "rollout: [half written")
		notify(l.changes)
		l.pass(150 * time.Millisecond)
		write(t, l.dir, changed(t))
		notify(l.changes)
		l.pass(40 * time.Millisecond)
		l.want(0, 0, 0)
		l.pass(20 * time.Millisecond)
		l.want(1, 1, 0)
		l.pass(time.Hour)
		l.want(1, 1, 0)
		if got := l.applied[0].Rollout.Promotion; got != "manual" {
			t.Errorf("got %v, want manual", got)
		}
	})
}

func TestChangesWithoutEndDoNotPutAReloadOff(t *testing.T) {
	inLoop(t, func(l *loopTest) {
		write(t, l.dir, changed(t))
		for range 10 {
			notify(l.changes)
			l.pass(50 * time.Millisecond)
		}
		l.want(1, 1, 0)
	})
}

func TestSameContentIsNotAppliedAgain(t *testing.T) {
	inLoop(t, func(l *loopTest) {
		write(t, l.dir, readTestdata(t, "good/minimal.yaml")["minimal"]+"# only a comment\n")
		notify(l.changes)
		l.pass(time.Second)
		l.signals <- syscall.SIGHUP
		l.pass(time.Second)
		l.want(0, 0, 0)
		if s := l.watcher.Status(); !s.OK || time.Since(s.LoadedAt) > time.Second {
			t.Errorf("got %+v, want a load that went well just now", s)
		}
	})
}

func TestBadReloadKeepsTheOldAndLogsOnce(t *testing.T) {
	inLoop(t, func(l *loopTest) {
		started := l.watcher.Status().LoadedAt
		l.pass(time.Minute)
		write(t, l.dir, changed(t)+"telemetry: {}\n")
		for range 3 { // more events, nothing new
			notify(l.changes)
			l.pass(time.Second)
		}
		l.want(0, 0, 1)
		s := l.watcher.Status()
		if s.OK || !s.LoadedAt.Equal(started) {
			t.Errorf("got %+v, want a failed load and LoadedAt %v", s, started)
		}
		if _, ok := errors.AsType[Problems](s.Err); !ok {
			t.Errorf("got the error %v, want Problems", s.Err)
		}

		write(t, l.dir, changed(t))
		notify(l.changes)
		l.pass(time.Second)
		l.want(1, 1, 1)
		if s := l.watcher.Status(); !s.OK || s.Err != nil || !s.LoadedAt.After(started) {
			t.Errorf("got %+v, want a good load", s)
		}
	})
}

func TestSignalLooksAtNamedFilesAgain(t *testing.T) {
	inLoop(t, func(l *loopTest) {
		write(t, l.dir, strings.Replace(changed(t), "seal.key", "new.key", 1))
		notify(l.changes)
		l.pass(time.Second)
		l.want(0, 0, 1)
		if err := os.WriteFile(filepath.Join(l.dir, "new.key"), []byte("AGE-SECRET-KEY-1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		l.signals <- syscall.SIGHUP
		l.pass(time.Second)
		l.want(1, 1, 1)
	})
}

func TestFailedApplyIsTriedAgain(t *testing.T) {
	inLoop(t, func(l *loopTest) {
		boom := errors.New("boom")
		l.fail = boom
		write(t, l.dir, changed(t))
		notify(l.changes)
		l.pass(time.Second)
		l.want(0, 0, 1)
		if s := l.watcher.Status(); s.OK || !errors.Is(s.Err, boom) {
			t.Errorf("got %+v, want the error of apply", s)
		}
		l.fail = nil
		l.signals <- syscall.SIGHUP
		l.pass(time.Second)
		l.want(1, 1, 1)
	})
}

// runWatcher starts a Watcher on real files and returns a function that waits for a condition.
func runWatcher(t *testing.T, path string) (*recorder, *Watcher, func(what string, done func() bool)) {
	t.Helper()
	initial, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{}
	options := r.options(path, initial, nil)
	options.Debounce = 10 * time.Millisecond
	w := NewWatcher(options)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	eventually := func(what string, done func() bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for !done() {
			select {
			case <-deadline:
				t.Fatalf("not within 10 s: %s", what)
			case <-time.After(5 * time.Millisecond):
			}
		}
	}
	start := w.Status().LoadedAt
	eventually("the first look at the file", func() bool { return w.Status().LoadedAt.After(start) })
	return r, w, eventually
}

func rename(t *testing.T, from, to string) {
	t.Helper()
	if err := os.Rename(from, to); err != nil {
		t.Fatal(err)
	}
}

func TestFileChangesAreSeen(t *testing.T) {
	for name, change := range map[string]func(t *testing.T, file, content string){
		"written in place": func(t *testing.T, file, content string) {
			write(t, filepath.Dir(file), content)
		},
		"renamed over": func(t *testing.T, file, content string) {
			temporary := file + ".tmp"
			if err := os.WriteFile(temporary, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
			rename(t, temporary, file)
		},
		"removed and made again": func(t *testing.T, file, content string) {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
			write(t, filepath.Dir(file), content)
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			file := write(t, dir, readTestdata(t, "good/minimal.yaml")["minimal"])
			r, _, eventually := runWatcher(t, file)
			change(t, file, changed(t))
			eventually("applied", func() bool { return r.count("applied") == 1 })
			change(t, file, readTestdata(t, "good/minimal.yaml")["minimal"])
			eventually("applied back", func() bool { return r.count("applied") == 2 })
		})
	}
}

// TestSymlinkSwapIsSeen does what Kubernetes does with a mounted ConfigMap: the file is a link through ..data, which is
// replaced by a link to a new directory. Then the new target itself is changed.
func TestSymlinkSwapIsSeen(t *testing.T) {
	dir := newDir(t)
	seal := "{key_file: " + dir + "/seal.key}"
	content := func(s string) string { return strings.Replace(s, "{key_file: seal.key}", seal, 1) }
	first := content(readTestdata(t, "good/minimal.yaml")["minimal"])
	second := content(changed(t))
	for name, text := range map[string]string{"..one": first, "..two": second} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(dir, name), text)
	}
	link := func(to, name string) {
		t.Helper()
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	link("..one", "..data")
	link("..data/sds-server.yaml", "sds-server.yaml")
	r, w, eventually := runWatcher(t, filepath.Join(dir, "sds-server.yaml"))

	link("..two", "..data_tmp")
	rename(t, filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data"))
	eventually("applied", func() bool { return r.count("applied") == 1 })

	write(t, filepath.Join(dir, "..two"), second+"telemetry: {}\n")
	eventually("refused", func() bool { return !w.Status().OK })
	write(t, filepath.Join(dir, "..two"), first)
	eventually("applied back", func() bool { return r.count("applied") == 2 })
}

func TestRunEndsWithoutAWatchedDirectory(t *testing.T) {
	r := &recorder{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w := NewWatcher(r.options(filepath.Join(t.TempDir(), "nowhere", "sds-server.yaml"), &Config{}, nil))
	if err := w.Run(ctx); err != nil {
		t.Errorf("got %v, want nil", err)
	}
	if r.count("configuration file is not watched") != 1 {
		t.Errorf("got the log %q, want a warning", r.log.String())
	}
}

func TestRestartKeys(t *testing.T) {
	running, _ := loadGood(t, "minimal")
	loaded, _ := loadGood(t, "all-keys")
	want := []string{"data_dir", "seal", "store", "replica", "xds.listeners", "http", "challenges.tls-alpn-01", "audit"}
	loaded.Admin = running.Admin
	if diff := cmp.Diff(want, RestartKeys(running, loaded)); diff != "" {
		t.Errorf("keys (-want +got):\n%s", diff)
	}
	kept := KeepRestartKeys(running, loaded)
	if got := RestartKeys(running, kept); len(got) > 0 {
		t.Errorf("got %v, want none after the old ones were kept", got)
	}
	if got := RestartKeys(running, loaded); len(got) != len(want) {
		t.Errorf("got %v, want loaded unchanged", got)
	}
	if kept.Rollout.Watch != loaded.Rollout.Watch || len(kept.Certificates) != len(loaded.Certificates) {
		t.Error("live keys were not taken over")
	}
}

func TestLiveKeysNeedNoRestart(t *testing.T) {
	running, _ := loadGood(t, "minimal")
	loaded := *running
	loaded.Rollout.Promotion = "manual"
	loaded.XDS.Limits.StreamsPerPeer = 1
	loaded.Issuers, loaded.Certificates, loaded.Groups = nil, nil, nil
	if got := RestartKeys(running, &loaded); len(got) > 0 {
		t.Errorf("got %v, want none", got)
	}
	if running.Equal(&loaded) || !running.Equal(running) {
		t.Error("Equal is wrong")
	}
}
