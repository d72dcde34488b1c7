package acme

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// endpoint is a label of acme_requests_total, by RFC 8555, Section 7.1.
type endpoint string

const (
	endpointDirectory     endpoint = "directory"
	endpointNonce         endpoint = "new_nonce"
	endpointNewAccount    endpoint = "new_account"
	endpointNewOrder      endpoint = "new_order"
	endpointOrder         endpoint = "order"
	endpointAuthorization endpoint = "authorization"
	endpointChallenge     endpoint = "challenge"
	endpointFinalize      endpoint = "finalize"
	endpointCertificate   endpoint = "certificate"
	endpointAccount       endpoint = "account"
	endpointOrders        endpoint = "orders"
	endpointRenewalInfo   endpoint = "renewal_info"
)

// Metrics counts the requests to CAs; all issuers of a process share one.
type Metrics struct {
	requests *prometheus.CounterVec
}

// NewMetrics registers sds_acme_requests_total{issuer,endpoint,code}. The code is the HTTP status, "timeout" or "error".
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	m := &Metrics{requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "sds_acme_requests_total",
		Help: "Requests to the CA, by endpoint and HTTP status, or timeout or error where there was no answer.",
	}, []string{"issuer", "endpoint", "code"})}
	if err := registerer.Register(m.requests); err != nil {
		return nil, fmt.Errorf("acme metrics: %w", err)
	}
	return m, nil
}

// Forget removes the series of an issuer that is not configured any more.
func (m *Metrics) Forget(issuer string) {
	m.requests.DeletePartialMatch(prometheus.Labels{"issuer": issuer})
}

// accountKey signs requests: by the account's URL, or by the key itself while kid is empty.
type accountKey struct {
	signer crypto.Signer
	kid    string
}

// directoryLife is how long a directory is believed; any failure to use it ends it early.
const directoryLife = time.Hour

// maxNonces bounds the kept nonces: more than the requests that are ever under way at once.
const maxNonces = 64

// conn is what all calls to one CA share. Nothing is asked of the CA until the first call.
type conn struct {
	issuer         string
	directoryURL   string
	userAgent      string
	requestTimeout time.Duration
	transport      *http.Transport
	metrics        *Metrics

	mu sync.Mutex
	// Guarded by mu: the directory as it came, when that was, and nonces, the newest last.
	directory   []byte
	directoryAt time.Time
	nonces      []string
	ahead       time.Duration // how far the CA's clock is ahead of ours, by its last answer; dated reports whether it has said so
	dated       bool
}

func newTransport(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		TLSClientConfig:       &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

// loadPool reads the certificates of a PEM file, and returns the digest of its content as well; no path is no pool.
func loadPool(path string) (pool *x509.CertPool, digest [sha256.Size]byte, err error) {
	if path == "" {
		return nil, digest, nil // a nil pool means the system's roots to crypto/tls and crypto/x509
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, digest, err
	}
	pool = x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, digest, fmt.Errorf("%s: no PEM certificate", path)
	}
	return pool, sha256.Sum256(data), nil
}

func (c *conn) count(at endpoint, code string) {
	c.metrics.requests.WithLabelValues(c.issuer, string(at), code).Inc()
}

// statusCode is the label for an answer; what is no HTTP status is not taken over from the CA.
func statusCode(status int) string {
	if status < 100 || status > 599 {
		return "error"
	}
	return strconv.Itoa(status)
}

// failureCode is the label for no answer.
func failureCode(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "timeout"
	}
	return "error"
}

func (c *conn) popNonce() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.nonces)
	if n == 0 {
		return ""
	}
	nonce := c.nonces[n-1]
	c.nonces = c.nonces[:n-1]
	return nonce
}

func (c *conn) pushNonce(nonce string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if nonce == "" {
		return
	}
	if len(c.nonces) == maxNonces {
		c.nonces = c.nonces[1:] // the oldest is the first that the CA forgets
	}
	c.nonces = append(c.nonces, nonce)
}

func (c *conn) cachedDirectory(now time.Time) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.directoryAt) > directoryLife {
		return nil
	}
	return c.directory
}

func (c *conn) keepDirectory(body []byte, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.directory, c.directoryAt = body, now
}

// keepDate compares the Date of an answer (RFC 9110, Section 6.6.1) with our time. An answer from a cache (it has an Age) is older.
func (c *conn) keepDate(header http.Header, now time.Time) {
	at, err := http.ParseTime(header.Get("Date"))
	if err != nil || header.Get("Age") != "" {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead, c.dated = at.Sub(now), true
}

// clockTolerance is less than what CAs date certificates back, and more than an answer takes.
const clockTolerance = time.Minute

// clock ends a sentence about the time with how far our clock is off the CA's.
func (c *conn) clock() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.dated:
		return ""
	case c.ahead > clockTolerance:
		return fmt.Sprintf(": it is about %v behind the CA's", c.ahead.Round(time.Minute))
	case c.ahead < -clockTolerance:
		return fmt.Sprintf(": it is about %v ahead of the CA's", (-c.ahead).Round(time.Minute))
	}
	return ": it agrees with the CA's, so ask the CA about the certificate"
}

func (c *conn) forgetDirectory() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.directory = nil
}
