package verify

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// The RSA-only client understands each suite, curve and signature that it offers.
func TestRSAClientSpeaksWhatItOffers(t *testing.T) {
	p := newPKI(t)
	pair := p.pair(t, rsaKey(t, 0), site)
	for _, s := range suites {
		for id := range curves {
			for _, demands := range []tls.ClientAuthType{tls.NoClientCert, tls.RequestClientCert, tls.RequireAnyClientCert} {
				t.Run(fmt.Sprintf("%s %v %v", tls.CipherSuiteName(s.id), id, demands), func(t *testing.T) {
					l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}, CipherSuites: []uint16{s.id}, CurvePreferences: []tls.CurveID{id}, ClientAuth: demands})
					results := look(t, &wants{}, 5*time.Second, target(l.address, p.leaf(pair, "www", "v1")))
					if len(results) != 2 || results[0].Client != TLS12RSA || results[0].Failure != nil || results[0].Completed != (demands != tls.RequireAnyClientCert) {
						t.Fatalf("got %+v, want a handshake that completes unless a client certificate is demanded", results)
					}
					if got, want := results[0].ClientCertificate, demands != tls.NoClientCert; got != want {
						t.Errorf("client certificate asked for: %v, want %v", got, want)
					}
					if !results[0].Completed {
						return
					}
					l.mu.Lock()
					defer l.mu.Unlock()
					if st := l.states[0]; st.Version != tls.VersionTLS12 || st.CipherSuite != s.id || st.ServerName != site {
						t.Errorf("the server saw version %#x, suite %#x, SNI %q", st.Version, st.CipherSuite, st.ServerName)
					}
				})
			}
		}
	}
}

func TestSignaturesAreChecked(t *testing.T) {
	key, other := rsaKey(t, 0), rsaKey(t, 1)
	for scheme, hash := range rsaSchemes {
		h := hash.New()
		h.Write([]byte("signed"))
		var opts crypto.SignerOpts = hash
		if strings.HasPrefix(scheme.String(), "PSS") {
			opts = &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash}
		}
		signature, err := key.Sign(rand.Reader, h.Sum(nil), opts)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkSignature(key.Public(), scheme, []byte("signed"), signature); err != nil {
			t.Errorf("%v: %v", scheme, err)
		}
		if checkSignature(key.Public(), scheme, []byte("other"), signature) == nil {
			t.Errorf("%v: a signature of something else is taken", scheme)
		}
		if checkSignature(other.Public(), scheme, []byte("signed"), signature) == nil {
			t.Errorf("%v: a signature by another key is taken", scheme)
		}
	}
	if checkSignature(ecKey(t).Public(), tls.PSSWithSHA256, nil, nil) == nil || checkSignature(key.Public(), tls.PKCS1WithSHA1, nil, nil) == nil {
		t.Error("what was not offered is taken")
	}
}

// Whoever sends a certificate without its key serves nothing.
func TestCertificateWithoutItsKeyIsNotServed(t *testing.T) {
	p := newPKI(t)
	for name, keys := range map[string][2]crypto.Signer{"rsa": {rsaKey(t, 0), rsaKey(t, 1)}, "ecdsa": {ecKey(t), ecKey(t)}} {
		pair := p.pair(t, keys[0], site)
		leaf := p.leaf(pair, "www", "v1")
		pair.PrivateKey = keys[1]
		l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
		for _, r := range look(t, &wants{}, 5*time.Second, target(l.address, leaf)) {
			if r.Failure == nil || r.Failure.Kind != Broken || r.Shown != nil {
				t.Errorf("%s %s: got %+v, %v; want that nothing is proven", name, r.Client, r.Shown, r.Failure)
			}
		}
	}
}

// A resuming client goes on seeing the certificate of its session.
func TestNoHandshakeIsResumed(t *testing.T) {
	p := newPKI(t)
	pairs := []tls.Certificate{p.pair(t, rsaKey(t, 0), site), p.pair(t, ecKey(t), site)}
	for _, client := range []Client{TLS12RSA, TLS12ECDSA, TLS13} {
		l := serve(t, &tls.Config{Certificates: pairs})
		for range 3 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			if s, err := shake(ctx, &Check{Address: l.address, ServerName: site, Client: client}); err != nil || !s.completed {
				t.Errorf("%s: %+v, %v", client, s, err)
			}
			cancel()
		}
		l.mu.Lock()
		if l.resumed != 0 || len(l.states) != 3 {
			t.Errorf("%s: %d of %d handshakes were resumed, want 0 of 3", client, l.resumed, len(l.states))
		}
		l.mu.Unlock()
	}
}

