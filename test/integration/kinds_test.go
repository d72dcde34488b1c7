package integration

import (
	"bytes"
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// kinds is a server without a CA, and one Envoy in each group that has secrets of every kind: listeners with an RSA and an ECDSA certificate, with a
// validation context, and with session ticket keys, and a filter that puts a generic secret into requests.
type kinds struct {
	*testenv.T
	server *testenv.Process
	pki    *pki
	serial map[string]string         // of the served certificates, by secret
	port   map[string]map[string]int // of the listeners, by group and name
	extra  string
	manual bool
	http   string
	verify [2]string // of the groups, as YAML that follows a comma
	envoys map[string]*testenv.Envoy
}

const kindsConfig = `data_dir: %[1]s/data
seal: {key_file: %[1]s/seal.key}
xds:
  listeners:
    - {address: "unix://%[1]s/canary/s", groups: [canary]}
    - {address: "unix://%[1]s/production/s", groups: [production]}
admin: {address: "unix://%[1]s/admin/s"}
http: {address: "%[2]s"}
groups:
  - {name: canary, identities: ["unix:uid=%[3]d"], secrets: ["*"]%[6]s}
  - {name: production, identities: ["unix:uid=%[3]d"], secrets: ["*"]%[7]s}
rollout: {waves: [[canary], [production]], promotion: %[4]s, watch: 0s, empty_group: skip}
%[5]s
`

// kindsEnvoy takes the group, the directory, the ports of its listeners, and that of what is behind the last one.
const kindsEnvoy = `
node: {id: %[1]s-1, cluster: %[1]s}
admin: {address: {socket_address: {address: 127.0.0.1, port_value: 0}}}
static_resources:
  listeners:
  - name: pairs
    address: {socket_address: {address: 127.0.0.1, port_value: %[3]d}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificate_sds_secret_configs:
            - name: rsa
              sds_config: &sds
                resource_api_version: V3
                initial_fetch_timeout: 5s
                api_config_source:
                  api_type: DELTA_GRPC
                  transport_api_version: V3
                  set_node_on_first_message_only: true
                  grpc_services: [{envoy_grpc: {cluster_name: sds}}]
            - {name: ecdsa, sds_config: *sds}
      filters: &filters
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: all
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 200}}]}]}
          http_filters:
          - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  - name: clients
    address: {socket_address: {address: 127.0.0.1, port_value: %[4]d}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          require_client_certificate: true
          common_tls_context:
            tls_certificate_sds_secret_configs: [{name: ecdsa, sds_config: *sds}]
            validation_context_sds_secret_config: {name: corp-ca, sds_config: *sds}
      filters: *filters
  - name: tickets
    address: {socket_address: {address: 127.0.0.1, port_value: %[5]d}}
    filter_chains:
    - transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          session_ticket_keys_sds_secret_config: {name: tickets, sds_config: *sds}
          common_tls_context:
            tls_certificate_sds_secret_configs: [{name: ecdsa, sds_config: *sds}]
      filters: *filters
  - name: token
    address: {socket_address: {address: 127.0.0.1, port_value: %[6]d}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: token
          route_config: {virtual_hosts: [{name: all, domains: ["*"], routes: [{match: {prefix: /}, route: {cluster: upstream}}]}]}
          http_filters:
          - name: envoy.filters.http.credential_injector
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.credential_injector.v3.CredentialInjector
              credential:
                name: envoy.http.injected_credentials.generic
                typed_config:
                  "@type": type.googleapis.com/envoy.extensions.http.injected_credentials.generic.v3.Generic
                  credential: {name: token, sds_config: *sds}
          - {name: envoy.filters.http.router, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
  clusters:
  - name: sds
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {http2_protocol_options: {}}
    load_assignment: {cluster_name: sds, endpoints: [{lb_endpoints: [{endpoint: {address: {pipe: {path: %[2]s/%[1]s/s}}}}]}]}
  - name: upstream
    load_assignment: {cluster_name: upstream, endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: %[7]d}}}}]}]}
`

// startKinds starts the server and both Envoys. The upstream answers with the Authorization header of the request.
func startKinds(t *testing.T, manual bool, extra string) *kinds {
	t.Helper()
	k := &kinds{T: testenv.NewT(t), pki: newPKI(t), serial: map[string]string{}, port: map[string]map[string]int{}, envoys: map[string]*testenv.Envoy{}, manual: manual, extra: extra}
	k.http = k.Address()
	_, err := k.run(k.Context(), "init", "--dir", k.Dir)
	must(t, err)
	k.configure()
	k.server = k.Process(testenv.ProcessOptions{Name: "sds-server", Path: binary(t), Args: []string{"serve", "-c", k.file("sds-server.yaml")}})
	must(t, k.server.WaitHTTP(k.Ready(), "http://"+k.http+"/readyz"))
	k.renew("rsa", k.pki.rsaKey(t, 2048, 0))
	k.renew("ecdsa", newECKey(t, elliptic.P256()))
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Header.Get("Authorization")) }))
	t.Cleanup(upstream.Close)
	address, ok := upstream.Listener.Addr().(*net.TCPAddr)
	if !ok {
		t.Fatalf("upstream listens on %v", upstream.Listener.Addr())
	}
	for _, group := range edgeGroups {
		p := map[string]int{"pairs": k.Port(), "clients": k.Port(), "tickets": k.Port(), "token": k.Port()}
		k.port[group] = p
		e := k.Envoy(testenv.EnvoyOptions{Name: group, Config: fmt.Appendf(nil, kindsEnvoy, group, k.Dir, p["pairs"], p["clients"], p["tickets"], p["token"], address.Port)})
		k.envoys[group] = e
		must(t, e.WaitReady(k.Ready()))
	}
	return k
}

