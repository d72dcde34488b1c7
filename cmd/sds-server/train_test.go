package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// rolloutsOf lists the rollouts of a secret, the oldest first.
func (b *box) rolloutsOf(name string) []admin.Rollout {
	b.Helper()
	var r admin.Rollouts
	b.json(&r, "rollout", "history", "--secret", name)
	return r.Rollouts
}

// newest waits until the newest rollout of a secret is as it should be, and not the one before.
func (b *box) newest(name string, before uint64, state rollout.State) admin.Rollout {
	b.Helper()
	var last admin.Rollout
	b.eventually(func() error {
		all := b.rolloutsOf(name)
		if len(all) == 0 {
			return fmt.Errorf("%s has no rollout", name)
		}
		if last = all[len(all)-1]; last.ID == before || last.State != state {
			return fmt.Errorf("rollout %d of %s is %s: %s", last.ID, name, last.State, last.Reason)
		}
		return nil
	})
	return last
}

// TestTrainIsOneRolloutForItsOperators has two renewals wait for the same group, so that they travel together, and follows them with every command.
func TestTrainIsOneRolloutForItsOperators(t *testing.T) {
	t.Parallel()
	names := []string{"a.example", "b.example", "c.example"}
	_, s := pebble(t, settings{Manual: true, Certs: names})
	b := newBox(t, s)
	b.start()
	n := connect(t, b.SDSSocket(), "n1", "canary", names...)
	added := map[string]uint64{}
	for _, name := range names {
		b.eventually(func() error { return n.has(name, "") })
		added[name] = b.newest(name, 0, rollout.Done).ID
	}
	n.close() // its wave waits for it
	b.eventually(func() error {
		if out := b.ok("nodes"); !strings.Contains(out, "OFFLINE") {
			return fmt.Errorf("n1 is not offline in %s", out)
		}
		return nil
	})
	b.ok("renew", "a.example", "--force", "--wait=issued")
	first := b.newest("a.example", added["a.example"], rollout.Moving)
	waiting := make(chan result, 2)
	for _, name := range names[1:] {
		go func() { waiting <- b.run("renew", name, "--force", "--wait") }()
		b.newest(name, added[name], rollout.Waiting)
	}
	connect(t, b.SDSSocket(), "n1", "canary", names...)
	b.newest("a.example", added["a.example"], rollout.Waiting) // for the promotion

	// One of the two has taken the other along.
	joined, train := b.newest("b.example", added["b.example"], rollout.Waiting), admin.Rollout{}
	b.eventually(func() error {
		for _, name := range names[1:] {
			for _, r := range b.rolloutsOf(name) {
				switch {
				case r.Joined != nil:
					joined = r
				case len(r.Change) == 2:
					train = r
				}
			}
		}
		if joined.Joined == nil || *joined.Joined != train.ID || train.State != rollout.Waiting || !strings.Contains(train.Reason, "promotion") {
			return fmt.Errorf("joined %+v, train %+v", joined, train)
		}
		return nil
	})
	if out := b.ok("rollout", "status", fmt.Sprint(joined.ID)); !strings.Contains(out, fmt.Sprintf("rollout %d", train.ID)) {
		t.Errorf("got %s, want it to name rollout %d", out, train.ID)
	}
	out := b.ok("promote", "--group", "production", "--rollout", fmt.Sprint(first.ID))
	if !strings.HasPrefix(out, fmt.Sprintf("rollout %d: renewal of a.example: ", first.ID)) {
		t.Errorf("got %s", out)
	}
	out = b.ok("promote", "--group", "production")
	for _, name := range names[1:] {
		if want := fmt.Sprintf("rollout %d: renewal of %s: ", train.ID, name); strings.Count(out, want) != 1 {
			t.Errorf("got %s, want %q once", out, want)
		}
	}
	for range 2 {
		if r := <-waiting; r.code != 0 || !strings.Contains(r.out, "is in every wave after") {
			t.Errorf("renew --wait: exit %d, %s%s", r.code, r.out, r.errs)
		}
	}
	out = b.ok("rollout", "status", fmt.Sprint(joined.ID), "--watch") // it follows
	for _, want := range []string{
		fmt.Sprintf("superseded: goes on with rollout %d", train.ID), fmt.Sprintf("rollout %d (renewal of b.example, c.example): done: every wave is done", train.ID),
	} {
		if strings.Count(out, want) != 1 {
			t.Errorf("got %s, want %q once", out, want)
		}
	}
}

// TestPromotionNamesEveryChange has trains, which have more changes than rollouts.
func TestPromotionNamesEveryChange(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		p    admin.Promotion
		want string
	}{
		{"one", admin.Promotion{Rollouts: []uint64{4}, Changes: []string{"a"}}, "rollout 4: a"},
		{"a train", admin.Promotion{Rollouts: []uint64{4}, Changes: []string{"a", "b"}}, "rollout 4: a|rollout 4: b"},
		{"two", admin.Promotion{Rollouts: []uint64{4, 5}, Changes: []string{"a", "b"}}, "rollout 4: a|rollout 5: b"},
		{"two, one of them a train", admin.Promotion{Rollouts: []uint64{4, 5}, Changes: []string{"a", "b", "c"}}, "rollouts 4, 5: a|rollouts 4, 5: b|rollouts 4, 5: c"},
	} {
		if got := strings.Join(promoted(test.p), "|"); got != test.want {
			t.Errorf("%s: got %s, want %s", test.name, got, test.want)
		}
	}
}
