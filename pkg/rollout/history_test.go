package rollout

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/store"
)

// seedHistory stores rollouts that ended, with the ids from 1.
func (r *rig) seedHistory(n int) {
	r.t.Helper()
	var operations []store.Operation
	for i := range n {
		one := Rollout{ID: uint64(i + 1), State: Done, Change: []Change{{Secret: "www", Kind: Add}}}
		operations = append(operations, store.Put(rolloutKey(one.ID), must(json.Marshal(one))))
	}
	for batch := range slices.Chunk(operations, store.MaxOperations) {
		if _, err := r.disk.Commit(r.ctx(), nil, batch); err != nil {
			r.t.Fatal(err)
		}
	}
}

func TestOldRolloutsAreForgotten(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.seedHistory(keptRollouts + 50)
	r.crash()
	r.reconfigure(r.policy)
	commits := r.disk.count()
	r.accept("www")
	r.step() // it ends
	if got := r.disk.count() - commits; got != 2 {
		t.Errorf("%d commits, want 2: forgetting needs none of its own", got)
	}
	for range 2 {
		r.serve("www")
	}
	history, err := r.c.History(r.ctx())
	if err != nil || len(history) != keptRollouts || history[len(history)-1].ID != keptRollouts+53 {
		t.Fatalf("%d rollouts are stored, %v; want the newest %d", len(history), err, keptRollouts)
	}
	if _, err := r.c.Rollout(r.ctx(), 53); !errors.Is(err, ErrNoRollout) {
		t.Errorf("of a forgotten one: %v, want %v", err, ErrNoRollout)
	}
	if history[0].ID != 54 {
		t.Errorf("the oldest is %d, want 54", history[0].ID)
	}
}

func TestFailedCommitDoesNotReadTheHistoryAgain(t *testing.T) {
	r := newRig(t, waves("auto", "canary", "production"))
	r.node("c1", "canary", "www")
	r.serve("www")
	for _, lost := range []bool{false, true} {
		fail := func(int) bool { return true }
		if lost {
			r.disk.hooks(nil, fail)
		} else {
			r.disk.hooks(fail, nil)
		}
		s := newSecret(t, "www", 1<<50)
		if _, err := r.c.Accept(r.ctx(), Proposal{Secret: s, Source: cache.SourceACME}); !errors.Is(err, errDisk) {
			t.Fatalf("got %v, want %v", err, errDisk)
		}
		r.disk.hooks(nil, nil)
		lists := &lister{Store: r.disk.Store}
		r.disk.Store = lists
		r.settle()
		if slices.Contains(lists.prefixes, rolloutPrefix+"/") {
			t.Errorf("lists %q, want no list of the rollouts", lists.prefixes)
		}
		r.disk.Store = lists.Store
		if at := r.at("production", "www"); (at == r.cache.Version(s)) != lost {
			t.Errorf("lost answer %t: production is at %s", lost, at.Short())
		}
	}
}
