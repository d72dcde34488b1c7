package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// A server that is killed goes on where it was, whatever the state: production gets a version after canary is done with it, and not before.
func TestKilledServerGoesOnWithItsRollout(t *testing.T) {
	t.Parallel()
	e := testenv.NewT(t)
	slow := startSlowEndpoint(e)
	s := startStage(e, stageOptions{
		groups: []stageGroup{{name: "canary", nodes: 1, more: []string{slow.address}}, {name: "production", nodes: 2}}, secrets: []string{site}, policy: "watch: 0s",
		verify: true,
	})
	watch := func(policy string) {
		s.policy = policy + ", ack_timeout: 1m, node_grace: 2s, empty_group: skip"
		s.reload()
	}
	slow.lead(s.https["canary-1"])
	watch("watch: 0s")
	s.load()
	serial := s.serials[site]

	// A node does not answer: moving. It leaves the count node_grace after it was seen last.
	leave := s.silent("canary", "silent-1", site)
	a := s.brings(s.ca, site)
	s.killedIn(a, rollout.Moving, serial)
	leave()
	serial = s.ends(a)

	slow.lead("") // verifying
	a = s.brings(s.ca, site)
	s.killedIn(a, rollout.Verifying, serial)
	slow.lead(s.https["canary-1"])
	serial = s.ends(a)

	watch("watch: 3s")
	a = s.brings(s.ca, site)
	s.killedIn(a, rollout.Watching, serial)
	serial = s.ends(a)

	a = s.brings(s.ca, site)
	s.reaches(a, rollout.Watching)
	s.run("rollout", "pause", idText(a), "-c", s.config)
	s.killedIn(a, rollout.Paused, serial)
	s.reaches(a, rollout.Paused)
	watch("watch: 0s") // what is watched already, is watched as long as it was to be
	s.run("rollout", "resume", idText(a), "-c", s.config)
	serial = s.ends(a)

	watch("watch: 0s, promotion: manual")
	a = s.brings(s.ca, site)
	s.killedIn(a, rollout.Waiting, serial)
	s.reaches(a, rollout.Waiting)
	s.run("promote", "--group", "production", "-c", s.config)
	s.ends(a)
	s.good(s.nodes()...)
}

// What was not proven when the server was killed is proven after its start, though no node is there yet: a bad version does not slip through.
func TestKilledServerProvesWhatItHadNotProven(t *testing.T) {
	t.Parallel()
	e := testenv.NewT(t)
	slow := startSlowEndpoint(e)
	s := startStage(e, stageOptions{
		groups: []stageGroup{{name: "canary", nodes: 1, more: []string{slow.address}, only: true}, {name: "production", nodes: 2}}, secrets: []string{site},
		policy: "watch: 0s, ack_timeout: 1m, empty_group: skip", verify: true,
	})
	stranger, err := testenv.NewAuthority(e.Dir, "stranger")
	must(t, err)
	s.load()
	bad := s.brings(stranger, site)
	s.killedIn(bad, rollout.Verifying, s.serials[site])
	slow.lead(s.https["canary-1"])
	s.reaches(bad, rollout.RolledBack)
	s.held(bad, rollout.Hard, "handshake: ")
	s.allServe(site, s.serials[site])
	s.unseen("production", bad)
	s.good(s.nodesOf("production")...)
}

// killedIn kills the server when a rollout is in a state of its first wave, and starts it again. Production has not been moved.
func (s *stage) killedIn(a admin.Accepted, state rollout.State, before string) {
	s.Helper()
	s.reaches(a, state)
	if state == rollout.Waiting { // for its second wave
		s.serves("canary-1", site, a.Serial)
	}
	must(s, s.process.Kill())
	for _, node := range s.nodesOf("production") {
		s.serves(node, site, before)
	}
	s.startServer()
}

// ends expects that a rollout ends well by itself, and that no node of production showed the version before its wave was switched. It returns the serial.
func (s *stage) ends(a admin.Accepted) string {
	s.Helper()
	r := s.reaches(a, rollout.Done)
	s.allServe(site, a.Serial)
	var second time.Time
	for _, e := range r.Log {
		if strings.Contains(e.Reason, "wave 2 (production) was switched") {
			second = e.At
		}
	}
	for _, node := range s.nodesOf("production") {
		if first, err := s.loads[node].WaitSerial(s.Ready(), a.Serial); err != nil || first.Before(second) {
			s.Errorf("%s showed it at %s, its wave was switched at %s: %v", node, first, second, err)
		}
	}
	if held := s.status(s.Context()).Held; len(held) > 0 {
		s.Errorf("held are %+v, want none", held)
	}
	return a.Serial
}

