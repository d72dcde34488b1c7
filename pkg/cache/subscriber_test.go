package cache

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/secret"
)

// subscribe listens to names.
func (b *bench) subscribe(group string, names ...string) *Subscriber {
	b.t.Helper()
	s, ok := b.Subscribe(group)
	if !ok {
		b.t.Fatalf("group %q is unknown", group)
	}
	for _, n := range names {
		s.Add(n)
	}
	return s
}

// told takes what a subscriber was told, without waiting.
func told(s *Subscriber) []string {
	select {
	case <-s.Ready():
		names := s.Take()
		slices.Sort(names)
		return names
	default:
		return nil
	}
}

func TestOnlySubscribersOfChangedNamesAreWoken(t *testing.T) {
	b := newBench(t, "a", "b")
	b.put("s", "a")
	b.put("t", "a", "b")
	both, onlyT, elsewhere := b.subscribe("a", "s", "t"), b.subscribe("a", "t"), b.subscribe("b", "s", "t")
	late := b.subscribe("a", "late")
	b.put("s", "a")
	for name, test := range map[string]struct {
		sub  *Subscriber
		want []string
	}{"of both": {both, []string{"s"}}, "of t": {onlyT, nil}, "of another group": {elsewhere, nil}, "of a late name": {late, nil}} {
		if diff := cmp.Diff(test.want, told(test.sub)); diff != "" {
			t.Errorf("the subscriber %s was told (-want +got):\n%s", name, diff)
		}
	}
	b.put("late", "a")
	b.move("a", Why{}, map[string]secret.Version{"t": ""})
	for name, test := range map[string]struct {
		sub  *Subscriber
		want []string
	}{"of both": {both, []string{"t"}}, "of t": {onlyT, []string{"t"}}, "of a late name": {late, []string{"late"}}} {
		if diff := cmp.Diff(test.want, told(test.sub)); diff != "" {
			t.Errorf("then the subscriber %s was told (-want +got):\n%s", name, diff)
		}
	}
	if _, ok := b.Subscribe("nowhere"); ok {
		t.Error("an unknown group can be subscribed to")
	}
}

func TestReaderThatNeverReadsBlocksNobodyAndFindsTheLatest(t *testing.T) {
	b := newBench(t, "a")
	stuck := b.subscribe("a", "s", "t")
	b.put("t", "a")
	for range 5 {
		b.put("s", "a")
	}
	if diff := cmp.Diff([]string{"s", "t"}, told(stuck)); diff != "" {
		t.Errorf("it was told (-want +got):\n%s", diff)
	}
	if again := told(stuck); again != nil {
		t.Errorf("it was told %v again", again)
	}
}

func TestClosedSubscriberIsReleased(t *testing.T) {
	b := newBench(t, "a")
	first, second := b.subscribe("a", "s", "t"), b.subscribe("a", "s")
	first.Remove("t")
	first.Close([]string{"s"})
	b.put("s", "a")
	b.put("t", "a")
	if got := told(first); got != nil {
		t.Errorf("a closed subscriber was told of %v", got)
	}
	if got := told(second); !cmp.Equal(got, []string{"s"}) {
		t.Errorf("the other one was told of %v, want s", got)
	}
	second.Close([]string{"s", "never"})
	g, _ := b.group("a")
	if len(g.subscribers) != 0 {
		t.Errorf("%d names are still listened to, want none", len(g.subscribers))
	}
}

func TestReadersSeeOnlyWholeCommits(t *testing.T) {
	b := newBench(t, "a", "b")
	v := []secret.Version{b.put("s", "a", "b"), b.put("s")}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for i := range 4 {
		readers.Go(func() {
			group := []string{"a", "b"}[i%2]
			sub, _ := b.Subscribe(group)
			for n := 0; ; n++ {
				select {
				case <-stop:
					sub.Close([]string{"s"})
					return
				case <-sub.Ready():
					sub.Take()
				default:
				}
				sub.Add("s")
				res, number := b.Resource(group, "s")
				if res == nil || !slices.Contains(v, res.Version) || len(res.Body()) == 0 {
					t.Errorf("group %s serves %v at snapshot %d, want one of the versions", group, res, number)
					return
				}
				if n%3 == 0 {
					sub.Remove("s")
				}
				b.Meta("s", res.Version)
				b.Moves(group)
				b.Latest()
				if _, err := b.Snapshot(b.ctx(), number); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for i := range 150 {
		b.plan(func(p *Plan) error {
			_, err := p.Move(b.ctx(), "a", map[string]secret.Version{"s": v[i%2]}, Why{})
			if err == nil {
				_, err = p.Move(b.ctx(), "b", map[string]secret.Version{"s": v[(i+1)%2]}, Why{})
			}
			return err
		})
	}
	close(stop)
	readers.Wait()
}

// BenchmarkMove moves one secret of 10,000 in 1,000 groups that are all in one set: the CPU of a transition, with its commits.
func BenchmarkMove(b *testing.B) {
	groups := make([]string, 1000)
	for i := range groups {
		groups[i] = fmt.Sprintf("group-%d", i)
	}
	bench := newBench(b)
	p := bench.Plan()
	for _, g := range groups {
		if err := p.AddGroup(bench.ctx(), g); err != nil {
			b.Fatal(err)
		}
	}
	v := []secret.Version{secret.Version(strings.Repeat("1", 64)), secret.Version(strings.Repeat("2", 64))}
	all := map[string]secret.Version{}
	for i := range 10_000 {
		name := fmt.Sprintf("www-%d.example.com", i)
		all[name] = v[0]
	}
	full := &Snapshot{Number: 2, Secrets: (&Set{}).With(all)}
	bench.snapshots.note(full)
	for name := range all {
		for _, version := range v {
			bench.keep(resource{Resource: &Resource{Name: name, Version: version}})
		}
	}
	for _, m := range p.moved {
		m.group.set(m.record, full, 0)
		bench.groups[m.group.name] = m.group
	}
	i := 0
	for b.Loop() {
		i++
		for left := groups; len(left) > 0; {
			p := bench.Plan()
			p.keep(resource{Resource: &Resource{Name: "www-7.example.com", Version: v[i%2]}})
			n := 0
			for ; n < len(left) && !p.Full(); n++ {
				if _, err := p.Move(bench.ctx(), left[n], map[string]secret.Version{"www-7.example.com": v[i%2]}, Why{Reason: "bench"}); err != nil {
					b.Fatal(err)
				}
			}
			if err := p.Commit(bench.ctx()); err != nil {
				b.Fatal(err)
			}
			left = left[n:]
		}
	}
}
