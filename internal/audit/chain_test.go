package audit

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestLineHasThePinnedForm(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	at := time.Date(2026, 11, 24, 12, 0, 0, 5, time.FixedZone("", 3600))
	must(t, l.Append(t.Context(), Entry{At: at, Event: "push", Who: "alice", Secret: "www", Version: "ab", Nodes: []string{"n1"}, Group: "canary", Detail: "<&>"}, Entry{At: at, Event: "test"}))
	first, second, _ := strings.Cut(string(readFile(t, path)), "\n")
	body, _, _ := strings.Cut(first, `,"hash":`)
	if want := `{"seq":1,"at":"2026-11-24T11:00:00.000000005Z","event":"push","who":"alice","secret":"www","version":"ab","nodes":["n1"],"group":"canary","detail":"<&>","prev":"` + genesis + `"`; body != want {
		t.Errorf("got %s, want %s", body, want)
	}
	if want := `{"seq":2,"at":"2026-11-24T11:00:00.000000005Z","event":"test","who":null,"secret":null,"version":null,"nodes":[],"group":null,"detail":null,"prev":"`; !strings.HasPrefix(second, want) {
		t.Errorf("got %s, want %s", second, want)
	}
}

func TestChainGoesOnAfterARestart(t *testing.T) {
	path := newPath(t)
	for i := range 3 {
		l, log := open(t, path)
		fill(t, l, 10*i, 3)
		seq, hash := l.Newest()
		if r := verified(t, l); !r.OK() || r.Entries != uint64(3*i+3) || r.First != 1 || r.Last != seq || r.Hash != hash {
			t.Fatalf("got %+v, want %d entries", r, 3*i+3)
		}
		closeLog(t, l)
		if !strings.Contains(log.String(), hash) {
			t.Errorf("the newest hash is not in the log: %s", log)
		}
		wantErr(t, l.Append(t.Context(), Entry{Event: "late"}), ErrClosed)
	}
	if got, want := events(whole(t, path)), "test s0, test s1, test s2, test s10, test s11, test s12, test s20, test s21, test s22"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// chains are files of both kinds: from the first entry on, and pruned.
func chains(t *testing.T) map[string][]byte {
	t.Helper()
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 4)
	out := map[string][]byte{"whole": readFile(t, path)}
	entries := whole(t, path)
	must(t, l.prune(t.Context(), entries[2].At))
	fill(t, l, 4, 1)
	out["pruned"] = readFile(t, path)
	if !verified(t, l).OK() || !bytes.Contains(out["pruned"], []byte(EventBegins)) || bytes.Contains(out["pruned"], []byte(`"s1"`)) {
		t.Fatalf("not pruned: %s", out["pruned"])
	}
	return out
}

func TestEveryChangeOfAByteIsFound(t *testing.T) {
	for name, good := range chains(t) {
		t.Run(name, func(t *testing.T) {
			if r := check(t, good); !r.OK() {
				t.Fatalf("got %+v, want a whole chain", r)
			}
			for i := range good {
				bad := bytes.Clone(good)
				bad[i] ^= 1
				r := check(t, bad)
				line := uint64(bytes.Count(good[:i], []byte("\n")) + 1)
				if r.OK() || r.Line != line {
					t.Fatalf("byte %d: got line %d (%s), want line %d", i, r.Line, r.Problem, line)
				}
			}
		})
	}
}

func TestEveryCutIsFound(t *testing.T) {
	for name, good := range chains(t) {
		t.Run(name, func(t *testing.T) {
			for i := 1; i < len(good); i++ {
				r := check(t, good[:i])
				if atEnd := good[i-1] == '\n'; r.OK() && !atEnd {
					t.Errorf("cut behind byte %d is not found", i)
				}
				if r := check(t, good[i:]); r.OK() {
					t.Errorf("a file that begins at byte %d is taken for a whole one", i)
				}
			}
		})
	}
}

func TestEveryMissingMovedOrDoubledLineIsFound(t *testing.T) {
	for name, good := range chains(t) {
		lines := bytes.SplitAfter(good, []byte("\n"))
		lines = lines[:len(lines)-1]
		last := len(lines) - 1
		with := func(change func(lines [][]byte) [][]byte) []byte {
			return bytes.Join(change(append([][]byte{}, lines...)), nil)
		}
		for i := range lines {
			if i < last { // the end is for TestServerKnowsItsEnd
				if r := check(t, with(func(l [][]byte) [][]byte { return append(l[:i], l[i+1:]...) })); r.OK() || r.Line > uint64(i+1) {
					t.Errorf("%s: line %d is missing: got %+v", name, i+1, r)
				}
			}
			if r := check(t, with(func(l [][]byte) [][]byte { return append(l[:i+1], lines[i:]...) })); r.OK() || r.Line != uint64(i+2) {
				t.Errorf("%s: line %d is doubled: got %+v", name, i+1, r)
			}
			for j := range i {
				r := check(t, with(func(l [][]byte) [][]byte { l[i], l[j] = l[j], l[i]; return l }))
				if r.OK() || r.Line != uint64(j+1) {
					t.Errorf("%s: lines %d and %d are swapped: got %+v", name, j+1, i+1, r)
				}
			}
		}
	}
}

