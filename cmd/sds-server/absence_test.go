package main

import (
	"fmt"
	"slices"
	"testing"

	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
)

// at waits until the one rollout under way is in a state, with a number of nodes that it waits for, and of those that have ACKed.
func (b *box) at(state rollout.State, expected, acked int) {
	b.Helper()
	b.eventually(func() error {
		var r struct {
			Rollouts []rollout.Rollout `json:"rollouts"`
		}
		b.json(&r, "rollout", "status")
		if len(r.Rollouts) != 1 {
			return fmt.Errorf("%d rollouts are under way, want 1", len(r.Rollouts))
		}
		one := r.Rollouts[0]
		if n := one.Waves[0].Nodes; one.State != state || one.Wave != 0 || n.Expected != expected || n.Acked != acked {
			return fmt.Errorf("got %s in wave %d with nodes %+v, want %s in wave 0 with %d of %d", one.State, one.Wave, n, state, acked, expected)
		}
		return nil
	})
}

// present waits until the nodes are those, with their states.
func (b *box) present(want ...string) {
	b.Helper()
	b.eventually(func() error {
		var nodes struct {
			Nodes []sds.Node `json:"nodes"`
		}
		b.json(&nodes, "nodes")
		var got []string
		for _, n := range nodes.Nodes {
			text := n.ID + " " + string(n.State)
			for _, s := range n.Secrets {
				text += " " + s.Name
			}
			got = append(got, text)
		}
		if !slices.Equal(got, want) {
			return fmt.Errorf("got nodes %q, want %q", got, want)
		}
		return nil
	})
}

func TestKilledServerWaitsForExactlyTheNodesThatAreMissing(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	p := b.start()
	b.importPair("www", "a1")
	come := func(id, group string) *node {
		n := connect(t, b.SDSSocket(), id, group, "www")
		b.eventually(func() error { return n.has("www", "") })
		return n
	}
	all := func() []*node {
		return []*node{come("c1", "canary"), come("c2", "canary"), come("c3", "canary"), come("p1", "production")}
	}
	idle := func() {
		b.eventually(func() error {
			var r struct {
				Rollouts []rollout.Rollout `json:"rollouts"`
			}
			if b.json(&r, "rollout", "status"); len(r.Rollouts) > 0 {
				return fmt.Errorf("under way: %+v", r.Rollouts)
			}
			return nil
		})
	}
	all()
	idle()
	b.present("c1 SYNCED www", "c2 SYNCED www", "c3 SYNCED www", "p1 SYNCED www")
	b.must(p.Stop()) // everything is stored now
	p = b.start()
	b.present("c1 OFFLINE www", "c2 OFFLINE www", "c3 OFFLINE www", "p1 OFFLINE www")

	// Killed with a wave under way, of which one node has ACKed.
	nodes := all()
	idle()
	for _, n := range nodes[1:3] {
		n.mu.Lock()
		n.silent = true
		n.mu.Unlock()
	}
	b.importPair("www", "a2")
	b.at(rollout.Moving, 3, 1)
	before := b.version("www")
	b.must(p.Kill())
	p = b.start()
	b.at(rollout.Moving, 3, 0)
	for i, id := range []string{"c2", "c1", "c3"} {
		b.at(rollout.Moving, 3, i)
		if err := nodes[3].has("www", before); err == nil {
			t.Fatal("production was given what canary has not ACKed")
		}
		come(id, "canary")
	}
	p1 := come("p1", "production")
	idle()
	b.eventually(func() error { return p1.has("www", before) })

	// Killed with nothing under way: what comes then waits for the nodes that are not back.
	b.present("c1 SYNCED www", "c2 SYNCED www", "c3 SYNCED www", "p1 SYNCED www")
	b.must(p.Kill())
	b.start()
	come("c1", "canary")
	b.importPair("www", "b1")
	b.at(rollout.Moving, 3, 1)
	come("c3", "canary")
	b.at(rollout.Moving, 3, 2)
	come("c2", "canary")
	come("p1", "production")
	idle()
}
