package testenv

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kind is the kind of an ACME request, by RFC 8555, Section 7.1.
type Kind string

// The kinds that Proxy tells apart.
const (
	KindDirectory   Kind = "directory"
	KindNonce       Kind = "newNonce"
	KindNewAccount  Kind = "newAccount"
	KindAccount     Kind = "account"
	KindOrders      Kind = "orders"
	KindNewOrder    Kind = "newOrder"
	KindOrder       Kind = "order"
	KindFinalize    Kind = "finalize"
	KindAuthz       Kind = "authz"
	KindChallenge   Kind = "challenge"
	KindCert        Kind = "cert"
	KindRevoke      Kind = "revokeCert"
	KindKeyChange   Kind = "keyChange"
	KindRenewalInfo Kind = "renewalInfo"
	KindOther       Kind = "other"
)

// kindPrefixes are the paths of Pebble v2.10.1.
var kindPrefixes = []struct {
	prefix string
	kind   Kind
}{
	{"/dir", KindDirectory},
	{"/nonce-plz", KindNonce},
	{"/sign-me-up", KindNewAccount},
	{"/my-account/", KindAccount},
	{"/list-orderz/", KindOrders},
	{"/order-plz", KindNewOrder},
	{"/my-order/", KindOrder},
	{"/finalize-order/", KindFinalize},
	{"/authZ/", KindAuthz},
	{"/chalZ/", KindChallenge},
	{"/certZ/", KindCert},
	{"/revoke-cert", KindRevoke},
	{"/rollover-account-key", KindKeyChange},
	{"/draft-ietf-acme-ari-03/renewalInfo", KindRenewalInfo},
}

func kindOf(path string) Kind {
	for _, p := range kindPrefixes {
		if strings.HasPrefix(path, p.prefix) {
			return p.kind
		}
	}
	return KindOther
}

// ProxyOptions says what StartProxy puts a proxy in front of.
type ProxyOptions struct {
	// Target is the URL of Pebble's directory, CAFile the trust for it.
	Target, CAFile string
	// Authority issues the certificate of the proxy; see Pebble.Authority.
	Authority *Authority
	// Address is listened on; default: a free one.
	Address string
}

// ProxyCount says how many requests of a kind came, were sent on to the CA, and were answered by it with a status
// under 400.
type ProxyCount struct {
	Received, Forwarded, Succeeded int
}

// Proxy is a TLS reverse proxy in front of Pebble. It keeps the Host, so that the URLs in Pebble's answers lead to the
// proxy. It counts requests, holds one until it is told, and changes requests and answers by hooks.
type Proxy struct {
	// Directory is the URL of the ACME directory through the proxy.
	Directory string

	target  *url.URL
	reverse *httputil.ReverseProxy
	server  *http.Server
	serving sync.WaitGroup
	close   sync.Once
	closed  chan struct{}

	mu      sync.Mutex
	counts  map[Kind]ProxyCount                                 // guarded by mu
	holds   []*Hold                                             // guarded by mu; oldest first
	rewrite func(Kind, *http.Response) error                    // guarded by mu
	respond func(Kind, http.ResponseWriter, *http.Request) bool // guarded by mu
}

// StartProxy starts a proxy in front of p.
func (p *Pebble) StartProxy(ctx context.Context) (*Proxy, error) {
	return StartProxy(ctx, ProxyOptions{Target: p.Directory, CAFile: p.CAFile, Authority: p.Authority})
}

// StartProxy starts a proxy.
func StartProxy(ctx context.Context, o ProxyOptions) (*Proxy, error) {
	p, err := startProxy(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("proxy: %w", err)
	}
	return p, nil
}

func startProxy(ctx context.Context, o ProxyOptions) (*Proxy, error) {
	target, err := url.Parse(o.Target)
	if err != nil {
		return nil, err
	}
	if o.Address == "" {
		if o.Address, err = FreeAddress(); err != nil {
			return nil, err
		}
	}
	ca, err := os.ReadFile(o.CAFile)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return nil, fmt.Errorf("%s: no certificate", o.CAFile)
	}
	leaf, err := o.Authority.Local()
	if err != nil {
		return nil, err
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", o.Address)
	if err != nil {
		return nil, err
	}
	p := &Proxy{
		Directory: "https://" + o.Address + target.Path,
		target:    &url.URL{Scheme: target.Scheme, Host: target.Host},
		closed:    make(chan struct{}),
		counts:    make(map[Kind]ProxyCount),
	}
	p.reverse = &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(p.target)
			r.Out.Host = r.In.Host
		},
		Transport: &http.Transport{
			TLSClientConfig:   &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12},
			DisableKeepAlives: true, // a restarted CA is never asked over an old connection
		},
		ModifyResponse: p.answered,
		ErrorHandler:   p.failed,
		ErrorLog:       log.New(io.Discard, "", 0),
	}
	p.server = &http.Server{
		Handler:           p,
		TLSConfig:         &tls.Config{Certificates: []tls.Certificate{leaf.TLS}, MinVersion: tls.VersionTLS12},
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0), // handshakes that a killed client has left
	}
	p.serving.Go(func() {
		_ = p.server.ServeTLS(listener, "", "") // ends with Close
	})
	return p, nil
}

