package sds

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

func (f *fleet) denied(t *testing.T, reason string, want float64) {
	t.Helper()
	if got := f.counter(t, "sds_denied_total", reason); got != want {
		t.Errorf("%v refusals for %s counted, want %v", got, reason, want)
	}
}

func TestStreamsOfOneIdentityAreBounded(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{StreamsPerPeer: 2})
		f.rotate(t, "canary", "real")
		open := func() *envoy {
			e := f.envoy(t, protocol, "edge-1")
			e.subscribe("real")
			e.expect("real")
			synctest.Wait()
			return e
		}
		first := open()
		open()
		newEnvoyAnyway(t, dial(t, f.buffer, nil), protocol).refused(codes.ResourceExhausted)
		f.denied(t, "streams", 1)
		first.leave()
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expectRemoved("a")
	})
}

// Without ADS each name is a stream: those of names that do not exist must not take the place of real ones.
func TestStreamsWithoutASecretMakeRoomForNewOnes(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{StreamsPerPeer: 5})
		f.rotate(t, "canary", "real", "late")
		open := func(name string) *envoy {
			e := f.envoy(t, protocol, "edge-1")
			e.subscribe(name)
			return e
		}
		var unknown []*envoy
		good := open("real")
		good.expect("real")
		for i := range 4 {
			unknown = append(unknown, open(fmt.Sprintf("unknown-%d", i)))
			unknown[i].expectRemoved(fmt.Sprintf("unknown-%d", i))
		}
		synctest.Wait()
		late := open("late") // all places are taken
		late.expect("late")
		unknown[0].refused(codes.ResourceExhausted)
		for range 20 { // a flood
			open("flood")
			synctest.Wait()
		}
		f.rotate(t, "canary", "real")
		good.expect("real")
		f.rotate(t, "canary", "late")
		late.expect("late")
		f.denied(t, "streams", 21)
		// What had a secret and lost it makes room, too.
		f.move(t, "canary", "late", "")
		if protocol.delta() {
			late.expectRemoved("late")
			synctest.Wait() // until its place is known to be free
			for range 4 {
				open("flood")
				synctest.Wait()
			}
			late.refused(codes.ResourceExhausted)
		}
		good.silent()
	})
}

func TestNewStreamsOfOneIdentityAreSlowed(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{NewStreamsPerSecond: 3, StreamsPerPeer: 5})
		for range 5 { // what it may have open may come at once
			f.envoy(t, protocol, "edge-1").leave()
		}
		newEnvoyAnyway(t, dial(t, f.buffer, nil), protocol).refused(codes.ResourceExhausted)
		f.denied(t, "stream_rate", 1)
		<-time.After(time.Second)
		for range 3 {
			f.envoy(t, protocol, "edge-1").leave()
		}
		newEnvoyAnyway(t, dial(t, f.buffer, nil), protocol).refused(codes.ResourceExhausted)
	})
}

// An Envoy without ADS opens a stream for each secret when it starts, and when it reconnects.
func TestDefaultsLetAnEnvoyWithThousandsOfSecretsStart(t *testing.T) {
	a := admission{limits: Limits{}.withDefaults(), peers: map[string]*admitted{}}
	now := time.Now()
	for range 2 {
		var slots []*slot
		for i := range 10_000 {
			s, err := a.admit("edge-1", now)
			if err != nil {
				t.Fatalf("stream %d: %v", i, err)
			}
			slots = append(slots, s)
		}
		for _, s := range slots {
			a.release(s)
		}
	}
}

func TestIdlePeersAreForgottenOnlyWithAFullAllowance(t *testing.T) {
	a := admission{limits: Limits{NewStreamsPerSecond: 1, StreamsPerPeer: 3}.withDefaults(), peers: map[string]*admitted{}}
	now := time.Now()
	for i := range maxPeers {
		peer := fmt.Sprint(i)
		for range 3 {
			s, err := a.admit(peer, now)
			if err != nil {
				t.Fatal(err)
			}
			a.release(s)
		}
	}
	for after, want := range map[time.Duration]int{2 * time.Second: maxPeers + 1, 4 * time.Second: 1} {
		b := admission{limits: a.limits, peers: map[string]*admitted{}}
		for key, p := range a.peers {
			b.peers[key] = &admitted{rate: p.rate}
		}
		if _, err := b.admit("new", now.Add(after)); err != nil {
			t.Fatal(err)
		}
		if got := len(b.peers); got != want {
			t.Errorf("%d peers are remembered after %v, want %d", got, after, want)
		}
	}
}

