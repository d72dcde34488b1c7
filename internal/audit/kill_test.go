package audit

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// stormFile names the file that a child process writes to until it is killed.
const stormFile = "SDS_TEST_AUDIT_STORM"

func TestMain(m *testing.M) {
	if path := os.Getenv(stormFile); path != "" {
		storm(path)
	}
	os.Exit(m.Run())
}

// storm appends from many goroutines, and says on standard output what was acknowledged.
func storm(path string) {
	l, err := Open(Options{Path: path, Retention: time.Hour, Log: slog.New(slog.DiscardHandler), Registerer: newRegistry()})
	if err != nil {
		panic(err)
	}
	var said sync.Mutex
	var all sync.WaitGroup
	for g := range 16 {
		all.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("%d-%d-%d", os.Getpid(), g, i)
				if err := l.Append(context.Background(), Entry{Event: "storm", Secret: id, Detail: strings.Repeat("x", g*100)}); err != nil {
					panic(err)
				}
				said.Lock()
				_, err := os.Stdout.WriteString(id + "\n")
				said.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	all.Wait()
}

func TestKilledServerKeepsWhatItAcknowledged(t *testing.T) {
	path := newPath(t)
	acknowledged := map[string]bool{}
	for round := range 12 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), stormFile+"="+path)
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			acknowledged[lines.Text()] = true
			if n == 10+17*round {
				must(t, cmd.Process.Kill())
			}
		}
		_ = cmd.Wait() // it was killed
		l, _ := open(t, path)
		if r := verified(t, l); !r.OK() {
			t.Fatalf("round %d: got %+v, want a whole chain", round, r)
		}
		closeLog(t, l)
	}
	repaired := 0
	for _, e := range whole(t, path) {
		delete(acknowledged, e.Secret)
		if e.Event == EventRepaired {
			repaired++
		}
	}
	for id := range acknowledged {
		if strings.Count(id, "-") == 2 && !strings.HasSuffix(id, "-") && lastPart(id) { // a line that was cut by the kill is none
			t.Errorf("%s was acknowledged and is not there", id)
		}
	}
	t.Logf("unfinished entries that were cut off: %d", repaired)
}

func lastPart(id string) bool {
	_, err := strconv.Atoi(id[strings.LastIndexByte(id, '-')+1:])
	return err == nil
}
