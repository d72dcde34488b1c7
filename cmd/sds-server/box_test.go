package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

// box is one server of a test: its files, its addresses, and how to start it and its commands.
type box struct {
	testing.TB
	Dir, Sockets         string
	HTTP, SDS, Challenge string
	binary               string
}

// settings are what configurations differ in.
type settings struct {
	Manual      bool
	Watch       string   // default 0s
	Undo        string   // rollout.undo_window
	Admin       string   // YAML of admin, after its address
	Groups      []string // default canary and production
	Issuer      string   // directory URL; default none
	CAFile      string
	RootsFile   string
	IssuerExtra string   // YAML behind the keys of that issuer
	Certs       []string // names that are issued
	Dead        string   // a name whose issuer does not answer
	Verify      string   // YAML of groups[].verify, of each group
	Secrets     string   // glob of what groups may have; default *
	Extra       string
}

const boxConfig = `data_dir: {{.B.Dir}}/data
seal: {key_file: {{.B.Dir}}/seal.key}
xds:
  listeners:
    - {address: "unix://{{.B.SDSSocket}}", groups: [{{range $i, $g := .S.Groups}}{{if $i}}, {{end}}{{$g}}{{end}}]}
    - address: "{{.B.SDS}}"
      tls: {cert_file: {{.B.Dir}}/xds/server.crt, key_file: {{.B.Dir}}/xds/server.key, client_ca_file: {{.B.Dir}}/xds/ca.crt}
admin: {address: "unix://{{.B.AdminSocket}}"{{.S.Admin}}}
http: {address: "{{.B.HTTP}}"}
challenges: {http-01: {address: "{{.B.Challenge}}"}}
issuers:
{{- if .S.Issuer}}
  - {name: ca, directory: "{{.S.Issuer}}", ca_file: {{.S.CAFile}}, roots_file: {{.S.RootsFile}}, accept_tos: true, profile: default{{.S.IssuerExtra}}}
{{- end}}
{{- if .S.Dead}}
  - {name: dead, directory: "https://127.0.0.1:1/dir", accept_tos: true}
{{- end}}
certificates:
{{- range .S.Certs}}
  - {name: {{.}}, dns_names: [{{.}}], issuers: [ca]}
{{- end}}
{{- if .S.Dead}}
  - {name: {{.S.Dead}}, dns_names: [{{.S.Dead}}], issuers: [dead]}
{{- end}}
groups:
{{- $secrets := .S.Secrets}}{{$uid := .UID}}{{$verify := .S.Verify}}
{{- range .S.Groups}}
  - {name: {{.}}, identities: ["unix:uid={{$uid}}", "spiffe://sds-server/{{.}}/*"], secrets: ["{{$secrets}}"]{{if $verify}}, verify: {{$verify}}{{end}}}
{{- end}}
rollout: {waves: [{{range $i, $g := .S.Groups}}{{if $i}}, {{end}}[{{$g}}]{{end}}], promotion: {{if .S.Manual}}manual{{else}}auto{{end}}, watch: {{or .S.Watch "0s"}}, undo_window: {{or .S.Undo "30m"}}, empty_group: skip}
{{.S.Extra}}
`

// newBox runs `init` in a directory of the test and writes a configuration with free ports.
func newBox(tb testing.TB, s settings) *box {
	tb.Helper()
	b := newEmptyBox(tb, tb.TempDir())
	b.must(b.init())
	b.configure(s)
	return b
}

// newEmptyBox chooses addresses; nothing is made.
func newEmptyBox(tb testing.TB, dir string) *box {
	tb.Helper()
	sockets, err := testenv.ShortDir()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = os.RemoveAll(sockets) })
	b := &box{TB: tb, Dir: filepath.Join(dir, "s"), Sockets: sockets, binary: serverBinary}
	for _, into := range []*string{&b.HTTP, &b.SDS, &b.Challenge} {
		if *into, err = testenv.FreeAddress(); err != nil {
			tb.Fatal(err)
		}
	}
	return b
}

func (b *box) init() error {
	out, err := exec.CommandContext(b.Context(), b.binary, "init", "--dir", b.Dir, "--listen", b.SDS).CombinedOutput()
	if err != nil {
		return errors.New(string(out))
	}
	return nil
}

func (b *box) Config() string      { return filepath.Join(b.Dir, "sds-server.yaml") }
func (b *box) Store() string       { return filepath.Join(b.Dir, "data", "store.db") }
func (b *box) AdminSocket() string { return filepath.Join(b.Sockets, "admin", "a.sock") }
func (b *box) SDSSocket() string   { return filepath.Join(b.Sockets, "sds", "s.sock") }

// configure replaces the configuration in one step.
func (b *box) configure(s settings) {
	b.Helper()
	b.must(b.write(s))
}

func (b *box) write(s settings) error {
	if s.Groups == nil {
		s.Groups = []string{"canary", "production"}
	}
	if s.Secrets == "" {
		s.Secrets = "*"
	}
	t, err := template.New("config").Parse(boxConfig)
	if err != nil {
		return err
	}
	var text bytes.Buffer
	if err := t.Execute(&text, map[string]any{"B": b, "S": s, "UID": os.Getuid()}); err != nil {
		return err
	}
	if err := os.WriteFile(b.Config()+".new", text.Bytes(), 0o644); err != nil {
		return err
	}
	return os.Rename(b.Config()+".new", b.Config())
}