func TestNamesOfAStreamAreBounded(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{NamesPerStream: 2})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		e.expect("b")
		refuse := func(name string) *envoy {
			if protocol.delta() { // a name alone does not end a stream
				e.subscribe(name)
				e.expectRemoved(name)
				return e
			}
			e.subscribe(name)
			e.refused(codes.ResourceExhausted)
			return f.envoy(t, protocol, "edge-1")
		}
		e = refuse("c")
		f.denied(t, "names", 1)
		e = refuse(strings.Repeat("x", maxName+1))
		f.denied(t, "name_length", 1)
		if protocol.delta() { // what is subscribed to lives on, and room is used again
			e.silent()
			f.rotate(t, "canary", "a")
			a := e.expect("a")
			e.unsubscribe(a, "b")
			e.subscribe("c")
			e.expectRemoved("c")
			f.rotate(t, "canary", "c")
			e.expect("c")
		}
	})
}

func TestNodesOfOneIdentityAreBounded(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{NodesPerIdentity: 2})
		one := f.envoy(t, protocol, "edge-1")
		one.subscribe("a")
		f.envoy(t, protocol, "edge-2").subscribe("a")
		synctest.Wait()
		e := f.envoy(t, protocol, "edge-3")
		e.subscribe("a")
		e.refused(codes.ResourceExhausted)
		f.denied(t, "nodes", 1)
		one.leave()
		e = f.envoy(t, protocol, "edge-3")
		e.subscribe("a")
		e.expectRemoved("a")
		for _, n := range f.Nodes() {
			if n.ID == "edge-1" {
				t.Error("the node that is offline was not forgotten")
			}
		}
	})
}

func TestLargeRequestsAreRefused(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		e := f.envoy(t, protocol, "edge-1")
		e.node = &corev3.Node{Id: strings.Repeat("x", maxMessageBytes)}
		e.subscribe("a")
		e.refused(codes.ResourceExhausted)
		f.denied(t, "message_size", 1)
	})
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		e := f.envoy(t, protocol, "edge-1")
		// An unknown field with a broken length, behind everything that is known.
		m := &discoveryv3.DiscoveryRequest{}
		m.ProtoReflect().SetUnknown([]byte{0x9a, 0x06, 0x7f})
		e.send(m)
		e.refused(codes.InvalidArgument)
		f.denied(t, "malformed", 1)
	})
}

func TestManyRequestsOnlySlowTheirStream(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{RequestsPerStreamPerSecond: 10})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		began := time.Now()
		for i := range 31 {
			e.subscribe(fmt.Sprintf("unknown-%d", i))
		}
		e.subscribe("a")
		for a := e.next(); a.name != "a"; a = e.next() {
			e.ack(a)
		}
		if d := time.Since(began); d < 2*time.Second || d > 3*time.Second {
			t.Errorf("32 requests took %v, want a little more than 2s", d)
		}
	})
}

// Each answer brings the right to the next request; not if that asks for another answer.
func TestRejectionsThatAskAgainAreSlowed(t *testing.T) {
	for _, protocol := range []Protocol{Delta, ADSDelta} {
		t.Run(string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(t, Limits{RequestsPerStreamPerSecond: 100})
				e := f.envoy(t, protocol, "edge-1")
				e.subscribe("unknown")
				began := time.Now()
				for range 300 {
					a := e.next()
					e.request(nil, &discoveryv3.DeltaDiscoveryRequest{
						ResponseNonce: a.nonce, ErrorDetail: &rpcstatus.Status{Code: int32(codes.Internal), Message: "no"},
						ResourceNamesSubscribe: []string{"unknown"},
					})
				}
				if d := time.Since(began); d < 1900*time.Millisecond || d > 3*time.Second {
					t.Errorf("300 requests took %v, want about 2s", d)
				}
				if lines := strings.Count(f.log.String(), "removal rejected"); lines == 0 || lines > 20 {
					t.Errorf("%d lines in the log, want a few", lines)
				}
			})
		})
	}
}

func TestAcknowledgementsAreNotSlowed(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{RequestsPerStreamPerSecond: 1})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		began := time.Now()
		for range 20 {
			f.rotate(t, "canary", "a")
			e.expect("a")
		}
		synctest.Wait()
		if d := time.Since(began); d > 0 {
			t.Errorf("20 acknowledgements took %v", d)
		}
	})
}

func TestIdlePeersAreForgotten(t *testing.T) {
	a := &admission{limits: Limits{}.withDefaults(), peers: map[string]*admitted{}}
	now := time.Now()
	if _, err := a.admit("stays", now); err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxPeers {
		peer := fmt.Sprint(i)
		s, err := a.admit(peer, now.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		a.release(s)
	}
	if len(a.peers) > maxPeers+1 || a.peers["stays"] == nil {
		t.Errorf("%d peers are remembered, want at most %d, the one with a stream among them", len(a.peers), maxPeers+1)
	}
}
