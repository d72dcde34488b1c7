package integration

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// bystander is a secret that has nothing to do with any row, on the stream of all rows where there is one.
const bystander = "bystander.example"

// tableEdge is an edge to which one Envoy subscribes with a secret for each row, over a wire that counts.
type tableEdge struct {
	*bareEdge
	wire *wire
	pki  *pki
	rows []*tableRow
	kept []kept // not in the store yet
}

// kept is a version that is to be stored, and what the Envoy gets in its place, if anything.
type kept struct {
	name    string
	version secret.Version
	record  store.Operation
	other   *anypb.Any
}

// tableRow is a row at work.
type tableRow struct {
	nackRow
	name    string         // of the secret under test
	version secret.Version // the bad one, or the new good one
	key     string         // of the version's bytes on the wire
	serial  string         // that is served under the row's host
}

// TestNackTable pushes every row of the table over a good one to a real Envoy. Validation is left out by writing to the store.
func TestNackTable(t *testing.T) {
	p := newPKI(t)
	for _, api := range allAPIs {
		t.Run(string(api), func(t *testing.T) {
			e := startTableEdge(t, api, p)
			e.pushAll(t)
			other := e.renew(bystander)
			e.judge(t, other)

			opened := e.wire.streams()
			e.wire.drop()
			e.reconnected(t, opened)
			other = e.renew(bystander)
			e.judge(t, other)

			e.restart()
			e.reconnected(t, 0)
			other = e.renew(bystander)
			e.judge(t, other)

			for _, r := range e.rows { // the stream of each is alive, and nothing more comes on it
				if r.kind == nil {
					r.serial = e.renew(r.host())
					e.serves(r.host(), r.serial)
				}
				n := e.wire.count(r.key)
				if n != 1 && r.verdict == rejects {
					t.Errorf("%s: the bytes were written %d times, want once", r.nackRow.name, n)
				}
				if n == 1 && r.verdict != rejects && api != bootstrap.ADSDelta { // there the Envoy says what it has
					t.Errorf("%s: the bytes were written once: what is not rejected is sent again on a new stream", r.nackRow.name)
				}
			}
		})
	}
}

func startTableEdge(t *testing.T, api bootstrap.API, p *pki) *tableEdge {
	t.Helper()
	e := newTableEdge(t, p)
	for _, row := range nackRows() {
		r := &tableRow{nackRow: row, name: row.host()}
		if r.unseenInSotW && api.Type() == "GRPC" {
			r.verdict = drops
		}
		e.rows = append(e.rows, r)
	}
	e.startRows(t, api)
	return e
}

// startRows starts the Envoy with a good secret for each row, and waits until all are served.
func (e *tableEdge) startRows(t *testing.T, api bootstrap.API) {
	t.Helper()
	hosts, change := []string{bystander}, []string{}
	good := map[string]secret.Version{bystander: e.keep(bystander, e.pki.good(t, bystander), nil)}
	for _, r := range e.rows {
		hosts = append(hosts, r.host())
		first := e.pki.good(t, r.host())
		r.serial, good[r.host()] = serial(t, first), e.keep(r.host(), first, nil)
		if r.kind != nil {
			r.name = r.host() + ".kind"
			good[r.name] = e.keep(r.name, e.pki.good(t, r.name), r.kind.good(t, e.pki, r.name))
			reference := fmt.Sprintf("            - name: %q\n              sds_config: *sds", r.host())
			change = append(change, reference, reference+"\n"+fmt.Sprintf(r.kind.config, fmt.Sprintf("{name: %q, sds_config: *sds}", r.name)))
		}
	}
	e.move(good)
	e.startEnvoy(fixedNames(api, hosts...), e.wire.socket, change...)
	e.judgeServed(t)
}

// newTableEdge is one without rows and without an Envoy.
func newTableEdge(t *testing.T, p *pki) *tableEdge {
	t.Helper()
	e := &tableEdge{bareEdge: newBareEdge(t), pki: p}
	e.wire = startWire(e.T, e.socket)
	return e
}

// pushAll moves the group to the rows' versions, all in one step, and waits for what Envoy says to each.
func (e *tableEdge) pushAll(t *testing.T) {
	t.Helper()
	versions := map[string]secret.Version{}
	for _, r := range e.rows {
		content, other := e.pki.good(t, r.name), (*anypb.Any)(nil) // an unseen good pair where the Envoy gets something else
		switch {
		case r.raw != nil:
			other = r.raw(t, e.pki, r.name)
		case r.binary:
			other = pairResource(t, r.name, r.pair(t, e.pki, r.name))
		default:
			content = r.pair(t, e.pki, r.name)
		}
		r.version = e.keep(r.name, content, other)
		if r.verdict == takes || r.verdict == agrees {
			r.serial = serial(t, content)
		}
		versions[r.name] = r.version
	}
	e.flush()
	for _, r := range e.rows {
		r.key = e.keyOf(r.name, r.version)
	}
	e.move(versions)
	e.wait(e.answered)
}

