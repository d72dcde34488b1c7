package main

import (
	"bytes"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/rollout"
)

var tableTime = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// trainOf is a rollout of many changes that is watched in its first wave.
func trainOf(n int) admin.Rollout {
	r := admin.Rollout{
		ID: 4, State: rollout.Watching, Reason: "wave 1 (canary) is watched for 5m0s", Started: tableTime.Add(-time.Minute),
		Waves: []admin.Wave{
			{
				Groups: []string{"canary"}, State: rollout.Watching, Snapshot: new(uint64(9)), Ends: new(tableTime.Add(4*time.Minute + 300*time.Millisecond)),
				Nodes: rollout.Nodes{Expected: 3, Acked: 2, Nacked: 1}, Handshakes: admin.Handshakes{OK: 4, Failed: 1, LastError: new("refused at 10.0.0.1:443")},
				Gates: []admin.Gate{
					{Name: "down", Max: new(1.0), Error: new("no data\x1b[31m")},
					{Name: "errors", Value: new(7.5), Before: new(0.0), Max: new(5.0)},
					{Name: "fine", Value: new(1.0), Before: new(1.0), Max: new(5.0), OK: true},
				},
				Watch: new(300.0), Watched: new(60.0),
			},
			{Groups: []string{"g1", "g2", "g3", "g4", "g5", "g6"}, State: rollout.Pending},
		},
		Log: []admin.Event{
			{At: tableTime.Add(-time.Minute), State: rollout.Moving, Reason: "wave 1 (canary) was switched"},
			{At: tableTime.Add(-time.Second), State: rollout.Watching, Reason: "is watched", By: new("root")},
		},
	}
	for i := range n {
		kind := rollout.Renewal
		if i == n-1 {
			kind = rollout.Chain
		}
		r.Change = append(r.Change, admin.Change{Secret: fmt.Sprintf("s%02d", i), From: new(strings.Repeat("a", 64)), To: new(strings.Repeat("b", 64)), Kind: kind})
	}
	return r
}

// TestRolloutTable has a train of 30 changes in one row, and names what is not as it should be below.
func TestRolloutTable(t *testing.T) {
	t.Parallel()
	want := strings.Join([]string{
		"ROLLOUT STATE STARTED CHANGE WAVE GROUPS WAVE STATE ACKED HANDSHAKES WATCH LEFT REASON",
		"4 watching 2026-11-24T11:59:00Z renewal of s00, s01, s02 and 26 more; chain of s29 1 canary watching 2/3 (1 NACKed) 4/5 4m0s wave 1 (canary) is watched for 5m0s",
		"2 g1, g2, g3 and 3 more pending 0/0 - -",
		"",
		"rollout 4: 1 of 5 handshakes failed: refused at 10.0.0.1:443",
		`rollout 4: gate "down" has no value: no data [31m`,
		`rollout 4: gate "errors" is at 7.5, over 5 (before the wave: 0)`,
		"",
	}, "\n")
	var out bytes.Buffer
	if err := writeRollouts(&out, admin.Rollouts{Rollouts: []admin.Rollout{trainOf(30)}}, tableTime); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, squeezed(out.String())); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// TestPausedWatchStandsStill says what is left of a watch whose end nobody knows.
