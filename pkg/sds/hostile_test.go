package sds

import (
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
)

// drained runs an attack once to warm up, then again, and checks that goroutines and memory are back where they were after the first time.
func drained(t *testing.T, f *fleet, attack func(conn *grpc.ClientConn)) {
	t.Helper()
	level := func() (int, uint64) {
		<-time.After(time.Minute) // of the bubble: what is only kept for a while is gone
		synctest.Wait()
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	run := func() {
		conn := dial(t, f.buffer, nil)
		attack(conn)
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
	}
	run()
	goroutines, heap := level()
	run()
	after, bytes := level()
	if after > goroutines {
		t.Errorf("%d goroutines, %d before", after, goroutines)
	}
	if bytes > heap+4<<20 {
		t.Errorf("%d bytes of heap are in use, %d before", bytes, heap)
	}
	for _, n := range f.Nodes() {
		if n.Connected && n.ID != "edge-1" {
			t.Errorf("node %s is connected", n.ID)
		}
	}
	if s := f.log.String(); strings.Contains(s, "PRIVATE KEY") {
		t.Error("the log holds a private key")
	}
}

// victim is an honest Envoy beside an attack, and what checks that it is served at once.
func victim(t *testing.T, f *fleet, protocol Protocol) (served func()) {
	t.Helper()
	f.rotate(t, "canary", "good")
	e := f.envoy(t, protocol, "edge-1")
	e.subscribe("good")
	e.expect("good")
	return func() {
		t.Helper()
		began := time.Now()
		f.rotate(t, "canary", "good")
		e.expect("good")
		if d := time.Since(began); d > 0 { // the clock of the bubble
			t.Errorf("the honest node was delayed by %v", d)
		}
	}
}

func TestNackStormIsAnsweredOnceForEachVersion(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		served := victim(t, f, protocol)
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "storm")
		e.subscribe("a", "b")
		answers := map[string]int{}
		for range 2 {
			a := e.next()
			answers[a.name]++
			for range 300 { // the first is a NACK, the others are of nothing that is under way
				e.nack(a, "no")
			}
		}
		e.silent()
		served()
		f.rotate(t, "canary", "a")
		again := e.next()
		answers[again.name]++
		e.nack(again, "no")
		e.silent()
		if answers["a"] != 2 || answers["b"] != 1 {
			t.Errorf("answers %v, want one for each version", answers)
		}
		served()
	})
}

func TestStaleNoncesDelayNobody(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{RequestsPerStreamPerSecond: 100})
		served := victim(t, f, protocol)
		e := f.envoy(t, protocol, "stale")
		e.subscribe("good")
		e.expect("good")
		for i := range 90 {
			nonce := strconv.Itoa(i + 1)
			e.request(&discoveryv3.DiscoveryRequest{ResponseNonce: nonce, ResourceNames: []string{"other"}}, &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: nonce})
		}
		e.silent()
		served()
		if n := f.node(t, "stale"); len(n.Secrets) != 1 || n.Secrets[0].Name != "good" {
			t.Errorf("secrets %+v, want what was subscribed to before", n.Secrets)
		}
	})
}

func TestTenThousandUnknownNamesLeaveNothingBehind(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		served := victim(t, f, protocol)
		names := make([]string, 10_000)
		for i := range names {
			names[i] = fmt.Sprintf("unknown-%d.example", i)
		}
		drained(t, f, func(conn *grpc.ClientConn) {
			e := newEnvoy(t, conn, protocol, &corev3.Node{Id: "unknown", Cluster: "edge"})
			e.subscribe(names...)
			if protocol.delta() { // the window holds the others back
				for range names {
					a := e.next()
					if a.name != "" {
						t.Fatalf("secret %q was sent under an unknown name", a.name)
					}
					e.ack(a)
				}
			}
			e.silent()
			served()
			e.leave()
		})
	})
}

// A flood of random SNIs at an on-demand Envoy: half of them are covered by a wildcard, the others by nothing.
func TestRandomNamesOfClientsLeaveNothingBehind(t *testing.T) {
	for _, protocol := range []Protocol{Delta, ADSDelta} {
		t.Run(string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				const limit, count = 50, 3000
				f := newFleet(t, Limits{AliasesPerNode: limit})
				served := victim(t, f, protocol)
				f.certify(t, "canary", "wild", "*.a.example", "real.example")
				f.rotate(t, "canary", "own")
				drained(t, f, func(conn *grpc.ClientConn) {
					e := newEnvoy(t, conn, protocol, &corev3.Node{Id: "flood", Cluster: "edge"})
					e.subscribe("own")
					e.expect("own")
					has := map[string]bool{}
					// hear answers like an Envoy, which gives up what is removed.
					hear := func() {
						for {
							synctest.Wait()
							select {
							case a := <-e.answers:
								e.ack(a)
								if a.removed != "" {
									delete(has, a.removed)
									e.unsubscribe(a, a.removed)
								} else {
									has[a.name] = true
								}
								continue
							default:
							}
							return
						}
					}
					for i := range count {
						name := fmt.Sprintf("r%d.a.example", i)
						if i%2 == 0 {
							name = fmt.Sprintf("r%d.nothing.example", i)
						}
						e.subscribe(name)
						if i%20 == 0 { // clients of the real one come all the time
							e.subscribe("real.example")
						}
						hear()
						if i > 0 && !has["real.example"] {
							t.Fatalf("real.example is locked out after %d names", i)
						}
					}
					if n := f.node(t, "flood"); len(n.Secrets) != limit+1 || len(has) != limit || n.State != Synced {
						t.Errorf("%d names at the server, %d at the Envoy, %s: want %d aliases and the own name, SYNCED", len(n.Secrets), len(has), n.State, limit)
					}
					f.rotate(t, "canary", "own")
					hear()
					served()
					e.leave()
				})
				f.denied(t, "unknown_name", 2*count/2)
				f.denied(t, "aliases", 2*(count/2+1-limit))
			})
		})
	}
}

