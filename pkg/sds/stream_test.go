package sds

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secretv3 "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestFirstRequestOfEveryStreamIsAnswered(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		version := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		first := e.expect("a")
		e.leave()

		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(map[string]secret.Version{"a": version}, "a")
		if got := again.expect("a"); got.chain != first.chain {
			t.Error("the reconnected Envoy was sent other bytes")
		}
		again.silent()
	})
}

func TestNewDeltaStreamSkipsEqualVersions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		known := map[string]secret.Version{"a": f.rotate(t, "canary", "a"), "b": f.rotate(t, "canary", "b"), "c": f.rotate(t, "canary", "c")}
		e := f.envoy(t, Delta, "edge-1")
		e.reconnected(known, "a", "b", "c")
		e.expect("a") // something is always answered
		e.silent()
		if n := f.node(t, "edge-1"); n.State != Synced {
			t.Errorf("state %s of a node that has everything, want SYNCED", n.State)
		}
		e.leave()

		known["b"] = "another"
		e = f.envoy(t, Delta, "edge-1")
		e.reconnected(known, "a", "b", "c")
		e.expect("b")
		e.silent()
	})
}

func TestNewSotwStreamIsSentEveryName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, SotW, "edge-1")
		// The nonce is that of an earlier stream, and says nothing on this one.
		e.names, e.started = []string{"a", "b"}, true
		e.send(&discoveryv3.DiscoveryRequest{
			Node: e.node, TypeUrl: typeURL, ResourceNames: e.names, VersionInfo: "2", ResponseNonce: "77",
		})
		e.expect("a")
		e.expect("b")
		e.silent()
	})
}

func TestUnrelatedSecretIsNotResent(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		e.expect("b")
		f.rotate(t, "canary", "b")
		f.rotate(t, "canary", "c")
		e.expect("b")
		e.silent()
	})
}

func TestResponsesNameSnapshotVersionAndReplica(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		version := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		a := e.expect("a")
		at, _ := f.cache.At("canary")
		if want := strconv.FormatUint(at.Number, 10); a.snapshot != want {
			t.Errorf("snapshot %q, want %q", a.snapshot, want)
		}
		if a.replica != "replica-1" || a.typeURL != typeURL {
			t.Errorf("replica %q, type %q", a.replica, a.typeURL)
		}
		if protocol.delta() && a.version != version {
			t.Errorf("version %q, want %q", a.version, version)
		}
	})
}

func TestLateAppearanceAndRemovalArePushed(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expectRemoved("a")
		version := f.rotate(t, "canary", "a")
		first := e.expect("a")
		f.move(t, "canary", "a", "")
		e.expectRemoved("a")
		f.move(t, "canary", "a", version)
		if got := e.expect("a"); got.chain != first.chain {
			t.Error("the secret came back with other bytes")
		}
		e.silent()
	})
}

func TestResubscriptionIsAnswered(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		last := e.expect("b")
		e.unsubscribe(last, "a")
		e.silent() // it has arrived
		f.rotate(t, "canary", "a")
		e.silent()
		e.names = append(e.names, "a")
		e.request(&discoveryv3.DiscoveryRequest{ResourceNames: e.names, ResponseNonce: last.nonce},
			&discoveryv3.DeltaDiscoveryRequest{ResourceNamesSubscribe: []string{"a"}})
		e.expect("a")
		if protocol.delta() { // also without having dropped it
			e.subscribe("b")
			e.expect("b")
		}
		e.silent()
	})
}

func TestEmptyNameListSubscribesToNothing(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe()
		e.silent()
		f.rotate(t, "canary", "a")
		e.silent()
		e.subscribe("a")
		e.expect("a")
	})
}

func TestWildcardIsRefused(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("*")
		e.refused(codes.InvalidArgument)
		if got := f.counter(t, "sds_denied_total", "wildcard"); got != 1 {
			t.Errorf("%v refusals counted, want 1", got)
		}
	})
}

