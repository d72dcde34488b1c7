package testenv

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

// keptErrors is how many errors of a Load are kept.
const keptErrors = 10

// LoadOptions says what a Load does.
type LoadOptions struct {
	// Address is "127.0.0.1:port"; ServerName the SNI.
	Address, ServerName string
	// Roots: where set, the chain must lead to them and the leaf must be valid for ServerName.
	Roots *x509.CertPool
	// Workers is the number of handshakes at a time; default 2.
	Workers int
	// Pause is waited by a worker between two handshakes; default: none.
	Pause time.Duration
	// Timeout bounds a handshake, which has then failed; default 5 s.
	Timeout time.Duration
}

// Seen says when a certificate was served: the ends of the first and the last handshake that got it, and their number.
type Seen struct {
	First, Last time.Time
	Count       int
}

// Load makes full handshakes in a loop and remembers what was served and what failed.
type Load struct {
	options LoadOptions
	stop    context.CancelFunc
	workers sync.WaitGroup

	mu      sync.Mutex
	made    int             // guarded by mu
	failed  int             // guarded by mu
	errs    []error         // guarded by mu; the first ones
	seen    map[string]Seen // guarded by mu; by serial
	changed chan struct{}   // guarded by mu; closed and replaced at each new serial
}

// StartLoad starts the workers. They end with Stop or with ctx; a handshake that is under way then is finished and
// counted, so that the numbers are exact.
func StartLoad(ctx context.Context, o LoadOptions) *Load {
	if o.Workers == 0 {
		o.Workers = 2
	}
	if o.Timeout == 0 {
		o.Timeout = handshakeTimeout
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{options: o, stop: cancel, seen: make(map[string]Seen), changed: make(chan struct{})}
	for range o.Workers {
		l.workers.Go(func() { l.run(ctx) })
	}
	return l
}

func (l *Load) run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if ctx.Err() != nil {
			return
		}
		l.once(context.WithoutCancel(ctx))
		timer.Reset(l.options.Pause)
	}
}

func (l *Load) once(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, l.options.Timeout)
	defer cancel()
	chain, at, err := handshake(ctx, l.options.Address, clientConfig(l.options.ServerName, l.options.Roots))

	l.mu.Lock()
	defer l.mu.Unlock()
	if err != nil {
		l.failed++
		if len(l.errs) < keptErrors {
			l.errs = append(l.errs, fmt.Errorf("%s: %w", time.Now().Format(time.RFC3339Nano), err))
		}
		return
	}
	l.made++
	serial := Serial(chain[0])
	seen, known := l.seen[serial]
	if !known {
		close(l.changed)
		l.changed = make(chan struct{})
	}
	// Workers come here in another order than their handshakes ended.
	if !known || at.Before(seen.First) {
		seen.First = at
	}
	if at.After(seen.Last) {
		seen.Last = at
	}
	seen.Count++
	l.seen[serial] = seen
}

// Stop ends the workers and waits for them.
func (l *Load) Stop() {
	l.stop()
	l.workers.Wait()
}

// Made is the number of handshakes that succeeded.
func (l *Load) Made() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.made
}

// Failed is the number of handshakes that failed.
func (l *Load) Failed() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// Errors are the first ten errors, each with its time.
func (l *Load) Errors() []error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.errs)
}

// FirstSeen says when the first handshake ended that got the certificate (see Serial).
func (l *Load) FirstSeen(serial string) (time.Time, bool) {
	seen, ok := l.Seen(serial)
	return seen.First, ok
}

// Seen says when and how often the certificate was served.
func (l *Load) Seen(serial string) (Seen, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	seen, ok := l.seen[serial]
	return seen, ok
}

// Serials are all serials that were served, with the times.
func (l *Load) Serials() map[string]Seen {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.seen)
}

// WaitSerial waits for the first handshake that gets the certificate, and returns when it ended.
func (l *Load) WaitSerial(ctx context.Context, serial string) (time.Time, error) {
	for {
		l.mu.Lock()
		seen, ok := l.seen[serial]
		changed := l.changed
		l.mu.Unlock()
		if ok {
			return seen.First, nil
		}
		select {
		case <-ctx.Done():
			return time.Time{}, fmt.Errorf("serial %s was not served by %s for %q: %w (%d handshakes made, %d failed)",
				serial, l.options.Address, l.options.ServerName, ctx.Err(), l.Made(), l.Failed())
		case <-changed:
		}
	}
}

// WaitMade waits until n more handshakes have succeeded.
func (l *Load) WaitMade(ctx context.Context, n int) error {
	goal := l.Made() + n
	return Eventually(ctx, func(context.Context) error {
		if made := l.Made(); made < goal {
			return fmt.Errorf("%d of %d handshakes made, %d failed", made, goal, l.Failed())
		}
		return nil
	})
}
