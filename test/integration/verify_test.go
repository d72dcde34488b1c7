package integration

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/verify"
)

// fixedSource is what a test wants to be served.
type fixedSource struct {
	groups []verify.Group
	known  map[string]secret.Version // by digest
}

func (s *fixedSource) Groups(context.Context, ...string) []verify.Group { return s.groups }

func (s *fixedSource) Current(string, string) (verify.Leaf, bool) { return verify.Leaf{}, false }

func (s *fixedSource) Known(_ context.Context, _, digest string) (secret.Version, bool) {
	version, ok := s.known[digest]
	return version, ok
}

// newMonitor makes one for a source. Its background is not run.
func newMonitor(t *testing.T, s verify.Source) (*verify.Monitor, *prometheus.Registry) {
	t.Helper()
	registry := prometheus.NewRegistry()
	m, err := verify.New(verify.Options{Source: s, Log: slog.New(slog.NewTextHandler(t.Output(), nil)), Registerer: registry})
	must(t, err)
	return m, registry
}

// looked runs all checks of a group, by client.
func looked(t *testing.T, m *verify.Monitor, group string) map[verify.Client]verify.Result {
	t.Helper()
	results := map[verify.Client]verify.Result{}
	_, err := m.Verify(t.Context(), group, func(r verify.Result) { results[r.Client] = r })
	must(t, err)
	return results
}

func poolOf(p *pki) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(p.root.cert)
	return pool
}

