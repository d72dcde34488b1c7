package audit

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func newRegistry() *prometheus.Registry { return prometheus.NewRegistry() }

func TestUnfinishedEntryIsCutOffAndNoted(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 2)
	closeLog(t, l)
	good := readFile(t, path)
	next := bytes.SplitAfter(good, []byte("\n"))[1]
	for name, torn := range map[string][]byte{
		"half":                               next[:len(next)/2],
		"one byte":                           next[:1],
		"no line end":                        next[:len(next)-1],
		"zeros":                              make([]byte, 5000),
		"zeros and a line that came through": append(make([]byte, 4096), next[len(next)/2:]...),
		"long":                               bytes.Repeat([]byte("x"), 200<<10),
	} {
		t.Run(name, func(t *testing.T) {
			writeFile(t, path, append(bytes.Clone(good), torn...))
			l, log := open(t, path)
			fill(t, l, 2, 1)
			if got, want := events(whole(t, path)), "test s0, test s1, "+EventRepaired+", test s2"; got != want {
				t.Errorf("got %s, want %s", got, want)
			}
			if !strings.Contains(log.String(), "level=WARN") {
				t.Errorf("got %s, want a warning", log)
			}
			gauge(t, l.metrics.broken, 0)
			closeLog(t, l)
			again, _ := open(t, path)
			if !verified(t, again).OK() {
				t.Error("the chain is broken")
			}
			closeLog(t, again)
		})
	}
	writeFile(t, path, next[:20]) // nothing else is there
	l, _ = open(t, path)
	fill(t, l, 0, 1)
	if got := events(whole(t, path)); got != EventRepaired+", test s0" {
		t.Errorf("got %s", got)
	}
}

func TestBrokenChainStopsNothingAndIsLoud(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 5)
	closeLog(t, l)
	good := bytes.SplitAfter(readFile(t, path), []byte("\n"))
	for line := range 5 {
		for name, bad := range map[string][]byte{
			"changed":  bytes.Replace(good[line], []byte("test"), []byte("best"), 1),
			"nonsense": []byte("nonsense\n"),
			"missing":  nil,
		} {
			if name == "missing" && line == 4 {
				continue // nobody can tell after a restart
			}
			lines := append([][]byte{}, good...)
			lines[line] = bad
			writeFile(t, path, bytes.Join(lines, nil))
			l, log := open(t, path)
			fill(t, l, 9, 2)
			must(t, l.check(t.Context()))
			gauge(t, l.metrics.broken, 1)
			r := verified(t, l)
			if want := uint64(line + 1); r.Line != want || r.Bad != 1 || r.Last != 7 {
				t.Errorf("%s: got %+v, want line %d and no other, and entry 7 at the end", name, r, want)
			}
			if !strings.Contains(log.String(), "level=ERROR") {
				t.Errorf("got %s, want an error", log)
			}
			closeLog(t, l)
		}
	}
}

func TestFileIsPrivate(t *testing.T) {
	path := newPath(t)
	open(t, path)
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v (%v), want 0600", info.Mode(), err)
	}
}
