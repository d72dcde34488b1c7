package verify

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"syscall"
	"time"
)

const (
	// remoteError is the operation of a net.OpError that is an alert of the peer, in crypto/tls.
	remoteError = "remote error"
	// farewell bounds how long the listener may take to close the connection after the handshake. Closing before it has read everything would
	// count as an error there.
	farewell = 500 * time.Millisecond
)

// seen is what a listener showed.
type seen struct {
	chain     []*x509.Certificate // leaf first
	proven    bool                // it has signed with the leaf's key
	asked     bool                // for a client certificate
	completed bool
	latency   time.Duration
}

// shake makes one full handshake. What was seen before an error counts. ctx has a deadline.
func shake(ctx context.Context, c *Check) (*seen, error) {
	begin := time.Now()
	s := &seen{}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", c.Address)
	if err != nil {
		return s, &dialError{err}
	}
	defer conn.Close() // everything was said before
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return s, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // a connection that is closed needs none
	defer stop()
	var rest func() error
	if c.Client == TLS12RSA {
		client := &rsaClient{records: records{conn: conn}, name: c.sni(), seen: s}
		err = client.handshake()
		rest = client.drain
	} else {
		client := tls.Client(conn, clientConfig(c, s))
		err = client.HandshakeContext(ctx)
		rest = func() error {
			if err := client.CloseWrite(); err != nil {
				return err
			}
			_, err := io.Copy(io.Discard, client)
			return err
		}
	}
	s.latency = time.Since(begin)
	if err != nil {
		return s, err
	}
	s.proven = true
	if limit := time.Now().Add(farewell); limit.Before(deadline) {
		deadline = limit
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return s, nil //nolint:nilerr // the handshake is over
	}
	// TLS 1.3: the listener may refuse only now. Its alert may be lost, as it closes before it has read everything.
	err = rest()
	if isAlert(err) {
		return s, err
	}
	s.completed = !s.asked || !isCut(err)
	return s, nil
}

// isCut reports whether the peer dropped the connection.
func isCut(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.ErrUnexpectedEOF)
}

// dialError is no connection.
type dialError struct{ error }

func (e *dialError) Unwrap() error { return e.error }

// isAlert reports whether the peer ended a handshake by an alert.
// isProtocol reports whether the listener said that it does not speak the version of TLS (RFC 8446, Section 6.2: protocol_version).
func isProtocol(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == remoteError && op.Err.Error() == tls.AlertError(alertProtocolVersion).Error() // package tls has another type for it
}

func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == remoteError && !errors.Is(op.Err, tls.AlertError(alertCloseNotify))
}

// clientConfig is that of a client of crypto/tls. The chain is judged afterwards, beside the leaf; that it is the server's is proven.
func clientConfig(c *Check, s *seen) *tls.Config {
	config := &tls.Config{
		ServerName:         c.ServerName, // an address is not sent
		MinVersion:         tls.VersionTLS13,
		InsecureSkipVerify: true, // see above
		VerifyPeerCertificate: func(raw [][]byte, _ [][]*x509.Certificate) error {
			return s.keep(raw)
		},
		// It is called after the server's signature was checked.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			s.asked, s.proven = true, true
			return &tls.Certificate{}, nil
		},
	}
	if c.Client == TLS12ECDSA {
		config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		config.CipherSuites = []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
		}
	}
	return config
}

// drain reads until the server closes.
func (c *rsaClient) drain() error {
	if tcp, ok := c.conn.(*net.TCPConn); ok {
		if err := tcp.CloseWrite(); err != nil {
			return err
		}
	}
	for {
		if _, _, err := c.read(); err != nil {
			return err
		}
	}
}
