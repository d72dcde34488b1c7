// Package verify proves by TLS handshakes that a certificate is really served.
//
// It stands behind the rollout in the data flow: an ACK is a hint, a handshake is the proof. An Envoy acknowledges bytes that it rejected before, and
// its own view of itself (/config_dump) shows what it rejected; a client that does not resume a session sees the truth. What is to be where comes
// from a Source, what was seen goes into metrics, and to whoever asks.
//
// Invariants: every handshake is a full one, never resumed; every call has a deadline; the number of handshakes under way is bounded, and a
// target that hangs delays no other; nothing here changes what is served.
package verify

import (
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// Client is what the client of a handshake is able to do. From a listener with an RSA and an ECDSA certificate it decides which one is shown.
type Client string

// The clients. TLS 1.3 alone gets ECDSA where there is some; so an RSA certificate beside one of ECDSA is proven by TLS12RSA alone.
const (
	TLS12RSA   Client = "tls1.2-rsa"   // TLS 1.2, knows RSA certificates only
	TLS12ECDSA Client = "tls1.2-ecdsa" // TLS 1.2, knows ECDSA certificates only
	TLS13      Client = "tls1.3"       // TLS 1.3 alone, knows both
)

// Kind is how a handshake did not show what is wanted.
type Kind string

// The kinds of failures. The values are those of the JSON output.
const (
	OldLeaf   Kind = "old_leaf"   // an older version of the secret is served
	OtherLeaf Kind = "other_leaf" // another certificate is served
	Chain     Kind = "chain"      // clients with the roots do not accept the chain
	Alert     Kind = "alert"      // the listener ended the handshake by a TLS alert
	Refused   Kind = "refused"    // no connection
	Timeout   Kind = "timeout"    // no answer within the time
	Protocol  Kind = "protocol"   // the listener does not speak this version of TLS
	NoRoots   Kind = "no_roots"   // the roots cannot be read
	Broken    Kind = "broken"     // an answer that is not TLS, or a connection that was closed
	Moved     Kind = "moved"      // of a round: the group is at another version than the one that was to be looked for
)

// Mismatch reports whether something was seen, and it was not what is wanted. Otherwise nothing was seen.
func (k Kind) Mismatch() bool { return k == OldLeaf || k == OtherLeaf || k == Chain || k == Alert }

// Failure is why a handshake proves nothing.
type Failure struct {
	Kind    Kind
	Message string // what is wrong and where, one line
	Hint    string // what to do
}

// Error returns the message.
func (f *Failure) Error() string { return f.Message }

// Leaf is a certificate that may be shown.
type Leaf struct {
	// Secret and Version are what it belongs to.
	Secret  string
	Version secret.Version
	// SHA256 is the digest of its DER encoding in lower-case hexadecimal.
	SHA256 string
	// KeyType is as [secret.Secret.KeyType] has it.
	KeyType string
	// DNSNames and IPAddresses are its SANs, in lower case.
	DNSNames    []string
	IPAddresses []string
	// NotAfter is its end.
	NotAfter time.Time
	// Roots are what its chain has to reach.
	Roots Roots
}

// Roots are the roots that clients are taken to trust.
type Roots struct {
	// Pool holds them; nil with Unchecked, or where they could not be read.
	Pool *x509.CertPool
	// Name is what messages call them, such as the file's.
	Name string
	// Unchecked takes any chain.
	Unchecked bool
	// Err is why they could not be read.
	Err error
}

func (l *Leaf) rsa() bool { return strings.HasPrefix(l.KeyType, "rsa-") }

// NodeKey is what a node is known by.
type NodeKey struct{ Identity, ID string }

// Check is one thing to be proven: that a client of one kind is shown one of the leaves.
type Check struct {
	Group      string
	Address    string    // host:port
	Node       string    // id; empty where it is not known which node is there
	Nodes      []NodeKey // whose certificate this is
	ServerName string    // SNI; an IP address is not sent
	Client     Client
	Wanted     []Leaf // one of them is enough; the best one first
	Timeout    time.Duration
}

func (c *Check) where() string {
	at := "at " + c.Address
	if c.Node != "" {
		at = fmt.Sprintf("by node %q %s", c.Node, at)
	}
	return fmt.Sprintf("%s under %s (%s)", at, c.ServerName, c.Client)
}

// sni is the name that is sent; empty for an address (RFC 6066, Section 3).
func (c *Check) sni() string {
	if net.ParseIP(c.ServerName) != nil {
		return ""
	}
	return c.ServerName
}

// Shown is the leaf that a handshake showed.
type Shown struct {
	SHA256   string
	Serial   string
	NotAfter time.Time
	Secret   string         // whose it is; empty if that is not known
	Version  secret.Version // likewise
}

// Result is what came of a check.
type Result struct {
	Check
	At       time.Time
	Latency  time.Duration // of the last handshake, from the dial to its end; 0 where there was none
	Attempts int           // 0: given up, since the target did not answer to another check
	Shown    *Shown        // nil: no leaf
	// ClientCertificate is whether the listener asked for one. There is none: it is judged by the leaf it showed.
	ClientCertificate bool
	// Completed is whether the handshake went to its end.
	Completed bool
	Failure   *Failure // nil: served as wanted

	began time.Time // when its last handshake began
	err   error     // by which that ended
}

// Secret returns the secret that the result is about: that of the leaf, or the one that was to be expected first.
func (r *Result) Secret() string {
	if r.Shown != nil {
		for _, w := range r.Wanted {
			if w.Secret == r.Shown.Secret {
				return w.Secret
			}
		}
	}
	return r.Wanted[0].Secret
}

// Want returns the wanted leaf of the result's secret.
func (r *Result) Want() *Leaf {
	name := r.Secret()
	for i := range r.Wanted {
		if r.Wanted[i].Secret == name {
			return &r.Wanted[i]
		}
	}
	return &r.Wanted[0]
}
