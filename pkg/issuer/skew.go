package issuer

import "time"

// clockStep is how far the clock has to go back between two looks to have been wrong before.
const clockStep = time.Minute

// corrected returns the state without what a clock that was ahead has put off: a machine that booted in 2030 and was set right
// afterwards would not try again for years, across restarts. What was noted later than now was noted by such a clock; its certificate
// is tried, and its CA asked, at once.
func (s *State) corrected(at time.Time) State {
	next := *s
	if f := next.Failure; f != nil && f.At.After(at) {
		again := *f
		again.NotBeforeTry = time.Time{}
		next.Failure = &again
	}
	if next.Advice.Asked.After(at) { // the instant in the window was drawn by that clock as well
		next.Advice = Advice{ID: next.Advice.ID}
	}
	return next
}

// turnBack forgets what a clock that was ahead has put off, when it has gone back since the last look; mu is held.
func (l *Loop) turnBack(at time.Time) {
	back := at.Before(l.looked.Add(-clockStep))
	l.looked = at
	if !back {
		return
	}
	for _, n := range l.lanes {
		if n.breaker.opened.After(at) {
			n.breaker.close()
		}
	}
	for _, e := range l.entries {
		if !e.loaded {
			continue
		}
		e.state = e.state.corrected(at)
		if e.running() {
			l.planAsk(e) // end does the rest
			continue
		}
		l.schedule(e) // also out of a queue or a gate
	}
}
