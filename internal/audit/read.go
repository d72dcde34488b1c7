package audit

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
)

// head is the end of a chain: what the next entry refers to.
type head struct {
	seq  uint64
	hash string
}

// Report is what a check of a file found.
type Report struct {
	Entries uint64 // that are intact and in their place
	First   uint64 // number of the first entry, and
	Last    uint64 // of the last one; 0 without entries
	Hash    string // of the last one
	Bad     uint64 // lines that are not
	Line    uint64 // the first of them, from 1; 0: the chain is whole
	Problem string // what is wrong with it
}

// OK reports whether the chain is whole.
func (r Report) OK() bool { return r.Line == 0 }

func (r *Report) bad(line uint64, problem string) {
	r.Bad++
	if r.Line == 0 {
		r.Line, r.Problem = line, problem
	}
}

// Read checks a file from its beginning, and calls each for every intact entry, in its place or not, with the offset behind its line. After a bad
// line it goes on with the next intact entry, so that Bad is how many lines are wrong and not how many follow. The error is that of the reader, of ctx or of
// each.
func Read(ctx context.Context, r io.Reader, each func(e Entry, end int64) error) (Report, error) {
	c := checker{prev: head{hash: genesis}}
	lines := lineReader{in: bufio.NewReaderSize(r, 64<<10)}
	for ctx.Err() == nil {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return c.end(), nil
		}
		if err != nil {
			return c.report, fmt.Errorf("read the audit file: %w", err)
		}
		e, ok := c.take(line)
		if !ok || each == nil {
			continue
		}
		if err := each(e, lines.offset); err != nil {
			return c.report, err
		}
	}
	return c.report, context.Cause(ctx)
}

// checker follows a chain.
type checker struct {
	report Report
	prev   head
	line   uint64
	lost   bool   // the line before was bad: where the chain goes on is not known
	owed   string // Detail of an EventBegins, until the EventPruned with the same words comes; empty: none
}

// take checks the next line, and returns its entry if the entry itself is intact. A nil line is one that is too long, or has no end.
func (c *checker) take(line []byte) (Entry, bool) {
	c.line++
	if line == nil {
		c.report.bad(c.line, "it is no whole line of at most 4 MiB")
		c.lost = true
		return Entry{}, false
	}
	e, err := parse(line)
	if err != nil {
		c.report.bad(c.line, err.Error())
		c.lost = true
		return Entry{}, false
	}
	if c.line == 1 && e.Event == EventBegins {
		c.owed = dropped(e.Seq, e.Prev)
		c.prev = head{e.Seq, e.Prev}
		return e, true
	}
	problem := c.misplaced(e)
	if problem != "" && !c.lost {
		c.report.bad(c.line, problem)
	} else {
		c.report.Entries++
	}
	c.lost = false
	c.prev = head{e.Seq, e.Hash}
	if e.Event == EventPruned && e.Detail == c.owed {
		c.owed = ""
	}
	if c.report.First == 0 {
		c.report.First = e.Seq
	}
	c.report.Last, c.report.Hash = e.Seq, e.Hash
	return e, true
}

func (c *checker) misplaced(e Entry) string {
	switch {
	case c.line == 1 && (e.Seq != 1 || e.Prev != genesis):
		return fmt.Sprintf("entry %d is not the first one: those before it are missing", e.Seq)
	case e.Seq != c.prev.seq+1:
		return fmt.Sprintf("entry %d follows entry %d: entries are missing, or were moved", e.Seq, c.prev.seq)
	case e.Prev != c.prev.hash:
		return fmt.Sprintf("entry %d does not refer to the entry before it: that one was changed", e.Seq)
	}
	return ""
}

// dropped is the Detail of EventBegins and EventPruned: up to which entry the older ones were dropped.
func dropped(last uint64, hash string) string {
	return fmt.Sprintf("entries up to %d were dropped; the hash of the last of them is %s", last, hash)
}

func (c *checker) end() Report {
	if c.owed != "" {
		c.report.bad(1, "entries before this one are missing, and none says that they were dropped")
	}
	return c.report
}

// lineReader reads lines and counts bytes.
type lineReader struct {
	in     *bufio.Reader
	offset int64 // behind the line that was read last
}

// next returns a line without its end; nil for one that is too long or has no end. The error is io.EOF at the end.
func (r *lineReader) next() ([]byte, error) {
	line := []byte{}
	for {
		part, err := r.in.ReadSlice('\n')
		r.offset += int64(len(part))
		if line != nil {
			line = append(line, part...)
		}
		if len(line) > maxLine {
			line = nil
		}
		switch {
		case err == nil && line != nil:
			return line[:len(line)-1], nil
		case err == nil:
			return nil, nil
		case errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF) && (line == nil || len(line) > 0):
			return nil, nil // the next call finds the end
		default:
			return nil, err
		}
	}
}

// placed is a line without its end, and where it begins.
type placed struct {
	text  []byte // nil: too long
	begin int64
}

// backward yields the lines of the first size bytes, which end with a line end, the last line first. The error is the last that comes.
func backward(r io.ReaderAt, size int64) iter.Seq2[placed, error] {
	return func(yield func(placed, error) bool) {
		const block = 64 << 10
		var tail []byte // from begin on, up to the end of the line that is looked for
		begin, long := size, false
		for begin > 0 {
			n := min(begin, block)
			part := make([]byte, n, n+int64(len(tail)))
			if _, err := r.ReadAt(part, begin-n); err != nil {
				yield(placed{}, fmt.Errorf("read the audit file: %w", err))
				return
			}
			begin -= n
			tail = append(part, tail...)
			for {
				end := len(tail) - 1
				if end < 0 {
					break
				}
				i := bytes.LastIndexByte(tail[:end], '\n')
				if i < 0 && begin > 0 {
					break
				}
				one := placed{begin: begin + int64(i) + 1}
				if !long && end-i-1 <= maxLine {
					one.text = bytes.Clone(tail[i+1 : end])
				}
				if long = false; !yield(one, nil) {
					return
				}
				tail = tail[:i+1]
			}
			if len(tail) > maxLine {
				tail, long = append(tail[:0:0], tail[len(tail)-1]), true // its end alone, so that the line before is found
			}
		}
	}
}
