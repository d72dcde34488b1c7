package gate

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

const (
	// hookSlots is how many commands run at once; further ones wait, and their time begins when they do.
	hookSlots = 4
	// DefaultHookTimeout is that of a Command without one.
	DefaultHookTimeout = time.Minute
)

// Command is what a Hook runs for a wave.
type Command struct {
	// Argv is an absolute program and its arguments; empty: there is no hook, and every wave passes.
	Argv []string
	// Timeout of one run; default 1 m.
	Timeout time.Duration
	// ConfigFile is the file that names the program. It must not be writable by others, or nothing is run; empty: not looked at.
	ConfigFile string
}

// Wave is what a command is run for.
type Wave struct {
	Rollout uint64
	// Wave counts from 0.
	Wave int
	// Attempt tells runs for the same wave apart.
	Attempt int
	// Groups and Secrets are names.
	Groups, Secrets []string
}

// Result is how a run stands. Failed and Err are one line each.
type Result struct {
	Done bool
	// OK is whether it ended with exit code 0.
	OK bool
	// Failed is what it said when it ended with another one.
	Failed string
	// Err is why it says nothing: it could not be run, was killed, or took too long.
	Err string
}

// HookOptions configure a Hook. Log is required.
type HookOptions struct {
	// Command is that of the start; see SetCommand.
	Command Command
	// Wake is called after each run, without any lock; it may call Run. Default: nobody is woken.
	Wake func()
	// Log gets a line for each run that ended.
	Log *slog.Logger
}

// Hook runs the operator's command once for each attempt at a wave. All methods are safe for concurrent use.
type Hook struct {
	options HookOptions
	slots   chan struct{}
	running sync.WaitGroup

	mu      sync.Mutex
	command Command         // guarded by mu
	runs    map[uint64]*run // guarded by mu, as what they hold; by rollout
	closed  bool            // guarded by mu
}

// run is the newest run for a rollout.
type run struct {
	wave, attempt int
	result        Result
	cancel        context.CancelFunc
}

// NewHook returns a Hook that has run nothing yet.
func NewHook(o HookOptions) *Hook {
	if o.Wake == nil {
		o.Wake = func() {}
	}
	return &Hook{options: o, slots: make(chan struct{}, hookSlots), command: o.Command, runs: map[uint64]*run{}}
}

// SetCommand puts another command in the place of the one before, for runs that have not begun.
func (h *Hook) SetCommand(c Command) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.command = c
}

// Run begins the command for an attempt at a wave if this is the first call for it, and returns how it stands; it never waits. A run of the same
// rollout for another wave or attempt is ended. A result is not durable: after a restart of the server the command is run again.
func (h *Hook) Run(w Wave) Result {
	h.mu.Lock()
	defer h.mu.Unlock()
	before := h.runs[w.Rollout]
	if before != nil && before.wave == w.Wave && before.attempt == w.Attempt {
		return before.result
	}
	if before != nil {
		before.cancel()
		delete(h.runs, w.Rollout)
	}
	command := h.command
	if len(command.Argv) == 0 {
		return Result{Done: true, OK: true}
	}
	if h.closed {
		return Result{}
	}
	if command.Timeout <= 0 {
		command.Timeout = DefaultHookTimeout
	}
	ctx, cancel := context.WithCancel(context.Background())
	one := &run{wave: w.Wave, attempt: w.Attempt, cancel: cancel}
	h.runs[w.Rollout] = one
	h.running.Go(func() {
		defer cancel()
		select {
		case h.slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		o := execute(ctx, command, w)
		<-h.slots
		h.took(ctx, w, one, o)
	})
	return Result{}
}

// took takes over the outcome of a run and wakes who waits for it.
func (h *Hook) took(ctx context.Context, w Wave, one *run, o outcome) {
	h.mu.Lock()
	ignored := h.closed || h.runs[w.Rollout] != one
	one.result = o.result()
	result := one.result
	h.mu.Unlock()
	log := h.options.Log.With("rollout", w.Rollout, "wave", w.Wave, "attempt", w.Attempt, "seconds", o.took.Seconds())
	log.DebugContext(ctx, "hook said", "output", o.output)
	switch {
	case ignored:
		log.InfoContext(ctx, "hook ended: it is not wanted any more")
		return
	case result.OK:
		log.InfoContext(ctx, "hook passed")
	case result.Failed != "":
		log.InfoContext(ctx, "hook failed", "reason", result.Failed)
	default:
		log.InfoContext(ctx, "hook did not run to its end", "err", result.Err)
	}
	h.options.Wake()
}

// Forget drops what is known of a rollout and ends its run.
func (h *Hook) Forget(rollout uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if one := h.runs[rollout]; one != nil {
		one.cancel()
		delete(h.runs, rollout)
	}
}

// Close kills what is running and waits for its end; nobody is woken any more, and no run begins.
func (h *Hook) Close() {
	h.mu.Lock()
	h.closed = true
	for _, one := range h.runs {
		one.cancel()
	}
	h.mu.Unlock()
	h.running.Wait()
}
