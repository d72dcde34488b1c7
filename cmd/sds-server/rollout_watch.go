package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// watcher shows rollouts under way, or one by its id.
type watcher struct {
	cli   *cli
	id    uint64           // 0: all that are under way
	seen  map[uint64]*said // by tell: what it told of those under way
	last  uint64           // by tell: the newest one that it knows of
	began bool             // by tell: it has looked
	idle  bool             // by tell: it was said that nothing is under way
}

// said is what was told of a rollout.
type said struct {
	events   int
	progress string
}

// over ends a watch; err is what the command ends with.
type over struct{ err error }

func (o *over) Error() string { return "over" }

func (w *watcher) get(ctx context.Context) (admin.Rollouts, error) {
	var r admin.Rollouts
	if w.id == 0 {
		return r, w.cli.get(ctx, "/v1/rollouts", &r)
	}
	return r, w.cli.get(ctx, rolloutPath(w.id), &r)
}

func rolloutPath(id uint64) string { return fmt.Sprintf("/v1/rollouts/%d", id) }

// show prints everything once.
func (w *watcher) show(ctx context.Context) error {
	r, err := w.get(ctx)
	if err != nil {
		return err
	}
	return w.print(r)
}

func (w *watcher) print(r admin.Rollouts) error {
	c := w.cli
	return c.print(r, func(out io.Writer) error {
		switch {
		case w.id != 0 && len(r.Rollouts) == 1:
			return writeRollout(out, r.Rollouts[0], time.Now())
		case len(r.Rollouts) == 0:
			return c.printf("no rollout is under way\n")
		}
		return writeRollouts(out, r, time.Now())
	})
}

// showToTheEnd is show of one rollout until that has ended.
func (w *watcher) showToTheEnd(ctx context.Context) error {
	r, err := w.get(ctx)
	if err != nil {
		return err
	}
	if err := w.print(r); err != nil {
		return err
	}
	return w.ended(r)
}

// ended returns an [over] when the one rollout that is watched has ended. One that goes on with another is watched there.
func (w *watcher) ended(r admin.Rollouts) error {
	if w.id == 0 || len(r.Rollouts) != 1 || !r.Rollouts[0].State.Ended() {
		return nil
	}
	one := r.Rollouts[0]
	switch {
	case one.State == rollout.Done:
		return &over{}
	case one.Joined != nil:
		w.id = *one.Joined
		return nil
	}
	return &over{&hinted{fmt.Errorf("rollout %d is %s", one.ID, standing(one.State, one.Reason)), "`status` shows what is held; `rollout history` what came after"}}
}

// tell prints what has happened since it told last, line by line: for logs, and whatever else is no terminal. It also tells of what began and
// ended in between.
func (w *watcher) tell(ctx context.Context) error {
	r, err := w.news(ctx)
	if err != nil {
		return err
	}
	known, under := maps.Clone(w.seen), 0
	for _, one := range r.Rollouts {
		delete(known, one.ID)
		if err := w.tellOf(one); err != nil {
			return err
		}
		if w.last = max(w.last, one.ID); !one.State.Ended() {
			under++
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) { // they are not under way any more
		var ended admin.Rollouts
		if err := w.cli.get(ctx, rolloutPath(id), &ended); err != nil {
			return err
		}
		for _, one := range ended.Rollouts {
			if err := w.tellOf(one); err != nil {
				return err
			}
		}
	}
	if idle := under == 0 && w.id == 0; idle != w.idle {
		if w.idle = idle; idle {
			if err := w.cli.printf("no rollout is under way\n"); err != nil {
				return err
			}
		}
	}
	return w.ended(r)
}

// news are the rollouts that are under way, and those that tell does not know of yet. At the beginning it knows all that have ended.
func (w *watcher) news(ctx context.Context) (admin.Rollouts, error) {
	var r admin.Rollouts
	switch {
	case w.id != 0:
		return w.get(ctx)
	case w.last != 0:
		return r, w.cli.get(ctx, fmt.Sprintf("/v1/rollouts?since=%d", w.last), &r)
	}
	if err := w.cli.get(ctx, "/v1/rollouts?all", &r); err != nil {
		return r, err
	}
	if n := len(r.Rollouts); n > 0 && !w.began {
		w.last = r.Rollouts[n-1].ID
		r.Rollouts = slices.DeleteFunc(r.Rollouts, func(one admin.Rollout) bool { return one.State.Ended() })
	}
	w.began = true
	return r, nil
}

func (w *watcher) tellOf(r admin.Rollout) error {
	before := w.seen[r.ID]
	if before == nil {
		before = &said{}
		if w.id == 0 && r.ID <= w.last { // it was under way: its last word says where it is
			before.events = max(0, len(r.Log)-1)
		}
	}
	if w.seen[r.ID] = before; r.State.Ended() {
		delete(w.seen, r.ID)
	}
	var lines []string
	for _, e := range r.Log[min(before.events, len(r.Log)):] {
		by := ""
		if e.By != nil {
			by = " (by " + *e.By + ")"
		}
		lines = append(lines, fmt.Sprintf("%s rollout %d (%s): %s%s", e.At.Format(time.RFC3339), r.ID, changes(r.Change), standing(e.State, e.Reason), by))
	}
	before.events = len(r.Log)
	if now := progress(r); now != before.progress && !r.State.Ended() {
		if before.progress = now; now != "" {
			lines = append(lines, fmt.Sprintf("rollout %d: %s", r.ID, now))
		}
	}
	return writeLines(w.cli.out, lines)
}

// progress is what changes within a state: counts, and what is not as it should be; never a time.
func progress(r admin.Rollout) string {
	if r.Wave >= len(r.Waves) {
		return ""
	}
	wave := r.Waves[r.Wave]
	var parts []string
	if wave.Nodes.Expected > 0 {
		parts = append(parts, "ACKed "+acked(wave.Nodes))
	}
	if h := handshakes(wave.Handshakes); h != none {
		parts = append(parts, "handshakes "+h)
	}
	parts = append(parts, waveFaults(r)...)
	if len(parts) == 0 {
		return ""
	}
	return fmt.Sprintf("wave %d (%s): %s", r.Wave+1, few(wave.Groups), strings.Join(parts, ", "))
}
