// Package audit keeps every lifecycle event in an append-only file of JSON Lines, each chained to the one before by its hash.
//
// It stands beside the flow of the data: the parts of the server tell it what they did (internal/app connects them), the operator API reads it. It
// knows none of them.
//
// Invariants: an entry that Append acknowledged is on the disk; entries stand in the order in which they were recorded; a line is never changed, and
// entries go only from the front, by retention, which leaves the chain verifiable; what cannot be written is kept in memory up to a bound, and
// how much was lost is said. Nobody waits for a disk that does not answer: keys are served all the same (DESIGN 4, invariant 3), and it is loud.
//
// A chain proves that what is there was not changed in the middle; who can write the file can write another chain. Whoever wants to rule that out
// notes the newest hash elsewhere: the server logs it when it starts and stops.
package audit

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	// maxKept is how many entries are kept in memory while the file cannot be written.
	maxKept = 10_000
	// maxKeptBytes is how large they may be together, roughly.
	maxKeptBytes = 32 << 20
	// stallTime is how long one commit may take before nobody waits for it any more.
	stallTime = 5 * time.Second
	// firstRetry and lastRetry are the pauses after a commit that failed.
	firstRetry = time.Second
	lastRetry  = 10 * time.Second
)

// ErrFailing is returned for entries that are not durable, because the file cannot be written now. They are kept in memory as far as there is room, and
// written later.
var ErrFailing = errors.New("the audit file cannot be written")

// ErrClosed is returned for entries after Close.
var ErrClosed = errors.New("the audit file is closed")

// Options configure a Log. All fields are required.
type Options struct {
	// Path of the file; it is made if it is missing, with mode 0600.
	Path string
	// Retention is how long entries are kept. Run drops older ones.
	Retention time.Duration
	Log       *slog.Logger
	// Registerer gets the metrics.
	Registerer prometheus.Registerer

	stall time.Duration // for tests; default stallTime
}

// Log is an audit file that is open for appending. Its methods are safe for concurrent use.
//
// Group commit: entries that come while the disk is busy are written together when it is free, by one write and one fdatasync. Nothing waits for a
// timer.
type Log struct {
	opts    Options
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // capacity 1: something waits
	stop    chan struct{} // closed by Close
	stopped chan struct{} // closed when the writer has ended

	commit sync.Mutex // held while the file is written or replaced; before mu

	// Guarded by commit.
	file *os.File // nil: it could not be opened yet
	end  head

	mu sync.Mutex
	// Guarded by mu.
	queue   []*Item
	failing error // why the last commit failed; nil while all is well
	since   time.Time
	lost    uint64 // entries, since it fails
	closed  bool
	shown   standing
	commits uint64 // that succeeded
}

// standing is what is durable.
type standing struct {
	size int64
	end  head
	info os.FileInfo
}

// Item is what waits to be written.
type Item struct {
	// Entries is called once, when they are about to be written, or lost. It must not block.
	Entries func() []Entry
	// Done is called once, when the entries are durable, or with the error when they cannot be now; nil: nobody waits. It must not block.
	Done func(error)
}

// Open opens a file and goes on with its chain. What a crash left unfinished at its end is cut off. A file that cannot be used at all (a directory that
// is not there, no permission, another server) is an error, a *store.Fault; a full disk is none. Call Close at the end.
func Open(opts Options) (*Log, error) {
	if opts.stall == 0 {
		opts.stall = stallTime
	}
	m, err := newMetrics(opts.Registerer)
	if err != nil {
		return nil, err
	}
	l := &Log{
		opts: opts, log: opts.Log, metrics: m, wake: make(chan struct{}, 1), stop: make(chan struct{}), stopped: make(chan struct{}), end: head{hash: genesis},
	}
	if err := l.open(); err != nil {
		if !isFull(err) {
			return nil, openFault(opts.Path, err)
		}
		l.fail(nil, err)
	} else {
		l.log.Info("audit file opened", "file", opts.Path, "entry", l.end.seq, "hash", l.end.hash)
	}
	go l.write()
	return l, nil
}

// Append records events as one, and returns when they are durable, or ErrFailing when they cannot be now. The end of ctx ends the wait
// alone.
func (l *Log) Append(ctx context.Context, entries ...Entry) error {
	done := make(chan error, 1)
	l.add(entries, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Add records events and returns at once. They are written in the order of the calls.
func (l *Log) Add(entries ...Entry) {
	if len(entries) > 0 {
		l.add(entries, nil)
	}
}

func (l *Log) add(entries []Entry, done func(error)) {
	now := time.Now()
	for i := range entries {
		if entries[i].At.IsZero() {
			entries[i].At = now
		}
	}
	l.Queue(Item{Entries: func() []Entry { return entries }, Done: done})
}

// Queue records events that are not complete yet, in one commit where there is room in it. It returns at once, and may call the functions of the items
// before that.
func (l *Log) Queue(items ...Item) {
	for i, err := range l.enqueue(items) {
		if errors.Is(err, errDropped) {
			l.lose(len(items[i].Entries()))
		}
		if err != nil && items[i].Done != nil {
			items[i].Done(err)
		}
	}
	l.poke()
}

// errDropped is beside ErrFailing or ErrClosed where there is no room for an entry.
var errDropped = errors.New("the entry is lost")

// enqueue takes items in, and returns for each why it is not waited for.
func (l *Log) enqueue(items []Item) []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	errs := make([]error, len(items))
	for i, one := range items {
		switch {
		case l.closed:
			errs[i] = errors.Join(ErrClosed, errDropped)
			continue
		case l.failing != nil && len(l.queue) >= maxKept:
			errs[i] = errors.Join(ErrFailing, l.failing, errDropped)
			continue
		case l.failing != nil:
			errs[i] = errors.Join(ErrFailing, l.failing)
			one.Done = nil
		}
		l.queue = append(l.queue, &one)
	}
	return errs
}

func (l *Log) poke() {
	select {
	case l.wake <- struct{}{}:
	default: // it will look anyway
	}
}

func (l *Log) lose(n int) {
	l.mu.Lock()
	l.lost += uint64(n)
	l.mu.Unlock()
	l.metrics.lost.Add(float64(n))
}

// Close writes what waits, and closes the file. Where the disk does not answer, it returns when ctx ends.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	already := l.closed
	l.closed = true
	l.mu.Unlock()
	if !already {
		close(l.stop)
	}
	select {
	case <-l.stopped:
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failing != nil {
		return errors.Join(ErrFailing, l.failing)
	}
	return nil
}

// Path is the file's.
func (l *Log) Path() string { return l.opts.Path }

// Newest returns the number and the hash of the newest durable entry.
func (l *Log) Newest() (uint64, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shown.end.seq, l.shown.end.hash
}
