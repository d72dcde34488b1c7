package calendar_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/rollout/calendar"
)

// naive is a second implementation: it looks at each minute, one after the other.
type naive struct {
	windows []calendar.Window
	freezes []calendar.Freeze
}

// field returns the numbers of a field of cron, and whether it is restricted.
func field(text string, low, high int) (numbers []int, restricted bool) {
	for item := range strings.SplitSeq(text, ",") {
		span, stepText, hasStep := strings.Cut(item, "/")
		step := 1
		if hasStep {
			step, _ = strconv.Atoi(stepText)
		}
		from, to := low, high
		if first, last, isRange := strings.Cut(span, "-"); isRange {
			from, _ = strconv.Atoi(first)
			to, _ = strconv.Atoi(last)
		} else if span != "*" {
			from, _ = strconv.Atoi(span)
			to = from
		}
		for n := from; n <= to; n += step {
			numbers = append(numbers, n)
		}
		restricted = restricted || item != "*"
	}
	return numbers, restricted
}

// schedule is a cron expression, field by field.
type schedule struct {
	numbers    [5][]int
	restricted [5]bool
}

func parse(expression string) schedule {
	var s schedule
	for i, text := range strings.Fields(expression) {
		limits := [5][2]int{{0, 59}, {0, 23}, {1, 31}, {1, 12}, {0, 6}}[i]
		s.numbers[i], s.restricted[i] = field(text, limits[0], limits[1])
	}
	return s
}

// begins reports whether a window begins at what the clock shows.
func (s schedule) begins(wall time.Time) bool {
	if !slices.Contains(s.numbers[0], wall.Minute()) || !slices.Contains(s.numbers[1], wall.Hour()) || !slices.Contains(s.numbers[3], int(wall.Month())) {
		return false
	}
	day := slices.Contains(s.numbers[2], wall.Day())
	weekday := slices.Contains(s.numbers[4], int(wall.Weekday())) || wall.Weekday() == time.Sunday && slices.Contains(s.numbers[4], 7)
	if s.restricted[2] && s.restricted[4] {
		return day || weekday
	}
	return day && weekday
}

// scan looks at each minute in turn: whether it is open at a time, and if not, the first minute before the horizon at which it is; zero: none.
func (n naive) scan(when, horizon time.Time) (open bool, until time.Time) {
	frozen := func(t time.Time) bool {
		return slices.ContainsFunc(n.freezes, func(f calendar.Freeze) bool { return !t.Before(f.From) && t.Before(f.To) })
	}
	first := when
	schedules := make([]schedule, len(n.windows))
	zones := make([]*time.Location, len(n.windows))
	for i, w := range n.windows {
		schedules[i] = parse(w.Cron)
		var err error
		if zones[i], err = time.LoadLocation(w.TimeZone); err != nil {
			panic(err)
		}
		if begin := when.Add(-w.Duration); begin.Before(first) {
			first = begin
		}
	}
	var openUntil time.Time
	isOpen := func(t time.Time) bool { return !frozen(t) && (len(n.windows) == 0 || t.Before(openUntil)) }
	asked := false
	for m := first.Truncate(time.Minute); m.Before(horizon); m = m.Add(time.Minute) {
		if !asked && m.After(when) {
			asked, open = true, isOpen(when)
		}
		for i, w := range n.windows {
			if end := m.Add(w.Duration); end.After(openUntil) && beginsAt(schedules[i], m.In(zones[i])) {
				openUntil = end
			}
		}
		if !m.Before(when) && isOpen(m) {
			return open || m.Equal(when), m
		}
		if open {
			return true, time.Time{}
		}
	}
	return open, time.Time{}
}

// beginsAt counts what the clock shows in this minute, and what it has skipped since the one before.
func beginsAt(s schedule, m time.Time) bool {
	clock := func(t time.Time) time.Time {
		return time.Date(t.Year(), t.Month(), t.Day(), t.Hour(), t.Minute(), 0, 0, time.UTC)
	}
	shown := clock(m)
	for wall := clock(m.Add(-time.Minute)).Add(time.Minute); wall.Before(shown); wall = wall.Add(time.Minute) {
		if s.begins(wall) {
			return true
		}
	}
	return s.begins(shown)
}

// clocks are time zones and moments near which their clocks are changed: by an hour, by half an hour, at midnight, and by a whole day.
var clocks = []struct {
	zone    string
	moments []string
}{
	{"Europe/Berlin", []string{"2026-03-29T01:00:00Z", "2026-10-25T01:00:00Z"}},
	{"America/New_York", []string{"2026-03-08T07:00:00Z", "2026-11-01T06:00:00Z"}},
	{"Australia/Lord_Howe", []string{"2026-04-04T15:00:00Z", "2026-10-03T15:30:00Z"}},
	{"America/Sao_Paulo", []string{"2018-11-04T03:00:00Z", "2018-02-18T02:00:00Z"}},
	{"Pacific/Apia", []string{"2011-12-30T10:00:00Z"}},
	{"Asia/Kathmandu", []string{"2026-01-01T00:00:00Z"}},
	{"", []string{"2026-02-28T23:00:00Z", "2028-02-29T12:00:00Z"}},
}

