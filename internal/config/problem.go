package config

import (
	"cmp"
	"slices"
	"strings"
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Path is the key, such as certificates[2].dns_names, or the file or environment variable where no key is concerned.
	Path string
	// Message says what is wrong, in lower case and without a full stop.
	Message string
	// Hint says what to do; empty where the message says it.
	Hint string
	// Line in the file, from 1; 0 where there is none.
	Line int

	column int
	// covers is a path at and below which other rules have nothing to add: the value could not be read, or stands under a
	// misspelt key.
	covers string
}

// String returns "path: message", and the hint after a semicolon where there is one.
func (p Problem) String() string {
	s := p.Path + ": " + p.Message
	if p.Hint != "" {
		s += "; " + p.Hint
	}
	return s
}

// Problems are all problems of one configuration in the order of the file; those without a position come last.
// Load returns them as its error.
type Problems []Problem

// Error lists every problem, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// arrange puts the problems into the order of the file and keeps one for each path: the first found is the cause, and
// what other rules say about the same value would be noise.
func (ps Problems) arrange(o *origin) Problems {
	var (
		seen   = make(map[string]bool, len(ps))
		covers []string
		out    = make(Problems, 0, len(ps))
	)
	for _, p := range ps {
		covered := p.covers == "" && slices.ContainsFunc(covers, func(c string) bool { return isBelow(p.Path, c) })
		if seen[p.Path] || covered {
			continue
		}
		seen[p.Path] = true
		if p.covers != "" {
			covers = append(covers, p.covers)
		}
		if p.Line == 0 {
			at := o.position(p.Path)
			p.Line, p.column = at.line, at.column
		}
		out = append(out, p)
	}
	slices.SortStableFunc(out, func(a, b Problem) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.column, b.column))
	})
	return out
}

// isBelow reports whether path is key itself or lies under it: a.b is below a, and so is a[0].
func isBelow(path, key string) bool {
	rest, ok := strings.CutPrefix(path, key)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}
