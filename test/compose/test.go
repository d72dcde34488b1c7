package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

const (
	secretName = "www.demo.example"
	canary     = "canary"
	production = "production"
)

// https is where the Envoys are published, by group.
var https = map[string]string{canary: "127.0.0.1:8443", production: "127.0.0.1:9443"}

// test is one run: the engine, the project on it, the load of handshakes, and what was seen so far.
type test struct {
	dir    string // for everything; removed by the parent process
	out    io.Writer
	engine *engine
	load   map[string]*testenv.Load

	serials  map[string]string // what each group serves, by group
	versions map[string]string // what each node has ACKed, before the server is killed
	notes    []string          // figures, for the end
}

func (t *test) say(format string, args ...any) { fmt.Fprintf(t.out, format+"\n", args...) }

// took keeps how long something took, for the end.
func (t *test) took(what string, since time.Time) {
	t.notes = append(t.notes, fmt.Sprintf("%-52s %6.1f s", what, time.Since(since).Seconds()))
}

// project is the copy of the repository in which the commands are run. Compose takes the project's name from it.
func (t *test) project() string { return filepath.Join(t.dir, "sds-server") }

func (t *test) run(ctx context.Context) error {
	plugin, err := ensureCompose(ctx)
	if err != nil {
		return err
	}
	if err := cloneTree(ctx, t.project()); err != nil {
		return err
	}
	begin := time.Now()
	if t.engine, err = startEngine(ctx, filepath.Join(t.dir, "engine"), plugin); err != nil {
		return err
	}
	version, err := t.engine.docker(ctx, nil, "version", "--format", "{{.Server.Version}}")
	if err != nil {
		return err
	}
	t.took("engine started", begin)
	t.say("Docker engine %s, Compose %s", strings.TrimSpace(version), composeVersion)

	begin = time.Now()
	names, err := importImages(ctx, t.engine, t.project(), t.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		t.say("stand-in for %s, made of local files", name)
	}
	t.took("stand-ins for the official images", begin)
	return t.tour(ctx)
}

// startLoad begins the handshakes with both Envoys, which go on until the project is removed. Each has to end with a certificate of the CA.
func (t *test) startLoad(ctx context.Context) error {
	roots, err := t.roots(ctx)
	if err != nil {
		return err
	}
	t.load, t.serials = map[string]*testenv.Load{}, map[string]string{}
	for group, address := range https {
		err := testenv.Eventually(ctx, func(ctx context.Context) error {
			leaf, _, err := testenv.Handshake(ctx, address, secretName, roots)
			if err != nil {
				return err
			}
			t.serials[group] = testenv.Serial(leaf)
			return nil
		})
		if err != nil {
			return fmt.Errorf("%s: %w", group, err)
		}
		t.load[group] = testenv.StartLoad(context.WithoutCancel(ctx), testenv.LoadOptions{
			Address: address, ServerName: secretName, Roots: roots, Workers: 1, Pause: 2 * time.Millisecond,
		})
	}
	return nil
}

// roots asks Pebble, at its container's address, for the root of what it issues.
func (t *test) roots(ctx context.Context) (*x509.CertPool, error) {
	address, err := t.engine.docker(ctx, nil, "inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", "sds-pebble")
	if err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(filepath.Join(t.project(), "deploy", "compose", "sds-server", "pebble.minica.pem"))
	if err != nil {
		return nil, err
	}
	trust := x509.NewCertPool()
	if !trust.AppendCertsFromPEM(ca) {
		return nil, errors.New("pebble.minica.pem holds no certificate")
	}
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: trust, ServerName: "pebble", MinVersion: tls.VersionTLS12},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+strings.TrimSpace(address)+":15000/roots/0", http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close() // only read
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s: %s: no certificate", req.URL, resp.Status)
	}
	return pool, nil
}

// stopLoad ends the handshakes and says how many failed.
func (t *test) stopLoad() error {
	var errs []error
	for group, load := range t.load {
		load.Stop()
		t.notes = append(t.notes, fmt.Sprintf("%-52s %d made, %d failed", "full handshakes with "+group, load.Made(), load.Failed()))
		if load.Failed() > 0 || load.Made() == 0 {
			errs = append(errs, fmt.Errorf("%s: %d handshakes made, %d failed: %w", group, load.Made(), load.Failed(), errors.Join(load.Errors()...)))
		}
	}
	t.load = nil
	return errors.Join(errs...)
}

// logs prints what the containers and the engine said.
func (t *test) logs(ctx context.Context) {
	if t.engine == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if state, err := t.shell(ctx, "docker ps -a; docker compose logs --tail 20 2>&1 | cut -c1-300"); err == nil {
		t.say("%s", state)
	}
	t.say("last lines of dockerd:\n%s", t.engine.process.LogTail(15))
}

// stop ends the load, if it is still running, and the engine.
func (t *test) stop() error {
	var errs []error
	if t.load != nil {
		errs = append(errs, t.stopLoad())
	}
	if t.engine != nil {
		errs = append(errs, t.engine.process.Stop())
	}
	return errors.Join(errs...)
}

func (t *test) sum(all time.Duration) error {
	t.say("\n%s\n%-52s %6.1f s\ncompose: ok", strings.Join(t.notes, "\n"), "all", all.Seconds())
	return nil
}