func (k *kinds) file(name string) string { return filepath.Join(k.Dir, name) }

// configure writes the configuration; a running server takes it up.
func (k *kinds) configure() {
	k.Helper()
	promotion := "auto"
	if k.manual {
		promotion = "manual"
	}
	k.write("sds-server.yaml", fmt.Appendf(nil, kindsConfig, k.Dir, k.http, os.Getuid(), promotion, k.extra, k.verify[0], k.verify[1]))
}

// write replaces a file in one step.
func (k *kinds) write(name string, data []byte) {
	k.Helper()
	must(k, os.WriteFile(k.file(name+".new"), data, 0o600))
	must(k, os.Rename(k.file(name+".new"), k.file(name)))
}

func (k *kinds) run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, binary(k), append(args, "-c", k.file("sds-server.yaml"))...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("sds-server %s: %w: %s", strings.Join(args, " "), err, errs.String())
	}
	return string(out), err
}

// renew gives a certificate for site to a secret.
func (k *kinds) renew(name string, key crypto.Signer) {
	k.Helper()
	p := k.pki.keyed(k, site, key)
	k.write(name+".crt", p.chain)
	k.write(name+".key", p.key)
	_, err := k.run(k.Context(), "secrets", "import", name, "--chain", k.file(name+".crt"), "--key", k.file(name+".key"))
	must(k, err)
	k.serial[name] = serial(k, p)
}

func (k *kinds) address(group, listener string) string {
	return fmt.Sprintf("127.0.0.1:%d", k.port[group][listener])
}

// secret is the status of one secret.
func (k *kinds) secret(ctx context.Context, name string) (admin.SecretStatus, error) {
	out, err := k.run(ctx, "status", "-o", "json")
	if err != nil {
		return admin.SecretStatus{}, err
	}
	var s admin.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return admin.SecretStatus{}, err
	}
	for _, st := range s.Secrets {
		if st.Name == name {
			return st, nil
		}
	}
	return admin.SecretStatus{}, fmt.Errorf("no status of %s in %s", name, out)
}

// eventually polls a condition.
func (k *kinds) eventually(check func(ctx context.Context) error) {
	k.Helper()
	must(k, testenv.Eventually(k.Ready(), check))
}

