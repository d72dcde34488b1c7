package integration

import (
	"context"
	"crypto/elliptic"
	"crypto/tls"
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/secret"
)

// The tests of this file are about Envoy rather than about us: what the edge relies on, on every version of docs/compatibility.md.

var allAPIs = []bootstrap.API{bootstrap.ADSDelta, bootstrap.Delta, bootstrap.SotW, bootstrap.ADSSotW}

// An ACK of bytes that were rejected before says nothing: they are not applied.
func TestRejectedBytesAreAcknowledgedWhenSentAgain(t *testing.T) {
	for _, api := range allAPIs {
		t.Run(string(api), func(t *testing.T) {
			const name = "a.example"
			e := newTableEdge(t, newPKI(t))
			old := e.renew(name)
			e.startEnvoy(fixedNames(api, name), e.wire.socket)
			e.serves(name, old)

			bad := pairResource(t, name, pair{e.pki.good(t, name).chain, keyText(t, newECKey(t, elliptic.P256()))})
			first := e.keep(name, e.pki.good(t, name), bad)
			e.move(map[string]secret.Version{name: first})
			e.wait(func() error {
				if s := e.states()[name]; s.Nacked == nil || s.Nacked.Version != first {
					return fmt.Errorf("no NACK: %+v", s)
				}
				return nil
			})
			second := e.keep(name, e.pki.good(t, name), bad) // another version of ours, the same bytes for the Envoy
			e.move(map[string]secret.Version{name: second})
			e.wait(func() error {
				if s := e.states()[name]; s.Acked == nil || s.Acked.Version != second {
					return fmt.Errorf("no ACK: %+v", s)
				}
				return nil
			})
			e.serves(name, old)
			e.serves(name, e.renew(name))
		})
	}
}

// An Envoy that is told that a secret does not exist opens its listeners without it, and takes it when it comes.
func TestUnknownSecretEndsWarming(t *testing.T) {
	for _, api := range []bootstrap.API{bootstrap.ADSDelta, bootstrap.Delta} {
		t.Run(string(api), func(t *testing.T) {
			const name = "a.example"
			e := newTableEdge(t, newPKI(t))
			e.startEnvoy(fixedNames(api, name), e.wire.socket, "initial_fetch_timeout: 1s", "initial_fetch_timeout: 300s")
			if _, _, err := testenv.Handshake(t.Context(), e.https, name, nil); err == nil {
				t.Error("a handshake succeeded without a certificate")
			}
			e.serves(name, e.renew(name))
		})
	}
}

// An Envoy keeps what it has when its secret is removed, or its name may no longer be had: SDS cannot take a certificate back.
func TestRemovedSecretIsServedOn(t *testing.T) {
	const name = "a.example"
	e := newTableEdge(t, newPKI(t))
	old := e.renew(name)
	e.renew(bystander)
	e.startEnvoy(fixedNames(bootstrap.ADSDelta, name, bystander), e.wire.socket)
	e.serves(name, old)
	e.move(map[string]secret.Version{name: ""})
	e.serves(bystander, e.renew(bystander)) // what was sent before it, has come
	e.serves(name, old)
	if s := e.states()[name]; s.Sent != nil {
		t.Errorf("nodes shows that %+v was sent last, want the removal", s.Sent)
	}
	e.serves(name, e.renew(name))
}

// Envoy's own back-off grows to 30 s.
func TestReconnectBackOffIsHonoured(t *testing.T) {
	for _, api := range []bootstrap.API{bootstrap.ADSDelta, bootstrap.Delta} {
		t.Run(string(api), func(t *testing.T) {
			const name = "a.example"
			e := newTableEdge(t, newPKI(t))
			old := e.renew(name)
			e.startEnvoy(fixedNames(api, name), e.wire.socket, "base_interval: 0.25s, max_interval: 5s", "base_interval: 0.05s, max_interval: 0.1s")
			e.serves(name, old)
			before := e.wire.streams()
			e.wire.refuse(true)
			e.wait(func() error { // by default it would be 8 in the time of this wait
				if n := e.wire.streams() - before; n < 40 {
					return fmt.Errorf("%d attempts, want 40", n)
				}
				return nil
			})
			e.wire.refuse(false)
			e.serves(name, e.renew(name))
		})
	}
}

// The node is 60 kB.
func TestNodeIsSentOnceForASotWStream(t *testing.T) {
	for _, api := range []bootstrap.API{bootstrap.SotW, bootstrap.ADSSotW} {
		t.Run(string(api), func(t *testing.T) {
			if all, withNode, streams := countNodes(t, api); withNode != streams {
				t.Errorf("%d requests on %d streams, %d with a node", all, streams, withNode)
			}
		})
	}
}

