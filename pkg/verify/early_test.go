package verify

import (
	"crypto/tls"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// After a restart nothing is known: a group is looked at soon after the first of its nodes is heard of, once and when the others have come.
func TestGroupIsLookedAtSoonAfterItIsHeardOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := startProber(t)
		begin := time.Now()
		for range 3 {
			p.Changed("g")
		}
		<-time.After(100 * time.Millisecond)
		p.Changed("h")
		p.Changed("g")
		<-time.After(30 * time.Second)
		p.Changed("g")
		<-time.After(10 * time.Second)
		p.wants.mu.Lock()
		defer p.wants.mu.Unlock()
		var got []time.Duration
		for _, at := range p.wants.asked {
			got = append(got, at.Sub(begin))
		}
		if want := []time.Duration{time.Second, 6 * time.Second}; !slices.Equal(got, want) {
			t.Errorf("looked after %v, want %v", got, want)
		}
	})
}

func TestEarlyLookShowsWhatIsServed(t *testing.T) {
	ca := newPKI(t)
	pair := ca.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	p := startProber(t, one("g", time.Second, target(l.address, ca.leaf(pair, "www", "v1"))))
	p.Changed("g")
	eventually(t, func() bool { return p.Served("g", NodeKey{"id", "n"}, "www") != nil })
}