func TestLargeNodesInEveryRequestLeaveNothingBehind(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		served := victim(t, f, protocol)
		f.rotate(t, "canary", "a")
		var extensions []*corev3.Extension
		for i := range 600 {
			extensions = append(extensions, &corev3.Extension{
				Name: fmt.Sprintf("envoy.filters.http.some_filter_%d", i), Category: "envoy.filters.http", TypeUrls: []string{strings.Repeat("x", 60)},
			})
		}
		drained(t, f, func(conn *grpc.ClientConn) {
			e := newEnvoy(t, conn, protocol, &corev3.Node{Id: "large", Cluster: "edge", Extensions: extensions})
			e.subscribe("a")
			a := e.next()
			e.started = false // the node goes with each request
			e.ack(a)
			for range 50 {
				f.rotate(t, "canary", "a")
				a := e.next()
				e.started = false
				e.ack(a)
			}
			served()
			e.leave()
		})
	})
}

func TestFiveHundredReconnectsASecondLeaveNothingBehind(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{NewStreamsPerSecond: 500})
		served := victim(t, f, protocol)
		drained(t, f, func(conn *grpc.ClientConn) {
			for i := range 499 {
				e := openEnvoy(t, conn, protocol, &corev3.Node{Id: fmt.Sprintf("n-%d", i%100), Cluster: "edge"})
				e.subscribe("good")
				if a, err := e.receive(); err != nil || a.name != "good" {
					t.Fatalf("reconnect %d: %q, %v", i, a.name, err)
				}
				e.cancel()
			}
			synctest.Wait()
			served()
		})
		if got := f.counter(t, "sds_denied_total", "stream_rate"); got != 0 {
			t.Errorf("%v streams were refused, want none", got)
		}
	})
}

func TestWildcardsAndOtherTypesGetNoSecret(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		served := victim(t, f, protocol)
		types := []string{
			"type.googleapis.com/envoy.config.cluster.v3.Cluster", "type.googleapis.com/envoy.config.listener.v3.Listener", "x", typeURL + "x",
			strings.ToUpper(typeURL),
		}
		if protocol.aggregated() {
			types = append(types, "") // ADS cannot guess it
		}
		drained(t, f, func(conn *grpc.ClientConn) {
			for _, other := range types {
				for _, first := range []bool{true, false} {
					e := newEnvoy(t, conn, protocol, &corev3.Node{Id: "types", Cluster: "edge"})
					if !first { // in the middle of a stream that was right so far
						e.subscribe("good")
						e.expect("good")
					}
					if protocol.delta() {
						e.send(&discoveryv3.DeltaDiscoveryRequest{Node: e.node, TypeUrl: other, ResourceNamesSubscribe: []string{"good"}})
					} else {
						e.send(&discoveryv3.DiscoveryRequest{Node: e.node, TypeUrl: other, ResourceNames: []string{"good"}})
					}
					e.refused(codes.InvalidArgument)
				}
			}
			e := newEnvoy(t, conn, protocol, &corev3.Node{Id: "types", Cluster: "edge"})
			e.subscribe("good", "*")
			e.refused(codes.InvalidArgument)
			select {
			case a := <-e.answers:
				t.Errorf("%q was sent to a wildcard", a.name)
			default:
			}
			synctest.Wait()
			served()
		})
	})
}

func TestStuckReadersLeaveNothingBehind(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		served := victim(t, f, protocol)
		f.ca.sans = 300
		names := []string{"s0", "s1", "s2", "s3", "s4", "s5"}
		f.rotate(t, "canary", names...)
		drained(t, f, func(conn *grpc.ClientConn) {
			var stuck []*envoy
			for i := range 10 {
				e := openEnvoy(t, conn, protocol, &corev3.Node{Id: fmt.Sprintf("stuck-%d", i), Cluster: "edge"})
				e.subscribe(names...)
				stuck = append(stuck, e)
			}
			synctest.Wait()
			served()
			for _, e := range stuck {
				e.cancel()
			}
			synctest.Wait()
		})
	})
}

func TestNodeSeesTheProtocolThatItSpeaks(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		e.silent()
		if n := f.node(t, "edge-1"); n.Protocol != protocol {
			t.Errorf("protocol %s, want %s", n.Protocol, protocol)
		}
		if got := f.counter(t, "sds_streams", string(protocol)); got != 1 {
			t.Errorf("%v streams of %s counted, want 1", got, protocol)
		}
	})
}