// A client that takes only RSA gets the RSA certificate, others that with ECDSA, and each is renewed alone.
func TestRSAAndECDSAAreServedOnOneListener(t *testing.T) {
	k := startKinds(t, false, "")
	serves := func() {
		t.Helper()
		for _, group := range edgeGroups {
			for name, algorithm := range map[string]tls.SignatureScheme{"rsa": tls.PSSWithSHA256, "ecdsa": tls.ECDSAWithP256AndSHA256} {
				k.eventually(func(ctx context.Context) error {
					serial, err := servedTo(ctx, k.address(group, "pairs"), algorithm)
					if err == nil && serial != k.serial[name] {
						err = fmt.Errorf("%s serves %s to clients that want %s, want %s", group, serial, name, k.serial[name])
					}
					return err
				})
			}
		}
	}
	serves()
	k.renew("rsa", k.pki.rsaKey(t, 2048, 1))
	serves()
	k.renew("ecdsa", newECKey(t, elliptic.P256()))
	serves()
}

// servedTo is the serial of the certificate for a client that takes only one kind of signature: `openssl s_client`, since Go's client cannot be told so.
func servedTo(ctx context.Context, address string, algorithm tls.SignatureScheme) (string, error) {
	sigalg := map[tls.SignatureScheme]string{tls.PSSWithSHA256: "RSA-PSS+SHA256", tls.ECDSAWithP256AndSHA256: "ECDSA+SHA256"}[algorithm]
	cmd := exec.CommandContext(ctx, "openssl", "s_client", "-connect", address, "-servername", site, "-sigalgs", sigalg)
	cmd.Stdin = strings.NewReader("")
	out, err := cmd.CombinedOutput()
	block, _ := pem.Decode(out[max(0, bytes.Index(out, []byte("-----BEGIN CERTIFICATE"))):])
	if block == nil {
		return "", fmt.Errorf("openssl s_client: %w: %s", errors.Join(err, errors.New("no certificate")), out)
	}
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	return testenv.Serial(leaf), nil
}

// judged tries clients over and over, and counts how they fare.
type judged struct {
	made, failed atomic.Int64
	first        atomic.Value // the first error
}

// hammer makes handshakes with a client's certificate until stop is called.
func (k *kinds) hammer(group string, client tls.Certificate) (j *judged, stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(k.Context()))
	j, done := &judged{}, make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			err := k.knock(ctx, group, client)
			if ctx.Err() != nil {
				return
			}
			j.made.Add(1)
			if err != nil {
				j.failed.Add(1)
				j.first.CompareAndSwap(nil, err.Error())
			}
		}
	}()
	return j, func() { cancel(); <-done }
}

// knock makes one request with a client's certificate.
func (k *kinds) knock(ctx context.Context, group string, client tls.Certificate) error {
	config := serverConfig(site)
	config.Certificates = []tls.Certificate{client}
	_, err := visit(ctx, k.address(group, "clients"), config)
	return err
}

// expect waits until the group accepts, or refuses, a client.
func (k *kinds) expect(group string, client tls.Certificate, accepted bool) {
	k.Helper()
	k.eventually(func(ctx context.Context) error {
		err := k.knock(ctx, group, client)
		if (err == nil) != accepted {
			return fmt.Errorf("%s: %w", group, errors.Join(err, fmt.Errorf("want accepted: %v", accepted)))
		}
		return nil
	})
}

