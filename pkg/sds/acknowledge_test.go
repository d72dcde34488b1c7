package sds

import (
	"strings"
	"testing"
	"testing/synctest"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestNackedBytesAreNotSentAgain(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		good := e.expect("a")
		bad := f.rotate(t, "canary", "a")
		e.nack(e.next(), "Failed to load certificate chain\x1b[31m\nfrom <inline>")
		e.silent()
		n := f.node(t, "edge-1")
		if s := n.Secrets[0]; n.State != Nacked || s.Nacked == nil || s.Nacked.Version != bad ||
			s.Nacked.Message != "Failed to load certificate chain [31m from <inline>" {
			t.Errorf("node is %s, nacked %+v", n.State, s.Nacked)
		}

		// Neither on this stream, nor on the next, nor on a second one beside it: the last good bytes are.
		e.leave()
		for range 2 {
			again := f.envoy(t, protocol, "edge-1")
			again.reconnected(nil, "a")
			if got := again.next(); got.chain != good.chain {
				t.Fatal("the reconnected node was not sent its last good bytes")
			} else {
				again.ack(got)
			}
			again.silent()
		}
		if n := f.node(t, "edge-1"); n.State != Nacked {
			t.Errorf("state %s after the ACK of the last good bytes, want NACKED", n.State)
		}

		// Another node is sent them, and a new version goes to both.
		other := f.envoy(t, protocol, "edge-2")
		other.subscribe("a")
		if got := other.expect("a"); got.chain == good.chain {
			t.Error("another node was sent the old bytes")
		}
		newest := f.rotate(t, "canary", "a")
		other.expect("a")
		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(nil, "a")
		again.expect("a")
		synctest.Wait()
		if n := f.node(t, "edge-1"); n.State != Synced || n.Secrets[0].Acked.Version != newest {
			t.Errorf("node is %s at %v, want SYNCED at %s", n.State, n.Secrets[0].Acked, newest.Short())
		}

		// The old bad version is still known when the group comes back to it.
		f.move(t, "canary", "a", bad)
		other.expect("a")
		again.silent()
	})
}

func TestNackedFirstVersionIsAnsweredAsUnknown(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.nack(e.next(), "bad")
		e.silent()
		e.leave()
		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(nil, "a")
		again.expectRemoved("a")
		f.rotate(t, "canary", "a")
		again.expect("a")
	})
}

func TestAckAfterNackOfTheSameBytesDoesNotCount(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		version := f.rotate(t, "canary", "a")
		// Two streams of one node are sent the same bytes; one says no, the other yes.
		one, two := f.envoy(t, protocol, "edge-1"), f.envoy(t, protocol, "edge-1")
		one.subscribe("a")
		two.subscribe("a")
		no, yes := one.next(), two.next()
		one.nack(no, "bad")
		synctest.Wait()
		two.ack(yes)
		synctest.Wait()
		p := f.Progress("canary", map[string]secret.Version{"a": version})
		if len(p) != 1 || p[0].Acked || p[0].NACK == nil || p[0].NACK.Secret != "a" {
			t.Errorf("progress %+v, want one node with a NACK", p)
		}
		if got := f.counter(t, "sds_acks_total", "canary"); got != 0 {
			t.Errorf("%v ACKs counted, want 0", got)
		}

		// Nor does it count that a delta Envoy says it has them.
		one.leave()
		two.leave()
		if !protocol.delta() {
			return
		}
		again := f.envoy(t, protocol, "edge-1")
		again.reconnected(map[string]secret.Version{"a": version}, "a")
		again.expectRemoved("a")
		if p := f.Progress("canary", map[string]secret.Version{"a": version}); len(p) != 1 || p[0].Acked {
			t.Errorf("progress %+v, want one node without ACK", p)
		}
	})
}

func TestReleasedVersionIsSentAgain(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		bad := f.rotate(t, "canary", "a")
		e.nack(e.next(), "bad")
		e.silent()
		f.Release("a", bad)
		e.expect("a")
		synctest.Wait()
		if n := f.node(t, "edge-1"); n.State != Synced {
			t.Errorf("state %s, want SYNCED", n.State)
		}
	})
}

func TestNackIsLoggedAndCounted(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		version := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.nack(e.next(), strings.Repeat("é", 4<<10))
		e.silent()
		log := f.log.String()
		for _, want := range []string{"level=WARN", "group=canary", "node_id=edge-1", "secret=a", "version=" + version.Short()} {
			if !strings.Contains(log, want) {
				t.Errorf("log %q, want %q in it", log, want)
			}
		}
		if n := len(f.node(t, "edge-1").Secrets[0].Nacked.Message); n > maxMessage {
			t.Errorf("message of %d bytes is kept, want at most %d", n, maxMessage)
		}
		if got := f.counter(t, "sds_nacks_total", "a"); got != 1 {
			t.Errorf("%v NACKs counted, want 1", got)
		}
		f.move(t, "canary", "a", "")
		synctest.Wait()
		if strings.Contains(log, "PRIVATE KEY") {
			t.Error("a private key is in the log")
		}
	})
}

func TestSecretComesBackAfterRemovalAndNack(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		good := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		first := e.expect("a")
		f.move(t, "canary", "a", "")
		e.expectRemoved("a")
		f.rotate(t, "canary", "a")
		e.nack(e.next(), "bad")
		if protocol.delta() { // which has nothing any more; SotW was never told of the removal
			if got := e.expect("a"); got.chain != first.chain {
				t.Error("the Envoy was not given its last good bytes")
			}
		}
		e.silent()
		f.move(t, "canary", "a", good)
		e.silent() // it has it
	})
}

func TestRestartedEnvoyIsGivenItsLastGoodBytesAfterANack(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		good := e.expect("a")
		f.rotate(t, "canary", "a")
		e.nack(e.next(), "bad")
		e.leave()
		f.rotate(t, "canary", "a") // another one that it will not take, while it is away
		again := f.envoy(t, protocol, "edge-1")
		again.subscribe("a") // it has lost everything
		again.nack(again.next(), "bad, too")
		if got := again.expect("a"); got.chain != good.chain {
			t.Error("the restarted Envoy was not given its last good bytes")
		}
		again.silent()
	})
}
