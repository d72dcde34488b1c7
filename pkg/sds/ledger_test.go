package sds

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

func TestProgressFollowsTheNodes(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b", "c")
		one, two, bystander := f.envoy(t, protocol, "edge-1"), f.envoy(t, protocol, "edge-2"), f.envoy(t, protocol, "edge-3")
		one.subscribe("a", "b")
		one.expect("a")
		one.expect("b")
		two.subscribe("a")
		two.expect("a")
		bystander.subscribe("c")
		bystander.expect("c")
		synctest.Wait()
		before := f.changes.Load()

		want := map[string]secret.Version{"a": f.rotate(t, "canary", "a"), "b": f.rotate(t, "canary", "b"), "d": "x", "gone": ""}
		sent := time.Now()
		a, b, c := one.next(), one.next(), two.next()
		<-time.After(3 * time.Second)
		check := func(step string, acked1, acked2 bool) []NodeProgress {
			t.Helper()
			synctest.Wait()
			p := f.Progress("canary", want)
			if len(p) != 2 || p[0].Node != "edge-1" || p[1].Node != "edge-2" {
				t.Fatalf("%s: progress %+v, want edge-1 and edge-2", step, p)
			}
			if p[0].Acked != acked1 || p[1].Acked != acked2 {
				t.Errorf("%s: acked %v, %v; want %v, %v", step, p[0].Acked, p[1].Acked, acked1, acked2)
			}
			return p
		}
		if p := check("sent", false, false); !p[0].Since.Equal(sent) || !p[0].Connected || p[0].Identity != plaintextIdentity {
			t.Errorf("progress %+v, want connected and sent at %v", p[0], sent)
		}
		one.ack(a)
		check("one of two names", false, false)
		one.ack(b)
		if p := check("both names", true, false); !p[0].Since.IsZero() {
			t.Errorf("since %v though everything is acknowledged", p[0].Since)
		}
		two.nack(c, "no")
		if p := check("rejected", true, false); p[1].NACK == nil || p[1].NACK.Message != "no" || p[1].NACK.Version != want["a"] {
			t.Errorf("NACK %+v", p[1].NACK)
		}
		if got := f.changes.Load() - before; got != 3 {
			t.Errorf("OnChange was called %d times for two ACKs and a NACK, want 3", got)
		}
		one.leave()
		left := time.Now()
		<-time.After(time.Minute)
		if p := check("offline", true, false); p[0].Connected || !p[0].LastSeen.Equal(left) {
			t.Errorf("progress %+v, want offline since %v", p[0], left)
		}
	})
}

func TestKnownVersionsCountAsAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, Limits{})
		known := map[string]secret.Version{"a": f.rotate(t, "canary", "a"), "b": f.rotate(t, "canary", "b")}
		e := f.envoy(t, Delta, "edge-1")
		e.reconnected(known, "a", "b")
		e.next() // not acknowledged
		if p := f.Progress("canary", known); len(p) != 1 || !p[0].Acked {
			t.Errorf("progress %+v, want one node that has everything", p)
		}
	})
}

func TestRestartedNodeHasAcknowledgedNothing(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		want := map[string]secret.Version{"a": f.rotate(t, "canary", "a")}
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		e.leave()
		if p := f.Progress("canary", want); len(p) != 1 || !p[0].Acked || p[0].Connected {
			t.Fatalf("progress %+v, want one node that left with the version", p)
		}
		e = f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		a := e.next()
		if p := f.Progress("canary", want); len(p) != 1 || p[0].Acked {
			t.Errorf("progress %+v, want one node without ACK", p)
		}
		e.ack(a)
		synctest.Wait()
		if p := f.Progress("canary", want); len(p) != 1 || !p[0].Acked {
			t.Errorf("progress %+v, want one node with ACK", p)
		}
	})
}

func TestNodeWithOneStreamForEachSecretIsOneNode(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		f.rotate(t, "canary", "a", "b", "c")
		var streams []*envoy
		for _, name := range []string{"a", "b", "c"} {
			e := f.envoy(t, protocol, "edge-1")
			e.subscribe(name)
			e.expect(name)
			streams = append(streams, e)
		}
		synctest.Wait()
		n := f.node(t, "edge-1")
		if n.State != Synced || len(n.Secrets) != 3 || n.Protocol != protocol {
			t.Errorf("node %+v, want SYNCED with 3 secrets", n)
		}
		if got := f.counter(t, "sds_streams", "canary"); got != 3 {
			t.Errorf("%v streams, want 3", got)
		}
		// A listener is removed: its secret does not count any more.
		streams[0].leave()
		if n := f.node(t, "edge-1"); len(n.Secrets) != 2 || !n.Connected {
			t.Errorf("node %+v, want connected with 2 secrets", n)
		}
		<-time.After(time.Hour)
		// The connection breaks: what it had then is remembered.
		streams[1].leave()
		streams[2].leave()
		if n := f.node(t, "edge-1"); n.State != Offline || len(n.Secrets) != 2 {
			t.Errorf("node %+v, want OFFLINE with 2 secrets", n)
		}
		if got := f.counter(t, "sds_nodes", "OFFLINE"); got != 1 {
			t.Errorf("%v nodes are counted offline, want 1", got)
		}
	})
}