// TestCAIsReplacedWithAnOverlap goes through the procedure of docs/operations.md: while both CAs are in force, no client of either is refused.
func TestCAIsReplacedWithAnOverlap(t *testing.T) {
	older, newer := newPKI(t), newPKI(t)
	dir := t.TempDir()
	mounted := mount{t: t, dir: dir}
	mounted.swap(certText(older.root.cert))
	k := startKinds(t, false, fmt.Sprintf("validation_contexts: [{name: corp-ca, ca_files: [%s/ca.pem]}]", dir))
	was, is := older.client(t), newer.client(t)
	var loads []*judged
	var stops []func()
	for _, group := range edgeGroups {
		k.expect(group, was, true)
		k.expect(group, is, false)
		j, stop := k.hammer(group, was)
		loads, stops = append(loads, j), append(stops, stop)
	}
	mounted.swap(certText(older.root.cert, newer.root.cert))
	for _, group := range edgeGroups {
		k.expect(group, is, true)
		j, stop := k.hammer(group, is)
		loads, stops = append(loads, j), append(stops, stop)
	}
	made := loads[0].made.Load()
	k.eventually(func(context.Context) error { // for a while
		if now := loads[0].made.Load(); now < made+20 {
			return fmt.Errorf("%d handshakes in the overlap", now-made)
		}
		return nil
	})
	for i := range edgeGroups { // the clients of the old CA have got new certificates
		stops[i]()
	}
	mounted.swap(certText(newer.root.cert))
	for _, group := range edgeGroups {
		k.expect(group, was, false)
		k.expect(group, is, true)
	}
	for i, j := range loads {
		stops[i]()
		if j.failed.Load() > 0 || j.made.Load() == 0 {
			t.Errorf("load %d: %d handshakes made, %d refused: %v", i, j.made.Load(), j.failed.Load(), j.first.Load())
		}
	}
	mounted.swap([]byte("junk")) // changes nothing
	k.eventually(func(ctx context.Context) error {
		st, err := k.secret(ctx, "corp-ca")
		if err == nil && (st.State != "failing" || st.Error == nil || st.Version == nil) {
			err = fmt.Errorf("status %+v, want failing", st)
		}
		return err
	})
	for _, group := range edgeGroups {
		k.expect(group, is, true)
		k.expect(group, was, false)
	}
}

// mount is a directory in which Kubernetes shows files: ca.pem leads by ..data, which is swapped, to a directory of the version.
type mount struct {
	t   *testing.T
	dir string
}

func (m mount) swap(data []byte) {
	m.t.Helper()
	version, err := os.MkdirTemp(m.dir, "..v")
	must(m.t, err)
	must(m.t, os.WriteFile(filepath.Join(version, "ca.pem"), data, 0o600))
	must(m.t, os.Symlink(filepath.Base(version), filepath.Join(m.dir, "..new")))
	must(m.t, os.Rename(filepath.Join(m.dir, "..new"), filepath.Join(m.dir, "..data")))
	if err := os.Symlink("..data/ca.pem", filepath.Join(m.dir, "ca.pem")); err != nil && !errors.Is(err, os.ErrExist) {
		m.t.Fatal(err)
	}
}

// TestGenericSecretIsInTheNextRequest writes files as people do, with a line end.
func TestGenericSecretIsInTheNextRequest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(path, []byte("first token\n"), 0o600))
	k := startKinds(t, false, fmt.Sprintf("generic_secrets: [{name: token, file: %s}]", path))
	for _, want := range []string{"first token", "second token", "third"} {
		must(t, os.WriteFile(path, []byte(want+"\n"), 0o600))
		for _, group := range edgeGroups {
			k.eventually(func(ctx context.Context) error {
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+k.address(group, "token"), http.NoBody)
				if err != nil {
					return err
				}
				client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
				resp, err := client.Do(req)
				if err != nil {
					return err
				}
				defer resp.Body.Close()
				got, err := io.ReadAll(resp.Body)
				if err == nil && string(got) != want {
					err = fmt.Errorf("%s: the upstream got %q, want %q", group, got, want)
				}
				return err
			})
		}
	}
}

// session keeps the first session that a server gave, and offers it again and again.
type session struct{ state *tls.ClientSessionState }

func (s *session) Get(string) (*tls.ClientSessionState, bool) { return s.state, s.state != nil }

func (s *session) Put(_ string, state *tls.ClientSessionState) {
	if s.state == nil {
		s.state = state
	}
}

// visit makes a request with a session, and reports whether it was resumed.
func (k *kinds) visit(ctx context.Context, group string, version uint16, s *session) (resumed bool, err error) {
	config := serverConfig(site)
	config.MinVersion, config.MaxVersion, config.ClientSessionCache = version, version, s
	return visit(ctx, k.address(group, "tickets"), config)
}

// sessions are one for each TLS version.
type sessions map[uint16]*session

func (k *kinds) begin(group string) sessions {
	k.Helper()
	all := sessions{tls.VersionTLS12: {}, tls.VersionTLS13: {}}
	for version, s := range all {
		k.eventually(func(ctx context.Context) error {
			_, err := k.visit(ctx, group, version, s)
			if err == nil && s.state == nil {
				err = errors.New("the server gave no ticket")
			}
			return err
		})
	}
	return all
}

