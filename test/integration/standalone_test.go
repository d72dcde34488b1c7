package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// standalone is the server as a process without a CA: its certificates are imported.
type standalone struct {
	*testenv.T
	process *testenv.Process
	config  string // path
	socket  string // of SDS, for group canary
	address string // of SDS over mutual TLS, for group production
	metrics string // URL
	admin   *admin.Client
	pairs   []pair            // that it serves
	serials map[string]string // by name
	ca      *testenv.Authority
}

// startStandalone starts the server. xds are more listeners, as YAML; the groups may have every name that does not begin with "secret.".
func startStandalone(t *testenv.T, listeners ...string) *standalone {
	t.Helper()
	dir := filepath.Join(t.Dir, "server")
	s := &standalone{
		T: t, config: filepath.Join(dir, "sds-server.yaml"), socket: filepath.Join(t.Dir, "run", "sds.sock"), address: t.Address(),
		admin: admin.NewClient(filepath.Join(t.Dir, "admin", "a.sock")), serials: map[string]string{},
	}
	var err error
	s.ca, err = testenv.NewAuthority(t.Dir, "imported")
	must(t, err)
	s.run("init", "--dir", dir, "--listen", s.address)
	http := t.Address()
	s.metrics = "http://" + http + "/metrics"
	must(t, os.WriteFile(s.config, fmt.Appendf(nil, `data_dir: data
seal: {key_file: seal.key}
xds:
  listeners:
    - {address: "unix://%s", groups: [canary]}
    - {address: "%s", tls: {cert_file: xds/server.crt, key_file: xds/server.key, client_ca_file: xds/ca.crt}}
%sadmin: {address: "unix://%s"}
http: {address: "%s"}
groups:
  - {name: canary, identities: [], secrets: ["*"]}
  - {name: production, identities: ["spiffe://sds-server/production/*"], secrets: ["*.example"]}
rollout: {waves: [[canary], [production]]}
`, s.socket, s.address, strings.Join(listeners, ""), filepath.Join(t.Dir, "admin", "a.sock"), http), 0o600))
	s.process = t.Process(testenv.ProcessOptions{Name: "sds-server", Path: binary(t), Args: []string{"serve", "-c", s.config}})
	must(t, s.process.WaitHTTP(t.Ready(), "http://"+http+"/readyz"))
	return s
}

// run runs a command of the server that has to succeed, and returns what it printed.
func (s *standalone) run(args ...string) string {
	s.Helper()
	p, err := testenv.StartProcess(s.Context(), testenv.ProcessOptions{Name: args[0], Path: binary(s), Args: args, LogDir: s.Dir})
	must(s, err)
	code, err := p.Wait(s.Ready())
	must(s, err)
	out, err := p.Log()
	must(s, err)
	if code != 0 {
		s.Fatalf("sds-server %s: exit code %d: %s", strings.Join(args, " "), code, out)
	}
	return out
}

// add imports a certificate for each name, which is its DNS name, too.
func (s *standalone) add(names ...string) {
	s.Helper()
	root, err := os.ReadFile(s.ca.File)
	must(s, err)
	for _, name := range names {
		leaf, err := s.ca.Issue(testenv.LeafOptions{DNSNames: []string{name}})
		must(s, err)
		p := pair{Name: name, Chain: string(leaf.CertPEM) + string(root), Key: string(leaf.KeyPEM)}
		var accepted admin.Accepted
		must(s, s.admin.Post(s.Context(), "/v1/secrets", admin.ImportRequest{Name: name, ChainPEM: p.Chain, KeyPEM: p.Key}, &accepted))
		s.pairs = append(s.pairs, p)
		s.serials[name] = testenv.Serial(leaf.TLS.Leaf)
	}
}
