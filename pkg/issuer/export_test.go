package issuer

import (
	"context"
	"time"
)

// SetHeartbeat makes the loop look less often of its own accord, for tests in which months pass. Call it before Run.
func (l *Loop) SetHeartbeat(d time.Duration) { l.heartbeat = d }

// Wanted is the digest of a certificate's configuration, for tests that write a State.
func Wanted(c Certificate) string { return wanted(&c) }

// Look looks as if it were this time.
func (l *Loop) Look(ctx context.Context, at time.Time) { l.look(ctx, at, nil) }

// Next moves a certificate to where it belongs and looks at what is due next, as the end of an order does.
func (l *Loop) Next(ctx context.Context, name string) time.Duration {
	l.mu.Lock()
	l.schedule(l.entries[name])
	l.mu.Unlock()
	return l.look(ctx, now(), nil)
}