// Close ends the proxy, with all requests that are held or under way.
func (p *Proxy) Close() error {
	p.close.Do(func() { close(p.closed) })
	err := p.server.Close()
	p.serving.Wait()
	return err
}

// Count returns the numbers of one kind.
func (p *Proxy) Count(kind Kind) ProxyCount {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[kind]
}

// SetRewrite sets the hook that may change an answer of the CA before the client gets it; nil takes it away. An error
// of the hook becomes a 502.
func (p *Proxy) SetRewrite(rewrite func(Kind, *http.Response) error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rewrite = rewrite
}

// SetRespond sets the hook that may answer in place of the CA; it returns false to send the request on. nil takes it
// away.
func (p *Proxy) SetRespond(respond func(Kind, http.ResponseWriter, *http.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.respond = respond
}

// Point is where a request is held.
type Point bool

// Before holds a request before the CA gets it, After holds the CA's answer before the client gets it.
const (
	Before Point = false
	After  Point = true
)

// Hold is a request, or its answer, that the proxy holds.
type Hold struct {
	kind     Kind
	point    Point
	reached  chan struct{}
	released chan struct{}
	release  sync.Once
}

// Hold makes the next request of a kind wait at the point, once. It waits until Release, until the client has gone, or
// until Close. A request whose client went away Before does not reach the CA.
func (p *Proxy) Hold(kind Kind, point Point) *Hold {
	h := &Hold{kind: kind, point: point, reached: make(chan struct{}), released: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds = append(p.holds, h)
	return h
}

// Reached is closed when a request is being held.
func (h *Hold) Reached() <-chan struct{} { return h.reached }

// Release lets the request go. Where none has come yet, none will be held. It may be called more than once.
func (h *Hold) Release() { h.release.Do(func() { close(h.released) }) }

// hold waits where a Hold wants it.
func (p *Proxy) hold(ctx context.Context, kind Kind, point Point) error {
	h := p.takeHold(kind, point)
	if h == nil {
		return nil
	}
	close(h.reached)
	select {
	case <-h.released:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.closed:
		return errors.New("proxy closed")
	}
}

// takeHold removes and returns the oldest Hold that waits for such a request and was not released before.
func (p *Proxy) takeHold(kind Kind, point Point) *Hold {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.holds = slices.DeleteFunc(p.holds, (*Hold).isReleased)
	i := slices.IndexFunc(p.holds, func(h *Hold) bool { return h.kind == kind && h.point == point })
	if i < 0 {
		return nil
	}
	h := p.holds[i]
	p.holds = slices.Delete(p.holds, i, i+1)
	return h
}

func (h *Hold) isReleased() bool {
	select {
	case <-h.released:
		return true
	default:
		return false
	}
}

// ServeHTTP sends one request on.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	kind := kindOf(r.URL.Path)
	p.count(kind, func(c *ProxyCount) { c.Received++ })
	// The body is read at once, because the server notices that a client has gone only when it has read all.
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return // the client has gone
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	if err := p.hold(r.Context(), kind, Before); err != nil {
		return
	}
	p.mu.Lock()
	respond := p.respond
	p.mu.Unlock()
	if respond != nil && respond(kind, w, r) {
		return
	}
	p.count(kind, func(c *ProxyCount) { c.Forwarded++ })
	p.reverse.ServeHTTP(w, r)
}

// answered is called with each answer of the CA.
func (p *Proxy) answered(resp *http.Response) error {
	kind := kindOf(resp.Request.URL.Path)
	if resp.StatusCode < 400 {
		p.count(kind, func(c *ProxyCount) { c.Succeeded++ })
	}
	if err := p.hold(resp.Request.Context(), kind, After); err != nil {
		return err
	}
	p.mu.Lock()
	rewrite := p.rewrite
	p.mu.Unlock()
	if rewrite == nil {
		return nil
	}
	return rewrite(kind, resp)
}

// failed answers 502 where the CA could not be asked or a hook failed.
func (p *Proxy) failed(w http.ResponseWriter, _ *http.Request, err error) {
	http.Error(w, err.Error(), http.StatusBadGateway)
}

func (p *Proxy) count(kind Kind, add func(*ProxyCount)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.counts[kind]
	add(&c)
	p.counts[kind] = c
}

// ReplaceBody puts another body into an answer, for hooks.
func ReplaceBody(resp *http.Response, body []byte) {
	_ = resp.Body.Close() // the old body is of no interest
	resp.Body = io.NopCloser(bytes.NewReader(body))
	resp.ContentLength = int64(len(body))
	resp.Header.Del("Content-Length")
}
