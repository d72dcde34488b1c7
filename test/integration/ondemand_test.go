package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
)

// onDemandAPIs are those by which on-demand certificates work; the first is the one that `envoy bootstrap --on-demand` takes.
var onDemandAPIs = []bootstrap.API{bootstrap.ADSDelta, bootstrap.Delta}

func onDemand(api bootstrap.API, prefetch ...string) bootstrap.Options {
	return bootstrap.Options{API: api, OnDemand: &bootstrap.OnDemand{Prefetch: prefetch}}
}

// asks makes one handshake, and returns the serial of what is served.
func (e *bareEdge) asks(ctx context.Context, sni string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 8*time.Second) // below Envoy's time-out for a handshake that waits
	defer cancel()
	leaf, _, err := testenv.HandshakeConfig(ctx, e.https, &tls.Config{ServerName: sni, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err != nil {
		return "", err
	}
	return testenv.Serial(leaf), nil
}

// fails checks that a handshake is refused at once, and does not hang until a time-out.
func (e *bareEdge) fails(sni string) {
	e.Helper()
	if serial, err := e.asks(e.Context(), sni); err == nil || errors.Is(err, context.DeadlineExceeded) {
		e.Errorf("SNI %.60q: serial %q, %v; want a refusal at once", sni, serial, err)
	}
}

// first checks that the very first handshake for a name completes.
func (e *bareEdge) first(sni, serial string) {
	e.Helper()
	if got, err := e.asks(e.Context(), sni); err != nil || got != serial {
		e.Errorf("SNI %q: serial %q, %v; want %s", sni, got, err, serial)
	}
}

// remove takes a secret away.
func (e *bareEdge) remove(name string) {
	e.Helper()
	plan := e.cache.Plan()
	_, err := plan.Move(e.Context(), "canary", map[string]secret.Version{name: ""}, cache.Why{Reason: "test"})
	must(e, err)
	must(e, plan.Commit(e.Context()))
}

// names waits until the node subscribes to so many names.
func (e *bareEdge) names(want int) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(context.Context) error {
		nodes := e.server.Nodes()
		if len(nodes) == 0 && want == 0 {
			return nil
		}
		if len(nodes) != 1 || len(nodes[0].Secrets) != want {
			return fmt.Errorf("nodes %+v, want one with %d names", nodes, want)
		}
		return nil
	}))
}

func TestOnDemandHandshakeGetsTheCertificateThatCoversIt(t *testing.T) {
	testenv.NeedEnvoy(t, "1.37", "on-demand certificates")
	for _, api := range onDemandAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := startBare(t, onDemand(api))
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			_, own := e.put(ca, "own.example", false)
			_, wild := e.put(ca, "wild", false, "*.a.example", "a.example")
			_, exact := e.put(ca, "exact", false, "x.a.example")
			e.first("own.example", own)
			e.first("1.a.example", wild)
			e.first("a.example", wild)
			e.first("x.a.example", exact)
			e.first("X.A.example", exact)
			e.first("1.a.example", wild) // again
			for _, sni := range []string{"1.2.a.example", "unknown.example", "*.a.example", "a b", "é.a.example", ".a.example", strings.Repeat("x", 255), "-", "?"} {
				e.fails(sni)
			}
			if _, err := e.asks(t.Context(), ""); err == nil { // no SNI
				t.Error("a client that names nothing got a certificate")
			}

			// A rotation reaches every alias.
			_, wild = e.put(ca, "wild", false, "*.a.example", "a.example")
			e.serves("1.a.example", wild)
			e.serves("a.example", wild)
			e.first("2.a.example", wild)
			// What is removed is revoked: for every name that nothing else covers.
			e.remove("wild")
			must(t, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
				if serial, err := e.asks(ctx, "1.a.example"); err == nil {
					return fmt.Errorf("%s is still served", serial)
				}
				return nil
			}))
			for _, sni := range []string{"1.a.example", "2.a.example", "a.example", "new.a.example"} {
				e.fails(sni)
			}
			e.first("x.a.example", exact)
			e.first("own.example", own)

			// And it lives on when it comes back, also over a restart of the server.
			_, wild = e.put(ca, "wild", false, "*.a.example")
			e.first("1.a.example", wild)
			e.restart()
			e.serves("3.a.example", wild)
			_, wild = e.put(ca, "wild", false, "*.a.example")
			e.serves("1.a.example", wild)
			e.serves("3.a.example", wild)
		})
	}
}

// An Envoy takes a client's "*" for a wildcard of secrets, and rejects everything while it has it (see pkg/sds). No client may do that to others.
func TestOnDemandClientThatAsksForAWildcardHurtsNobody(t *testing.T) {
	testenv.NeedEnvoy(t, "1.37", "on-demand certificates")
	for _, api := range onDemandAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := startBare(t, onDemand(api))
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			e.fails("*") // the very first client
			_, wild := e.put(ca, "wild", false, "*.a.example")
			e.first("1.a.example", wild)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan struct{})
			go func() {
				defer close(done)
				for ctx.Err() == nil {
					_, _ = e.asks(ctx, "*") // refused, or cut off
				}
			}()
			load := testenv.StartLoad(e.Ready(), testenv.LoadOptions{Address: e.https, ServerName: "1.a.example", Workers: 1})
			for i := range 20 {
				_, wild = e.put(ca, "wild", false, "*.a.example")
				e.serves("1.a.example", wild)
				e.first(fmt.Sprintf("new-%d.a.example", i), wild)
			}
			load.Stop()
			cancel()
			<-done
			if load.Failed() > 0 {
				t.Errorf("%d handshakes failed: %v", load.Failed(), load.Errors())
			}
			for _, n := range e.server.Nodes() {
				for _, s := range n.Secrets {
					if s.Nacked != nil {
						t.Errorf("%s: NACK %q", s.Name, s.Nacked.Message)
					}
				}
			}
		})
	}
}

