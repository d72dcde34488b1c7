package bbolt_test

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/store/bbolt"
)

// TestKillLosesNoCommit kills a process that commits without pause, again and again in the same store: every commit that it
// reported is there, each is whole, and revisions only grow.
func TestKillLosesNoCommit(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	last, lastRevision := 0, int64(0)
	for round := range 20 {
		n, revision := commitUntilKilled(t, path)
		if err := bbolt.CheckInChild(t.Context(), childCommand(t, "check"), path); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		db := open(t, path)
		entries, current, err := db.List(t.Context(), "n/")
		if err != nil || len(entries) != 20 {
			t.Fatalf("round %d: %d entries, %v", round, len(entries), err)
		}
		stored := 0
		if _, err := fmt.Sscanf(string(entries[0].Value[:10]), "%d", &stored); err != nil {
			t.Fatal(err)
		}
		if n <= last || stored < n || stored > n+1 || current < revision || current <= lastRevision {
			t.Fatalf("round %d: store has number %d at revision %d, want %d (or one more) at %d; the round before ended with %d at %d",
				round, stored, current, n, revision, last, lastRevision)
		}
		for i, o := range numbered(stored)[:20] {
			if e := entries[i]; e.Key != o.Key || e.Revision != current || !bytes.Equal(e.Value, o.Value) {
				t.Fatalf("round %d: %s holds %.10s at revision %d, want number %d at %d", round, e.Key, e.Value, e.Revision, stored, current)
			}
		}
		own, _, err := db.List(t.Context(), "own/")
		if err != nil || len(own) != stored {
			t.Fatalf("round %d: %d commits are there, %v, want all %d", round, len(own), err, stored)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		last, lastRevision = stored, current
	}
	t.Logf("%d commits in 20 lives", last)
}

// commitUntilKilled runs the committing child, kills it at some moment after its first commit, and returns the last number
// and revision that it reported.
func commitUntilKilled(t *testing.T, path string) (n int, revision int64) {
	t.Helper()
	command := childCommand(t, "commit")
	// Directly, without env: the process that is killed must be the one that commits.
	child := exec.CommandContext(t.Context(), command[len(command)-1], path)
	child.Env = append(child.Environ(), command[1:len(command)-1]...)
	var complaint bytes.Buffer
	child.Stderr = &complaint
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	var timer *time.Timer
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		if _, err := fmt.Sscan(lines.Text(), &n, &revision); err != nil {
			break // the line that the kill has cut
		}
		if timer == nil {
			timer = time.AfterFunc(time.Duration(rand.IntN(60_000))*time.Microsecond, func() {
				// It has ended by itself if this fails; the check for a commit below shows it.
				_ = child.Process.Kill()
			})
		}
	}
	err = child.Wait()
	if n == 0 || complaint.Len() > 0 {
		t.Fatalf("child committed nothing, or ended by itself: %v: %s", err, complaint.Bytes())
	}
	return n, revision
}