func TestOtherTypesAreRefused(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		const other = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
		f := newFleet(t, Limits{})
		e := f.envoy(t, protocol, "edge-1")
		if protocol.delta() {
			e.send(&discoveryv3.DeltaDiscoveryRequest{Node: e.node, TypeUrl: other, ResourceNamesSubscribe: []string{"a"}})
		} else {
			e.send(&discoveryv3.DiscoveryRequest{Node: e.node, TypeUrl: other, ResourceNames: []string{"a"}})
		}
		e.refused(codes.InvalidArgument)
	})
}

func TestNodeIDIsNeededAndStays(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		for _, node := range []*corev3.Node{nil, {Cluster: "canary"}, {Id: strings.Repeat("x", maxNodeID+1)}} {
			e := newEnvoy(t, dial(t, f.buffer, nil), protocol, node)
			e.subscribe("a")
			e.refused(codes.InvalidArgument)
		}
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.next()
		e.started = false // an Envoy that sends its node each time is fine
		e.subscribe("b")
		e.expectRemoved("b")
		e.node, e.started = &corev3.Node{Id: "edge-2"}, false
		e.subscribe("c")
		e.refused(codes.InvalidArgument)
	})
}

func TestFetchIsNotImplemented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		_, err := secretv3.NewSecretDiscoveryServiceClient(dial(t, f.buffer, nil)).FetchSecrets(t.Context(), &discoveryv3.DiscoveryRequest{})
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("FetchSecrets: %v, want Unimplemented", err)
		}
	})
}

func TestStaleNonceIsIgnoredAndCounted(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		a := e.next()
		e.request(&discoveryv3.DiscoveryRequest{ResponseNonce: "1" + a.nonce}, &discoveryv3.DeltaDiscoveryRequest{ResponseNonce: "1" + a.nonce})
		e.silent()
		if got := f.counter(t, "sds_denied_total", reasonNonce); got != 1 {
			t.Errorf("%v unknown nonces counted, want 1", got)
		}
		if n := f.node(t, "edge-1"); n.Secrets[0].Acked != nil {
			t.Error("a stale nonce counted as ACK")
		}
		f.rotate(t, "canary", "a") // the stale SotW request listed no name, and unsubscribed nothing
		b := e.next()
		e.ack(b)
		synctest.Wait()
		if n := f.node(t, "edge-1"); n.State != Synced {
			t.Errorf("state %s after the ACK, want SYNCED", n.State)
		}
	})
}

func TestSotwAckOfALaterResponseDoesNotAcknowledgeEarlierOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, SotW, "edge-1")
		e.subscribe("a", "b")
		e.next()
		e.ack(e.next())
		e.silent()
		n := f.node(t, "edge-1")
		if n.Secrets[0].Acked != nil || n.Secrets[1].Acked == nil {
			t.Errorf("acked: a %v, b %v; want b only", n.Secrets[0].Acked, n.Secrets[1].Acked)
		}
	})
}

func TestWindowHoldsBackUntilAcknowledged(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprintf("s%03d", i))
		}
		f.rotate(t, "canary", names...)
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe(names...)
		synctest.Wait()
		held := len(e.answers)
		if held == 0 || held > windowResponses {
			t.Fatalf("%d answers without an ACK, want 1 to %d", held, windowResponses)
		}
		seen := map[string]bool{}
		for range names {
			a := e.next()
			seen[a.name] = true
			e.ack(a)
		}
		e.silent()
		if len(seen) != len(names) {
			t.Errorf("%d names were answered, want %d", len(seen), len(names))
		}
	})
}

func TestWindowIs32Responses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		e := f.envoy(t, Delta, "edge-1")
		var names []string
		for i := range 100 {
			names = append(names, fmt.Sprintf("unknown-%d", i))
		}
		e.subscribe(names...)
		synctest.Wait()
		if held := len(e.answers); held != 32 {
			t.Errorf("%d answers without an ACK, want 32", held)
		}
	})
}

