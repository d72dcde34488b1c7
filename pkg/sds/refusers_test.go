package sds

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// Those who rejected a version are known also after they have rejected another one since, and those of a group alone are listed.
func TestRefusersAreKnownByTheirIdentities(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f, connect := mutual(t)
		node := func(identity, id string) *envoy {
			e := newEnvoy(t, connect(f.ca.client(t, time.Time{}, identity)), protocol, &corev3.Node{Id: id})
			e.subscribe("shared")
			e.expect("shared")
			return e
		}
		f.rotate(t, "canary", "shared")
		f.rotate(t, "production", "shared")
		const one, two, other = "spiffe://edge.example/canary/1", "spiffe://edge.example/canary/2", "spiffe://edge.example/production/1"
		canary := []*envoy{node(one, "a"), node(one, "b"), node(two, "c")}
		node(other, "d")

		first := f.rotate(t, "canary", "shared")
		canary[0].ack(canary[0].next())
		canary[1].nack(canary[1].next(), "no")
		canary[2].ack(canary[2].next())
		second := f.rotate(t, "canary", "shared")
		canary[0].ack(canary[0].next())
		canary[1].nack(canary[1].next(), "no")
		canary[2].nack(canary[2].next(), "no")
		synctest.Wait()
		if got, want := f.Refusers("shared", first), []string{one}; !slices.Equal(got, want) {
			t.Errorf("the first version: got %q, want %q", got, want)
		}
		if got, want := f.Refusers("shared", second), []string{one, two}; !slices.Equal(got, want) {
			t.Errorf("the second version: got %q, want %q", got, want)
		}
		if got := f.Refusers("other", first); len(got) > 0 {
			t.Errorf("another secret: got %q", got)
		}
		for _, row := range []struct {
			groups []string
			want   []string
		}{{nil, []string{"a", "b", "c", "d"}}, {[]string{"canary"}, []string{"a", "b", "c"}}, {[]string{"production", "nowhere"}, []string{"d"}}} {
			var got []string
			for _, n := range f.Nodes(row.groups...) {
				got = append(got, n.ID)
			}
			if !slices.Equal(got, row.want) {
				t.Errorf("nodes of %q: got %q, want %q", row.groups, got, row.want)
			}
		}
	})
}
