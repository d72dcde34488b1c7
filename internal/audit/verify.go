package audit

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// Verify checks the whole file as it is now, also against what this server knows of its end. The error is that of reading it.
func (l *Log) Verify(ctx context.Context) (Report, error) {
	file, at, err := l.read()
	if err != nil {
		return Report{}, err
	}
	defer file.Close() // it was only read
	report, err := Read(ctx, io.LimitReader(file, at.size), nil)
	if err != nil {
		return report, err
	}
	if report.OK() && at.end.seq > 0 && (report.Last != at.end.seq || report.Hash != at.end.hash) {
		report.bad(report.Entries+1, fmt.Sprintf("the file ends with entry %d, but this server wrote up to %d: entries are missing at the end, or others stand there", report.Last, at.end.seq))
	}
	if !report.OK() {
		l.damaged(fmt.Sprintf("line %d: %s", report.Line, report.Problem))
	} else {
		l.metrics.broken.Set(0)
	}
	return report, nil
}

// read opens the file of the path beside what is durable in it.
func (l *Log) read() (*os.File, standing, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	file, err := os.Open(l.opts.Path)
	if err != nil {
		return nil, standing{}, fmt.Errorf("read the audit file: %w", err)
	}
	return file, l.shown, nil
}

// Filter says which entries List returns. Empty fields let everything through.
type Filter struct {
	// Limit is how many at most, the newest ones; 0 means all.
	Limit int
	// Since leaves out what happened earlier.
	Since time.Time
	// Secret and Group are names; Event is an event, or the beginning of some up to an underscore, such as rollout.
	Secret, Group, Event string
}

func (f Filter) takes(e Entry) bool {
	switch {
	case e.At.Before(f.Since), f.Secret != "" && e.Secret != f.Secret:
		return false
	case f.Event != "" && e.Event != f.Event && !strings.HasPrefix(e.Event, f.Event+"_"):
		return false
	case f.Group == "":
		return true
	}
	for group := range strings.SplitSeq(e.Group, ",") {
		if group == f.Group {
			return true
		}
	}
	return false
}

// slack is how much earlier than the entry before it an event may have happened: those that were kept in memory stand late, and clocks are set.
const slack = 24 * time.Hour

// List returns the newest entries that pass a filter, the oldest first. Lines that are no entries are left out: Verify names them.
func (l *Log) List(ctx context.Context, f Filter) ([]Entry, error) {
	file, at, err := l.read()
	if err != nil {
		return nil, err
	}
	defer file.Close() // it was only read
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read the audit file: %w", err)
	}
	whole, err := lastLineEnd(file, min(info.Size(), at.size))
	if err != nil {
		return nil, err
	}
	found := []Entry{}
	for line, err := range backward(file, whole) {
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		e, err := parse(line.text)
		if err != nil {
			continue
		}
		if e.At.Before(f.Since.Add(-slack)) && !f.Since.IsZero() {
			break
		}
		if f.takes(e) {
			found = append(found, e)
		}
		if f.Limit > 0 && len(found) == f.Limit {
			break
		}
	}
	slices.Reverse(found)
	return found, nil
}