func TestLargeSecretsWaitForEachOther(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.ca.sans = 2500 // about 60 KiB
		f.rotate(t, "canary", "a", "b")
		f.rotate(t, "canary", "c")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b", "c")
		a := e.next()
		b := e.next() // began before 64 KiB were under way
		e.silent()
		e.ack(a)
		c := e.next()
		e.ack(b)
		e.ack(c)
		e.silent()
		if n := f.node(t, "edge-1"); n.State != Synced {
			t.Errorf("state %s, want SYNCED", n.State)
		}
	})
}

func TestWindowIsOneAfterANack(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b", "c")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.nack(e.next(), "bad")
		e.subscribe("b", "c", "d")
		b := e.next()
		e.silent()
		e.ack(b)
		e.expect("c")
		e.expectRemoved("d")
	})
}

func TestLatestVersionWinsWhileTheWindowIsClosed(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.nack(e.next(), "bad") // the window is one now
		e.subscribe("b")
		b := e.next()
		var newest secret.Version
		for range 5 {
			newest = f.rotate(t, "canary", "a")
			e.silent()
		}
		e.ack(b)
		e.expect("a")
		e.silent()
		if got := f.node(t, "edge-1").Secrets[0].Acked; got == nil || got.Version != newest {
			t.Errorf("acked %v, want %s", got, newest.Short())
		}
	})
}

func TestStuckReaderDelaysNobody(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		stuck(t, f, protocol)
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("s00")
		e.expect("s00")
		began := time.Now()
		for range 50 {
			f.rotate(t, "canary", "s00")
			e.expect("s00")
		}
		if d := time.Since(began); d > 0 { // the clock of a bubble stands still while anybody works
			t.Errorf("50 pushes took %v", d)
		}
	})
}

// stuck opens 20 streams on one connection that read nothing, and moves every secret of them often.
func stuck(t *testing.T, f *fleet, protocol Protocol) {
	t.Helper()
	var names []string
	for i := range 40 {
		names = append(names, fmt.Sprintf("s%02d", i))
	}
	f.ca.sans = 300 // so that a few of them fill what the transport takes
	f.rotate(t, "canary", names...)
	conn := dial(t, f.buffer, nil)
	for i := range 20 {
		openEnvoy(t, conn, protocol, &corev3.Node{Id: fmt.Sprintf("stuck-%d", i)}).subscribe(names...)
	}
	for range 5 {
		synctest.Wait()
		f.rotate(t, "canary", names...)
	}
	synctest.Wait()
}

func TestStuckReaderLosesItsStreamWithItsRights(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		stuck(t, f, protocol)
		connected := func() (count int) {
			for _, n := range f.Nodes() {
				if n.Connected {
					count++
				}
			}
			return count
		}
		if got := connected(); got != 20 {
			t.Fatalf("%v nodes are connected, want 20", got)
		}
		f.SetPolicy(NewPolicy(everything("another")))
		synctest.Wait()
		if got := connected(); got != 0 {
			t.Errorf("%v streams of stuck readers are open, want 0", got)
		}
	})
}

func TestUnsubscribedNameIsNotPushed(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a", "b")
		e.expect("a")
		e.unsubscribe(e.expect("b"), "a")
		synctest.Wait()
		f.rotate(t, "canary", "a")
		e.silent()
		if got := f.node(t, "edge-1").Secrets; len(got) != 1 || got[0].Name != "b" {
			t.Errorf("secrets %+v, want b only", got)
		}
		f.rotate(t, "canary", "b")
		e.expect("b")
	})
}

func TestNamesThatComeAndGoDoNotFillTheQueue(t *testing.T) {
	st := &stream{names: map[string]*subscription{}}
	for i := range 10_000 {
		name := strconv.Itoa(i % 3)
		delete(st.names, name)
		st.names[name] = &subscription{}
		st.enqueue(name, true)
	}
	if len(st.queue) > 3*windowResponses {
		t.Errorf("%d entries are queued for 3 names", len(st.queue))
	}
}

func TestShutdownEndsStreams(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		go f.Shutdown(t.Context())
		e.refused(codes.Unavailable)
	})
}
