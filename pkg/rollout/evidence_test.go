package rollout

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// probes is a scripted Prober: what nodes serve is what their handshakes show.
type probes struct {
	fleet   *fleet
	bad     map[secret.Version]string // why clients reject a version
	unseen  bool                      // nothing answers
	hung    bool                      // no round ends
	looks   int
	blinded bool // verify is not configured
}

func (p *probes) Look(group string, want map[string]secret.Version, _ time.Time) Round {
	p.fleet.mu.Lock()
	defer p.fleet.mu.Unlock()
	p.looks++
	r := Round{Began: time.Now(), Ended: time.Now(), Served: map[string]int{}}
	if p.blinded {
		return r
	}
	if p.hung {
		return Round{Began: time.Now(), Targets: 1}
	}
	for _, n := range p.fleet.nodes {
		for _, name := range n.names {
			if v, ok := want[name]; ok && v != "" && n.group == group && n.connected {
				r.Targets++
				p.shake(&r, n, name, v)
			}
		}
	}
	return r
}

func (p *probes) shake(r *Round, n *node, name string, v secret.Version) {
	f := Finding{Secret: name, Version: v, Node: n.id}
	switch {
	case p.unseen:
		f.Kind, f.Unseen, f.Message = "timeout", true, "no handshake by "+n.id
	case n.serves[name] != v:
		f.Kind, f.Message = "old_leaf", n.id+" still serves "+short(n.serves[name])
	case p.bad[v] != "":
		f.Kind, f.Message = "chain", p.bad[v]
	default:
		r.OK++
		r.Served[name]++
		return
	}
	r.Failed++
	r.Findings = append(r.Findings, f)
}

func (p *probes) Mismatch(group, name string, version secret.Version) (Finding, bool) {
	r := p.Look(group, versions{name: version}, time.Time{})
	for _, f := range r.Findings {
		if !f.Unseen {
			return f, true
		}
	}
	return Finding{}, false
}

// meters are scripted Gates.
type meters struct{ values, errs map[string]string }

func (m *meters) Read(time.Time) []Reading {
	var all []Reading
	for _, name := range []string{"errors", "latency"} {
		one := Reading{Name: name, At: time.Now(), Err: m.errs[name]}
		if text, ok := m.values[name]; ok {
			must(fmt.Sscan(text, &one.Value))
		} else if one.Err == "" {
			one.Err = "no data"
		}
		all = append(all, one)
	}
	return all
}

// command is a scripted Hook.
type command struct {
	result HookResult
	ran    []HookWave
	forgot []uint64
}

func (c *command) Run(w HookWave) HookResult {
	if !slices.ContainsFunc(c.ran, func(have HookWave) bool { return have.Rollout == w.Rollout && have.Wave == w.Wave }) {
		c.ran = append(c.ran, w)
	}
	return c.result
}

func (c *command) Forget(id uint64) { c.forgot = append(c.forgot, id) }

// closed is a Calendar that opens at a time.
type closed time.Time

func (c closed) Open(at time.Time) (bool, string, time.Time) {
	return !at.Before(time.Time(c)), "until the window opens", time.Time(c)
}

func (p Policy) watched(d time.Duration) Policy {
	p.Watch, p.UndoWindow = d, 30*time.Minute
	return p
}

// wantWave checks the state of a rollout's current wave.
func (r *rig) wantWave(id uint64, want State) {
	r.t.Helper()
	one := r.get(id)
	if w := one.current(); w == nil || w.State != want {
		r.t.Errorf("rollout %d is %s (%s), wave %d; want its wave to be %s", id, one.State, one.Reason, one.Wave, want)
	}
}

func TestWaveIsVerifiedAndWatchedBeforeTheNextOne(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(5*time.Minute), func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		r.node("p1", "production", "www")
		v1 := r.serve("www")
		r.prober.blinded, r.prober.hung = false, true
		v2 := r.serve("www")
		r.wantWave(2, Verifying)
		r.prober.hung = false
		r.settle()
		r.wantWave(2, Watching)
		r.pass(4 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.pass(90 * time.Second)
		r.want("www", r.all(v2))
		r.wantWave(2, Watching)
		r.pass(6 * time.Minute)
		r.wantStates("1 done", "2 done")
		var states []State
		for _, e := range r.get(2).Log {
			states = append(states, e.State)
		}
		want := []State{Waiting, Moving, Verifying, Watching, Moving, Verifying, Watching, Done}
		if !slices.Equal(states, want) {
			t.Errorf("its log has %v, want %v", states, want)
		}
	})
}

