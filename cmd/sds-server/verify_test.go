package main

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
)

// listener is a TLS listener that stands for an Envoy's.
type listener struct {
	address string

	mu   sync.Mutex
	pair tls.Certificate // guarded by mu
}

// startListener serves one of the test's pairs until the end of the test.
func startListener(t *testing.T, pair string) *listener {
	t.Helper()
	l := &listener{}
	l.serve(t, pair)
	raw, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.address = raw.Addr().String()
	var conns sync.WaitGroup
	accepting := tls.NewListener(raw, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		l.mu.Lock()
		defer l.mu.Unlock()
		return new(l.pair), nil
	}})
	conns.Go(func() {
		for {
			conn, err := accepting.Accept()
			if err != nil {
				return
			}
			conns.Go(func() {
				_, _ = conn.Read(make([]byte, 1)) // the handshake, and until the client says goodbye
				_ = conn.Close()                  // nobody listens to its error
			})
		}
	})
	t.Cleanup(func() {
		_ = accepting.Close() // as above
		conns.Wait()
	})
	return l
}

func (l *listener) serve(t *testing.T, pair string) {
	t.Helper()
	p, err := tls.LoadX509KeyPair(filepath.Join(pairs, pair+".crt"), filepath.Join(pairs, pair+".key"))
	if err != nil {
		t.Fatal(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pair = p
}

// TestVerifyCommand goes through what the command can say.
func TestVerifyCommand(t *testing.T) {
	t.Parallel()
	l := startListener(t, "a1")
	b := newBox(t, settings{})
	p := b.start()
	b.refused(1, "no group has verify", "verify")
	b.refused(1, `group "canary" has no verify`, "verify", "--group", "canary")
	b.refused(1, `no group named "nowhere"`, "verify", "--group", "nowhere")
	b.refused(2, "", "verify", "canary")
	if r := b.runIn(nil, "__complete", "-c", b.Config(), "verify", "--group", ""); !strings.Contains(r.out, "production\n") {
		t.Errorf("completion: %s", r.out)
	}
	b.must(p.Stop())

	s := settings{Verify: fmt.Sprintf(`{endpoints: [{address: "%s", node: n1}], roots_file: "%s", timeout: 300ms}`, l.address, filepath.Join(pairs, "roots.pem"))}
	b.configure(s)
	p = b.start()
	r := b.run("verify")
	checkRefusal(t, r, 1, "nothing was looked at")
	if !strings.Contains(r.out, "not looked at: "+l.address) {
		t.Errorf("an endpoint without its node is not named: %s", r.out)
	}
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.importPair("www", "a1")
	b.eventually(func() error { return n.has("www", "") })
	b.shape(verifyShape, "verify")
	out := b.ok("verify", "--group", "canary")
	if !lineHas(out, "canary", "n1", l.address, "www.example.com", "tls1.3", "ok") || !strings.Contains(out, "group canary: ") {
		t.Errorf("verify: %s", out)
	}
	served := func(want *string) {
		t.Helper()
		var nodes admin.Nodes
		b.json(&nodes, "nodes")
		if got := nodes.Nodes[0].Secrets[0].Served; got == nil || got.Version == nil || *got.Version != *want {
			t.Errorf("served is %+v, want %s", got, *want)
		}
	}
	first := b.version("www")
	served(&first)
	if out := b.ok("nodes"); !lineHas(out, "n1", "www", short(first)) {
		t.Errorf("nodes: %s", out)
	}

	// Renewed, but the old one is still served: the node ACKs, the listener shows it. Where rollouts looked, too, they would take it back.
	b.configure(settings{Undo: "1ms"})
	b.must(p.Signal(syscall.SIGHUP))
	b.eventually(func() error {
		if b.run("verify").code == 0 {
			return errors.New("the group still has verify")
		}
		return nil
	})
	b.importPair("www", "a2")
	b.eventually(func() error {
		if b.version("www") == first {
			return errors.New("a2 is not there yet")
		}
		return n.has("www", "")
	})
	s.Undo = "1ms"
	b.configure(s)
	b.must(p.Signal(syscall.SIGHUP))
	b.eventually(func() error {
		if !strings.Contains(b.run("verify").errs, "is still served") {
			return errors.New("the group has no verify yet")
		}
		return nil
	})
	r = b.run("verify", "-o", "json")
	var v admin.Verification
	b.must(json.Unmarshal([]byte(r.out), &v))
	if r.code != 1 || v.Served || !strings.Contains(r.errs, `"hint"`) {
		t.Errorf("exit %d, %s%s", r.code, r.out, r.errs)
	}
	for _, h := range v.Handshakes {
		if h.Error == nil || h.Error.Kind != "old_leaf" || h.Served == nil || h.Served.Version == nil || *h.Served.Version != first || h.Want == first {
			t.Errorf("got %+v, want the old leaf of %s", h, first)
		}
	}
	served(&first)
	b.eventually(func() error {
		_, text := b.fetch("/metrics", "")
		if want := `sds_served_mismatch{group="canary",secret="www"} 1`; !strings.Contains(text, want) {
			return fmt.Errorf("no %s", want)
		}
		return nil
	})
	checkRefusal(t, b.run("verify"), 1, "is still served")
	b.shape(verifyShape, "verify")
	l.serve(t, "a2")
	b.ok("verify")
	second := b.version("www")
	served(&second)
}

// One node has two certificates for one name, each on a port of its own: what is expected where has to be said.
func TestEndpointSaysWhichSecretsAreServedThere(t *testing.T) {
	t.Parallel()
	ec, rsa := startListener(t, "a1"), startListener(t, "rsa")
	b := newBox(t, settings{})
	endpoints := func(more string) settings {
		return settings{Verify: fmt.Sprintf(`{endpoints: [{address: "%s", node: n1, secrets: [www-ec]}, {address: "%s", node: n1%s}], roots_file: "%s", timeout: 300ms}`,
			ec.address, rsa.address, more, filepath.Join(pairs, "roots.pem"))}
	}
	p := b.start()
	ecNode, rsaNode := connect(t, b.SDSSocket(), "n1", "canary", "www-ec"), connect(t, b.SDSSocket(), "n1", "canary", "www-rsa")
	b.importPair("www-ec", "a1")
	b.importPair("www-rsa", "rsa")
	b.eventually(func() error { return errors.Join(ecNode.has("www-ec", ""), rsaNode.has("www-rsa", "")) })

	b.configure(endpoints(""))
	b.must(p.Signal(syscall.SIGHUP))
	b.eventually(func() error {
		// The RSA listener cannot show what the node has elsewhere.
		if r := b.run("verify"); r.code != 1 || !strings.Contains(r.out, rsa.address) || !strings.Contains(r.out, "www-ec") {
			return fmt.Errorf("exit %d: %s%s", r.code, r.out, r.errs)
		}
		return nil
	})
	b.configure(endpoints(", secrets: [www-rsa]"))
	b.must(p.Signal(syscall.SIGHUP))
	b.eventually(func() error {
		if r := b.run("verify"); r.code != 0 || !strings.Contains(r.out, ec.address) || !strings.Contains(r.out, rsa.address) {
			return fmt.Errorf("exit %d: %s%s", r.code, r.out, r.errs)
		}
		return nil
	})
}

// version is what the group canary is at.
func (b *box) version(name string) string {
	b.Helper()
	var s admin.Secret
	b.json(&s, "secrets", "show", name)
	for _, v := range s.Versions {
		if slices.Contains(v.Groups, "canary") {
			return v.Version
		}
	}
	return ""
}

// shape checks the answer of a command, whatever its exit code.
func (b *box) shape(shape string, args ...string) {
	b.Helper()
	var want, got any
	b.must(json.Unmarshal([]byte(shape), &want))
	r := b.run(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(r.out), &got); err != nil {
		b.Fatalf("%s: %v in %s%s", strings.Join(args, " "), err, r.out, r.errs)
	}
	for _, problem := range compareShape(want, got, strings.Join(args, " ")) {
		b.Error(problem)
	}
}
