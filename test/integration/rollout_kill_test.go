package integration

import (
	"context"
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
	if held := s.status().Held; len(held) > 0 {
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