func TestHandshakeThatShowsAnotherCertificateTakesTheWaveBackAndHoldsHard(t *testing.T) {
	for _, when := range []State{Verifying, Watching} {
		t.Run(string(when), func(t *testing.T) {
			run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
				r.prober.blinded = false
				r.node("c1", "canary", "www")
				r.node("p1", "production", "www")
				v1 := r.serve("www")
				if when == Verifying {
					r.prober.hung = true
				}
				v2 := r.serve("www")
				r.wantWave(2, when)
				r.prober.hung, r.prober.bad = false, map[secret.Version]string{v2: "clients do not know the root"}
				r.pass(40 * time.Second)
				r.want("www", r.all(v1))
				r.wantStates("1 done", "2 rolled_back")
				if r.held("www", v2) != Hard || !strings.Contains(r.get(2).Reason, "clients do not know the root") {
					t.Errorf("held %q, %q; want hard, with what was seen", r.held("www", v2), r.get(2).Reason)
				}
				r.pass(5 * time.Hour) // it is not tried again
				r.want("www", r.all(v1))
			})
		})
	}
}

func TestHandshakesThatSeeNothingTakeTheWaveBackSoftly(t *testing.T) {
	for name, see := range map[string]func(*probes){"unseen": func(p *probes) { p.unseen = true }, "hung": func(p *probes) { p.hung = true }} {
		t.Run(name, func(t *testing.T) {
			run(t, waves("auto", "canary", "production").watched(time.Minute), func(t *testing.T, r *rig) {
				r.prober.blinded = false
				r.node("c1", "canary", "www")
				v1 := r.serve("www")
				see(r.prober)
				v2 := r.serve("www")
				r.pass(6 * time.Minute)
				r.want("www", r.all(v1))
				if r.held("www", v2) != Soft {
					t.Errorf("held %q, want soft", r.held("www", v2))
				}
				r.prober.unseen, r.prober.hung = false, false
				r.pass(time.Hour + 5*time.Minute)
				r.want("www", r.all(v2))
			})
		})
	}
}

func TestWatchedTimeIsOnlyThatInWhichSomebodyWatched(t *testing.T) {
	run(t, waves("auto", "canary", "production").watched(10*time.Minute), func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.pass(8 * time.Minute)
		r.disk.Close()        // the server is gone for an hour
		time.Sleep(time.Hour) //nolint:forbidigo // the clock of the bubble
		r.open()
		r.reconfigure(r.policy)
		r.pass(time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.wantWave(2, Watching)
		r.pass(90 * time.Second) // 8 m before, 2 m after, and what was not stored yet
		r.want("www", r.all(v2))
	})
}

func TestGateOverItsBoundTakesTheWholeChangeBackSoftly(t *testing.T) {
	policy := waves("auto", "canary", "production").watched(2 * time.Minute)
	policy.Gates = []Gate{{Name: "errors", Max: new(float64(5)), Timeout: time.Minute}}
	run(t, policy, func(t *testing.T, r *rig) {
		r.meters.values = map[string]string{"errors": "0"}
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.wantWave(2, Watching)
		r.meters.values["errors"] = "5.5"
		r.pass(time.Minute)
		r.want("www", r.all(v1))
		if r.held("www", v2) != Soft || !strings.Contains(r.get(2).Reason, `gate "errors" is at 5.5, over 5`) {
			t.Errorf("held %q, %q", r.held("www", v2), r.get(2).Reason)
		}
	})
}

func TestGateComparesWithTheValueBeforeTheWave(t *testing.T) {
	policy := waves("auto", "canary", "production").watched(time.Minute)
	policy.Gates = []Gate{{Name: "errors", MaxIncrease: new(float64(10)), Percent: true, Timeout: time.Minute}}
	run(t, policy, func(t *testing.T, r *rig) {
		r.meters.values = map[string]string{"errors": "100"}
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.meters.values["errors"] = "110" // within 10 %
		r.pass(70 * time.Second)
		r.want("www", r.all(v2))
		r.pass(70 * time.Second) // the second wave's value before is 110
		r.meters.values["errors"] = "100"
		v3 := r.serve("www")
		r.meters.values["errors"] = "110.1"
		r.pass(time.Minute)
		r.want("www", r.all(v2))
		if r.held("www", v3) != Soft || v1 == v2 {
			t.Errorf("held %q, want soft", r.held("www", v3))
		}
	})
}

