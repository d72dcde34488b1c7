package verify

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

// judge turns what was seen into a result. known finds the version of a secret by its leaf's digest.
func judge(c Check, s *seen, err error, now time.Time, known func(secretName, sha256 string) (secret.Version, bool)) Result {
	r := Result{Check: c, At: now.UTC(), Latency: s.latency, ClientCertificate: s.asked, Completed: s.completed, err: err}
	if len(s.chain) == 0 || !s.proven { // a leaf that the server has no key for proves nothing
		r.Failure = c.unseen(err)
		return r
	}
	leaf := s.chain[0]
	sum := sha256.Sum256(leaf.Raw)
	r.Shown = &Shown{SHA256: hex.EncodeToString(sum[:]), Serial: serial(leaf), NotAfter: leaf.NotAfter.UTC()}
	i := slices.IndexFunc(c.Wanted, func(w Leaf) bool { return w.SHA256 == r.Shown.SHA256 })
	if i < 0 {
		r.Failure = c.unwanted(r.Shown, known)
		return r
	}
	r.Shown.Secret, r.Shown.Version = c.Wanted[i].Secret, c.Wanted[i].Version
	if r.Failure = c.chain(s.chain, c.Wanted[i].Roots, now); r.Failure == nil && err != nil && !s.asked {
		r.Failure = c.unseen(err) // an alert after everything
	}
	return r
}

// serial is that of a certificate as [secret.Secret.Serial] has it.
func serial(leaf *x509.Certificate) string {
	if b := leaf.SerialNumber.Bytes(); len(b) > 0 {
		return hex.EncodeToString(b)
	}
	return "00"
}

// unwanted says whose certificate is shown in the place of the wanted one.
func (c *Check) unwanted(shown *Shown, known func(secretName, sha256 string) (secret.Version, bool)) *Failure {
	for _, w := range c.Wanted {
		if version, ok := known(w.Secret, shown.SHA256); ok {
			shown.Secret, shown.Version = w.Secret, version
			return &Failure{
				OldLeaf, fmt.Sprintf("%q: version %s (serial %s) is still served %s, wanted is %s", w.Secret, version.Short(), shown.Serial, c.where(), w.Version.Short()),
				"see `nodes` for whether the node rejected (NACKed) the wanted version or was not sent it",
			}
		}
	}
	return &Failure{
		OtherLeaf, fmt.Sprintf("%q: another certificate (serial %s) is served %s, wanted is %s", c.Wanted[0].Secret, shown.Serial, c.where(), c.Wanted[0].Version.Short()),
		"does this listener take this secret, and is the address that of the node? Limit what is asked for by verify.server_names",
	}
}

// chain judges a chain as a client with the roots would.
func (c *Check) chain(chain []*x509.Certificate, roots Roots, now time.Time) *Failure {
	if roots.Unchecked {
		return nil
	}
	if roots.Err != nil {
		return &Failure{
			NoRoots, fmt.Sprintf("%q: the chain that is served %s cannot be judged: %s: %v", c.Wanted[0].Secret, c.where(), roots.Name, roots.Err),
			"correct verify.roots_file, or the issuer's roots_file",
		}
	}
	opts := x509.VerifyOptions{Roots: roots.Pool, Intermediates: x509.NewCertPool(), DNSName: c.ServerName, CurrentTime: now}
	for _, above := range chain[1:] {
		opts.Intermediates.AddCert(above)
	}
	_, err := chain[0].Verify(opts)
	if err == nil {
		return nil
	}
	return &Failure{
		Chain, fmt.Sprintf("%q: the chain that is served %s is not accepted by clients with %s: %s", c.Wanted[0].Secret, c.where(), roots.Name, strings.TrimPrefix(err.Error(), "x509: ")),
		"roll back if clients have these roots; set verify.roots_file if they have others",
	}
}

// unseen says why no leaf counts.
func (c *Check) unseen(err error) *Failure {
	name, timeout := c.Wanted[0].Secret, error(nil)
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded) {
		timeout = err
	}
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		timeout = err
	}
	_, dial := errors.AsType[*dialError](err)
	switch {
	case timeout != nil:
		return &Failure{
			Timeout, fmt.Sprintf("%q: no handshake %s within %s", name, c.where(), c.Timeout), "does Envoy run there, and does the network let this server in?",
		}
	case dial:
		return &Failure{
			Refused, fmt.Sprintf("%q: no connection %s: %s", name, c.where(), cause(err)), "does Envoy listen on this address, and does the network let this server in?",
		}
	case isProtocol(err):
		return &Failure{
			Protocol, fmt.Sprintf("%q: this version of TLS is not spoken %s", name, c.where()), "clients of this kind cannot connect; see tls_minimum_protocol_version of the listener",
		}
	case isAlert(err):
		return &Failure{
			Alert, fmt.Sprintf("%q: the handshake was refused %s: %s", name, c.where(), strings.TrimPrefix(cause(err), "tls: ")),
			"has a filter chain of the listener this server name and a certificate of this key type? The Envoy's log says more",
		}
	case errors.Is(err, io.EOF), isCut(err):
		return &Failure{
			Broken, fmt.Sprintf("%q: the connection was closed in the handshake %s", name, c.where()), "an Envoy that has no certificate yet does that; see `nodes`",
		}
	}
	return &Failure{
		Broken, fmt.Sprintf("%q: no TLS %s: %s", name, c.where(), cause(err)), "is this the address of a TLS listener?",
	}
}

// cause is an error's text without the addresses that the message has already.
func cause(err error) string {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Err != nil {
		return op.Err.Error()
	}
	return err.Error()
}
