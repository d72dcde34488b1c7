package audit

import (
	"bytes"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// aged appends entries that happened some time ago, an hour apart, the last one an hour ago.
func aged(t testing.TB, l *Log, n int) time.Time {
	t.Helper()
	now := time.Now()
	for i := range n {
		must(t, l.Append(t.Context(), Entry{At: now.Add(-time.Duration(n-i) * time.Hour), Event: "old", Secret: fmt.Sprint(i)}))
	}
	return now
}

func TestOldEntriesGoAndTheChainStays(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	now := aged(t, l, 10)
	for i := range 9 { // one more each time
		before := now.Add(-time.Duration(10-i)*time.Hour + time.Minute)
		must(t, l.prune(t.Context(), before))
		entries := whole(t, path)
		if entries[0].Event != EventBegins || entries[0].Seq != uint64(i+1) || entries[1].Secret != fmt.Sprint(i+1) || entries[1].Prev != entries[0].Prev {
			t.Fatalf("round %d: got %s", i, events(entries))
		}
		if last := entries[len(entries)-1]; last.Event != EventPruned || last.Detail != entries[0].Detail {
			t.Fatalf("round %d: got %+v at the end", i, last)
		}
		if r := verified(t, l); !r.OK() || r.First != uint64(i+2) {
			t.Fatalf("round %d: got %+v", i, r)
		}
		if i%3 == 0 {
			closeLog(t, l)
			l, _ = open(t, path)
		}
	}
	count := l.count()
	must(t, l.prune(t.Context(), now.Add(-90*time.Minute)))
	if l.count() != count {
		t.Error("nothing was old, and something was written")
	}
	must(t, l.prune(t.Context(), now.Add(time.Hour))) // all there is
	if got := events(whole(t, path)); got != EventBegins+", "+EventPruned {
		t.Errorf("got %s", got)
	}
	closeLog(t, l)
	l, _ = open(t, path)
	fill(t, l, 0, 2)
	if !verified(t, l).OK() {
		t.Error("the chain is broken")
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("got %v (%v), want 0600", info.Mode(), err)
	}
}

func TestRunDropsWhatIsOlderThanTheRetention(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path, func(o *Options) { o.Retention = 150 * time.Minute })
	aged(t, l, 5)
	var running sync.WaitGroup
	running.Go(func() { _ = l.Run(t.Context()) })
	eventually(t, "dropped", func() bool { return !bytes.Contains(readFile(t, path), []byte(`"secret":"2"`)) })
	eventually(t, "said", func() bool {
		return strings.Contains(events(l.shownEvents(t)), "old 3, old 4, "+EventPruned)
	})
}

func TestNothingGoesFromABrokenChain(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	now := aged(t, l, 5)
	text := readFile(t, path)
	bad := bytes.Replace(text, []byte(`"secret":"1"`), []byte(`"secret":"7"`), 1)
	writeFile(t, path, bad)
	if err := l.prune(t.Context(), now); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("got %v, want line 2", err)
	}
	if !bytes.Equal(readFile(t, path), bad) {
		t.Error("the file was changed")
	}
}

func TestAppendsGoOnWhileOldEntriesGo(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	now := aged(t, l, 40)
	var writers sync.WaitGroup
	for g := range 8 {
		writers.Go(func() {
			for i := range 30 {
				if err := l.Append(t.Context(), Entry{Event: "new", Secret: fmt.Sprint(g, "-", i)}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 20 {
		must(t, l.prune(t.Context(), now.Add(-time.Duration(39-2*i)*time.Hour+time.Minute)))
	}
	writers.Wait()
	entries := whole(t, path)
	fresh := slices.DeleteFunc(entries, func(e Entry) bool { return e.Event != "new" })
	if len(fresh) != 240 || !verified(t, l).OK() {
		t.Errorf("got %d new entries, want 240", len(fresh))
	}
}

func TestLeftoverOfACrashIsRemoved(t *testing.T) {
	path := newPath(t)
	writeFile(t, temporary(path), []byte("half"))
	l, _ := open(t, path)
	now := aged(t, l, 3)
	if _, err := os.Stat(temporary(path)); !os.IsNotExist(err) {
		t.Errorf("got %v, want it gone", err)
	}
	// A crash between the entry and the replacement leaves an entry that says more than was done: the next time does it.
	must(t, l.Append(t.Context(), Entry{Event: EventPruned, Detail: dropped(1, "x")}))
	must(t, l.prune(t.Context(), now.Add(-90*time.Minute)))
	if !verified(t, l).OK() {
		t.Error("the chain is broken")
	}
}

func TestListIsWhatTheFiltersSay(t *testing.T) {
	path := newPath(t)
	l, _ := open(t, path)
	begin := time.Now().Add(-time.Hour).UTC()
	var all []Entry
	for i := range 300 {
		e := Entry{
			At: begin.Add(time.Duration(i) * time.Second), Event: []string{"push", "rollout_moving", "rollout_done"}[i%3], Secret: fmt.Sprint("s", i%5),
			Group: []string{"canary", "canary,production", "production", ""}[i%4], Detail: strings.Repeat("d", 1+i*13%4000), Nodes: slices.Repeat([]string{"node"}, i%7*50),
		}
		all = append(all, e)
	}
	must(t, l.Append(t.Context(), all...))
	all = whole(t, path)
	for _, f := range []Filter{
		{},
		{Limit: 1},
		{Limit: 7},
		{Secret: "s3"},
		{Secret: "none"},
		{Group: "canary"},
		{Group: "production", Limit: 5},
		{Event: "push"},
		{Event: "rollout"},
		{Event: "rollout_done", Secret: "s2", Group: "canary"},
		{Since: begin.Add(290 * time.Second)},
		{Since: time.Now()},
		{Event: "roll"},
	} {
		want := []Entry{}
		for _, e := range all {
			if f.takes(e) {
				want = append(want, e)
			}
		}
		if f.Limit > 0 {
			want = want[max(0, len(want)-f.Limit):]
		}
		got, err := l.List(t.Context(), f)
		must(t, err)
		if len(got) != len(want) || len(want) > 0 && (got[0].Hash != want[0].Hash || got[len(got)-1].Hash != want[len(want)-1].Hash) {
			t.Errorf("%+v: got %d entries, want %d", f, len(got), len(want))
		}
	}
	if got, err := l.List(t.Context(), Filter{Group: "canary", Event: "rollout"}); err != nil || len(got) != 100 {
		t.Errorf("got %d (%v), want 100", len(got), err)
	}
}

func BenchmarkAppend(b *testing.B) {
	for _, writers := range []int{1, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			l, _ := open(b, newPath(b))
			b.SetParallelism(writers)
			b.ResetTimer()
			if writers == 1 {
				for b.Loop() {
					must(b, l.Append(b.Context(), Entry{Event: "push", Secret: "www", Version: genesis, Group: "canary", Nodes: []string{"n1"}}))
				}
			} else {
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if err := l.Append(b.Context(), Entry{Event: "push", Secret: "www", Version: genesis, Group: "canary", Nodes: []string{"n1"}}); err != nil {
							b.Error(err)
						}
					}
				})
			}
			b.ReportMetric(float64(b.N)/float64(l.count()), "entries/commit")
		})
	}
}
