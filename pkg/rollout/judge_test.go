package rollout

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestJudgeOfNodesThatComeBackOrUnsubscribed(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	j := jury{policy: Policy{AckTimeout: time.Second, NodeGrace: 10 * time.Minute}, now: now, unsent: map[string]time.Time{}}
	member := func(gone int64) Member { return Member{Node: memberKey("canary", "id", "n"), Gone: gone} }
	node := NodeProgress{Identity: "id", Node: "n"}
	unsubscribed, returning := node, node
	unsubscribed.Unsubscribed = true
	returning.LastSeen, returning.Returning = now, now.Add(7*time.Second)
	cases := []struct {
		name    string
		members []Member
		node    NodeProgress
		want    Nodes
		recheck time.Time
		left    []Member
		changed bool
	}{
		{"a member that unsubscribed", []Member{member(0)}, unsubscribed, Nodes{}, time.Time{}, []Member{}, true},
		{"another node that unsubscribed", nil, unsubscribed, Nodes{}, time.Time{}, nil, false},
		{"a member on its way back", []Member{member(999_999)}, returning, Nodes{Expected: 1}, now.Add(7 * time.Second), []Member{member(0)}, true},
		{"a member whose way back goes on", []Member{member(0)}, returning, Nodes{Expected: 1}, now.Add(7 * time.Second), []Member{member(0)}, false},
		{"another node on its way back", nil, returning, Nodes{Expected: 1}, now.Add(7 * time.Second), nil, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			w := Wave{Members: slices.Clone(c.members), At: now.Add(-time.Hour)}
			for range 2 { // also long after it was noticed first
				v := j.judge(w, map[string][]NodeProgress{"canary": {c.node}})
				if v.nodes != c.want || v.late != "" || !v.recheck.Equal(c.recheck) || !slices.Equal(v.members, c.left) || v.changed != c.changed {
					t.Errorf("got %+v, want %+v, recheck at %v, members %v", v, c.want, c.recheck, c.left)
				}
				if !slices.Equal(w.Members, c.members) {
					t.Errorf("the wave's own members were changed to %v", w.Members)
				}
			}
		})
	}
}

// A wave whose only node drops the name goes on at once, and does not wait for that node when it leaves then.
func TestWaveGoesOnWithoutANodeThatUnsubscribes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, waves("auto", "canary", "production"))
		c := r.node("c1", "canary", "www", "other")
		r.node("p1", "production", "www")
		v1 := r.serve("www")
		c.silent = true
		v2 := r.accept("www")
		r.settle()
		r.want("www", map[string]secret.Version{"canary": v2, "production": v1})
		r.edit(c, func(n *node) { n.names, n.dropped = []string{"other"}, []string{"www"} })
		r.settle()
		r.want("www", r.all(v2))
	})
}

// Where nodes of several groups refuse, the same one is named at each look, so that the reason does not change from look to look.
func TestTheSameRefusalIsNamedAtEachLook(t *testing.T) {
	j := jury{policy: Policy{AckTimeout: time.Minute}, now: time.Unix(1_000_000, 0)}
	progress := map[string][]NodeProgress{}
	for _, g := range []string{"ap", "eu", "us"} {
		progress[g] = []NodeProgress{{Identity: g, Node: g, Connected: true, Nacked: &NACK{Secret: g}}}
	}
	for range 50 {
		if v := j.judge(Wave{}, progress); v.nack.Secret != "us" || v.nodes.Nacked != 3 {
			t.Fatalf("got the refusal of %s among %d, want that of us among 3", v.nack.Secret, v.nodes.Nacked)
		}
	}
}
