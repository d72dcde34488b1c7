package audit

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sds-server/sds-server/pkg/store"
)

// Run checks the chain once, and drops what is older than the retention from time to time, until ctx ends. It always returns nil: what goes wrong is
// logged.
func (l *Log) Run(ctx context.Context) error {
	if err := l.check(ctx); err != nil && ctx.Err() == nil {
		l.log.ErrorContext(ctx, "audit file not checked", "err", err)
	}
	every := min(max(l.opts.Retention/10, time.Minute), 24*time.Hour)
	tick := time.NewTicker(every)
	defer tick.Stop()
	for ctx.Err() == nil {
		if err := l.prune(ctx, time.Now().Add(-l.opts.Retention)); err != nil && ctx.Err() == nil {
			l.log.ErrorContext(ctx, "old audit entries not dropped", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
	return nil
}

func (l *Log) check(ctx context.Context) error {
	_, err := l.Verify(ctx)
	return err
}

func temporary(path string) string { return path + ".new" }

// old is what stands at the front of a file and may go.
type old struct {
	entries uint64
	end     head
	offset  int64 // of the first line that stays
}

var errEnough = errors.New("enough")

// prune drops the entries at the front that happened before a time. The chain stays verifiable: an entry at its end says what was dropped, and the file begins
// with an EventBegins that says the same. Nothing is dropped from a chain that is broken there: it may be needed.
func (l *Log) prune(ctx context.Context, before time.Time) error {
	file, at, err := l.read()
	if err != nil {
		return err
	}
	defer file.Close() // it was only read
	var front old
	report, err := Read(ctx, io.LimitReader(file, at.size), func(e Entry, end int64) error {
		switch {
		case front.offset == 0 && e.Event == EventBegins:
		case !e.At.Before(before):
			return errEnough
		default:
			front.entries++
			front.end = head{e.Seq, e.Hash}
		}
		front.offset = end
		return nil
	})
	switch {
	case err != nil && !errors.Is(err, errEnough):
		return err
	case front.entries == 0:
		return nil
	case !report.OK():
		return fmt.Errorf("line %d: %s", report.Line, report.Problem)
	}
	text := dropped(front.end.seq, front.end.hash)
	if err := l.Append(ctx, Entry{Event: EventPruned, Detail: text}); err != nil {
		return err
	}
	if err := l.rewrite(file, front, text); err != nil {
		_ = os.Remove(temporary(l.opts.Path)) // what was made of it is of no use
		return err
	}
	l.log.InfoContext(ctx, "old audit entries dropped", "entries", front.entries, "up_to", front.end.seq)
	return nil
}

// rewrite replaces the file by one without its front. Only the copying of what came last keeps others waiting.
func (l *Log) rewrite(from *os.File, front old, text string) (err error) {
	begins := Entry{Seq: front.end.seq, At: time.Now(), Event: EventBegins, Detail: text, Prev: front.end.hash}
	line, err := begins.seal()
	if err != nil {
		return err
	}
	info, err := from.Stat()
	if err != nil {
		return err
	}
	to, err := os.OpenFile(temporary(l.opts.Path), os.O_RDWR|os.O_APPEND|os.O_CREATE|os.O_EXCL, info.Mode().Perm())
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = to.Close() // the error that led here is the one to tell
		}
	}()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		_ = to.Chown(int(stat.Uid), int(stat.Gid)) // where it is not ours, the new one is, which is no worse
	}
	if err := lock(to); err != nil {
		return err
	}
	out := bufio.NewWriterSize(to, 1<<20)
	_, err = out.Write(line)
	if err == nil {
		_, err = io.Copy(out, io.NewSectionReader(from, front.offset, info.Size()-front.offset))
	}
	if err = errors.Join(err, out.Flush()); err != nil {
		return err
	}
	if err := to.Sync(); err != nil {
		return err
	}
	return l.replace(from, to, info.Size())
}

// replace copies what was appended to the file since it had size bytes, and puts the new file in its place.
func (l *Log) replace(from, to *os.File, size int64) error {
	l.commit.Lock()
	defer l.commit.Unlock()
	at := l.standing()
	mine, err := from.Stat()
	if err != nil {
		return err
	}
	if l.file == nil || !os.SameFile(mine, at.info) {
		return errors.New("the file was replaced meanwhile")
	}
	if _, err := io.Copy(to, io.NewSectionReader(from, size, at.size-size)); err != nil {
		return err
	}
	if err := unix.Fdatasync(int(to.Fd())); err != nil {
		return err
	}
	info, err := to.Stat()
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock() // whoever reads finds either file with its size
	if err := os.Rename(to.Name(), l.opts.Path); err != nil {
		return err
	}
	_ = l.file.Close() // everything is synced
	l.file, l.shown = to, standing{info.Size(), l.end, info}
	return store.SyncDirectory(filepath.Dir(l.opts.Path))
}
