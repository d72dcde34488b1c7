package audit

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// write is the one goroutine that writes, until Close.
func (l *Log) write() {
	defer close(l.stopped)
	var kept []Entry // could not be written yet
	pause := time.Duration(0)
	for more := true; more; {
		if l.isFailing() {
			pause = min(max(2*pause, firstRetry), lastRetry)
			more = l.wait(pause, nil)
		} else {
			pause = 0
			more = l.wait(0, l.wake)
		}
		kept = l.turn(kept)
	}
	l.shut(len(kept))
}

// wait returns after a pause (0: none), or when wake receives; false when the log is closed.
func (l *Log) wait(pause time.Duration, wake <-chan struct{}) bool {
	var retry <-chan time.Time
	if pause > 0 {
		t := time.NewTimer(pause)
		defer t.Stop()
		retry = t.C
	}
	select {
	case <-wake:
	case <-retry:
	case <-l.stop:
		return false
	}
	return true
}

func (l *Log) isFailing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failing != nil
}

// turn writes what is kept and what waits, in one commit, and returns what could not be written.
func (l *Log) turn(kept []Entry) []Entry {
	items := l.take()
	for _, one := range items {
		for _, e := range one.Entries() {
			if e.At.IsZero() {
				e.At = time.Now()
			}
			kept = append(kept, e)
		}
	}
	kept = l.bound(kept)
	note, lost := l.resumption(len(kept))
	if len(kept)+len(note) == 0 {
		l.release(items, nil)
		return nil
	}
	stalled := time.AfterFunc(l.opts.stall, func() { l.fail(items, fmt.Errorf("the disk did not answer within %s", l.opts.stall)) })
	begin := time.Now()
	err := l.store(append(slices.Clip(kept), note...))
	stalled.Stop()
	if err != nil {
		l.fail(items, err)
		return kept
	}
	l.metrics.seconds.Observe(time.Since(begin).Seconds())
	l.metrics.entries.Add(float64(len(kept) + len(note)))
	l.recover(note, lost)
	l.release(items, nil)
	return nil
}

// take returns what waits.
func (l *Log) take() []*Item {
	l.mu.Lock()
	defer l.mu.Unlock()
	items := l.queue
	l.queue = nil
	return items
}

// bound drops the newest entries that are too many to keep.
func (l *Log) bound(kept []Entry) []Entry {
	size, n := 0, 0
	for ; n < len(kept) && size <= maxKeptBytes; n++ {
		size += 512 + len(kept[n].Detail)
		for _, node := range kept[n].Nodes {
			size += len(node) + 3
		}
	}
	if n = min(n, maxKept); n < len(kept) && l.isFailing() {
		l.lose(len(kept) - n)
		kept = kept[:n]
	}
	return kept
}

// resumption is the entry that goes behind those that were kept while the file could not be written, and how many lost ones it tells of; none where it
// can.
func (l *Log) resumption(kept int) ([]Entry, uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failing == nil {
		return nil, 0
	}
	detail := fmt.Sprintf("the file could not be written since %s (%v); entries that were kept in memory meanwhile: %d, lost: %d",
		l.since.UTC().Format(time.RFC3339), l.failing, kept, l.lost)
	return []Entry{{At: time.Now(), Event: EventResumed, Detail: detail}}, l.lost
}

// store chains entries and makes them durable.
func (l *Log) store(entries []Entry) error {
	l.commit.Lock()
	defer l.commit.Unlock()
	if err := l.ensure(); err != nil {
		return err
	}
	info, err := l.file.Stat()
	if err != nil {
		return err
	}
	before, end := info.Size(), l.end
	if shown := l.standing(); shown.size != before {
		l.damaged(fmt.Sprintf("it has %d bytes and not the %d that this server wrote", before, shown.size))
	}
	var text []byte
	for _, e := range entries {
		e.Seq, e.Prev = end.seq+1, end.hash
		line, err := e.seal()
		if err != nil {
			return err
		}
		text = append(text, line...)
		end = head{e.Seq, e.Hash}
	}
	_, err = l.file.Write(text)
	if err == nil {
		err = unix.Fdatasync(int(l.file.Fd()))
	}
	if err != nil {
		// What was written in part, or may not be on the disk, is written anew: after a failed sync nothing is known of the pages.
		return errors.Join(err, l.file.Truncate(before))
	}
	l.end = end
	l.show(before+int64(len(text)), info)
	return nil
}

func (l *Log) standing() standing {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shown
}

func (l *Log) show(size int64, info os.FileInfo) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.shown = standing{size, l.end, info}
	l.commits++
}

// ensure makes sure that what is written goes into the file of the path. The caller holds commit.
func (l *Log) ensure() error {
	if l.file == nil {
		return l.open()
	}
	mine, err := l.file.Stat()
	if err != nil {
		return err
	}
	there, err := os.Stat(l.opts.Path)
	if err == nil && os.SameFile(mine, there) {
		return nil
	}
	l.damaged("it was moved, removed or replaced while the server ran")
	end := l.end
	_ = l.file.Close() // what was written is synced
	l.file = nil
	err = l.open()
	l.end = end // the chain goes on, so that a check finds the gap
	return err
}

// fail notes that the file cannot be written, once, and lets nobody wait for items.
func (l *Log) fail(items []*Item, err error) {
	l.mu.Lock()
	first := l.failing == nil
	if l.failing = err; first {
		l.since = time.Now()
	}
	l.mu.Unlock()
	if first {
		l.metrics.failing.Set(1)
		l.log.Error("audit file cannot be written: keys are served all the same, entries are kept in memory", "file", l.opts.Path, "err", err)
	}
	l.release(items, errors.Join(ErrFailing, err))
}

// recover notes that the file can be written again. note is what was written of that: nothing where the disk was only slow, then it follows.
func (l *Log) recover(note []Entry, lost uint64) {
	var follows []Entry
	if len(note) == 0 {
		follows, lost = l.resumption(0)
	}
	l.mu.Lock()
	was := l.failing
	l.failing = nil
	l.lost -= lost
	l.mu.Unlock()
	if was == nil {
		return
	}
	l.metrics.failing.Set(0)
	l.log.Warn("audit file is written again", "file", l.opts.Path, "lost", lost)
	l.Add(follows...)
	l.poke() // what came meanwhile
}

// release tells those that wait for items, each once.
func (l *Log) release(items []*Item, err error) {
	for _, one := range items {
		l.mu.Lock()
		done := one.Done
		one.Done = nil
		l.mu.Unlock()
		if done != nil {
			done(err)
		}
	}
}

// shut ends the writer.
func (l *Log) shut(kept int) {
	l.commit.Lock()
	defer l.commit.Unlock()
	if l.file != nil {
		_ = l.file.Close() // everything is synced
		l.file = nil
	}
	if kept > 0 {
		l.log.Error("audit entries are lost", "entries", kept, "file", l.opts.Path)
	}
	l.log.Info("audit file closed", "file", l.opts.Path, "entry", l.end.seq, "hash", l.end.hash)
}