// start runs the server until the end of the test, and waits until it is ready.
func (b *box) start() *testenv.Process {
	b.Helper()
	p := b.launch()
	ctx, cancel := b.within(testTime)
	defer cancel()
	b.must(p.WaitHTTP(ctx, "http://"+b.HTTP+"/readyz"))
	return p
}

// launch runs the server until the end of the test.
func (b *box) launch() *testenv.Process {
	b.Helper()
	p, err := testenv.StartProcess(b.Context(), testenv.ProcessOptions{
		Name: "sds-server", Path: b.binary, Args: []string{"serve", "--debug", "-c", b.Config()}, LogDir: b.Dir, Grace: 20 * time.Second,
	})
	b.must(err)
	b.Cleanup(func() {
		_ = p.Stop() // tests that care about the exit code stop it themselves
		if log, err := p.Log(); err == nil && strings.Contains(log, "WARNING: DATA RACE") {
			b.Errorf("data race:\n%s", log)
		}
		if b.Failed() {
			b.Logf("sds-server:\n%s", p.LogTail(40))
		}
	})
	return p
}

// pebble starts a CA that validates everything, behind a proxy, and returns settings with it.
func pebble(t *testing.T, s settings) (*testenv.Proxy, settings) {
	t.Helper()
	env := testenv.NewT(t)
	p := env.Pebble(testenv.PebbleOptions{AlwaysValid: true})
	if _, err := p.Root(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy := env.Proxy(p)
	s.Issuer, s.CAFile, s.RootsFile = proxy.Directory, p.CAFile, p.RootsFile
	return proxy, s
}

// result is how a command ended.
type result struct {
	out, errs string
	code      int
}

// run runs one command with the box's configuration.
func (b *box) run(args ...string) result {
	b.Helper()
	return b.runIn(nil, append(args, "-c", b.Config())...)
}

// runIn runs a command that may be changed before.
func (b *box) runIn(change func(*exec.Cmd), args ...string) result {
	b.Helper()
	ctx, cancel := b.within(time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, b.binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if change != nil {
		change(cmd)
	}
	err := cmd.Run()
	exit, exited := errors.AsType[*exec.ExitError](err)
	if err != nil && !exited {
		b.Fatalf("sds-server %s: %v", strings.Join(args, " "), err)
	}
	r := result{out: out.String(), errs: errs.String()}
	if exited {
		r.code = exit.ExitCode()
	}
	return r
}

// ok runs a command that has to succeed.
func (b *box) ok(args ...string) string {
	b.Helper()
	r := b.run(args...)
	if r.code != 0 {
		b.Fatalf("sds-server %s: exit %d: %s", strings.Join(args, " "), r.code, r.errs)
	}
	return r.out
}

// json runs a command with -o json and decodes its answer.
func (b *box) json(into any, args ...string) {
	b.Helper()
	out := b.ok(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		b.Fatalf("sds-server %s: %v in %s", strings.Join(args, " "), err, out)
	}
}

// refused runs a command that has to fail with the code, one error and, unless want is a usage error, a hint.
func (b *box) refused(code int, want string, args ...string) {
	b.Helper()
	checkRefusal(b, b.run(args...), code, want)
}

// checkRefusal wants one sentence and a hint.
func checkRefusal(tb testing.TB, r result, code int, want string) {
	tb.Helper()
	if r.code != code {
		tb.Fatalf("exit %d, want %d: %s%s", r.code, code, r.out, r.errs)
	}
	sentences, hints := 0, 0
	for line := range strings.Lines(r.errs) {
		if strings.HasPrefix(line, "error: ") {
			sentences++
		}
		if strings.HasPrefix(line, "hint: ") {
			hints++
		}
	}
	if sentences != 1 || hints != 1 || !strings.Contains(r.errs, want) {
		tb.Errorf("got %q, want one error with %q and one hint", r.errs, want)
	}
	if strings.Contains(r.errs, "panic") || strings.Contains(r.errs, "goroutine ") {
		tb.Errorf("got a panic: %s", r.errs)
	}
}

// serveFails starts a server that has to end by itself.
func (b *box) serveFails(code int, want string) {
	b.Helper()
	b.refused(code, want, "serve")
}

// serves reports whether a server answers.
func (b *box) serves(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.HTTP+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close() // nothing of it is needed
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// hash is a digest of a file.
func (b *box) hash(path string) [sha256.Size]byte {
	b.Helper()
	data, err := os.ReadFile(path)
	b.must(err)
	return sha256.Sum256(data)
}

// importPair imports one of the test's pairs.
func (b *box) importPair(name, pair string) {
	b.Helper()
	b.ok("secrets", "import", name, "--chain", filepath.Join(pairs, pair+".crt"), "--key", filepath.Join(pairs, pair+".key"))
}

func (b *box) must(err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

func (b *box) within(d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(b.Context(), d)
}

// eventuallyIn polls until check returns nil.
func (b *box) eventuallyIn(check func(ctx context.Context) error) {
	b.Helper()
	ctx, cancel := b.within(testTime)
	defer cancel()
	b.must(testenv.Eventually(ctx, check))
}

// eventually is eventuallyIn for a check that bounds itself.
func (b *box) eventually(check func() error) {
	b.Helper()
	b.eventuallyIn(func(context.Context) error { return check() })
}