// Each kind of failure, for each client.
func TestFailuresAreTypedAndSayWhatWhereAndWhatToDo(t *testing.T) {
	p, stranger := newPKI(t), newPKI(t)
	pairs := []tls.Certificate{p.pair(t, rsaKey(t, 0), site), p.pair(t, ecKey(t), site)}
	older := []tls.Certificate{p.pair(t, rsaKey(t, 0), site), p.pair(t, ecKey(t), site)}
	foreign := []tls.Certificate{p.pair(t, rsaKey(t, 0), site), p.pair(t, ecKey(t), site)}
	untrusted := []tls.Certificate{stranger.pair(t, rsaKey(t, 0), site), stranger.pair(t, ecKey(t), site)}
	w := &wants{known: map[string]secret.Version{p.leaf(older[0], "", "").SHA256: "v1", p.leaf(older[1], "", "").SHA256: "v1"}}
	silent, closing := listen(t), listen(t)
	t.Cleanup(func() { _, _ = silent.Close(), closing.Close() })
	go func() {
		for {
			conn, err := closing.Accept()
			if err != nil {
				return
			}
			_ = conn.Close()
		}
	}()
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	address := func(certs []tls.Certificate) (each [2]string) {
		for i := range each {
			each[i] = serve(t, &tls.Config{Certificates: certs[i : i+1]}).address
		}
		return each
	}
	both := func(address string) [2]string { return [2]string{address, address} }
	for _, test := range []struct {
		name    string
		address [2]string
		certs   []tls.Certificate
		kind    Kind
		again   bool // it is tried more than once
	}{
		{"served", address(pairs), pairs, "", false},
		{"old", address(older), pairs, OldLeaf, true},
		{"other", address(foreign), pairs, OtherLeaf, true},
		{"chain", address(untrusted), untrusted, Chain, false},
		{"alert", both(serve(t, &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, errors.New("none") }}).address), pairs, Alert, false},
		{"refused", both(nobody), pairs, Refused, false},
		{"timeout", both(silent.Addr().String()), pairs, Timeout, false},
		{"closed", both(closing.Addr().String()), pairs, Broken, false},
		{"plain HTTP", both(plain.Listener.Addr().String()), pairs, Broken, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			for i, client := range []Client{TLS12RSA, TLS12ECDSA} { // one key type after the other, so that each client is the first at the address
				results := look(t, w, time.Second, target(test.address[i], p.leaf(test.certs[i], "www", "v2")))
				if len(results) != 2 || results[0].Client != client {
					t.Fatalf("got %+v, want two results", results)
				}
				for _, r := range results {
					checkFailure(t, r, test.kind)
					if again := r.Attempts > 1; again != test.again {
						t.Errorf("%s: %d attempts, want again %v", r.Client, r.Attempts, test.again)
					}
				}
			}
		})
	}
}

func checkFailure(t *testing.T, r Result, kind Kind) {
	t.Helper()
	if kind == "" {
		if r.Failure != nil || r.Shown.Version != "v2" || r.Latency <= 0 {
			t.Errorf("%s: got %+v, %v; want v2 to be served", r.Client, r.Shown, r.Failure)
		}
		return
	}
	if r.Failure == nil || r.Failure.Kind != kind {
		t.Fatalf("%s: got %v, want %s", r.Client, r.Failure, kind)
	}
	for _, part := range []string{`"www"`, r.Address, site, string(r.Client), `node "n"`} {
		if !strings.Contains(r.Failure.Message, part) {
			t.Errorf("%s: %q does not name %s", r.Client, r.Failure.Message, part)
		}
	}
	if r.Failure.Hint == "" || strings.ContainsRune(r.Failure.Message, '\n') {
		t.Errorf("%s: message %q, hint %q", r.Client, r.Failure.Message, r.Failure.Hint)
	}
	if want := kind == OldLeaf; (r.Shown != nil && r.Shown.Version == "v1") != want {
		t.Errorf("%s: shown is %+v", r.Client, r.Shown)
	}
}

// What a group is at may change while it is looked at.
func TestNewVersionThatComesMeanwhileIsNoFailure(t *testing.T) {
	p := newPKI(t)
	first, second := p.pair(t, ecKey(t), site), p.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{second}})
	w := &wants{current: map[string]Leaf{"www": p.leaf(second, "www", "v2")}}
	for _, r := range look(t, w, 5*time.Second, target(l.address, p.leaf(first, "www", "v1"))) {
		if r.Failure != nil || r.Shown.Version != "v2" || r.Attempts != 1 {
			t.Errorf("%s: got %+v, %v; want v2", r.Client, r, r.Failure)
		}
	}
}