func TestNodesHaveThePinnedShape(t *testing.T) {
	both(t, func(t *testing.T, protocol Protocol) {
		f := newFleet(t, Limits{})
		version := f.rotate(t, "canary", "a")
		e := f.envoy(t, protocol, "edge-1")
		e.subscribe("a")
		e.expect("a")
		synctest.Wait()
		got, err := json.Marshal(f.Nodes())
		if err != nil {
			t.Fatal(err)
		}
		const at = `"2000-01-01T00:00:00Z"`
		want := fmt.Sprintf(`[{"id":"edge-1","group":"canary","identity":"plaintext","transport":"plaintext","protocol":%q,"connected":true,`+
			`"since":%s,"snapshot":2,"state":"SYNCED","secrets":[{"name":"a","want":%q,"sent":{"version":%q,"at":%s},`+
			`"acked":{"version":%q,"at":%s},"nacked":null,"served":null}]}]`, protocol, at, version, version, at, version, at)
		if string(got) != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
}

func TestOfflineNodesMakeRoom(t *testing.T) {
	l := newLedger(maxNodes + 10)
	now := time.Now()
	connect := func(i int) *node {
		t.Helper()
		n, err := l.connect(nodeKey{"id", fmt.Sprint(i)}, "canary", TLS, Delta, now.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	first := connect(0)
	l.subscribe(first, "a")
	for i := 1; i < maxNodes; i++ {
		n := connect(i)
		if i == 1 || i == 2 {
			sub := map[string]*subscription{"a": {record: l.subscribe(n, "a")}}
			l.disconnect(n, sub, nil, now.Add(time.Duration(maxNodes+i)*time.Second), false)
		}
	}
	connect(maxNodes) // node 1 left first
	if l.nodes[nodeKey{"id", "1"}] != nil || l.nodes[nodeKey{"id", "2"}] == nil || l.nodes[nodeKey{"id", "0"}] == nil {
		t.Error("the node that is offline for the longest time was not the one to go")
	}
	if got, _ := l.concerned(inquiry{group: "canary", names: map[string]goal{"a": {}}}); len(got) != 2 {
		t.Errorf("%d subscribers are left, want 2", len(got))
	}
	connect(maxNodes + 1)
	connect(maxNodes + 2) // nobody is offline: connected nodes are never forgotten
	if got := len(l.groups["canary"].nodes); got != maxNodes+1 {
		t.Errorf("%d nodes, want %d", got, maxNodes+1)
	}
}

func TestRejectedVersionsAreBounded(t *testing.T) {
	l := newLedger(1)
	n, err := l.connect(nodeKey{"id", "1"}, "canary", TLS, Delta, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := l.subscribe(n, "a")
	for i := range 3 * maxNACKs {
		n.noteNACK("a", r, NACK{Secret: "a", Version: secret.Version(fmt.Sprint(i % (2 * maxNACKs)))})
	}
	if len(r.nacks) != maxNACKs || !r.rejected(secret.Version(fmt.Sprint(maxNACKs-1))) {
		t.Errorf("%d rejections, the newest first: %v", len(r.nacks), r.nacks)
	}
	l.unsubscribe(n, "a", r, nil)
	if again := l.subscribe(n, "a"); !again.rejected(secret.Version(fmt.Sprint(maxNACKs - 1))) {
		t.Error("unsubscribing forgot what was rejected")
	}
}

func TestMessagesArePrintable(t *testing.T) {
	for text, want := range map[string]string{
		"Failed to load": "Failed to load", "a\nb\tc\x00d": "a b c d", "\xff\xfeok": "ok", "": "", "é\u202e": "é ",
	} {
		if got := printable(text); got != want {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
	if got := printable(strings.Repeat("é", maxMessage)); len(got) > maxMessage {
		t.Errorf("%d bytes are left, want at most %d", len(got), maxMessage)
	}
}
