package acme

import (
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
)

// challengePath is where a CA looks for HTTP-01 tokens (RFC 8555, Section 8.3).
const challengePath = "/.well-known/acme-challenge/"

// Responder answers HTTP-01 challenges: GET and HEAD of a token that is pending now for the host that the request names.
// Everything else is an empty 404, so that nobody learns from it what is being ordered. The zero value is ready to use; all
// issuers of a process share one.
type Responder struct {
	mu sync.RWMutex
	// tokens is guarded by mu.
	tokens map[string]*pendingToken
}

// pendingToken is one answer that a CA may ask for.
type pendingToken struct {
	host             string
	keyAuthorization string
	// uses counts the orders that wait for it: a CA may hand out one pending authorization to several orders.
	uses int
}

// Present makes the token pending for host, a DNS name or an IP address, until CleanUp was called as often.
func (r *Responder) Present(host, token, keyAuthorization string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tokens == nil {
		r.tokens = make(map[string]*pendingToken)
	}
	if t := r.tokens[token]; t != nil && t.keyAuthorization == keyAuthorization {
		t.uses++
		return
	}
	r.tokens[token] = &pendingToken{host: canonicalHost(host), keyAuthorization: keyAuthorization, uses: 1}
}

// CleanUp ends one use of a token. A token that is not pending is no error.
func (r *Responder) CleanUp(token string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tokens[token]
	if t == nil {
		return
	}
	if t.uses--; t.uses == 0 {
		delete(r.tokens, token)
	}
}

// Pending returns the number of tokens that are pending now.
func (r *Responder) Pending() int {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return len(r.tokens)
}

// ServeHTTP answers one request.
func (r *Responder) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	answer, ok := r.answer(req)
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	header := w.Header()
	header.Set("Content-Type", "application/octet-stream")
	header.Set("Content-Length", strconv.Itoa(len(answer)))
	header.Set("Cache-Control", "no-store")
	if req.Method == http.MethodGet {
		_, _ = w.Write([]byte(answer)) // whoever asked has gone; a CA asks again
	}
}

func (r *Responder) answer(req *http.Request) (string, bool) {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return "", false
	}
	token, ok := strings.CutPrefix(req.URL.Path, challengePath)
	if !ok || token == "" {
		return "", false
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	t := r.tokens[token]
	if t == nil || t.host != canonicalHost(req.Host) {
		return "", false
	}
	return t.keyAuthorization, true
}

// canonicalHost strips the port, the brackets of an IPv6 address and the root's dot, and lowers the case.
func canonicalHost(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if ip := net.ParseIP(host); ip != nil {
		return ip.String()
	}
	return host
}
