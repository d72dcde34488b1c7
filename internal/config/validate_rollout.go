package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/sds-server/sds-server/pkg/rollout/calendar"
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
		if err := calendar.CheckCron(w.Cron); err != nil {
			v.add(path+".cron", "%v", err)
		}
		v.positive(path+".duration", w.Duration)
		if err := calendar.CheckTimeZone(w.TimeZone); err != nil {
			v.add(path+".time_zone", "%v", err)
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