// An Envoy takes a moment.
func TestOldLeafIsLookedAtAgain(t *testing.T) {
	p := newPKI(t)
	first, second := p.pair(t, ecKey(t), site), p.pair(t, ecKey(t), site)
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{first}})
	w := &wants{known: map[string]secret.Version{}}
	w.known[p.leaf(first, "", "").SHA256] = "v1"
	l.after(2, &tls.Config{Certificates: []tls.Certificate{second}})
	for _, r := range look(t, w, 20*time.Second, target(l.address, p.leaf(second, "www", "v2"))) {
		if r.Failure != nil || r.Attempts < 2 {
			t.Errorf("%s: %d attempts, %v; want v2 at last", r.Client, r.Attempts, r.Failure)
		}
	}
}

// A target that hangs costs one time-out, however many names it has, and the other targets nothing, though there is one slot less.
func TestHangingTargetDelaysNoOther(t *testing.T) {
	p := newPKI(t)
	silent := listen(t)
	t.Cleanup(func() { _ = silent.Close() })
	pair := p.pair(t, ecKey(t), "a.example", "b.example", "c.example", "d.example")
	l := serve(t, &tls.Config{Certificates: []tls.Certificate{pair}})
	leaf := p.leaf(pair, "many", "v1")
	results := look(t, &wants{}, 2*time.Second, target(silent.Addr().String(), leaf), target(l.address, leaf))
	if len(results) != 16 {
		t.Fatalf("%d results, want 16", len(results))
	}
	for i, r := range results {
		if i < 8 && (r.Address != l.address || r.Failure != nil) {
			t.Errorf("result %d is %s, %v; want that of the target that answers first", i, r.Address, r.Failure)
		}
		if i > 8 && (r.Attempts != 0 || r.Failure == nil || r.Failure.Kind != Timeout) {
			t.Errorf("result %d: %d attempts, %v; want that it was given up", i, r.Attempts, r.Failure)
		}
	}
}

func TestEndOfContextEndsEverything(t *testing.T) {
	p := newPKI(t)
	silent := listen(t)
	t.Cleanup(func() { _ = silent.Close() })
	leaf := p.leaf(p.pair(t, rsaKey(t, 0), site), "www", "v1")
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		conn, err := silent.Accept()
		cancel()
		if err == nil {
			_, _ = io.Copy(io.Discard, conn) // until the other side goes
		}
	}()
	r := &runner{source: &wants{}, slots: slots{make(chan struct{}, 1)}}
	r.run(ctx, Plan(Group{Name: "g", Timeout: time.Hour, Targets: []Target{target(silent.Addr().String(), leaf)}}), func(one Result) {
		t.Errorf("got %+v, want nothing", one)
	})
}

// script is a connection whose other side has said everything already.
type script struct {
	net.Conn
	answer *bytes.Reader
}

func (s script) Read(b []byte) (int, error)  { return s.answer.Read(b) }
func (s script) Write(b []byte) (int, error) { return len(b), nil }

// FuzzServer lets a server say anything. The seeds are what a real one said, cut off and whole.
func FuzzServer(f *testing.F) {
	p := newPKI(f)
	pair := p.pair(f, rsaKey(f, 0), site)
	said := record(f, &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})
	f.Add(said)
	f.Add(said[:len(said)/2])
	f.Add([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	f.Add([]byte{recordAlert, 3, 3, 0, 2, 2, 40})
	f.Add([]byte{recordHandshake, 3, 3, 0, 4, 0, 0, 0, 0, recordHandshake, 3, 3, 0, 4, 2, 255, 255, 255})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &seen{}
		c := &rsaClient{records: records{conn: script{answer: bytes.NewReader(data)}}, name: site, seen: s}
		if err := c.handshake(); err == nil {
			t.Error("a server that knows nothing of our keys came to the end of a handshake")
		}
		if s.proven {
			t.Error("a signature over another client's random number is taken")
		}
	})
}

// record returns what a server says to a client of the kind, up to the client's answer.
func record(t testing.TB, config *tls.Config) []byte {
	t.Helper()
	client, server := net.Pipe()
	defer client.Close()
	go func() { _ = tls.Server(server, config).HandshakeContext(context.Background()) }() // it ends with the pipe
	var said bytes.Buffer
	s := &seen{}
	tee := &rsaClient{records: records{conn: teed{client, &said}}, name: site, seen: s}
	for _, step := range []func() error{tee.hello, tee.serverHello, tee.certificate, tee.keyExchange, tee.helloDone} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return said.Bytes()
}

type teed struct {
	net.Conn
	said *bytes.Buffer
}

func (c teed) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.said.Write(b[:n])
	return n, err
}