func TestOnDemandRotationUnderHandshakesFailsNone(t *testing.T) {
	testenv.NeedEnvoy(t, "1.37", "on-demand certificates")
	for _, api := range onDemandAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := startBare(t, onDemand(api, "1.a.example"))
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			_, wild := e.put(ca, "wild", false, "*.a.example")
			e.serves("1.a.example", wild)
			var loads []*testenv.Load
			for i := range 2 {
				loads = append(loads, testenv.StartLoad(e.Ready(), testenv.LoadOptions{Address: e.https, ServerName: fmt.Sprintf("%d.a.example", i+1), Workers: 1}))
			}
			for range 15 {
				_, wild = e.put(ca, "wild", false, "*.a.example")
				e.serves("1.a.example", wild)
				e.serves("2.a.example", wild)
			}
			for _, l := range loads {
				l.Stop()
				if l.Failed() > 0 || l.Made() == 0 {
					t.Errorf("%d handshakes made, %d failed: %v", l.Made(), l.Failed(), l.Errors())
				}
			}
		})
	}
}

func TestRandomNamesLeaveNothingBehind(t *testing.T) {
	testenv.NeedEnvoy(t, "1.37", "on-demand certificates")
	for _, api := range onDemandAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := startBare(t, onDemand(api))
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			_, serial := e.put(ca, "real.example", false)
			e.first("real.example", serial)
			flood := func(round, count int) {
				for i := range count {
					e.fails(fmt.Sprintf("r%d-%d.example", round, i))
					if i%50 == 0 {
						_, serial = e.put(ca, "real.example", false)
						e.serves("real.example", serial)
					}
				}
				e.names(1)
			}
			flood(0, 200) // warms up
			before := runtime.NumGoroutine()
			flood(1, 3000) // more than a node may have aliases, and than Envoy lets through by default
			must(t, testenv.Eventually(e.Ready(), func(context.Context) error {
				if n := runtime.NumGoroutine(); n > before+10 {
					return fmt.Errorf("%d goroutines, %d before", n, before)
				}
				return nil
			}))
			e.first("real.example", serial)
		})
	}
}

func TestOnDemandNodeWithoutNamesLives(t *testing.T) {
	testenv.NeedEnvoy(t, "1.37", "on-demand certificates")
	for _, api := range onDemandAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := startBare(t, onDemand(api))
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			_, serial := e.put(ca, "a.example", false)
			e.first("a.example", serial)
			e.remove("a.example")
			if api.Aggregated() { // otherwise it gives up the one stream that it has
				e.names(0)
			}
			for range 3 {
				e.restart() // every connection is cut
			}
			e.refuses("a.example")
			_, serial = e.put(ca, "a.example", false)
			e.serves("a.example", serial)
			_, serial = e.put(ca, "a.example", false)
			e.serves("a.example", serial)
		})
	}
}

// refuses waits until a handshake is refused by the server's word, not by a time-out.
func (e *bareEdge) refuses(sni string) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		if _, err := e.asks(ctx, sni); err == nil || errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("handshake for %s: %w", sni, err)
		}
		return nil
	}))
}

// The canary has no name of the secret, only what its clients asked for: a bad version is stopped by that all the same.
func TestOnDemandCanaryHoldsBackProduction(t *testing.T) {
	testenv.NeedEnvoy(t, "1.37", "on-demand certificates")
	for _, api := range onDemandAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := newEdge(t)
			e.startEnvoy("canary", onDemand(api))
			e.startEnvoy("production", onDemand(api))
			ca, err := testenv.NewAuthority(e.Dir, "ca")
			must(t, err)
			old := e.accept(ca, "wild", "*.a.example")
			for _, g := range edgeGroups {
				e.serves(g, "1.a.example", old)
			}
			next := e.accept(ca, "wild", "*.a.example")
			for _, g := range edgeGroups {
				e.serves(g, "1.a.example", next)
			}
			e.expectWave(1) // of the rollout that is done, canary's ACK was counted
			version := e.sneak(ca, "wild", "*.a.example")
			e.expectHold(version)
			for _, n := range e.server.Nodes() {
				for _, s := range n.Secrets {
					if n.Group == "production" && s.Sent != nil && s.Sent.Version == version {
						t.Errorf("production was sent %s under %s", version.Short(), s.Name)
					}
				}
			}
			for _, g := range edgeGroups {
				e.serves(g, "1.a.example", next)
				e.serves(g, "2.a.example", next)
			}
		})
	}
}

// expectWave checks that the nodes of both waves of the newest rollout that is done were expected, and ACKed.
func (e *edge) expectWave(nodes int) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		history, err := e.rollout.History(ctx)
		if err != nil {
			return err
		}
		if len(history) == 0 || history[len(history)-1].State != rollout.Done {
			return fmt.Errorf("rollouts %+v, want the newest one to be done", history)
		}
		for _, w := range history[len(history)-1].Waves {
			if w.Nodes.Expected != nodes || w.Nodes.Acked != nodes {
				return fmt.Errorf("wave %v: nodes %+v, want %d expected and ACKed", w.Groups, w.Nodes, nodes)
			}
		}
		return nil
	}))
}
