package integration

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/sds-server/sds-server/pkg/secret"
)

// otherKind is a secret of another kind than a certificate. Its row has a filter chain with a good certificate that refers to it.
type otherKind struct {
	// config is what follows the reference to the certificate in the filter chain, with %s for the reference to this secret.
	config string
	good   func(t *testing.T, p *pki, name string) *anypb.Any
	// holds says whether the good one is in effect.
	holds func(e *tableEdge, host string) error
}

var junkCA = []byte("no certificates")

var otherKinds = []nackRow{
	{
		name: "junk CA bundle", message: "Failed to load trusted CA certificates",
		raw:   func(t *testing.T, _ *pki, name string) *anypb.Any { return bundle(t, name, junkCA) },
		rules: []secret.Rule{secret.RulePEMTrailing},
		parse: func(name string) (*secret.Secret, error) { return secret.ParseValidationContext(name, junkCA) },
		kind: &otherKind{
			config: "            validation_context_sds_secret_config: %s\n          require_client_certificate: false",
			good:   func(t *testing.T, p *pki, name string) *anypb.Any { return bundle(t, name, certText(p.root.cert)) },
			holds:  clientsAreJudged,
		},
	},
	{
		name: "ticket key of 79 bytes", message: "Incorrect TLS session ticket key length",
		raw:   func(t *testing.T, _ *pki, name string) *anypb.Any { return ticketKeys(t, name, newTicketKey()[1:]) },
		rules: []secret.Rule{secret.RuleTicketKeySize},
		parse: func(name string) (*secret.Secret, error) {
			return secret.NewTicketKeys(name, [][]byte{newTicketKey()[1:]})
		},
		kind: &otherKind{
			config: "          session_ticket_keys_sds_secret_config: %s",
			good:   func(t *testing.T, _ *pki, name string) *anypb.Any { return ticketKeys(t, name, newTicketKey()) },
			holds:  sessionOutlivesRenewal,
		},
	},
}

func bundle(t *testing.T, name string, text []byte) *anypb.Any {
	t.Helper()
	return packed(t, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(text)}}})
}

func newTicketKey() []byte {
	key := make([]byte, secret.TicketKeySize)
	rand.Read(key) // never fails
	return key
}

func ticketKeys(t *testing.T, name string, ring ...[]byte) *anypb.Any {
	t.Helper()
	keys := &tlsv3.TlsSessionTicketKeys{}
	for _, key := range ring {
		keys.Keys = append(keys.Keys, inline(key))
	}
	return packed(t, &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_SessionTicketKeys{SessionTicketKeys: keys}})
}

// clientsAreJudged shows that a client certificate of the trusted CA is taken, and that of another CA is not.
func clientsAreJudged(e *tableEdge, host string) error {
	client := func(issuer *pki) error {
		config := serverConfig(host)
		config.Certificates = []tls.Certificate{issuer.client(e)}
		_, err := visit(e.Context(), e.https, config)
		return err
	}
	if err := client(e.pki); err != nil {
		return err
	}
	if client(newPKI(e)) == nil {
		return errors.New("a client certificate of an unknown CA is taken")
	}
	return nil
}

// sessionOutlivesRenewal shows that a session is resumed after the certificate was renewed: the renewal makes a new TLS context, which would
// have keys of its own where none are given.
func sessionOutlivesRenewal(e *tableEdge, host string) error {
	config := serverConfig(host)
	config.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	if _, err := visit(e.Context(), e.https, config); err != nil {
		return err
	}
	e.serves(host, e.renew(host))
	resumed, err := visit(e.Context(), e.https, config)
	if err == nil && !resumed {
		err = errors.New("the session was not resumed after the renewal")
	}
	return err
}

func serverConfig(host string) *tls.Config {
	return &tls.Config{ServerName: host, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}
}

// visit makes one request, after which all tickets have come, and reports whether the session was resumed. A handshake alone would not do: in
// TLS 1.3 the client has finished it before the server has judged its certificate, or has sent a ticket.
func visit(ctx context.Context, address string, config *tls.Config) (resumed bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", address)
	if err != nil {
		return false, err
	}
	defer conn.Close()                                          // what was of interest has been read
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })() // ends what hangs
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+config.ServerName+"\r\nConnection: close\r\n\r\n"); err != nil {
		return false, err
	}
	answer := make([]byte, len("HTTP/1.1 200"))
	if _, err := io.ReadFull(conn, answer); err != nil {
		return false, err
	}
	if string(answer) != "HTTP/1.1 200" {
		return false, fmt.Errorf("answer %q", answer)
	}
	return conn.(*tls.Conn).ConnectionState().DidResume, nil
}
