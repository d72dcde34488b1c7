package issuer

import "time"

// SetHeartbeat makes the loop look less often of its own accord, for tests in which months pass. Call it before Run.
func (l *Loop) SetHeartbeat(d time.Duration) { l.heartbeat = d }

// Wanted is the digest of a certificate's configuration, for tests that write a State.
func Wanted(c Certificate) string { return wanted(&c) }
