// Package fleet runs the whole product on real parts: Pebble, sds-server, an Envoy `canary` that is fed over a Unix socket, and an Envoy
// `production` that is fed over mutual TLS. The demo and the integration tests are made of it.
//
// Pebble validates HTTP-01 through the plain listener of canary, as a CA on the internet would.
package fleet

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"

	"github.com/sds-server/sds-server/internal/testenv"
)

// The groups, which are also the names of the Envoys.
const (
	Canary     = "canary"
	Production = "production"
)

// Options say what a Fleet is made of.
type Options struct {
	// Dir takes all files but the sockets. It is made if it is missing.
	Dir string
	// Sockets is a directory with a short path for the Unix sockets.
	Sockets string
	// Binary is the sds-server to run.
	Binary string
	// Pebble changes how Pebble runs; Dir and HTTPPort are set by the fleet.
	Pebble testenv.PebbleOptions
	// Directory overrides the ACME directory of the configuration: a proxy in front of Pebble. With it, CAFile is its trust.
	Directory, CAFile string
}

// Settings are what a configuration of the server differs in.
type Settings struct {
	Manual       bool
	Certificates []Certificate
	Profile      string // default: "default"
	AckTimeout   string // default: the server's
	Watch        string // default "0s"
	Verify       bool   // each wave is proven by handshakes with its Envoy, which have to lead to Pebble's root
	Stranger     bool   // certificates come from the CA that StartStranger has started
	Extra        string // more YAML at the top level
}

// Certificate is a configured certificate; its first name is its secret's.
type Certificate struct {
	Names       []string
	RenewBefore string
}

// Fleet is the running parts.
type Fleet struct {
	Options
	Pebble   *testenv.Pebble
	Stranger *testenv.Pebble // see StartStranger
	Server   *testenv.Process
	Envoys   map[string]*testenv.Envoy

	SDS, Metrics, Challenge string            // addresses of the server
	HTTP, HTTPS, Admin      map[string]string // addresses of the Envoys, by name
}

// New chooses addresses and makes the directory; nothing runs yet.
func New(o Options) (*Fleet, error) {
	f := &Fleet{
		Options: o, Envoys: map[string]*testenv.Envoy{}, HTTP: map[string]string{}, HTTPS: map[string]string{}, Admin: map[string]string{},
	}
	var errs []error
	free := func() string {
		a, err := testenv.FreeAddress()
		errs = append(errs, err)
		return a
	}
	f.SDS, f.Metrics, f.Challenge = free(), free(), free()
	for _, name := range []string{Canary, Production} {
		f.HTTP[name], f.HTTPS[name], f.Admin[name] = free(), free(), free()
	}
	for _, sub := range []string{"", "pebble", "envoy", "logs", "identities"} {
		errs = append(errs, os.MkdirAll(filepath.Join(o.Dir, sub), 0o700))
	}
	return f, errors.Join(errs...)
}

// Config is the path of the configuration file.
func (f *Fleet) Config() string { return filepath.Join(f.Dir, "sds-server.yaml") }

// AdminSocket and SDSSocket are the paths of the Unix sockets.
func (f *Fleet) AdminSocket() string { return filepath.Join(f.Sockets, "admin", "a.sock") }

// SDSSocket is where canary's Envoy connects to.
func (f *Fleet) SDSSocket() string { return filepath.Join(f.Sockets, "sds", "s.sock") }

// StartPebble starts the CA and writes the two trust files: pebble/https-ca.pem and pebble/issuer-root.pem.
func (f *Fleet) StartPebble(ctx context.Context) (err error) {
	o := f.Options.Pebble
	o.Dir = filepath.Join(f.Dir, "pebble")
	if o.HTTPPort, err = port(f.HTTP[Canary]); err != nil {
		return err
	}
	if f.Pebble, err = testenv.StartPebble(ctx, o); err != nil {
		return err
	}
	if _, err := f.Pebble.Root(ctx); err != nil {
		return err
	}
	if err := f.showLog("pebble", f.Pebble.LogFile()); err != nil {
		return err
	}
	if f.CAFile == "" {
		f.CAFile = f.Pebble.CAFile
	}
	if f.Directory == "" {
		f.Directory = f.Pebble.Directory
	}
	return errors.Join(
		copyFile(f.Pebble.CAFile, filepath.Join(o.Dir, "https-ca.pem")),
		copyFile(f.Pebble.RootsFile, filepath.Join(o.Dir, "issuer-root.pem")),
	)
}