// randomField writes a field of cron.
func randomField(r *rand.Rand, low, high int) string {
	one := func() int { return low + r.IntN(high-low+1) }
	switch r.IntN(6) {
	case 0, 1:
		return "*"
	case 2:
		return "*/" + strconv.Itoa(1+r.IntN(high))
	case 3:
		a, b := one(), one()
		return fmt.Sprintf("%d-%d/%d", min(a, b), max(a, b), 1+r.IntN(3))
	case 4:
		return fmt.Sprintf("%d,%d", one(), one())
	default:
		return strconv.Itoa(one())
	}
}

func randomWindow(r *rand.Rand, zone string) calendar.Window {
	minute, hour := randomField(r, 0, 59), randomField(r, 0, 23)
	if r.IntN(2) == 0 { // where clocks are changed
		minute, hour = []string{"0", "30", "15,45", "59"}[r.IntN(4)], []string{"0", "1", "2", "3", "1-3", "23"}[r.IntN(6)]
	}
	days, month, weekdays := "*", "*", "*"
	switch r.IntN(6) {
	case 0:
		days = randomField(r, 1, 31)
	case 1:
		weekdays = randomField(r, 0, 7)
	case 2:
		days, weekdays = randomField(r, 1, 31), randomField(r, 0, 7)
	case 3:
		month = randomField(r, 1, 12)
	}
	d := time.Duration(1+r.IntN(200)) * time.Minute
	if r.IntN(3) == 0 {
		d = time.Duration(1+r.IntN(40*3600)) * time.Second
	}
	return calendar.Window{Cron: strings.Join([]string{minute, hour, days, month, weekdays}, " "), Duration: d, TimeZone: zone}
}

// compare asks both implementations for one random calendar and time; it reports whether they had something to answer.
func compare(tb testing.TB, seed uint64) (compared bool) {
	tb.Helper()
	r := rand.New(rand.NewPCG(seed, 1))
	clock := clocks[r.IntN(len(clocks))]
	moment := at(tb, clock.moments[r.IntN(len(clock.moments))])
	when := moment.Add(time.Duration(r.Int64N(int64(60*time.Hour))) - 30*time.Hour)
	if r.IntN(2) == 0 {
		when = when.Truncate(time.Minute)
	}
	var n naive
	for range r.IntN(3) {
		n.windows = append(n.windows, randomWindow(r, clock.zone))
	}
	for range r.IntN(3) {
		from := when.Truncate(time.Minute).Add(time.Duration(r.IntN(600)-400) * time.Minute) // the naive one sees whole minutes
		n.freezes = append(n.freezes, calendar.Freeze{From: from, To: from.Add(time.Duration(1+r.IntN(600)) * time.Minute)})
	}
	for _, w := range n.windows {
		if calendar.CheckCron(w.Cron) != nil { // a day that never comes
			return false
		}
	}
	c := newCalendar(tb, n.windows, n.freezes...)
	horizon := when.Add(30 * time.Hour)
	ok, reason, until := c.Open(when)
	wantOK, want := n.scan(when, horizon)
	if ok != wantOK {
		tb.Fatalf("seed %d: %v at %s: got open %v (%s), want %v", seed, n, when.Format(time.RFC3339Nano), ok, reason, wantOK)
	}
	if !until.Before(horizon) {
		until = time.Time{}
	}
	if !ok && !until.Equal(want) {
		tb.Errorf("seed %d: %v at %s: got closed until %s, want %s", seed, n, when.Format(time.RFC3339Nano), until, want)
	}
	return true
}

func TestOpenIsThatOfTheNaiveImplementation(t *testing.T) {
	compared := 0
	for seed := range uint64(500) {
		if compare(t, seed) {
			compared++
		}
	}
	if compared < 400 {
		t.Errorf("got %d comparisons, want more", compared)
	}
}

func FuzzOpen(f *testing.F) {
	f.Add(uint64(1))
	f.Fuzz(func(t *testing.T, seed uint64) { compare(t, seed) })
}

// FuzzCron: whatever is taken as cron means minutes that the naive implementation sees, too.
func FuzzCron(f *testing.F) {
	for _, expression := range []string{"0 9 * * 1-5", "*/7 1-3 * jan-mar 5-7", "0 0 29 2 *", "15,45 2 1-7/2 * sun", "@daily"} {
		f.Add(expression, int64(1_770_000_000))
	}
	names := strings.NewReplacer("jan", "1", "feb", "2", "mar", "3", "apr", "4", "may", "5", "jun", "6", "jul", "7", "aug", "8", "sep", "9", "oct", "10", "nov", "11",
		"dec", "12", "sun", "0", "mon", "1", "tue", "2", "wed", "3", "thu", "4", "fri", "5", "sat", "6")
	f.Fuzz(func(t *testing.T, expression string, unix int64) {
		if calendar.CheckCron(expression) != nil {
			return
		}
		w := calendar.Window{Cron: expression, Duration: time.Minute}
		when := time.Unix(unix%(1<<32), 0).UTC()
		numbers := w
		numbers.Cron = names.Replace(strings.ToLower(expression))
		c, n := newCalendar(t, []calendar.Window{w}), naive{windows: []calendar.Window{numbers}}
		ok, _, until := c.Open(when)
		if want, _ := n.scan(when, when.Add(time.Hour)); ok != want {
			t.Errorf("%q at %s: got open %v, want %v", expression, when, ok, want)
		}
		if ok || until.IsZero() {
			return
		}
		if want, _ := n.scan(until, until.Add(time.Hour)); !want {
			t.Errorf("%q at %s: got until %s, when it is closed", expression, when, until)
		}
	})
}