// slowEndpoint is an address that accepts connections, and leads them to another one when it is told to.
type slowEndpoint struct {
	address string

	mu      sync.Mutex
	to      string        // guarded by mu; empty: connections wait
	changed chan struct{} // guarded by mu; closed and replaced with to
}

func startSlowEndpoint(t *testenv.T) *slowEndpoint {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	e := &slowEndpoint{address: l.Addr().String(), changed: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // closed at the end of the test
			}
			serving.Go(func() { e.serve(ctx, conn) })
		}
	})
	t.Cleanup(func() {
		cancel()
		must(t, l.Close())
		serving.Wait()
	})
	return e
}

// lead says where connections lead from now on, also those that wait; empty: nowhere yet.
func (e *slowEndpoint) lead(to string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.to = to
	close(e.changed)
	e.changed = make(chan struct{})
}

func (e *slowEndpoint) serve(ctx context.Context, conn net.Conn) {
	defer conn.Close() // what is lost then, was lost before
	for {
		e.mu.Lock()
		to, changed := e.to, e.changed
		e.mu.Unlock()
		if to != "" {
			e.join(ctx, conn, to)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func (e *slowEndpoint) join(ctx context.Context, conn net.Conn, to string) {
	behind, err := (&net.Dialer{}).DialContext(ctx, "tcp", to)
	if err != nil {
		return // the client sees a closed connection
	}
	end := context.AfterFunc(ctx, func() {
		conn.Close()
		behind.Close()
	})
	defer end()
	var both sync.WaitGroup
	for _, way := range [][2]net.Conn{{conn, behind}, {behind, conn}} {
		both.Go(func() {
			_, _ = io.Copy(way[1], way[0]) // its end is the end of the connection
			_ = way[1].(*net.TCPConn).CloseWrite()
		})
	}
	both.Wait()
	behind.Close()
}

// A way back that takes many commits is gone to its end by the server that comes after.
func TestKilledServerGoesOnTakingBack(t *testing.T) {
	t.Parallel()
	var with []string
	for i := range 1200 { // a commit moves a few dozen
		with = append(with, fmt.Sprintf("empty-%04d", i))
	}
	s := startStage(testenv.NewT(t), stageOptions{
		groups:  []stageGroup{{name: "canary", nodes: 1, with: with}, {name: "production", nodes: 1}},
		secrets: []string{site}, policy: "watch: 0s, empty_group: skip", verify: true,
	})
	stranger, err := testenv.NewAuthority(s.Dir, "stranger")
	must(t, err)
	s.load()
	var bad admin.Accepted
	for try, caught := 1, false; !caught; try++ {
		if try > 5 {
			t.Fatal("it was never killed between two commits")
		}
		s.expectNode("canary-1", func(n admin.Node) bool { return n.State == "SYNCED" })
		bad = s.brings(stranger, site)
		ctx := s.Ready()
		for !s.seen(ctx, *bad.Rollout).TakingBack {
			if ctx.Err() != nil {
				t.Fatalf("it is not taken back: %+v", s.seen(ctx, *bad.Rollout))
			}
		}
		must(t, s.process.Kill())
		s.startServer()
		r := s.reaches(bad, rollout.RolledBack)
		if !strings.Contains(r.Reason, "handshake: ") {
			t.Errorf("it went back because of %q", r.Reason)
		}
		log, err := s.process.Log()
		must(t, err)
		caught = strings.Contains(log, "state=rolled_back") // else it was killed after the last commit
	}
	var shown admin.Secret
	must(t, s.admin.Get(t.Context(), "/v1/secrets/"+site, &shown))
	for _, v := range shown.Versions {
		switch {
		case v.Version == bad.Version && len(v.Groups) > 0:
			t.Errorf("%d groups are at the bad version", len(v.Groups))
		case v.Serial != nil && *v.Serial == s.serials[site] && len(v.Groups) != len(with)+2:
			t.Errorf("%d groups are at the good version, want %d", len(v.Groups), len(with)+2)
		}
	}
	s.allServe(site, s.serials[site])
	s.unseen("production", bad)
	s.good("production-1")
}
