package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// shownNames is how many secrets and groups of many stand in a cell.
const shownNames = 3

// few names the first few of many.
func few(all []string) string {
	if len(all) <= shownNames+1 {
		return strings.Join(all, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(all[:shownNames], ", "), len(all)-shownNames)
}

// changes says what a rollout changes in one cell: one change with its versions, several by kind and name.
func changes(all []admin.Change) string {
	if len(all) == 1 {
		c := all[0]
		return fmt.Sprintf("%s %s %s->%s", c.Kind, c.Secret, shortVersion(c.From), shortVersion(c.To))
	}
	var kinds []rollout.Kind
	of := map[rollout.Kind][]string{}
	for _, c := range all {
		if of[c.Kind] == nil {
			kinds = append(kinds, c.Kind)
		}
		of[c.Kind] = append(of[c.Kind], c.Secret)
	}
	parts := make([]string, 0, len(kinds))
	for _, kind := range kinds {
		parts = append(parts, string(kind)+" of "+few(of[kind]))
	}
	return strings.Join(parts, "; ")
}

// writeRollouts shows rollouts under way: a row for each wave, and below what is not as it should be.
func writeRollouts(w io.Writer, r admin.Rollouts, now time.Time) error {
	t := newTable("ROLLOUT", "STATE", "STARTED", "CHANGE", "WAVE", "GROUPS", "WAVE STATE", "ACKED", "HANDSHAKES", "WATCH LEFT", "REASON")
	var faults []string
	for _, one := range r.Rollouts {
		first := []string{fmt.Sprint(one.ID), string(one.State), one.Started.Format(time.RFC3339), changes(one.Change)}
		for i, wave := range one.Waves {
			reason := ""
			if i == min(one.Wave, len(one.Waves)-1) {
				reason = one.Reason
			}
			t.add(append(first, fmt.Sprint(i+1), few(wave.Groups), string(wave.State), acked(wave.Nodes), handshakes(wave.Handshakes), left(wave, now), reason)...)
			first = []string{"", "", "", ""}
		}
		for _, fault := range waveFaults(one) {
			faults = append(faults, fmt.Sprintf("rollout %d: %s", one.ID, fault))
		}
	}
	if err := t.write(w); err != nil || len(faults) == 0 {
		return err
	}
	return writeLines(w, append([]string{""}, faults...))
}

func acked(n rollout.Nodes) string {
	text := fmt.Sprintf("%d/%d", n.Acked, n.Expected)
	if n.Nacked > 0 {
		text += fmt.Sprintf(" (%d NACKed)", n.Nacked)
	}
	return text
}

// handshakes counts those that were as wanted among those of the last look.
func handshakes(h admin.Handshakes) string {
	if h.OK+h.Failed == 0 {
		return none
	}
	return fmt.Sprintf("%d/%d", h.OK, h.OK+h.Failed)
}

// left is how long a watch goes on. One that stands still says how long it was.
func left(w admin.Wave, now time.Time) string {
	switch {
	case w.Ends != nil:
		return max(0, w.Ends.Sub(now)).Round(time.Second).String()
	case w.Watch != nil && w.Watched != nil:
		return fmt.Sprintf("%s, stands still", max(0, seconds(*w.Watch)-seconds(*w.Watched)).Round(time.Second))
	}
	return none
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// waveFaults says what is not as it should be in the wave under way.
func waveFaults(r admin.Rollout) []string {
	if r.Wave >= len(r.Waves) {
		return nil
	}
	w := r.Waves[r.Wave]
	var faults []string
	if w.Handshakes.Failed > 0 {
		faults = append(faults, fmt.Sprintf("%d of %d handshakes failed: %s", w.Handshakes.Failed, w.Handshakes.OK+w.Handshakes.Failed, text(w.Handshakes.LastError)))
	}
	for _, g := range w.Gates {
		switch {
		case g.OK:
		case g.Error != nil || g.Value == nil:
			faults = append(faults, fmt.Sprintf("gate %q has no value: %s", g.Name, text(g.Error)))
		default:
			faults = append(faults, fmt.Sprintf("gate %q is at %s, over %s (before the wave: %s)", g.Name, number(g.Value), number(g.Max), number(g.Before)))
		}
	}
	return faults
}

func number(v *float64) string {
	if v == nil {
		return none
	}
	return fmt.Sprintf("%g", *v)
}

func writeLines(w io.Writer, lines []string) error {
	for _, line := range lines {
		if _, err := fmt.Fprintln(w, printable([]string{line})[0]); err != nil {
			return fmt.Errorf("print: %w", err)
		}
	}
	return nil
}

// writeHistory shows a row for each rollout.
func writeHistory(w io.Writer, r admin.Rollouts) error {
	t := newTable("ROLLOUT", "STATE", "STARTED", "TOOK", "CHANGE", "WAVES", "REASON")
	for _, one := range r.Rollouts {
		took := none
		if one.Finished != nil {
			took = one.Finished.Sub(one.Started).Round(10 * time.Millisecond).String()
		}
		done := 0
		for _, wave := range one.Waves {
			if wave.State == rollout.Done {
				done++
			}
		}
		t.add(fmt.Sprint(one.ID), string(one.State), one.Started.Format(time.RFC3339), took, changes(one.Change), fmt.Sprintf("%d/%d", done, len(one.Waves)), one.Reason)
	}
	return t.write(w)
}

// writeRollout shows everything that is known of one rollout.
func writeRollout(w io.Writer, r admin.Rollout, now time.Time) error {
	head := newTable("ROLLOUT", fmt.Sprint(r.ID))
	head.add("STATE", string(r.State))
	head.add("REASON", r.Reason)
	head.add("STARTED", r.Started.Format(time.RFC3339))
	head.add("FINISHED", date(r.Finished))
	if !r.State.Ended() {
		head.add("DEADLINE", date(r.Deadline))
	}
	if r.Joined != nil {
		head.add("GOES ON WITH", fmt.Sprintf("rollout %d", *r.Joined))
	}
	change := newTable("CHANGE", "KIND", "FROM", "TO", "LEFT")
	for _, c := range r.Change {
		change.add(c.Secret, string(c.Kind), shortVersion(c.From), shortVersion(c.To), text(c.Left))
	}
	waves := newTable("WAVE", "GROUPS", "STATE", "SNAPSHOT", "ACKED", "HANDSHAKES", "WATCH LEFT")
	gates := newTable("WAVE", "GATE", "VALUE", "BEFORE", "MAX", "OK", "ERROR")
	for i, wave := range r.Waves {
		waves.add(fmt.Sprint(i+1), strings.Join(wave.Groups, ", "), string(wave.State), text(wave.Snapshot), acked(wave.Nodes), handshakes(wave.Handshakes), left(wave, now))
		for _, g := range wave.Gates {
			gates.add(fmt.Sprint(i+1), g.Name, number(g.Value), number(g.Before), number(g.Max), yes(g.OK), text(g.Error))
		}
	}
	log := newTable("AT", "STATE", "BY", "REASON")
	for _, e := range r.Log {
		log.add(e.At.Format(time.RFC3339), string(e.State), text(e.By), e.Reason)
	}
	if err := head.write(w); err != nil {
		return err
	}
	if err := writeTables(w, change, waves, gates); err != nil {
		return err
	}
	if faults := waveFaults(r); len(faults) > 0 && !r.State.Ended() {
		if err := writeLines(w, append([]string{""}, faults...)); err != nil {
			return err
		}
	}
	return writeTables(w, log)
}
