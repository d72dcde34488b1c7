package rollout

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// tally is what the histories contained.
type tally struct {
	mu   sync.Mutex
	what map[string]int // guarded by mu
}

func (t *tally) add(h *history) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.what == nil {
		t.what = map[string]int{}
	}
	t.what["histories"]++
	t.what["crashes while something was due"] += h.crashes
	if h.undecided {
		t.what["histories not decided to their end"]++
	}
	for _, act := range h.acts {
		t.what["actions"]++
		for _, word := range []string{"promote to", "rollback to", "the waves are", "starts again", "clients reject", "goes, or comes", "the store fails", "restart", "pause"} {
			if strings.Contains(act, word) && !strings.Contains(act, "not possible") && !strings.Contains(act, "refused:") && !strings.Contains(act, "is held") {
				t.what[word]++
			}
		}
	}
	for _, r := range h.ref.rollouts {
		t.what["rollouts"]++
		t.what["rollouts "+string(r.state)]++
		for _, c := range r.change {
			t.what["changes "+string(c.kind)]++
		}
	}
}

func (t *tally) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var parts []string
	for _, word := range slices.Sorted(maps.Keys(t.what)) {
		parts = append(parts, fmt.Sprintf("%d %s", t.what[word], word))
	}
	return strings.Join(parts, ", ")
}

// picture is what is compared, in lines.
type picture struct{ lines []string }

func (p *picture) group(name string, at versions) {
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(at)) {
		parts = append(parts, n+"="+short(at[n]))
	}
	p.lines = append(p.lines, fmt.Sprintf("group %s: %s", name, strings.Join(parts, " ")))
}

func (p *picture) rollout(id int, s State, wave int, waves []string, wants versions) {
	if s.Ended() && s != Done {
		waves, wave = nil, 0
	}
	var parts []string
	for _, n := range slices.Sorted(maps.Keys(wants)) {
		parts = append(parts, n+"->"+short(wants[n]))
	}
	p.lines = append(p.lines, fmt.Sprintf("rollout %03d: %s, wave %d of %q, %s", id, s, wave, waves, strings.Join(parts, " ")))
}

func (p *picture) hold(id holdID, kind HoldKind, handshake bool) {
	p.lines = append(p.lines, fmt.Sprintf("hold %s %s: %s %t", id.secret, short(id.version), kind, handshake))
}

func (p *picture) String() string {
	slices.Sort(p.lines)
	return strings.Join(p.lines, "\n")
}

// String tells what the controller has, as the reference does. Nearly always nothing has changed since it was asked last.
func (h *history) String() string {
	if now := h.memory.at(); h.pictured != now || h.c.doubt {
		h.pictured, h.image = now, h.draw()
	}
	return h.image
}

func (h *history) draw() string {
	var p picture
	for _, g := range h.policy.Groups() {
		p.group(g, maps.Collect(h.mustAt(g).Secrets.All()))
	}
	for _, r := range h.rollouts() {
		waves := make([]string, 0, len(r.Waves))
		for _, w := range r.Waves {
			waves = append(waves, strings.Join(w.Groups, "+")+" "+string(w.State))
		}
		wave := r.Wave
		p.rollout(int(r.ID), r.State, wave, waves, r.wants())
	}
	for _, one := range h.c.Holds() {
		p.hold(holdID{one.Secret, one.Version}, one.Kind, one.Handshake)
	}
	return p.String()
}

// rollouts are all that are stored, read once each time one is written.
func (h *history) rollouts() []*Rollout {
	entries, _, err := h.memory.List(h.ctx(), rolloutPrefix+"/")
	if err != nil {
		h.t.Fatal(err)
	}
	all := make([]*Rollout, 0, len(entries))
	for _, e := range entries {
		known := h.parsed[e.Key]
		if known.revision != e.Revision {
			known = parsedRollout{must(parse(e)), e.Revision}
			h.parsed[e.Key] = known
		}
		all = append(all, known.rollout)
	}
	return all
}

type parsedRollout struct {
	rollout  *Rollout // never written to
	revision int64
}

// tell prints the history that failed.
func (h *history) tell() {
	p := h.policy
	h.t.Logf("manual %t, watch %s, empty wait %t, min acked %d, gates %d, hook %t, blind %t, now %s", p.Manual, p.Watch, p.EmptyWait, p.MinAcked, len(p.Gates), p.Hook, h.prober.blinded, time.Now().Format("15:04:05.0"))
	for _, n := range h.fleet.nodes {
		h.t.Logf("node %s of %s: %v, connected %t, silent %t", n.id, n.group, n.names, n.connected, n.silent)
	}
	h.t.Logf("history:\n%s", strings.Join(h.acts, "\n"))
	h.t.Logf("controller:\n%s", h.String())
	if history, err := h.c.History(h.ctx()); err == nil {
		for _, r := range history[max(0, len(history)-6):] {
			for _, e := range r.Log {
				h.t.Logf("rollout %d %s: %s %s", r.ID, e.At.Format("15:04:05.0"), e.State, e.Reason)
			}
		}
	}
}
