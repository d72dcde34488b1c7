package app

import (
	"fmt"
	"time"

	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/rollout/calendar"
	"github.com/sds-server/sds-server/pkg/rollout/gate"
)

// outside is what a rollout asks besides nodes and handshakes: metrics, and the operator's command.
type outside struct {
	gates *gate.Reader
	hook  *gate.Hook
}

// buildOutside makes it, for the configuration of the start.
func (s *server) buildOutside(cfg *config.Config) {
	wake, log := func() { s.rollout.Wake() }, s.log.With("part", "gate")
	s.outside = outside{
		gates: gate.NewReader(gate.Options{Gates: queries(cfg), Wake: wake, Log: log}),
		hook:  gate.NewHook(gate.HookOptions{Command: s.command(cfg), Wake: wake, Log: log}),
	}
}

// set takes over a new configuration.
func (o outside) set(cfg *config.Config, command gate.Command) {
	o.gates.SetGates(queries(cfg))
	o.hook.SetCommand(command)
}

func (o outside) close() {
	o.gates.Close()
	o.hook.Close()
}

func queries(cfg *config.Config) []gate.Gate {
	gates := make([]gate.Gate, 0, len(cfg.Rollout.Gates))
	for _, g := range cfg.Rollout.Gates {
		gates = append(gates, gate.Gate{Name: g.Name, Prometheus: g.Prometheus, Query: g.Query, Timeout: g.Timeout})
	}
	return gates
}

func (s *server) command(cfg *config.Config) gate.Command {
	return gate.Command{Argv: cfg.Rollout.Hook.Command, Timeout: cfg.Rollout.Hook.Timeout, ConfigFile: s.opts.ConfigFile}
}

var (
	_ rollout.Gates = outside{}
	_ rollout.Hook  = outside{}
)

// Read implements rollout.Gates.
func (o outside) Read(since time.Time) []rollout.Reading {
	var out []rollout.Reading
	for _, r := range o.gates.Read(since) {
		out = append(out, rollout.Reading{Name: r.Name, At: r.At, Value: r.Value, Err: r.Err})
	}
	return out
}

// Run implements rollout.Hook.
func (o outside) Run(w rollout.HookWave) rollout.HookResult {
	r := o.hook.Run(gate.Wave{Rollout: w.Rollout, Wave: w.Wave, Groups: w.Groups, Secrets: w.Secrets})
	return rollout.HookResult{Done: r.Done, Failed: r.Failed, Err: r.Err}
}

// Forget implements rollout.Hook.
func (o outside) Forget(id uint64) { o.hook.Forget(id) }

// calendarOf says when waves may begin.
func calendarOf(cfg *config.Config) (rollout.Calendar, error) {
	if len(cfg.Rollout.Windows)+len(cfg.Rollout.Freeze) == 0 {
		return nil, nil
	}
	var windows []calendar.Window
	for _, w := range cfg.Rollout.Windows {
		windows = append(windows, calendar.Window{Cron: w.Cron, Duration: w.Duration, TimeZone: w.TimeZone})
	}
	var freezes []calendar.Freeze
	for _, f := range cfg.Rollout.Freeze {
		freezes = append(freezes, calendar.Freeze{From: f.From, To: f.To, Reason: f.Reason})
	}
	c, err := calendar.New(windows, freezes)
	if err != nil {
		return nil, fmt.Errorf("rollout: %w", err)
	}
	return c, nil
}
