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
	process     *testenv.Process
	config      string // path
	socket      string // of SDS, for group canary
	address     string // of SDS over mutual TLS, for group production
	admin       *admin.Client
	adminSocket string
	pairs       []sample          // that it serves
	serials     map[string]string // by name
	ca          *testenv.Authority
}

// startStandalone starts the server with a listener for each of two groups; production may have only names that end with .example.
func startStandalone(t *testenv.T) *standalone {
	t.Helper()
	s := newStandalone(t)
	s.start(fmt.Sprintf(`xds:
  listeners:
    - {address: "unix://%s", groups: [canary]}
    - {address: "%s", tls: {cert_file: xds/server.crt, key_file: xds/server.key, client_ca_file: xds/ca.crt}}
groups:
  - {name: canary, secrets: ["*"]}
  - {name: production, identities: ["spiffe://sds-server/production/*"], secrets: ["*.example"]}
rollout: {waves: [[canary], [production]], watch: 0s, empty_group: skip}
`, s.socket, s.address))
	return s
}

func newStandalone(t *testenv.T) *standalone {
	t.Helper()
	socket := filepath.Join(t.Dir, "admin", "a.sock")
	s := &standalone{
		T: t, config: filepath.Join(t.Dir, "server", "sds-server.yaml"), socket: filepath.Join(t.Dir, "run", "sds.sock"), address: t.Address(),
		adminSocket: socket, admin: admin.NewClient(socket), serials: map[string]string{},
	}
	var err error
	s.ca, err = testenv.NewAuthority(t.Dir, "imported")
	must(t, err)
	return s
}

// start starts the server with listeners, groups and waves, as YAML.
func (s *standalone) start(config string) {
	s.Helper()
	s.run("init", "--dir", filepath.Dir(s.config), "--listen", s.address)
	http := s.Address()
	must(s, os.WriteFile(s.config, fmt.Appendf(nil, `data_dir: data
seal: {key_file: seal.key}
admin: {address: "unix://%s"}
http: {address: "%s"}
%s`, s.adminSocket, http, config), 0o600))
	s.process = s.Process(testenv.ProcessOptions{Name: "sds-server", Path: binary(s), Args: []string{"serve", "-c", s.config}})
	must(s, s.process.WaitHTTP(s.Ready(), "http://"+http+"/readyz"))
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
	for _, name := range names {
		s.addAs(name, name)
	}
}

// addAs imports a certificate for a DNS name under another one.
func (s *standalone) addAs(name, dnsName string) {
	s.Helper()
	root, err := os.ReadFile(s.ca.File)
	must(s, err)
	leaf, err := s.ca.Issue(testenv.LeafOptions{DNSNames: []string{dnsName}})
	must(s, err)
	p := sample{Name: name, Chain: string(leaf.CertPEM) + string(root), Key: string(leaf.KeyPEM)}
	var accepted admin.Accepted
	must(s, s.admin.Post(s.Context(), "/v1/secrets", admin.ImportRequest{Name: name, ChainPEM: p.Chain, KeyPEM: p.Key}, &accepted))
	s.pairs = append(s.pairs, p)
	s.serials[name] = testenv.Serial(leaf.TLS.Leaf)
}