func TestGateWithoutAValueWaitsAndThenFailsSoftly(t *testing.T) {
	policy := waves("auto", "canary", "production").watched(time.Minute)
	policy.Gates = []Gate{{Name: "errors", Max: new(float64(5)), Timeout: 2 * time.Minute}}
	run(t, policy, func(t *testing.T, r *rig) {
		r.meters.values = map[string]string{"errors": "0"}
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.meters.errs = map[string]string{"errors": "NaN"}
		r.pass(2 * time.Minute) // the watch is over, the gate is waited for
		r.want("www", versions{"canary": v2, "production": v1})
		r.wantWave(2, Watching)
		r.pass(90 * time.Second)
		r.want("www", r.all(v1))
		r.wantStates("1 done", "2 rolled_back")
		if r.held("www", v2) != Soft {
			t.Errorf("held %q, want soft", r.held("www", v2))
		}
	})
}

func TestWaveDoesNotBeginWhileAGateIsOverItsBound(t *testing.T) {
	policy := waves("auto", "canary", "production").watched(time.Minute)
	policy.Gates = []Gate{{Name: "errors", Max: new(float64(5)), Timeout: 2 * time.Minute}}
	run(t, policy, func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www") // an addition waits for no gate
		r.meters.values = map[string]string{"errors": "6"}
		v2 := r.serve("www")
		r.pass(time.Minute)
		r.want("www", r.all(v1))
		r.meters.values["errors"] = "4"
		r.pass(5 * time.Second)
		r.want("www", versions{"canary": v2})
		r.pass(5 * time.Minute)
		r.want("www", r.all(v2))
		delete(r.meters.values, "errors")
		v3 := r.serve("www")
		r.pass(3 * time.Minute)
		r.want("www", r.all(v2))
		if r.held("www", v3) != Soft || r.held("www", v2) != "" {
			t.Errorf("held %q, want soft: the gate had no value within its time-out", r.held("www", v3))
		}
	})
}

func TestHookHasToAgree(t *testing.T) {
	policy := waves("auto", "canary", "production").watched(time.Minute)
	policy.Hook = true
	run(t, policy, func(t *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.pass(2 * time.Minute)
		r.want("www", versions{"canary": v2, "production": v1})
		r.hook.result = HookResult{Done: true}
		r.pass(3 * time.Minute)
		r.want("www", r.all(v2))
		if len(r.hook.ran) != 2 || r.hook.ran[0].Secrets[0] != "www" || r.hook.ran[0].Groups[0] != "canary" {
			t.Errorf("it ran for %+v, want once for each wave", r.hook.ran)
		}
		for _, bad := range []HookResult{{Done: true, Failed: "no"}, {Done: true, Err: "not found"}} {
			r.hook.result = bad
			v3 := r.serve("www")
			r.pass(2 * time.Minute)
			r.want("www", r.all(v2))
			if r.held("www", v3) != Soft {
				t.Errorf("%+v: held %q, want soft", bad, r.held("www", v3))
			}
		}
	})
}

func TestCalendarKeepsWavesFromBeginning(t *testing.T) {
	policy := waves("auto", "canary", "production")
	run(t, policy, func(_ *testing.T, r *rig) {
		r.node("c1", "canary", "www")
		v1 := r.serve("www")
		policy.Calendar = closed(time.Now().Add(time.Hour))
		r.reconfigure(policy)
		added := r.serve("other") // an addition is not kept
		r.want("other", r.all(added))
		v2 := r.serve("www")
		r.pass(59 * time.Minute)
		r.want("www", r.all(v1))
		r.pass(2 * time.Minute)
		r.want("www", r.all(v2))
	})
}

func TestEmptyGroupIsWaitedFor(t *testing.T) {
	policy := waves("auto", "canary", "production")
	policy.EmptyWait = true
	run(t, policy, func(t *testing.T, r *rig) {
		r.node("p1", "production", "www")
		v1 := r.serve("www")
		v2 := r.serve("www")
		r.pass(time.Hour)
		r.want("www", r.all(v1))
		if !strings.Contains(r.get(2).Reason, "a node of canary that subscribes to www") {
			t.Errorf("the reason is %q", r.get(2).Reason)
		}
		r.node("c1", "canary", "www")
		r.settle()
		r.want("www", r.all(v2))
	})
}