// Before Envoy 1.38 set_node_on_first_message_only did nothing in delta.
func TestNodeIsSentOnceForADeltaStream(t *testing.T) {
	version, once := testenv.EnvoyAtLeast(t, "1.38")
	for _, api := range []bootstrap.API{bootstrap.Delta, bootstrap.ADSDelta} {
		t.Run(string(api), func(t *testing.T) {
			all, withNode, streams := countNodes(t, api)
			if once && withNode != streams || !once && withNode != all {
				t.Errorf("Envoy %s: %d requests on %d streams, %d with a node", version, all, streams, withNode)
			}
		})
	}
}

// countNodes has an Envoy acknowledge some pushes, and counts its requests.
func countNodes(t *testing.T, api bootstrap.API) (all, withNode, streams int) {
	t.Helper()
	const name = "a.example"
	e := newTableEdge(t, newPKI(t))
	e.renew(name)
	e.startEnvoy(fixedNames(api, name), e.wire.socket)
	for range 3 {
		e.serves(name, e.renew(name))
	}
	e.wait(func() error {
		streams = e.wire.streams()
		if all, withNode = e.wire.requests(); all < streams+4 {
			return fmt.Errorf("%d requests on %d streams", all, streams)
		}
		return nil
	})
	return all, withNode, streams
}

// A changed CA bundle judges the next handshake.
func TestValidationContextIsSwappedLive(t *testing.T) {
	e, name, versions := startOtherKind(t, "junk CA bundle")
	if err := clientsAreJudged(e, name); err != nil {
		t.Fatal(err)
	}
	before := e.pki
	e.pki = newPKI(t)
	versions(bundle(t, name+".kind", certText(e.pki.root.cert)))
	e.wait(func() error { return clientsAreJudged(e, name) })
	e.pki = before
	if clientsAreJudged(e, name) == nil {
		t.Error("a client certificate of the old CA is taken")
	}
}

// A session goes on under a ring that has its key, and ends with it.
func TestSessionTicketKeysAreSwappedLive(t *testing.T) {
	e, name, push := startOtherKind(t, "ticket key of 79 bytes")
	first, second, third := newTicketKey(), newTicketKey(), newTicketKey()
	push(ticketKeys(t, name+".kind", first))
	config := serverConfig(name)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	_, err := visit(t.Context(), e.https, config)
	must(t, err)
	push(ticketKeys(t, name+".kind", second, first))
	e.serves(name, e.renew(name))
	resumed, err := visit(t.Context(), e.https, config)
	must(t, err)
	if !resumed {
		t.Error("the session was not resumed under a ring that has its key as the second")
	}
	push(ticketKeys(t, name+".kind", third))
	e.serves(name, e.renew(name))
	resumed, err = visit(t.Context(), e.https, config)
	must(t, err)
	if resumed {
		t.Error("the session was resumed under a ring without its key")
	}
}

// startOtherKind starts an Envoy with the filter chain of one row of another kind, and the good one in effect. The function pushes another
// one and waits for the ACK.
func startOtherKind(t *testing.T, rowName string) (e *tableEdge, host string, push func(*anypb.Any)) {
	t.Helper()
	e = newTableEdge(t, newPKI(t))
	for _, row := range nackRows() {
		if row.name == rowName {
			e.rows = append(e.rows, &tableRow{nackRow: row, name: row.host()})
		}
	}
	e.startRows(t, bootstrap.ADSDelta)
	r := e.rows[0]
	return e, r.host(), func(other *anypb.Any) {
		t.Helper()
		version := e.keep(r.name, e.pki.good(t, r.name), other)
		e.move(map[string]secret.Version{r.name: version})
		e.wait(func() error {
			if s := e.states()[r.name]; s.Acked == nil || s.Acked.Version != version {
				return fmt.Errorf("no ACK: %+v", s)
			}
			return nil
		})
	}
}

// On-demand certificates came with Envoy 1.37. An older one refuses the configuration. What newer ones do with it is in ondemand_test.go.
func TestOnDemandCertificatesNeedEnvoy137(t *testing.T) {
	o := onDemand(bootstrap.ADSDelta)
	o.NodeID, o.Cluster, o.HTTPSAddress, o.SDS = "canary-1", "canary", "127.0.0.1:0", bootstrap.SDS{UnixPath: "/run/s"}
	config, err := bootstrap.Render(o)
	must(t, err)
	err = testenv.ValidateEnvoy(t.Context(), config)
	version, ok := testenv.EnvoyAtLeast(t, "1.37")
	if ok && err != nil {
		t.Fatalf("Envoy %s: %v", version, err)
	}
	if !ok && (err == nil || !strings.Contains(err.Error(), "on_demand_secret")) {
		t.Fatalf("Envoy %s: got %v, want an error that names the extension", version, err)
	}
}

// wait polls a condition.
func (e *tableEdge) wait(check func() error) {
	e.Helper()
	must(e, testenv.Eventually(e.Ready(), func(context.Context) error { return check() }))
}
