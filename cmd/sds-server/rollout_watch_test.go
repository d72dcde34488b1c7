package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// TestWatchIsShownWithWhatIsLeftOfIt pauses a watch, lets it go on, and takes the rollout back in the middle of it.
func TestWatchIsShownWithWhatIsLeftOfIt(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{Watch: "1h"})
	b.start()
	b.importPair("www", "a1")
	b.newest("www", 0, "done") // an addition is not watched
	b.importPair("www", "a2")
	r := b.newest("www", 1, "watching")
	id := fmt.Sprint(r.ID)
	b.eventually(func() error { // the first look at it may be to come
		if r = b.newest("www", 1, "watching"); r.Waves[0].Ends == nil {
			return fmt.Errorf("wave %+v", r.Waves[0])
		}
		return nil
	})
	w := r.Waves[0]
	if now := time.Now(); w.Watch == nil || *w.Watch != 3600 || !w.Ends.After(now) || w.Ends.After(now.Add(time.Hour)) || r.Waves[1].Ends != nil {
		t.Errorf("got waves %+v, want the first one to be watched for an hour", r.Waves)
	}
	if out := b.ok("rollout", "status"); !strings.Contains(out, " 59m") && !strings.Contains(out, " 1h0m0s") {
		t.Errorf("got %s, want the time that is left", out)
	}
	b.ok("rollout", "pause", id)
	if out := b.ok("rollout", "status", id); !strings.Contains(out, ", stands still") {
		t.Errorf("got %s, want a watch that stands still", out)
	}
	if r = b.newest("www", 1, "paused"); r.Waves[0].Ends != nil || !r.Paused {
		t.Errorf("got %+v, want no end of the watch", r)
	}
	b.ok("rollout", "resume", id)
	b.newest("www", 1, "watching")
	out := b.ok("rollout", "abort", id)
	for _, want := range []string{"rollout " + id + ": aborted\n", "taken back: canary\n", "held: www "} {
		if !strings.Contains(out, want) {
			t.Errorf("got %s, want %q", out, want)
		}
	}
	if r = b.newest("www", 1, "aborted"); r.Change[0].Left == nil || r.Finished == nil || r.Waves[1].State != "pending" {
		t.Errorf("got %+v, want a change that has left, and a second wave that never began", r)
	}
}
