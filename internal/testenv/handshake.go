package testenv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// handshakeTimeout bounds a handshake where its context has no deadline.
const handshakeTimeout = 5 * time.Second

// Serial is the serial number of a certificate in lower-case hexadecimal, two digits for each byte, the way status and
// logs print it.
func Serial(cert *x509.Certificate) string {
	return hex.EncodeToString(cert.SerialNumber.Bytes())
}

// Handshake makes a full TLS handshake, never a resumed one, and returns what the server sent. Where roots is not nil,
// the chain must lead to them and the leaf must be valid for serverName; else nothing is verified. A refusal that a TLS
// 1.3 server sends only after the client's last message is an error, too.
func Handshake(ctx context.Context, address, serverName string, roots *x509.CertPool) (leaf *x509.Certificate, chain []*x509.Certificate, err error) {
	return HandshakeConfig(ctx, address, clientConfig(serverName, roots))
}

func clientConfig(serverName string, roots *x509.CertPool) *tls.Config {
	return &tls.Config{
		ServerName: serverName,
		RootCAs:    roots,
		// Without roots the caller wants to see what is served, good or bad.
		InsecureSkipVerify: roots == nil,
		MinVersion:         tls.VersionTLS12,
	}
}

// HandshakeConfig is Handshake with a configuration of the caller (protocols, client certificate, versions). It is
// not changed; a session cache in it is not used.
func HandshakeConfig(ctx context.Context, address string, config *tls.Config) (leaf *x509.Certificate, chain []*x509.Certificate, err error) {
	chain, _, err = handshake(ctx, address, config)
	if err != nil {
		return nil, nil, err
	}
	return chain[0], chain, nil
}

// handshake returns the chain, leaf first, and the time at which it was complete and verified.
func handshake(ctx context.Context, address string, config *tls.Config) (chain []*x509.Certificate, at time.Time, err error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, handshakeTimeout)
		defer cancel()
	}
	config = config.Clone()
	config.ClientSessionCache = nil
	raw, err := (&net.Dialer{}).DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("handshake: %w", err)
	}
	defer raw.Close() // the handshake has succeeded or failed before
	conn := tls.Client(raw, config)
	err = conn.HandshakeContext(ctx)
	at = time.Now()
	if err == nil {
		err = finish(ctx, conn)
	}
	if err != nil {
		return nil, time.Time{}, fmt.Errorf("handshake with %s for %q: %w", address, config.ServerName, err)
	}
	state := conn.ConnectionState()
	if state.DidResume || len(state.PeerCertificates) == 0 {
		return nil, time.Time{}, fmt.Errorf("handshake with %s for %q: no certificate was sent", address, config.ServerName)
	}
	return state.PeerCertificates, at, nil
}

// finish closes our side and reads until the server has closed its own. So the server has seen the end of the handshake
// before we go, and a connection in TIME_WAIT is the server's: a load of handshakes does not run out of client ports.
// Only a TLS alert counts as a failure; a server that just drops the connection has done what it was asked for.
func finish(ctx context.Context, conn *tls.Conn) error {
	deadline, _ := ctx.Deadline()
	if limit := time.Now().Add(time.Second); deadline.IsZero() || limit.Before(deadline) {
		deadline = limit
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return nil //nolint:nilerr // the server was first to close
	}
	if err := conn.CloseWrite(); err != nil {
		return alert(err)
	}
	_, err := io.Copy(io.Discard, conn)
	return alert(err)
}

// alert returns err where it is an alert of the peer, else nil.
func alert(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return err
	}
	return nil
}
