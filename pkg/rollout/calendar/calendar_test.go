package calendar_test

import (
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/rollout/calendar"
)

func newCalendar(tb testing.TB, windows []calendar.Window, freezes ...calendar.Freeze) *calendar.Calendar {
	tb.Helper()
	c, err := calendar.New(windows, freezes)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

func at(tb testing.TB, text string) time.Time {
	tb.Helper()
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// look is a time to ask for and the answer: empty for open, else when to look again ("never" where it is not known).
type look struct{ at, until string }

func checkLooks(t *testing.T, c *calendar.Calendar, looks []look) {
	t.Helper()
	for _, l := range looks {
		ok, reason, until := c.Open(at(t, l.at))
		got := "never"
		switch {
		case ok:
			got = ""
		case !until.IsZero():
			got = until.Format(time.RFC3339)
		}
		if l.until != "" && l.until != "never" {
			if want := at(t, l.until); until.Equal(want) {
				got = l.until
			}
		}
		if got != l.until {
			t.Errorf("at %s: got %q (%s), want %q", l.at, got, reason, l.until)
		}
		if ok != (reason == "") || ok && !until.IsZero() {
			t.Errorf("at %s: got %v, %q, %v, want a reason where it is closed, and nothing else where it is open", l.at, ok, reason, until)
		}
	}
}

func TestWithoutWindowsItIsAlwaysOpen(t *testing.T) {
	checkLooks(t, &calendar.Calendar{}, []look{{"2026-03-01T12:00:00Z", ""}})
	checkLooks(t, newCalendar(t, nil), []look{{"2026-03-01T12:00:00Z", ""}})
}

func TestWindows(t *testing.T) {
	workdays := calendar.Window{Cron: "0 9 * * 1-5", Duration: 8 * time.Hour, TimeZone: "Europe/Berlin"}
	for name, tt := range map[string]struct {
		windows []calendar.Window
		looks   []look
	}{
		"begin and end": {[]calendar.Window{workdays}, []look{
			{"2026-01-14T07:59:59Z", "2026-01-14T08:00:00Z"}, // Wednesday
			{"2026-01-14T08:00:00Z", ""},
			{"2026-01-14T15:59:59.999999999Z", ""},
			{"2026-01-14T16:00:00Z", "2026-01-15T08:00:00Z"},
			{"2026-01-16T16:00:00Z", "2026-01-19T08:00:00Z"}, // over the weekend
		}},
		"no time zone is UTC": {[]calendar.Window{{Cron: "0 9 * * *", Duration: time.Hour}}, []look{
			{"2026-07-14T09:00:00Z", ""}, {"2026-07-14T10:00:00Z", "2026-07-15T09:00:00Z"},
		}},
		"longer than its period": {[]calendar.Window{{Cron: "0 * * * *", Duration: 90 * time.Minute}}, []look{
			{"2026-01-14T07:59:59Z", ""}, {"2026-01-14T08:00:00Z", ""}, {"2026-01-14T08:45:00Z", ""},
		}},
		"exactly its period": {[]calendar.Window{{Cron: "0 0 * * *", Duration: 24 * time.Hour}}, []look{
			{"2026-01-14T00:00:00Z", ""}, {"2026-01-13T23:59:59.999999999Z", ""},
		}},
		"several": {[]calendar.Window{{Cron: "0 6 * * *", Duration: time.Hour}, {Cron: "30 6 * * *", Duration: time.Hour}, {Cron: "0 5 * * 3", Duration: time.Minute}}, []look{
			{"2026-01-14T07:15:00Z", ""},
			{"2026-01-14T07:30:00Z", "2026-01-15T06:00:00Z"},
			{"2026-01-14T04:00:00Z", "2026-01-14T05:00:00Z"},
			{"2026-01-14T05:00:59Z", ""},
			{"2026-01-14T05:01:00Z", "2026-01-14T06:00:00Z"},
		}},
		"over midnight and the end of a year": {[]calendar.Window{{Cron: "0 22 31 12 *", Duration: 4 * time.Hour}}, []look{
			{"2027-01-01T01:59:00Z", ""}, {"2027-01-01T02:00:00Z", "2027-12-31T22:00:00Z"},
		}},
		"7 is Sunday": {[]calendar.Window{{Cron: "0 0 * * 7", Duration: 24 * time.Hour}}, []look{
			{"2026-01-11T12:00:00Z", ""}, {"2026-01-12T00:00:00Z", "2026-01-18T00:00:00Z"},
		}},
		"from Friday to Sunday": {[]calendar.Window{{Cron: "0 0 * * fri-7", Duration: 24 * time.Hour}}, []look{
			{"2026-01-08T12:00:00Z", "2026-01-09T00:00:00Z"}, {"2026-01-09T12:00:00Z", ""}, {"2026-01-11T12:00:00Z", ""}, {"2026-01-12T00:00:00Z", "2026-01-16T00:00:00Z"},
		}},
		"every other day up to Sunday": {[]calendar.Window{{Cron: "0 0 * * 3-7/2", Duration: 24 * time.Hour}}, []look{ // Wednesday, Friday, Sunday
			{"2026-01-14T12:00:00Z", ""}, {"2026-01-15T12:00:00Z", "2026-01-16T00:00:00Z"}, {"2026-01-18T12:00:00Z", ""}, {"2026-01-19T00:00:00Z", "2026-01-21T00:00:00Z"},
		}},
		"leap day": {[]calendar.Window{{Cron: "0 0 29 2 *", Duration: time.Hour}}, []look{{"2026-01-14T12:00:00Z", "2028-02-29T00:00:00Z"}}},
	} {
		t.Run(name, func(t *testing.T) { checkLooks(t, newCalendar(t, tt.windows), tt.looks) })
	}
}

// TestChangesOfTheClock: in Europe/Berlin 2026, 02:00 to 03:00 is skipped on 29 March (01:00 UTC) and comes twice on 25 October (from 00:00 UTC and
// from 01:00 UTC); in America/New_York on 8 March (07:00 UTC) and 1 November (05:00 and 06:00 UTC, from 01:00 to 02:00).
func TestChangesOfTheClock(t *testing.T) {
	for name, tt := range map[string]struct {
		cron, zone string
		duration   time.Duration
		looks      []look
	}{
		"Berlin, a begin that is skipped is at the jump": {"30 2 * * *", "Europe/Berlin", time.Hour, []look{
			{"2026-03-28T01:30:00Z", ""}, // the day before, 02:30
			{"2026-03-28T02:30:00Z", "2026-03-29T01:00:00Z"},
			{"2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"},
			{"2026-03-29T01:00:00Z", ""},
			{"2026-03-29T01:59:59Z", ""},
			{"2026-03-29T02:00:00Z", "2026-03-30T00:30:00Z"}, // summer time: 02:30 is 00:30 UTC
		}},
		"Berlin, a begin at the jump": {"0 3 * * *", "Europe/Berlin", time.Hour, []look{
			{"2026-03-29T00:59:59Z", "2026-03-29T01:00:00Z"}, {"2026-03-29T01:59:59Z", ""}, {"2026-03-29T02:00:00Z", "2026-03-30T01:00:00Z"},
		}},
		"Berlin, a window over the skipped hour is as long as ever": {"0 1 * * *", "Europe/Berlin", 2 * time.Hour, []look{
			{"2026-03-29T00:00:00Z", ""}, {"2026-03-29T01:59:59Z", ""}, {"2026-03-29T02:00:00Z", "2026-03-29T23:00:00Z"},
		}},
		"Berlin, a begin that comes twice": {"30 2 * * *", "Europe/Berlin", 20 * time.Minute, []look{
			{"2026-10-25T00:29:59Z", "2026-10-25T00:30:00Z"},
			{"2026-10-25T00:30:00Z", ""},
			{"2026-10-25T00:50:00Z", "2026-10-25T01:30:00Z"},
			{"2026-10-25T01:30:00Z", ""},
			{"2026-10-25T01:50:00Z", "2026-10-26T01:30:00Z"},
		}},
		"New York, a begin that is skipped is at the jump": {"15,45 2 * * *", "America/New_York", 30 * time.Minute, []look{
			{"2026-03-08T06:59:59Z", "2026-03-08T07:00:00Z"},
			{"2026-03-08T07:00:00Z", ""},
			{"2026-03-08T07:29:59Z", ""},
			{"2026-03-08T07:30:00Z", "2026-03-09T06:15:00Z"},
		}},
		"New York, a begin that comes twice": {"0 1 * * 0", "America/New_York", 30 * time.Minute, []look{
			{"2026-11-01T04:59:59Z", "2026-11-01T05:00:00Z"},
			{"2026-11-01T05:29:59Z", ""},
			{"2026-11-01T05:30:00Z", "2026-11-01T06:00:00Z"},
			{"2026-11-01T06:29:59Z", ""},
			{"2026-11-01T06:30:00Z", "2026-11-08T06:00:00Z"},
		}},
		"New York, office hours over both changes": {"0 9 * * *", "America/New_York", 8 * time.Hour, []look{
			{"2026-03-07T14:00:00Z", ""},
			{"2026-03-08T12:59:59Z", "2026-03-08T13:00:00Z"},
			{"2026-03-08T13:00:00Z", ""},
			{"2026-10-31T13:00:00Z", ""},
			{"2026-11-01T13:00:00Z", "2026-11-01T14:00:00Z"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			checkLooks(t, newCalendar(t, []calendar.Window{{Cron: tt.cron, Duration: tt.duration, TimeZone: tt.zone}}), tt.looks)
		})
	}
}

func TestFreezeWins(t *testing.T) {
	freeze := func(from, to, reason string) calendar.Freeze {
		return calendar.Freeze{From: at(t, from), To: at(t, to), Reason: reason}
	}
	daily := []calendar.Window{{Cron: "0 9 * * *", Duration: 8 * time.Hour}}
	christmas := freeze("2026-12-20T12:00:00Z", "2027-01-04T12:00:00Z", "Christmas")
	t.Run("alone", func(t *testing.T) {
		checkLooks(t, newCalendar(t, nil, christmas), []look{
			{"2026-12-20T11:59:59Z", ""}, {"2026-12-20T12:00:00Z", "2027-01-04T12:00:00Z"}, {"2027-01-04T12:00:00Z", ""},
		})
	})
	t.Run("over windows", func(t *testing.T) {
		checkLooks(t, newCalendar(t, daily, christmas), []look{
			{"2026-12-20T11:59:59Z", ""},
			{"2026-12-20T12:00:00Z", "2027-01-04T12:00:00Z"}, // within a window when it ends
			{"2026-12-19T20:00:00Z", "2026-12-20T09:00:00Z"},
		})
	})
	t.Run("the next window begins in a freeze", func(t *testing.T) {
		c := newCalendar(t, daily, freeze("2026-06-02T08:00:00Z", "2026-06-02T18:00:00Z", ""), freeze("2026-06-03T00:00:00Z", "2026-06-03T10:30:00Z", ""))
		checkLooks(t, c, []look{{"2026-06-01T20:00:00Z", "2026-06-03T10:30:00Z"}})
	})
	t.Run("overlapping", func(t *testing.T) {
		c := newCalendar(t, nil, freeze("2026-06-02T08:00:00Z", "2026-06-02T18:00:00Z", "first"), freeze("2026-06-02T10:00:00Z", "2026-06-02T20:00:00Z", "second"),
			freeze("2026-06-02T20:00:00Z", "2026-06-02T21:00:00Z", "third"))
		checkLooks(t, c, []look{{"2026-06-02T08:30:00Z", "2026-06-02T21:00:00Z"}, {"2026-06-02T20:30:00Z", "2026-06-02T21:00:00Z"}})
	})
	t.Run("reason", func(t *testing.T) {
		for _, tt := range []struct {
			c        *calendar.Calendar
			at, want string
		}{
			{newCalendar(t, daily, christmas), "2026-12-24T10:00:00Z", "freeze until 2027-01-04T12:00:00Z: Christmas"},
			{newCalendar(t, nil, freeze("2026-06-02T08:00:00Z", "2026-06-02T18:00:00Z", "")), "2026-06-02T08:00:00Z", "freeze until 2026-06-02T18:00:00Z"},
			{
				newCalendar(t, nil, freeze("2026-06-02T08:00:00Z", "2026-06-02T20:00:00Z", "longer"), freeze("2026-06-02T09:00:00Z", "2026-06-02T18:00:00Z", "shorter")),
				"2026-06-02T10:00:00Z", "freeze until 2026-06-02T20:00:00Z: longer",
			},
			{newCalendar(t, daily), "2026-06-02T08:00:00Z", "outside of the windows; the next one opens at 2026-06-02T09:00:00Z"},
			{newCalendar(t, []calendar.Window{{Cron: "0 0 29 2 *", Duration: time.Hour}}), "2096-03-01T00:00:00Z", "outside of the windows; no other one opens"},
		} {
			if _, reason, _ := tt.c.Open(at(t, tt.at)); reason != tt.want {
				t.Errorf("got %q, want %q", reason, tt.want)
			}
		}
	})
}

func TestEveryProblemIsReported(t *testing.T) {
	_, err := calendar.New([]calendar.Window{
		{Cron: "0 9 * * *", Duration: time.Hour},
		{Cron: "0 25 * * *", TimeZone: "Mars/Olympus"},
	}, []calendar.Freeze{{From: at(t, "2026-06-02T08:00:00Z"), To: at(t, "2026-06-02T08:00:00Z")}})
	want := []string{
		`windows[1]: cron: hour "25" is not from 0 to 23`, `time_zone: no time zone is named "Mars/Olympus"`, "duration: must be more than 0",
		"freeze[0]: to is not after from",
	}
	if err == nil || err.Error() != strings.Join(want, "\n") {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestCronThatIsRefused(t *testing.T) {
	for _, expression := range []string{
		"", "0 9 * *", "0 9 * * * *", "@daily", "@every 1h", "TZ=UTC 0 9 * *", "CRON_TZ=UTC 0 9 * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "* * 32 * *",
		"* * * 13 *", "* * * 0 *", "* * * * 8", "? * * * *", "5-1 * * * *", "*/0 * * * *", "*/60 * * * *", "5/10 * * * *", "+5 * * * *", "-5 * * * *",
		"*/+5 * * * *", "1,,2 * * * *", "0 0 30 2 *", "0 0 31 4,6,9,11 *", "* * * * monday", "* * L * *", "* * * * 1#2", "0 9 * * 1-5\x00",
	} {
		if err := calendar.CheckCron(expression); err == nil {
			t.Errorf("%q is taken", expression)
		}
	}
}

func TestTimeZones(t *testing.T) {
	for _, name := range []string{"", "UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu"} {
		if err := calendar.CheckTimeZone(name); err != nil {
			t.Errorf("%q: %v", name, err)
		}
	}
	for _, name := range []string{"Local", "CEST2", "../etc/passwd", "/etc/localtime", "Europe"} {
		if err := calendar.CheckTimeZone(name); err == nil {
			t.Errorf("%q is taken", name)
		}
	}
}
