package calendar

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/robfig/cron/v3"
)

// cronField is one of the five fields: its name, its range, and the names that stand for numbers from low on.
type cronField struct {
	name      string
	low, high int
	names     string
}

// CheckCron returns what is wrong with a cron expression of five fields. Descriptors such as @daily, and time zones inside of the expression, are
// refused.
func CheckCron(expression string) error {
	_, err := parseCron(expression)
	return err
}

// CheckTimeZone returns an error if no time zone has that name.
func CheckTimeZone(name string) error {
	_, err := location(name)
	return err
}

func (w Window) parse() (window, error) {
	parsed := window{duration: w.Duration}
	var problems []error
	var err error
	if parsed.schedule, err = parseCron(w.Cron); err != nil {
		problems = append(problems, fmt.Errorf("cron: %w", err))
	}
	if parsed.location, err = location(w.TimeZone); err != nil {
		problems = append(problems, fmt.Errorf("time_zone: %w", err))
	}
	if w.Duration <= 0 {
		problems = append(problems, errors.New("duration: must be more than 0"))
	}
	return parsed, errors.Join(problems...)
}

func location(name string) (*time.Location, error) {
	l, err := time.LoadLocation(name)
	if err != nil || name == "Local" { // that of the machine would make one configuration mean two things
		return nil, fmt.Errorf("no time zone is named %q", name)
	}
	return l, nil
}

func parseCron(expression string) (cron.Schedule, error) {
	fields := []cronField{
		{"minute", 0, 59, ""},
		{"hour", 0, 23, ""},
		{"day of month", 1, 31, ""},
		{"month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"},
		{"day of week", 0, 7, "sun mon tue wed thu fri sat"},
	}
	parts := strings.Fields(expression)
	if len(parts) != len(fields) {
		return nil, fmt.Errorf(`want the five fields of cron such as "0 9 * * 1-5", got %q`, expression)
	}
	for i, f := range fields {
		for item := range strings.SplitSeq(parts[i], ",") {
			if !f.matches(item) {
				return nil, fmt.Errorf("%s %q is not from %d to %d", f.name, item, f.low, f.high)
			}
		}
	}
	parts[4] = sundays(parts[4])
	schedule, err := cron.ParseStandard("CRON_TZ=UTC " + strings.Join(parts, " "))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", expression, err)
	}
	if schedule.Next(time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)).IsZero() {
		return nil, fmt.Errorf("%q is a day that never comes", expression)
	}
	return schedule, nil
}

// matches reports whether item is *, N, N-M, or * or N-M with /STEP.
func (f cronField) matches(item string) bool {
	span, step, hasStep := strings.Cut(item, "/")
	if hasStep {
		if n, err := strconv.Atoi(step); err != nil || n < 1 || n > f.high || !isDigits(step) {
			return false
		}
	}
	if span == "*" {
		return true
	}
	first, last, isRange := strings.Cut(span, "-")
	a, ok := f.number(first)
	if !isRange {
		return ok && !hasStep
	}
	b, okLast := f.number(last)
	return ok && okLast && a <= b
}

func (f cronField) number(text string) (int, bool) {
	if i := slices.Index(strings.Fields(f.names), strings.ToLower(text)); i >= 0 {
		return f.low + i, true
	}
	n, err := strconv.Atoi(text)
	return n, err == nil && n >= f.low && n <= f.high && isDigits(text)
}

func isDigits(text string) bool { return strings.Trim(text, "0123456789") == "" }

// sundays writes a checked field of days of the week without 7, which the parser does not know.
func sundays(field string) string {
	var items []string
	for item := range strings.SplitSeq(field, ",") {
		span, step, _ := strings.Cut(item, "/")
		first, last, isRange := strings.Cut(span, "-")
		switch {
		case item == "7", isRange && first == "7":
			item = "0"
		case isRange && last == "7":
			from, _ := cronField{"", 0, 7, "sun mon tue wed thu fri sat"}.number(first)
			each, _ := strconv.Atoi(step) // checked before; absent is 0
			each = max(each, 1)
			item = ""
			for day := from; day <= 7; day += each {
				items = append(items, strconv.Itoa(day%7))
			}
		}
		if item != "" {
			items = append(items, item)
		}
	}
	return strings.Join(items, ",")
}