// leafOf describes the first certificate of a chain.
func leafOf(t *testing.T, name string, version secret.Version, chain []byte, roots *x509.CertPool) verify.Leaf {
	t.Helper()
	block, _ := pem.Decode(chain)
	if block == nil {
		t.Fatal("no certificate")
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	must(t, err)
	sum := sha256.Sum256(leaf.Raw)
	return verify.Leaf{
		Secret: name, Version: version, SHA256: hex.EncodeToString(sum[:]), KeyType: "ecdsa-p256", DNSNames: leaf.DNSNames, NotAfter: leaf.NotAfter,
		Roots: verify.Roots{Pool: roots, Name: "the roots of the test"},
	}
}

// An Envoy that rejected a version serves the one before, whatever it says of itself: from 1.37 on its own view shows the rejected one, and it ACKs the
// same bytes when it gets them again.
func TestVerifySeesWhatARejectingEnvoyReallyServes(t *testing.T) {
	const name = "a.example"
	e := startBareEdge(t, bootstrap.Delta, name)
	ca, err := testenv.NewAuthority(e.Dir, "ca")
	must(t, err)
	good, oldSerial := e.put(ca, name, false)
	e.serves(name, oldSerial)
	source := &fixedSource{known: map[string]secret.Version{}}
	wants := func(version secret.Version) {
		t.Helper()
		leaf := leafOf(t, name, version, []byte(e.meta(name, version).ChainPEM), ca.Pool)
		source.known[leaf.SHA256] = version
		source.groups = []verify.Group{{Name: "canary", Timeout: 2 * time.Second, Targets: []verify.Target{{
			Address: e.https, Node: "canary-1", Nodes: []verify.NodeKey{{Identity: "id", ID: "canary-1"}}, Secrets: []verify.Wanted{{Leaf: leaf, Asked: name}},
		}}}}
	}
	wants(good)
	bad, _ := e.put(ca, name, true)
	e.nacked(name, bad)
	dump, err := e.envoy.AdminGet(e.Ready(), "/config_dump?resource=dynamic_active_secrets")
	must(t, err)
	version, lies := testenv.EnvoyAtLeast(t, "1.37")
	if shown := strings.Contains(string(dump), string(bad)); shown != lies {
		t.Fatalf("Envoy %s: its own view shows the rejected version: %v, want %v: %s", version, shown, lies, dump)
	}

	m, registry := newMonitor(t, source)
	wants(bad)
	for _, client := range []verify.Client{verify.TLS12ECDSA, verify.TLS13} {
		r := looked(t, m, "canary")[client]
		if r.Failure == nil || r.Failure.Kind != verify.OldLeaf || r.Shown == nil || r.Shown.Version != good || r.Shown.Serial != oldSerial {
			t.Fatalf("%s: got %+v, shown %+v, failure %v; want the old leaf of %s", client, r, r.Shown, r.Failure, good.Short())
		}
		if r.Attempts < 2 {
			t.Errorf("%s: %d attempts, want that an old leaf is looked at again", client, r.Attempts)
		}
	}
	gauge := func(want float64) {
		t.Helper()
		text := fmt.Sprintf("# HELP sds_served_mismatch Whether the last handshakes showed something else than the group is at, or a chain that clients refuse.\n"+
			"# TYPE sds_served_mismatch gauge\nsds_served_mismatch{group=\"canary\",secret=%q} %v\n", name, want)
		must(t, testutil.GatherAndCompare(registry, strings.NewReader(text), "sds_served_mismatch"))
	}
	gauge(1)
	if s := m.Served("canary", verify.NodeKey{Identity: "id", ID: "canary-1"}, name); s == nil || s.Version != good {
		t.Errorf("served is %+v, want %s", s, good.Short())
	}

	next, serial := e.put(ca, name, false)
	wants(next)
	for client, r := range looked(t, m, "canary") {
		if r.Failure != nil || r.Shown.Serial != serial {
			t.Errorf("%s: got %v, want %s to be served", client, r.Failure, next.Short())
		}
	}
	gauge(0)
}

func (e *bareEdge) meta(name string, version secret.Version) cache.Meta {
	e.Helper()
	m, ok := e.cache.Meta(name, version)
	if !ok {
		e.Fatalf("%s of %s is not in use", version.Short(), name)
	}
	return m
}

// verified runs the command and returns its answer with the exit code.
func (k *kinds) verified(group string) (admin.Verification, int) {
	k.Helper()
	p, err := testenv.StartProcess(k.Context(), testenv.ProcessOptions{
		Name: "verify", Path: binary(k), Args: []string{"verify", "--group", group, "-o", "json", "-c", k.file("sds-server.yaml")}, LogDir: k.TempDir(),
	})
	must(k, err)
	code, err := p.Wait(k.Ready())
	must(k, err)
	log, err := p.Log()
	must(k, err)
	var v admin.Verification
	if err := json.NewDecoder(strings.NewReader(log)).Decode(&v); err != nil {
		k.Fatalf("verify: %v in %s", err, log)
	}
	return v, code
}

// setVerify puts groups[].verify in force.
func (k *kinds) setVerify(canary, production string) {
	k.Helper()
	k.verify = [2]string{canary, production}
	before, err := k.loadedAt(k.Context())
	must(k, err)
	k.configure()
	k.eventually(func(ctx context.Context) error {
		now, err := k.loadedAt(ctx)
		if err == nil && now.Equal(before) {
			err = fmt.Errorf("the configuration of %s is in force", before)
		}
		return err
	})
}

// loadedAt is when the configuration in force was loaded.
func (k *kinds) loadedAt(ctx context.Context) (time.Time, error) {
	out, err := k.run(ctx, "status", "-o", "json")
	if err != nil {
		return time.Time{}, err
	}
	var s admin.Status
	err = json.Unmarshal([]byte(out), &s)
	return s.Config.LoadedAt, err
}

// On a listener with an RSA and an ECDSA certificate each is proven, by an endpoint and by the address of the node.
func TestVerifyProvesBothCertificatesOfAListener(t *testing.T) {
	k := startKinds(t, false, "")
	k.write("roots.pem", certText(k.pki.root.cert))
	k.setVerify(
		fmt.Sprintf(`, verify: {endpoints: [{address: "%s", node: canary-1}], roots_file: roots.pem}`, k.address("canary", "pairs")),
		fmt.Sprintf(`, verify: {node_port: %d, roots_file: roots.pem}`, k.port["production"]["pairs"]))
	for _, group := range edgeGroups {
		v, code := k.verified(group)
		if code != 0 || !v.Served || len(v.Handshakes) != 3 {
			t.Fatalf("%s: exit %d, %+v; want three handshakes that show what is wanted", group, code, v)
		}
		for _, h := range v.Handshakes {
			want := map[string]string{"tls1.2-rsa": "rsa", "tls1.2-ecdsa": "ecdsa", "tls1.3": "ecdsa"}[h.Client]
			if !h.OK || !h.Completed || h.Secret != want || h.Served.Serial != k.serial[want] || h.ServerName != site || h.Node == nil || *h.Node != group+"-1" {
				t.Errorf("%s %s: got %+v, served %+v; want %s %s", group, h.Client, h, h.Served, want, k.serial[want])
			}
		}
	}
	for _, group := range edgeGroups { // a metric gate must not see our handshakes
		k.errors(group, map[string]bool{"connection_error": false, "fail_verify_no_cert": false})
	}
	if config := (&tls.Config{
		ServerName: site, RootCAs: poolOf(k.pki), MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256},
	}); true { // why the RSA-only client is none of crypto/tls
		if _, _, err := testenv.HandshakeConfig(t.Context(), k.address("canary", "pairs"), config); err == nil {
			t.Error("a client of crypto/tls can be RSA-only now: take it")
		}
	}
	out, err := k.run(t.Context(), "nodes", "-o", "json")
	must(t, err)
	var nodes admin.Nodes
	must(t, json.Unmarshal([]byte(out), &nodes))
	seen := 0
	for _, n := range nodes.Nodes {
		for _, s := range n.Secrets {
			if serial, ok := k.serial[s.Name]; ok {
				seen++
				if s.Served == nil || s.Served.Serial != serial || s.Served.Version == nil || s.Want == nil || *s.Served.Version != *s.Want {
					t.Errorf("%s %s: served is %+v, want %s", n.ID, s.Name, s.Served, serial)
				}
			}
		}
	}
	if seen != 4 {
		t.Errorf("%d secrets of nodes seen, want 4: %s", seen, out)
	}
}