// StartStranger starts another CA, whose root no client trusts, and that validates as the first one does.
func (f *Fleet) StartStranger(ctx context.Context) error {
	o := testenv.PebbleOptions{Name: "stranger", Dir: filepath.Join(f.Dir, "stranger")}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	var err error
	if o.HTTPPort, err = port(f.HTTP[Canary]); err != nil {
		return err
	}
	if f.Stranger, err = testenv.StartPebble(ctx, o); err != nil {
		return err
	}
	return f.showLog("stranger", f.Stranger.LogFile())
}

// Init runs `sds-server init`: seal key, store with the channel's CA, and the server's certificate.
func (f *Fleet) Init(ctx context.Context) error {
	_, err := f.Run(ctx, "init", "--dir", f.Dir, "--listen", f.SDS)
	return err
}

// Configure writes the configuration file in one step; a running server takes it up by itself.
func (f *Fleet) Configure(s Settings) error {
	s.Profile, s.Watch = cmp.Or(s.Profile, "default"), cmp.Or(s.Watch, "0s")
	verify := func(group string) string {
		if !s.Verify {
			return ""
		}
		return fmt.Sprintf(", verify: {endpoints: [{address: %q, node: %s-1}], roots_file: %s, timeout: 5s}", f.HTTPS[group], group, f.Pebble.RootsFile)
	}
	t, err := template.New("config").Funcs(template.FuncMap{"join": strings.Join, "verify": verify}).Parse(configText)
	if err != nil {
		return fmt.Errorf("configuration template: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, map[string]any{"F": f, "S": s}); err != nil {
		return fmt.Errorf("configuration template: %w", err)
	}
	tmp := f.Config() + ".new"
	if err := os.WriteFile(tmp, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return os.Rename(tmp, f.Config())
}

const configText = `data_dir: {{.F.Dir}}/data
seal: {key_file: {{.F.Dir}}/seal.key}
xds:
  listeners:
    - {address: "unix://{{.F.SDSSocket}}", groups: [canary]}
    - address: "{{.F.SDS}}"
      tls: {cert_file: {{.F.Dir}}/xds/server.crt, key_file: {{.F.Dir}}/xds/server.key, client_ca_file: {{.F.Dir}}/xds/ca.crt}
admin: {address: "unix://{{.F.AdminSocket}}"}
http: {address: "{{.F.Metrics}}"}
challenges: {http-01: {address: "{{.F.Challenge}}"}}
issuers:
  - {name: pebble, directory: "{{.F.Directory}}", ca_file: {{.F.CAFile}}, roots_file: {{.F.Pebble.RootsFile}}, accept_tos: true, profile: {{.S.Profile}}}
{{- with .F.Stranger}}
  - {name: stranger, directory: "{{.Directory}}", ca_file: {{.CAFile}}, roots: unchecked, accept_tos: true, profile: default}
{{- end}}
{{- if .S.Certificates}}
certificates:
{{- range .S.Certificates}}
  - {name: {{index .Names 0}}, dns_names: [{{join .Names ", "}}], issuers: [{{if $.S.Stranger}}stranger{{else}}pebble{{end}}]{{if .RenewBefore}}, renew_before: "{{.RenewBefore}}"{{end}}}
{{- end}}
{{- end}}
groups:
  - {name: canary, identities: ["spiffe://sds-server/canary/*"], secrets: ["*"]{{verify "canary"}}}
  - {name: production, identities: ["spiffe://sds-server/production/*"], secrets: ["*"]{{verify "production"}}}
rollout: {waves: [[canary], [production]], promotion: {{if .S.Manual}}manual{{else}}auto{{end}}, watch: {{.S.Watch}}, empty_group: skip{{if .S.AckTimeout}}, ack_timeout: {{.S.AckTimeout}}{{end}}}
{{.S.Extra}}
`

// StartServer starts sds-server and waits until it is ready.
func (f *Fleet) StartServer(ctx context.Context) (err error) {
	f.Server, err = testenv.StartProcess(ctx, testenv.ProcessOptions{
		Name: "sds-server", Path: f.Binary, Args: []string{"serve", "-c", f.Config()}, LogDir: filepath.Join(f.Dir, "logs"),
	})
	if err != nil {
		return err
	}
	return f.Server.WaitHTTP(ctx, "http://"+f.Metrics+"/readyz")
}

// StartEnvoys has identities issued and bootstraps printed by the server's own commands, and starts both Envoys; secrets are what they serve.
func (f *Fleet) StartEnvoys(ctx context.Context, secrets ...string) error {
	for _, group := range []string{Canary, Production} {
		if err := f.StartEnvoy(ctx, group, secrets...); err != nil {
			return err
		}
	}
	return nil
}

// Identity is the directory with the client certificate of one Envoy.
func (f *Fleet) Identity(group string) string { return filepath.Join(f.Dir, "identities", group) }

// Issue makes the client certificate of one Envoy; more are flags such as --life.
func (f *Fleet) Issue(ctx context.Context, group string, more ...string) error {
	_, err := f.Run(ctx, append([]string{"identity", "issue", "--group", group, "--node", group + "-1", "--out", f.Identity(group)}, more...)...)
	return err
}

// StartEnvoy starts the Envoy of one group, with an identity of its own.
func (f *Fleet) StartEnvoy(ctx context.Context, group string, secrets ...string) error {
	if err := f.Issue(ctx, group); err != nil {
		return err
	}
	return f.BootEnvoy(ctx, group, secrets...)
}

// BootEnvoy starts the Envoy of one group with the identity that it has.
func (f *Fleet) BootEnvoy(ctx context.Context, group string, secrets ...string) error {
	args := []string{
		"envoy", "bootstrap", "--group", group, "--node", group + "-1", "--identity", f.Identity(group),
		"--https", f.HTTPS[group], "--http", f.HTTP[group], "--admin", f.Admin[group],
	}
	for _, s := range secrets {
		args = append(args, "--secret", s)
	}
	config, err := f.Run(ctx, args...)
	if err != nil {
		return err
	}
	e, err := testenv.StartEnvoy(ctx, testenv.EnvoyOptions{Name: group, Config: config, Dir: filepath.Join(f.Dir, "envoy")})
	if err != nil {
		return err
	}
	f.Envoys[group] = e
	if err := f.showLog(group, e.LogFile()); err != nil {
		return err
	}
	return e.WaitReady(ctx)
}

// showLog lets logs/NAME.log lead to a part's log.
func (f *Fleet) showLog(name, file string) error {
	link := filepath.Join(f.Dir, "logs", name+".log")
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.Symlink(file, link)
}

// Run runs one command of sds-server and returns its standard output; the error holds its standard error.
func (f *Fleet) Run(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, f.Binary, append(args, "-c", f.Config())...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("sds-server %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out, nil
}

// JSON runs one command with -o json and decodes its answer.
func (f *Fleet) JSON(ctx context.Context, into any, args ...string) error {
	out, err := f.Run(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("answer of sds-server %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Stop ends every part, the Envoys first.
func (f *Fleet) Stop() error {
	var errs []error
	for _, e := range f.Envoys {
		errs = append(errs, e.Stop())
	}
	if f.Server != nil && f.Server.Running() {
		errs = append(errs, f.Server.Stop())
	}
	for _, ca := range []*testenv.Pebble{f.Pebble, f.Stranger} {
		if ca != nil {
			errs = append(errs, ca.Stop())
		}
	}
	return errors.Join(errs...)
}
