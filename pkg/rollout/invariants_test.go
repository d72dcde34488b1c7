package rollout

import (
	"time"
)

// invariants are those of DESIGN 4 that concern this package.
type invariants struct{}

func (i *invariants) init(*history)              {}
func (i *invariants) after(*history)             {}
func (i *invariants) restarted(*history, string) {}
func (i *invariants) validated(string, version)  {}

// watches checks that a restart loses little of a watch: 10 s at most, and what lies between two looks. The reference takes over what is left.
func (i *invariants) watches(h *history, ref *reference) {
	h.t.Helper()
	for _, r := range ref.under() {
		w := r.current()
		if w == nil || w.state != Watching {
			continue
		}
		one := h.get(r.id64())
		if have := one.current(); have != nil && have.State == Watching && one.Wave == r.wave {
			stored := seconds(have.Watched)
			w.watched += min(time.Since(w.ticked), 2*Wave{Watch: w.watch.Seconds()}.tick()) // the controller may have looked once more
			if lost := w.watched - stored; lost < 0 || lost > storeWatched+(Wave{Watch: w.watch.Seconds()}).tick() {
				h.t.Errorf("seed %d: a restart resumes with the watch time left: of %s, %s are stored", h.seed, w.watched, stored)
			}
			w.watched, w.ticked = stored, time.Now()
		}
	}
}

func (r *refRollout) id64() uint64 { return uint64(r.id) }