// An entry that is written anew with a hash that fits is found by the next one.
func TestRewrittenEntryIsFoundByItsSuccessor(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 3)
	entries := whole(t, path)
	entries[1].Detail = "nothing to see"
	line, err := entries[1].seal()
	must(t, err)
	lines := bytes.SplitAfter(readFile(t, path), []byte("\n"))
	lines[1] = line
	if r := check(t, bytes.Join(lines, nil)); r.Line != 3 || !strings.Contains(r.Problem, "was changed") {
		t.Errorf("got %+v, want line 3", r)
	}
}

func TestFrontCannotBeTakenOutByAnInventedBeginning(t *testing.T) {
	good := chains(t)["pruned"]
	lines := bytes.SplitAfter(good, []byte("\n"))
	header, err := parse(bytes.TrimSuffix(lines[0], []byte("\n")))
	must(t, err)
	kept, err := parse(bytes.TrimSuffix(lines[1], []byte("\n")))
	must(t, err)
	forge := func(detail string) []byte {
		e := Entry{Seq: kept.Seq, At: header.At, Event: EventBegins, Detail: detail, Prev: kept.Hash}
		line, err := e.seal()
		must(t, err)
		return append(line, bytes.Join(lines[2:], nil)...)
	}
	for _, detail := range []string{"", header.Detail, dropped(kept.Seq, kept.Hash)} {
		if r := check(t, forge(detail)); r.Line != 1 {
			t.Errorf("%q: got %+v, want line 1", detail, r)
		}
	}
}

func TestServerKnowsItsEnd(t *testing.T) {
	path := newPath(t)
	l, log := open(t, path)
	fill(t, l, 0, 4)
	good := readFile(t, path)
	gauge(t, l.metrics.broken, 0)
	for n := range 4 {
		lines := bytes.SplitAfter(good, []byte("\n"))
		writeFile(t, path, bytes.Join(lines[:n], nil))
		if r := verified(t, l); r.OK() || r.Line != uint64(n+1) {
			t.Errorf("%d lines are left: got %+v, want line %d", n, r, n+1)
		}
		gauge(t, l.metrics.broken, 1)
	}
	if !strings.Contains(log.String(), "audit file is damaged") {
		t.Errorf("got %s, want a line about it", log)
	}
	writeFile(t, path, good)
	if r := verified(t, l); !r.OK() {
		t.Errorf("got %+v, want a whole chain again", r)
	}
	gauge(t, l.metrics.broken, 0)
}

func TestBadLinesAreCountedNotWhatFollows(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 9)
	lines := bytes.SplitAfter(readFile(t, path), []byte("\n"))
	lines[2] = []byte("nonsense\n")
	lines[5] = bytes.ToUpper(lines[5])
	if r := check(t, bytes.Join(lines, nil)); r.Bad != 2 || r.Line != 3 || r.Entries != 7 || r.Last != 9 {
		t.Errorf("got %+v, want 2 bad lines, the first is 3", r)
	}
}

func TestLongLinesAreNoEntries(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	fill(t, l, 0, 2)
	text := readFile(t, path)
	long := bytes.Repeat([]byte("x"), maxLine+1)
	middle := bytes.IndexByte(text, '\n') + 1
	if r := check(t, bytes.Join([][]byte{text[:middle], long, []byte("\n"), text[middle:]}, nil)); r.Line != 2 || r.Bad != 1 || r.Entries != 2 {
		t.Errorf("got %+v, want a bad line 2", r)
	}
}

func TestEntrySurvivesItsForm(t *testing.T) {
	want := Entry{
		Seq: 3, At: time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), Event: "e", Who: "w", Secret: "s", Version: "v", Nodes: []string{"a", "b"}, Group: "g",
		Detail: "d\x00\u2028", Prev: genesis,
	}
	line, err := want.seal()
	must(t, err)
	got, err := parse(bytes.TrimSuffix(line, []byte("\n")))
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("entry (-want +got):\n%s", diff)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(-1, 0, []byte(nil))
	f.Add(10, 3, []byte("x"))
	f.Add(400, 0, []byte("\n"))
	var good []byte
	prev := head{hash: genesis}
	for i := range 5 {
		e := Entry{Seq: prev.seq + 1, At: time.Unix(int64(i), 0), Event: "test", Detail: fmt.Sprint(i), Prev: prev.hash}
		line, err := e.seal()
		if err != nil {
			f.Fatal(err)
		}
		good, prev = append(good, line...), head{e.Seq, e.Hash}
	}
	f.Add(0, len(good), good)
	f.Fuzz(func(t *testing.T, at, cut int, put []byte) {
		text := put
		if at >= 0 { // a part of a good file is replaced
			at %= len(good) + 1
			cut = min(max(cut, 0), len(good)-at)
			text = bytes.Join([][]byte{good[:at], put, good[at+cut:]}, nil)
		}
		r := check(t, text)
		if r.OK() && !bytes.HasPrefix(good, text) && r.Entries > 0 {
			t.Errorf("taken for whole: %q", text)
		}
	})
}