// answered returns nil when the Envoy has answered to each row as the table says.
func (e *tableEdge) answered() error {
	states := e.states()
	for _, r := range e.rows {
		s := states[r.name]
		switch {
		case r.verdict == rejects && (s.Nacked == nil || s.Nacked.Version != r.version):
			return fmt.Errorf("%s: no NACK yet: %+v", r.nackRow.name, s)
		case r.verdict != rejects && (s.Acked == nil || s.Acked.Version != r.version):
			return fmt.Errorf("%s: no ACK yet: %+v", r.nackRow.name, s)
		}
	}
	return nil
}

// states is what nodes shows of the one node.
func (e *tableEdge) states() map[string]sds.NodeSecret {
	states := map[string]sds.NodeSecret{}
	for _, n := range e.server.Nodes() {
		for _, s := range n.Secrets {
			if n.Connected {
				states[s.Name] = s
			}
		}
	}
	return states
}

// reconnected waits until the Envoy has opened more streams than before, and subscribes to everything again.
func (e *tableEdge) reconnected(t *testing.T, before int) {
	t.Helper()
	e.wait(func() error {
		states := e.states()
		if n := e.wire.streams(); n <= before {
			return fmt.Errorf("%d streams so far", n)
		}
		for _, r := range e.rows {
			if _, ok := states[r.name]; !ok {
				return fmt.Errorf("%s: not subscribed", r.name)
			}
		}
		return nil
	})
}

// judge checks every row, once the other secret is served: what was sent before that on a common stream has been answered.
func (e *tableEdge) judge(t *testing.T, other string) {
	t.Helper()
	e.serves(bystander, other)
	e.judgeServed(t)
	states := e.states()
	for _, r := range e.rows {
		s := states[r.name]
		switch r.verdict {
		case rejects:
			if s.Nacked == nil || s.Nacked.Version != r.version || !strings.Contains(s.Nacked.Message, r.message) {
				t.Errorf("%s: nodes shows %+v, want a NACK of %s with %q", r.nackRow.name, s.Nacked, r.version.Short(), r.message)
			}
		default:
			if s.Nacked != nil {
				t.Errorf("%s: nodes shows the NACK %+v, want none", r.nackRow.name, s.Nacked)
			}
		}
		if n := e.wire.count(r.key); n != 1 && r.verdict == rejects {
			t.Errorf("%s: the bytes were written %d times, want once", r.nackRow.name, n)
		}
	}
	if s, ok := states[bystander]; !ok || s.Nacked != nil {
		t.Errorf("%s: nodes shows %+v, want no NACK", bystander, s)
	}
}

// judgeServed makes a full handshake for each row.
func (e *tableEdge) judgeServed(t *testing.T) {
	t.Helper()
	for _, r := range e.rows {
		e.serves(r.host(), r.serial)
		if r.kind == nil {
			continue
		}
		e.wait(func() error { return r.kind.holds(e, r.host()) })
	}
}

// renew moves the group to a new good certificate for a host, and returns its serial.
func (e *tableEdge) renew(host string) string {
	e.Helper()
	p := e.pki.good(e, host)
	number := serial(e, p)
	e.move(map[string]secret.Version{host: e.keep(host, p, nil)})
	for _, r := range e.rows {
		if r.host() == host {
			r.serial = number
		}
	}
	return number
}

// keep has a version stored, before the next move, that nothing has looked at. Where other is not nil, the Envoy gets it in the place of the version.
func (e *tableEdge) keep(name string, p pair, other *anypb.Any) secret.Version {
	e.Helper()
	version := secret.Version(fmt.Sprintf("%064x", time.Now().UnixNano()))
	record, err := json.Marshal(map[string]any{
		"name": name, "kind": secret.KindTLSCertificate, "version": version, "created": time.Now().UTC(), "source": cache.SourceImport,
		"not_after": time.Now().Add(time.Hour), "chain_pem": string(p.chain), "key_pem": string(p.key),
	})
	must(e, err)
	e.kept = append(e.kept, kept{name, version, store.Put(store.Key("secret", name, string(version)), record), other})
	return version
}

// flush stores what is kept, in one commit.
func (e *tableEdge) flush() {
	e.Helper()
	var records []store.Operation
	for _, k := range e.kept {
		records = append(records, k.record)
	}
	_, err := e.store.Commit(e.Context(), nil, records)
	must(e, err)
	for _, k := range e.kept {
		if k.other != nil {
			e.wire.replace(e.keyOf(k.name, k.version), k.other)
		}
	}
	e.kept = nil
}

// keyOf is the key of a version's bytes on the wire.
func (e *tableEdge) keyOf(name string, version secret.Version) string {
	e.Helper()
	r, err := e.cache.Stored(e.Context(), name, version)
	must(e, err)
	return key(name, slices.Concat(cache.Prefix(name), r.Body()))
}

func (e *tableEdge) move(versions map[string]secret.Version) {
	e.Helper()
	if len(e.kept) > 0 { // nothing is for a removal
		e.flush()
	}
	plan := e.cache.Plan()
	_, err := plan.Move(e.Context(), "canary", versions, cache.Why{Reason: "test"})
	must(e, err)
	must(e, plan.Commit(e.Context()))
}

// serial is that of the first certificate.
func serial(t testing.TB, p pair) string {
	t.Helper()
	block, _ := pem.Decode(p.chain)
	if block == nil {
		t.Fatal("no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	return testenv.Serial(leaf)
}