func TestPausedWatchStandsStill(t *testing.T) {
	t.Parallel()
	w := admin.Wave{Watch: new(300.0), Watched: new(60.0)}
	if got, want := left(w, tableTime), "4m0s, stands still"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	w.Ends = new(tableTime.Add(-time.Minute))
	if got, want := left(w, tableTime), "0s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestOneRolloutInFull has every change, gate and transition.
func TestOneRolloutInFull(t *testing.T) {
	t.Parallel()
	r := trainOf(3)
	r.Change[1].Left = new("held")
	r.Deadline = new(tableTime.Add(time.Hour))
	r.Joined = new(uint64(7))
	want := strings.Join([]string{
		"ROLLOUT 4", "STATE watching", "REASON wave 1 (canary) is watched for 5m0s", "STARTED 2026-11-24T11:59:00Z", "FINISHED -",
		"DEADLINE 2026-11-24T13:00:00Z", "GOES ON WITH rollout 7",
		"", "CHANGE KIND FROM TO LEFT", "s00 renewal aaaaaaaaaaaa bbbbbbbbbbbb -", "s01 renewal aaaaaaaaaaaa bbbbbbbbbbbb held", "s02 chain aaaaaaaaaaaa bbbbbbbbbbbb -",
		"", "WAVE GROUPS STATE SNAPSHOT ACKED HANDSHAKES WATCH LEFT", "1 canary watching 9 2/3 (1 NACKed) 4/5 4m0s", "2 g1, g2, g3, g4, g5, g6 pending - 0/0 - -",
		"", "WAVE GATE VALUE BEFORE MAX OK ERROR", "1 down - - 1 no no data [31m", "1 errors 7.5 0 5 no -", "1 fine 1 1 5 yes -",
		"", "1 of 5 handshakes failed: refused at 10.0.0.1:443", `gate "down" has no value: no data [31m`, `gate "errors" is at 7.5, over 5 (before the wave: 0)`,
		"", "AT STATE BY REASON", "2026-11-24T11:59:00Z moving - wave 1 (canary) was switched", "2026-11-24T11:59:59Z watching root is watched",
		"",
	}, "\n")
	var out bytes.Buffer
	if err := writeRollout(&out, r, tableTime); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, squeezed(out.String())); diff != "" {
		t.Errorf("want (-), got (+):\n%s", diff)
	}
}

// TestWatchTellsWhatIsNew looks at the same rollout again and again, as it goes on.
func TestWatchTellsWhatIsNew(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	w := &watcher{cli: &cli{out: &out}, seen: map[uint64]*said{}, last: 4}
	r := trainOf(1)
	tells := func(want ...string) {
		t.Helper()
		if err := w.tellOf(r); err != nil {
			t.Fatal(err)
		}
		if got := strings.TrimSuffix(out.String(), "\n"); got != strings.Join(want, "\n") {
			t.Errorf("got %s, want %s", got, strings.Join(want, "\n"))
		}
		out.Reset()
	}
	r.Waves[0].Gates = nil
	tells(`2026-11-24T11:59:59Z rollout 4 (chain s00 aaaaaaaaaaaa->bbbbbbbbbbbb): watching: is watched (by root)`,
		`rollout 4: wave 1 (canary): ACKed 2/3 (1 NACKed), handshakes 4/5, 1 of 5 handshakes failed: refused at 10.0.0.1:443`)
	r.Waves[0].Ends = new(tableTime.Add(time.Minute)) // a time that goes by is no news
	tells()
	r.Waves[0].Nodes, r.Waves[0].Handshakes = rollout.Nodes{Expected: 3, Acked: 3}, admin.Handshakes{OK: 5}
	tells("rollout 4: wave 1 (canary): ACKed 3/3, handshakes 5/5")
	for _, reason := range []string{"one", "two"} {
		r.Log = append(r.Log, admin.Event{At: tableTime, State: rollout.Waiting, Reason: reason})
	}
	tells(`2026-11-24T12:00:00Z rollout 4 (chain s00 aaaaaaaaaaaa->bbbbbbbbbbbb): waiting: one`, `2026-11-24T12:00:00Z rollout 4 (chain s00 aaaaaaaaaaaa->bbbbbbbbbbbb): waiting: two`)
	r.State = rollout.RolledBack
	r.Log = append(r.Log, admin.Event{At: tableTime, State: r.State, Reason: "over"})
	tells(`2026-11-24T12:00:00Z rollout 4 (chain s00 aaaaaaaaaaaa->bbbbbbbbbbbb): rolled_back: over`)
	if len(w.seen) != 0 {
		t.Errorf("it remembers %v", w.seen)
	}
}

// squeezed makes one space of several, and none at the ends of lines.
func squeezed(text string) string {
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(regexp.MustCompile(` +`).ReplaceAllString(line, " "))
	}
	return strings.Join(lines, "\n")
}