// errors checks which of an Envoy's counters of TLS errors have counted something.
func (k *kinds) errors(group string, want map[string]bool) {
	k.Helper()
	for name, counted := range want {
		stats, err := k.envoys[group].Stats(k.Ready(), `^listener\..*\.ssl\.`+name+"$")
		must(k, err)
		if len(stats) == 0 {
			k.Errorf("%s: no statistic %s", group, name)
		}
		got := false
		for _, value := range stats {
			got = got || value != "0"
		}
		if got != counted {
			k.Errorf("%s: %s is %v, want counted: %v", group, name, stats, counted)
		}
	}
}

// What is wrong at one address says so in its own words, and delays no other.
func TestVerifyTellsFailuresApart(t *testing.T) {
	k := startKinds(t, false, "")
	k.write("other.pem", certText(newPKI(t).root.cert))
	k.write("roots.pem", certText(k.pki.root.cert))
	hang, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { _ = hang.Close() }) // nobody listens to its error
	nobody := k.Address()
	k.setVerify(fmt.Sprintf(`, verify: {endpoints: [{address: "%s", node: canary-1}, {address: "%s", node: canary-1}, {address: "%s", node: canary-1}, {address: "%s", node: canary-2}], roots_file: roots.pem, timeout: 2s}`,
		k.address("canary", "pairs"), nobody, hang.Addr(), k.address("canary", "pairs")), ", verify: {endpoints: [{address: \""+k.address("production", "pairs")+"\"}], roots_file: other.pem}")

	v, code := k.verified("canary")
	if code != 1 || v.Served || len(v.Handshakes) != 9 {
		t.Fatalf("exit %d, %+v; want 9 handshakes and exit 1", code, v)
	}
	want := map[string]string{k.address("canary", "pairs"): "", nobody: "refused", hang.Addr().String(): "timeout"}
	for _, h := range v.Handshakes {
		kind := ""
		if h.Error != nil {
			kind = h.Error.Kind
			if !strings.Contains(h.Error.Message, h.Address) || h.Error.Hint == "" {
				t.Errorf("%s: %+v, want what, where and what to do", h.Address, h.Error)
			}
		}
		if kind != want[h.Address] {
			t.Errorf("%s %s: got %q, want %q", h.Address, h.Client, kind, want[h.Address])
		}
	}
	if g := v.Groups[0]; len(g.Skipped) != 1 || !strings.Contains(g.Skipped[0], "canary-2") {
		t.Errorf("skipped: %v, want the endpoint of canary-2", g.Skipped)
	}

	v, code = k.verified("production")
	differs := func(h admin.VerifiedHandshake) bool {
		return h.Error == nil || h.Error.Kind != "chain" || h.Attempts != 1
	}
	if code != 1 || len(v.Handshakes) != 3 || slices.ContainsFunc(v.Handshakes, differs) {
		t.Errorf("roots of another CA: exit %d, %+v; want that each chain fails at once", code, v)
	}
	k.setVerify("", "")
	if _, err := k.run(t.Context(), "verify", "--group", "canary"); err == nil || !strings.Contains(err.Error(), "has no verify") {
		t.Errorf("a group without verify: got %v, want that it says so", err)
	}
}

// The handshake with a listener that demands a client certificate fails, after the listener has shown its own.
func TestVerifyJudgesAListenerThatDemandsClientCertificatesByItsLeaf(t *testing.T) {
	k := startKinds(t, false, "")
	text := certText(k.pki.root.cert)
	k.write("ca.pem", text)
	k.extra = fmt.Sprintf("validation_contexts: [{name: corp-ca, ca_files: [%s]}]", k.file("ca.pem"))
	k.configure()
	k.expect("canary", k.pki.client(t), true)
	out, err := k.run(t.Context(), "secrets", "show", "ecdsa", "-o", "json")
	must(t, err)
	var s admin.Secret
	must(t, json.Unmarshal([]byte(out), &s))
	right := leafOf(t, "ecdsa", secret.Version(s.Versions[0].Version), []byte(*s.Versions[0].ChainPEM), poolOf(k.pki))
	wrong := right
	wrong.SHA256 = strings.Repeat("0", 64)
	source := &fixedSource{}
	m, _ := newMonitor(t, source)
	for _, test := range []struct {
		name string
		leaf verify.Leaf
		kind verify.Kind
	}{{"right", right, ""}, {"wrong", wrong, verify.OtherLeaf}} {
		source.groups = []verify.Group{{Name: "canary", Timeout: time.Second, Targets: []verify.Target{{
			Address: k.address("canary", "clients"), Secrets: []verify.Wanted{{Leaf: test.leaf, Asked: "ecdsa"}},
		}}}}
		results := looked(t, m, "canary")
		if len(results) != 2 {
			t.Fatalf("%s: %d results, want 2", test.name, len(results))
		}
		for client, r := range results {
			got := verify.Kind("")
			if r.Failure != nil {
				got = r.Failure.Kind
			}
			if got != test.kind || r.Completed || !r.ClientCertificate || r.Shown == nil || r.Shown.SHA256 != right.SHA256 {
				t.Errorf("%s %s: got %+v, %v; want kind %q, and that it did not complete", test.name, client, r, r.Failure, test.kind)
			}
		}
	}
	k.errors("canary", map[string]bool{"connection_error": false, "fail_verify_no_cert": true})
}
