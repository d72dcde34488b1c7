package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// rollout checks waves, times, gates and windows.
func (v *validator) rollout() {
	r := &v.Rollout
	v.waves()
	v.oneOf("rollout.promotion", r.Promotion, "auto", "manual")
	v.oneOf("rollout.empty_group", r.EmptyGroup, "wait", "skip")
	if r.Watch < 0 {
		v.add("rollout.watch", "must not be negative")
	}
	v.positive("rollout.ack_timeout", r.AckTimeout)
	v.positive("rollout.node_grace", r.NodeGrace)
	v.positive("rollout.retry_after", r.RetryAfter)
	v.positive("rollout.undo_window", r.UndoWindow)
	if r.MinAcked < 1 || r.MinAcked > 100 {
		v.add("rollout.min_acked", "want a percentage from 1 to 100, got %d", r.MinAcked)
	}
	v.gates()
	v.command("rollout.hook.command", r.Hook.Command)
	v.positive("rollout.hook.timeout", r.Hook.Timeout)
	for i, w := range r.Windows {
		path := fmt.Sprintf("rollout.windows[%d]", i)
		if message := checkCron(w.Cron); message != "" {
			v.add(path+".cron", "%s", message)
		}
		v.positive(path+".duration", w.Duration)
		if _, err := time.LoadLocation(w.TimeZone); err != nil || w.TimeZone == "Local" {
			v.add(path+".time_zone", "no time zone is named %q", w.TimeZone)
		}
	}
	for i, f := range r.Freeze {
		v.period(fmt.Sprintf("rollout.freeze[%d]", i), f.From, f.To)
	}
}

// waves wants every group in exactly one wave.
func (v *validator) waves() {
	var seen []string
	for i, wave := range v.Rollout.Waves {
		path := fmt.Sprintf("rollout.waves[%d]", i)
		if len(wave) == 0 {
			v.add(path, "empty")
		}
		for j, name := range wave {
			if v.isNamed("rollout.waves") || v.origin == nil {
				v.knownGroup(fmt.Sprintf("%s[%d]", path, j), name, seen)
			}
			seen = append(seen, name)
		}
	}
	for _, g := range v.Groups {
		if g.Name != "" && !slices.Contains(seen, g.Name) {
			v.add("rollout.waves", "group %q is in no wave", g.Name)
		}
	}
}

func (v *validator) gates() {
	names := map[string]string{}
	for i, g := range v.Rollout.Gates {
		path := fmt.Sprintf("rollout.gates[%d]", i)
		v.uniqueName(names, path+".name", g.Name)
		v.url(path+".prometheus", g.Prometheus, "http", "https")
		if strings.TrimSpace(g.Query) == "" {
			v.add(path+".query", "empty")
		}
		if g.Max == nil && g.MaxIncrease == nil && !v.hasProblem(path+".max") && !v.hasProblem(path+".max_increase") {
			v.add(path, "needs max or max_increase")
		}
		if g.MaxIncrease != nil && g.MaxIncrease.Value < 0 {
			v.add(path+".max_increase", "must not be negative")
		}
		v.positive(path+".timeout", g.Timeout)
	}
}

// cronField is one of the five fields: its name, its range, and the names that stand for numbers from low on.
type cronField struct {
	name      string
	low, high int
	names     string
}

// checkCron returns what is wrong with a cron expression of five fields, or "".
func checkCron(expression string) string {
	fields := []cronField{
		{"minute", 0, 59, ""},
		{"hour", 0, 23, ""},
		{"day of month", 1, 31, ""},
		{"month", 1, 12, "jan feb mar apr may jun jul aug sep oct nov dec"},
		{"day of week", 0, 7, "sun mon tue wed thu fri sat"},
	}
	parts := strings.Fields(expression)
	if len(parts) != len(fields) {
		return fmt.Sprintf(`want the five fields of cron such as "0 9 * * 1-5", got %q`, expression)
	}
	for i, f := range fields {
		for item := range strings.SplitSeq(parts[i], ",") {
			if !f.matches(item) {
				return fmt.Sprintf("%s %q is not from %d to %d", f.name, item, f.low, f.high)
			}
		}
	}
	return ""
}

// matches reports whether item is *, N, N-M, or one of these with /STEP.
func (f cronField) matches(item string) bool {
	span, step, hasStep := strings.Cut(item, "/")
	if hasStep {
		if n, err := strconv.Atoi(step); err != nil || n < 1 || n > f.high {
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
	return n, err == nil && n >= f.low && n <= f.high && text[0] != '+' && text[0] != '-'
}