func (k *kinds) expectResumed(what, group string, all sessions, want bool) {
	k.Helper()
	for version, s := range all {
		got, err := k.visit(k.Ready(), group, version, s)
		if err != nil || got != want {
			k.Errorf("%s, %s, %s: resumed %v, %v; want %v", what, group, tls.VersionName(version), got, err, want)
		}
	}
}

// TestTicketKeysAreLearnedBeforeTheyEncrypt rotates step by step, with promotions in between. In each state a client that has a ticket of one node is resumed by
// the other, until the key has left the ring.
func TestTicketKeysAreLearnedBeforeTheyEncrypt(t *testing.T) {
	ring := func(rotate string, keep int) string {
		return fmt.Sprintf("session_ticket_keys: [{name: tickets, rotate: %s, keep: %d}]", rotate, keep)
	}
	k := startKinds(t, true, ring("1h", 2))
	first := k.begin("canary")
	check := func(what string, resumed bool) {
		t.Helper()
		for _, group := range edgeGroups {
			k.expectResumed(what+", first ticket", group, first, resumed)
			mine := k.begin(group)
			for _, other := range edgeGroups {
				k.expectResumed(what+", ticket of "+group, other, mine, true)
			}
		}
	}
	check("before", true)
	k.rotate(ring, 2, func(step string) { check(step, true) })
	k.rotate(ring, 1, func(step string) { check(step, step != "both encrypt") })
	check("in the end", false)
}

// rotate goes through one rotation, and calls check in each state.
func (k *kinds) rotate(ring func(string, int) string, keep int, check func(step string)) {
	k.Helper()
	before := k.versions()
	k.extra = ring("1s", keep) // the key is older
	k.configure()
	k.await("learning", func(v map[string]string) bool {
		return v["canary"] != before["canary"] && v["production"] == before["production"]
	})
	k.extra = ring("1h", keep)
	k.configure()
	if keep > 1 {
		check("canary learns")
	}
	learned := k.versions()["canary"] // which goes on as soon as production has it, too
	k.promote()
	k.await("ok", func(v map[string]string) bool { return v["canary"] != learned && v["production"] == learned })
	if keep > 1 { // with one key the old one goes here
		check("canary encrypts")
	}
	k.promote()
	k.await("ok", func(v map[string]string) bool { return v["canary"] == v["production"] })
	k.eventually(func(ctx context.Context) error { // and has ACKed
		out, err := k.run(ctx, "rollout", "status", "-o", "json")
		if err == nil && !strings.Contains(out, `"rollouts": []`) {
			err = fmt.Errorf("rollouts under way: %s", out)
		}
		return err
	})
	check("both encrypt")
}

// versions are those of the ring, by group.
func (k *kinds) versions() map[string]string {
	k.Helper()
	st, err := k.secret(k.Context(), "tickets")
	must(k, err)
	return versionsOf(st)
}

func versionsOf(st admin.SecretStatus) map[string]string {
	out := map[string]string{}
	for _, g := range st.Groups {
		if g.Version != nil {
			out[g.Name] = *g.Version
		}
	}
	return out
}

// await waits until the ring is in a state, its groups are at versions as they are wanted, and the nodes have ACKed them.
func (k *kinds) await(state string, at func(map[string]string) bool) {
	k.Helper()
	k.eventually(func(ctx context.Context) error {
		st, err := k.secret(ctx, "tickets")
		if err != nil {
			return err
		}
		out, err := k.run(ctx, "status", "-o", "json")
		if err != nil {
			return err
		}
		var s admin.Status
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			return err
		}
		for _, g := range s.Groups {
			if g.Synced != 1 {
				return fmt.Errorf("group %+v is not synced", g)
			}
		}
		if v := versionsOf(st); st.State != state || !at(v) {
			return fmt.Errorf("state %s at %v, want %s", st.State, v, state)
		}
		return nil
	})
}

func (k *kinds) promote() {
	k.Helper()
	k.eventually(func(ctx context.Context) error {
		out, err := k.run(ctx, "promote", "--group", "production")
		if err == nil && !strings.Contains(out, "promoted") {
			err = fmt.Errorf("promote said %q", out)
		}
		return err
	})
}
