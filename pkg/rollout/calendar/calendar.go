// Package calendar says when waves of a rollout may begin: inside of activation windows, and outside of freezes.
//
// The rollout asks it before each wave. It holds no state and decides from the time that it is given.
//
// Invariants: without windows it is always open; a freeze wins over every window; a window holds as long as its duration says, whatever the clocks
// on the wall do meanwhile.
package calendar

import (
	"errors"
	"fmt"
	"time"
	_ "time/tzdata" // an image from scratch has no database of time zones

	"github.com/robfig/cron/v3"
)

// Window is a recurring time in which waves may begin.
type Window struct {
	// Cron has the five usual fields: minute, hour, day of month, month, day of week (0 and 7 are Sunday). A window begins whenever the clock in
	// its time zone shows such a minute: twice where the hour comes twice; where it is skipped, at the moment of the jump.
	Cron string
	// Duration is how long the window is open from its begin, in elapsed time; above 0. Windows may overlap.
	Duration time.Duration
	// TimeZone is an IANA name; empty is UTC.
	TimeZone string
}

// Freeze is a span of time in which no wave begins: from From on, up to but without To.
type Freeze struct {
	From, To time.Time
	// Reason is for people; may be empty.
	Reason string
}

// Calendar answers when a wave may begin. The zero value is always open. It is safe for concurrent use.
type Calendar struct {
	windows []window
	freezes []Freeze
}

// New returns a Calendar. The error joins all that is wrong, each with its place, such as "windows[1].cron".
func New(windows []Window, freezes []Freeze) (*Calendar, error) {
	c := &Calendar{freezes: freezes}
	var problems []error
	for i, w := range windows {
		parsed, err := w.parse()
		if err != nil {
			problems = append(problems, fmt.Errorf("windows[%d]: %w", i, err))
		}
		c.windows = append(c.windows, parsed)
	}
	for i, f := range freezes {
		if !f.From.Before(f.To) {
			problems = append(problems, fmt.Errorf("freeze[%d]: to is not after from", i))
		}
	}
	if err := errors.Join(problems...); err != nil {
		return nil, err
	}
	return c, nil
}

// Open reports whether a wave may begin at a time. If not, reason says why in one line, and until is when one may begin next; zero: not within
// the next years.
func (c *Calendar) Open(at time.Time) (ok bool, reason string, until time.Time) {
	frozen := c.frozen(at)
	if frozen == nil && c.inWindow(at) {
		return true, "", time.Time{}
	}
	until = c.opening(at)
	next := ""
	if !until.IsZero() {
		next = until.UTC().Format(time.RFC3339)
	}
	switch {
	case frozen != nil:
		reason = "freeze until " + frozen.To.UTC().Format(time.RFC3339)
		if frozen.Reason != "" {
			reason += ": " + frozen.Reason
		}
	case next != "":
		reason = "outside of the windows; the next one opens at " + next
	default:
		reason = "outside of the windows; no other one opens"
	}
	return false, reason, until
}

// opening is the first time from at on when it is open.
func (c *Calendar) opening(at time.Time) time.Time {
	for {
		if f := c.frozen(at); f != nil {
			at = f.To
			continue
		}
		if c.inWindow(at) {
			return at
		}
		var next time.Time
		for _, w := range c.windows {
			if begin, ok := w.next(at); ok && (next.IsZero() || begin.Before(next)) {
				next = begin
			}
		}
		if next.IsZero() {
			return time.Time{}
		}
		at = next
	}
}

// frozen returns the freeze that a time lies in, of several the one that ends last.
func (c *Calendar) frozen(at time.Time) *Freeze {
	var last *Freeze
	for i := range c.freezes {
		f := &c.freezes[i]
		if !at.Before(f.From) && at.Before(f.To) && (last == nil || last.To.Before(f.To)) {
			last = f
		}
	}
	return last
}

func (c *Calendar) inWindow(at time.Time) bool {
	for _, w := range c.windows {
		if begin, ok := w.next(at.Add(-w.duration)); ok && !begin.After(at) {
			return true
		}
	}
	return len(c.windows) == 0
}

// window is a Window that was understood.
type window struct {
	schedule cron.Schedule // in terms of the clock on the wall, written as if it were UTC
	duration time.Duration
	location *time.Location
}

// next returns the first begin after a time; false if there is none within the next years.
func (w *window) next(after time.Time) (time.Time, bool) {
	at := after.In(w.location)
	_, offset := at.Zone()
	wall := onWall(at, offset)
	for {
		_, end := at.ZoneBounds()
		begin := w.schedule.Next(wall)
		if begin.IsZero() {
			return time.Time{}, false
		}
		if found := begin.Add(-seconds(offset)); end.IsZero() || found.Before(end) {
			return found, true
		}
		// The clock is changed before that.
		_, changed := end.Zone()
		wall = onWall(end, changed)
		if begin.Before(wall) { // it is among the times that are skipped
			return end, true
		}
		at, offset = end, changed
		wall = wall.Add(-1) // a begin at that very moment counts
	}
}

// onWall is what the clock shows at a time, written as UTC.
func onWall(at time.Time, offset int) time.Time { return at.UTC().Add(seconds(offset)) }

func seconds(n int) time.Duration { return time.Duration(n) * time.Second }
