package audit

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/pkg/store"
)

func TestWhatWaitsIsOneCommit(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	const n = 200
	l.commit.Lock() // the disk is busy
	done := make(chan error, n)
	for i := range n {
		l.Queue(Item{Entries: func() []Entry { return []Entry{{Event: "test", Secret: fmt.Sprint(i)}} }, Done: func(err error) { done <- err }})
	}
	l.commit.Unlock()
	for range n {
		must(t, <-done)
	}
	if got := l.count(); got > 2 { // the writer may have taken the first ones before it found the disk busy
		t.Errorf("%d entries took %d commits, want 2 at most", n, got)
	}
	for i, e := range whole(t, path) {
		if e.Secret != fmt.Sprint(i) {
			t.Fatalf("got %s at %d, want the order of the calls", e.Secret, i)
		}
	}
}

func TestManyWritersShareCommits(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	const writers, each = 100, 20
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for i := range each {
				if err := l.Append(t.Context(), Entry{Event: "test", Secret: fmt.Sprint(w, "-", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if got := len(whole(t, path)); got != writers*each {
		t.Errorf("got %d entries, want %d", got, writers*each)
	}
	if got := l.count(); got > writers*each/4 {
		t.Errorf("%d entries took %d commits", writers*each, got)
	}
}

func TestItemsOfOneQueueAreOneCommitInTheirOrder(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	done := make(chan error, 1)
	item := func(name string, done func(error)) Item {
		return Item{Entries: func() []Entry { return []Entry{{Event: name}} }, Done: done}
	}
	l.Queue(item("a", nil), item("b", nil), Item{Entries: func() []Entry { return nil }}, item("c", func(err error) { done <- err }))
	must(t, <-done)
	if got := l.count(); got != 1 {
		t.Errorf("got %d commits, want 1", got)
	}
	if got := events(whole(t, path)); got != "a, b, c" {
		t.Errorf("got %s", got)
	}
}

func TestItemWithoutEntriesIsDone(t *testing.T) {
	l, _ := open(t, newPath(t))
	done := make(chan error, 1)
	l.Queue(Item{Entries: func() []Entry { return nil }, Done: func(err error) { done <- err }})
	must(t, <-done)
}

func TestCloseWritesWhatWaits(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	for i := range 50 {
		l.Add(Entry{Event: "test", Secret: fmt.Sprint(i)})
	}
	closeLog(t, l)
	if got := len(whole(t, path)); got != 50 {
		t.Errorf("got %d entries, want 50", got)
	}
	must(t, l.Close(t.Context())) // again
}

// smallDisk mounts a file system of 1 MiB.
func smallDisk(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("no file system can be mounted: %v", err)
	}
	t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
	return dir
}

// occupy fills the disk, but for room bytes, and returns what frees it.
func occupy(t *testing.T, dir string, room int) func() {
	t.Helper()
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	must(t, err)
	block := make([]byte, 4096)
	for {
		if _, err := f.Write(block); err != nil {
			break
		}
	}
	info, err := f.Stat()
	must(t, err)
	must(t, f.Truncate(info.Size()-int64(room)))
	must(t, f.Close())
	return func() { must(t, os.Remove(ballast)) }
}

func TestFullDiskHoldsNobodyAndLosesNothing(t *testing.T) {
	dir := smallDisk(t)
	path := filepath.Join(dir, "audit.jsonl")
	l, log := open(t, path)
	fill(t, l, 0, 2)
	free := occupy(t, dir, 4096) // so that a write succeeds in part
	wantErr(t, l.Append(t.Context(), Entry{Event: "big", Nodes: slices.Repeat([]string{strings.Repeat("n", 100)}, 100)}), ErrFailing)
	gauge(t, l.metrics.failing, 1)
	for i := range 20 {
		wantErr(t, l.Append(t.Context(), Entry{Event: "while", Secret: fmt.Sprint(i)}), ErrFailing)
	}
	if n := strings.Count(log.String(), "audit file cannot be written"); n != 1 {
		t.Errorf("it was logged %d times, want once: %s", n, log)
	}
	if got := events(whole(t, path)); got != "test s0, test s1" {
		t.Errorf("a part of an entry was left: %s", got)
	}
	free()
	eventually(t, "written again", func() bool { return bytes.Contains(readFile(t, path), []byte(EventResumed)) })
	must(t, l.Append(t.Context(), Entry{Event: "after"}))
	gauge(t, l.metrics.failing, 0)
	gauge(t, l.metrics.lost, 0)
	entries := whole(t, path)
	if len(entries) != 2+21+2 || entries[2].Event != "big" || entries[22].Secret != "19" || entries[23].Event != EventResumed || entries[24].Event != "after" {
		t.Errorf("got %s", events(entries))
	}
	if !strings.Contains(entries[23].Detail, "lost: 0") || !strings.Contains(entries[23].Detail, "no space left on device") {
		t.Errorf("got %q", entries[23].Detail)
	}
	if !verified(t, l).OK() {
		t.Error("the chain is broken")
	}
}

func TestLossIsCountedAndSaid(t *testing.T) {
	dir := smallDisk(t)
	path := filepath.Join(dir, "audit.jsonl")
	l, _ := open(t, path)
	free := occupy(t, dir, 0)
	wantErr(t, l.Append(t.Context(), Entry{Event: "first", Nodes: slices.Repeat([]string{strings.Repeat("n", 100)}, 100)}), ErrFailing)
	const over = 250
	for range maxKept + over {
		l.Add(Entry{Event: "while"})
	}
	l.mu.Lock()
	waiting := len(l.queue)
	l.mu.Unlock()
	if waiting > maxKept {
		t.Errorf("%d wait in memory, want %d at most", waiting, maxKept)
	}
	free()
	must(t, syscall.Mount("", dir, "tmpfs", syscall.MS_REMOUNT, "size=64m"))
	eventually(t, "written again", func() bool { return bytes.Contains(readFile(t, path), []byte(EventResumed)) })
	must(t, l.Append(t.Context(), Entry{Event: "between"}))
	free = occupy(t, dir, 0) // once more, and nothing is lost
	wantErr(t, l.Append(t.Context(), Entry{Event: "big", Nodes: slices.Repeat([]string{strings.Repeat("n", 100)}, 100)}), ErrFailing)
	free()
	eventually(t, "written again", func() bool { return bytes.Count(readFile(t, path), []byte(EventResumed)) == 2 })
	closeLog(t, l)
	lost, kept := uint64(0), 0
	for _, e := range whole(t, path) {
		switch e.Event {
		case "while":
			kept++
		case EventResumed:
			var n uint64
			_, err := fmt.Sscanf(e.Detail[strings.Index(e.Detail, "lost: "):], "lost: %d", &n)
			must(t, err)
			lost += n
		}
	}
	if lost == 0 || kept+int(lost) != maxKept+over {
		t.Errorf("%d were kept and %d lost, want %d together", kept, lost, maxKept+over)
	}
	gauge(t, l.metrics.lost, float64(lost))
}

func TestFullDiskKeepsNoServerFromStarting(t *testing.T) {
	dir := smallDisk(t)
	sub := filepath.Join(dir, "sub")
	must(t, os.Mkdir(sub, 0o700))
	must(t, syscall.Mount("", dir, "tmpfs", syscall.MS_REMOUNT, "nr_inodes=3"))
	path := filepath.Join(sub, "audit.jsonl")
	if err := os.WriteFile(filepath.Join(dir, "last"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, log := open(t, path)
	wantErr(t, l.Append(t.Context(), Entry{Event: "early"}), ErrFailing)
	gauge(t, l.metrics.failing, 1)
	if !strings.Contains(log.String(), "no space left on device") {
		t.Errorf("got %s", log)
	}
	must(t, os.Remove(filepath.Join(dir, "last")))
	eventually(t, "written", func() bool { return len(l.shownEvents(t)) == 2 })
	if got := events(whole(t, path)); got != "early, "+EventResumed {
		t.Errorf("got %s", got)
	}
}

// shownEvents are the durable entries.
func (l *Log) shownEvents(t *testing.T) []Entry {
	entries, err := l.List(t.Context(), Filter{})
	if err != nil {
		return nil // it is not there yet
	}
	return entries
}

func TestDiskThatDoesNotAnswerHoldsNobody(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path, func(o *Options) { o.stall = 50 * time.Millisecond })
	l.commit.Lock()
	wantErr(t, l.Append(t.Context(), Entry{Event: "stalled"}), ErrFailing)
	wantErr(t, l.Append(t.Context(), Entry{Event: "behind"}), ErrFailing)
	gauge(t, l.metrics.failing, 1)
	l.commit.Unlock()
	eventually(t, "written", func() bool {
		text := string(readFile(t, path))
		return strings.Contains(text, `"stalled"`) && strings.Contains(text, `"behind"`) && strings.Contains(text, EventResumed) && !l.isFailing()
	})
	counts := map[string]int{}
	for _, e := range whole(t, path) {
		counts[e.Event]++
	}
	if counts["stalled"] != 1 || counts["behind"] != 1 {
		t.Errorf("got %v, want each once", counts)
	}
	eventually(t, "the gauge", func() bool { return testutil.ToFloat64(l.metrics.failing) == 0 })
}

func TestCloseDoesNotWaitForADiskThatDoesNotAnswer(t *testing.T) {
	l, _ := open(t, newPath(t))
	l.commit.Lock()
	l.Add(Entry{Event: "stuck"})
	bounded, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, l.Close(bounded), context.Canceled)
	l.commit.Unlock()
	closeLog(t, l)
}

func TestMovedFileIsNoticed(t *testing.T) {
	for _, how := range []string{"moved", "removed", "replaced"} {
		path := newPath(t)
		l, log := open(t, path)
		fill(t, l, 0, 2)
		switch how {
		case "moved":
			must(t, os.Rename(path, path+".1"))
		case "removed":
			must(t, os.Remove(path))
		case "replaced":
			writeFile(t, path+".other", nil)
			must(t, os.Rename(path+".other", path))
		}
		fill(t, l, 2, 1)
		gauge(t, l.metrics.broken, 1)
		if !strings.Contains(log.String(), "moved, removed or replaced") {
			t.Errorf("%s: got %s", how, log)
		}
		if r := verified(t, l); r.Line != 1 || !strings.Contains(r.Problem, "entry 3 is not the first one") {
			t.Errorf("%s: got %+v, want line 1", how, r)
		}
	}
}

func TestForeignWriteIsNoticed(t *testing.T) {
	path := newPath(t)
	l, log := open(t, path)
	fill(t, l, 0, 1)
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("hello\n")
	must(t, err)
	must(t, f.Close())
	fill(t, l, 1, 1)
	gauge(t, l.metrics.broken, 1)
	if !strings.Contains(log.String(), "damaged") {
		t.Errorf("got %s", log)
	}
	if r := verified(t, l); r.Line != 2 || r.Bad != 1 {
		t.Errorf("got %+v, want line 2 alone", r)
	}
}

func TestFaultsAtTheStartSayWhatToDo(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 1)
	for where, want := range map[string]string{
		path:                           "another process writes it",
		filepath.Join(path, "x"):       "not a directory",
		filepath.Join(path+".d", "x"):  "no such file",
		filepath.Dir(path):             "is a directory",
		"/dev/null":                    "no ordinary file",
		"/proc/self/cannot/audit.json": "no such file",
	} {
		_, err := Open(Options{Path: where, Retention: time.Hour, Log: l.log, Registerer: newRegistry()})
		fault, ok := err.(*store.Fault) //nolint:errorlint // it is to be that itself
		if !ok || fault.Hint == "" || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q and a hint", where, err, want)
		}
	}
	fill(t, l, 1, 1)
	if !verified(t, l).OK() {
		t.Error("the file in use was touched")
	}
}
