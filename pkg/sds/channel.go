package sds

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/credentials"
)

const (
	// statusGrace is the time from the end of a client certificate to the end of its connection: its streams end first, with a status.
	statusGrace = 100 * time.Millisecond
	// reconnectFraction of a client certificate's life before its end, its connections are closed once. A node whose certificate was
	// renewed comes back with the new one, so that what is left to warn about was really not renewed.
	reconnectFraction = 6
)

// Channel is the TLS side of a listener. It can be replaced while it is in use: new connections have the new certificate and client CA at
// once, and connections that are open stay, unless their client certificate no longer verifies. All methods are safe for concurrent use.
//
// A connection ends with its client certificate. Ending its streams alone would not do: an Envoy opens the next ones on the same
// connection, which is that of the old certificate for ever.
type Channel struct {
	config atomic.Pointer[tls.Config]
	renews bool // connections are closed once before their certificate ends

	mu    sync.Mutex
	conns map[*channelConn]struct{} // guarded by mu; those with a client certificate
}

// NewChannel returns a Channel with a configuration that TLSConfig returned.
func NewChannel(config *tls.Config) *Channel {
	c := fixedChannel(config)
	c.renews = true
	return c
}

// fixedChannel is a Channel that only ends connections with their certificate.
func fixedChannel(config *tls.Config) *Channel {
	c := &Channel{conns: map[*channelConn]struct{}{}}
	c.config.Store(config)
	return c
}

// Config returns the configuration in force. It is read only.
func (c *Channel) Config() *tls.Config { return c.config.Load() }

// Replace puts another configuration in force, and returns how many connections it closed because their client certificate does not verify
// by its ClientCAs. Their Envoys reconnect, and are refused in the handshake.
func (c *Channel) Replace(config *tls.Config) (closed int) {
	old := c.config.Swap(config)
	if old.ClientCAs.Equal(config.ClientCAs) {
		return 0
	}
	for _, conn := range c.open() { // one that is added now looks at the new configuration by itself
		if !conn.verifies(config) {
			conn.cut()
			closed++
		}
	}
	return closed
}

func (c *Channel) open() []*channelConn {
	c.mu.Lock()
	defer c.mu.Unlock()
	conns := make([]*channelConn, 0, len(c.conns))
	for conn := range c.conns {
		conns = append(conns, conn)
	}
	return conns
}

// Ending returns the identities of connections whose client certificate is in the last part of its life, and when it ends. Their nodes were
// made to connect anew before, and came back with it: nothing has renewed it.
func (c *Channel) Ending(now time.Time) map[string]time.Time {
	ending := map[string]time.Time{}
	for _, conn := range c.open() {
		leaf := conn.certificates[0]
		if len(conn.identities) > 0 && !now.Before(reconnectAt(leaf)) {
			ending[conn.identities[0]] = leaf.NotAfter
		}
	}
	return ending
}

// reconnectAt is when a node has to come back, with a renewed certificate if there is one.
func reconnectAt(leaf *x509.Certificate) time.Time {
	return leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / reconnectFraction)
}

// track watches over a connection until it is closed. One without a client certificate is left alone: it is given nothing.
func (c *Channel) track(raw, conn net.Conn, state tls.ConnectionState) (net.Conn, error) {
	if len(state.VerifiedChains) == 0 {
		return conn, nil
	}
	peer := tlsPeer(state, nil)
	t := &channelConn{Conn: conn, raw: raw, channel: c, certificates: state.PeerCertificates, identities: peer.Identities}
	now, leaf := time.Now(), state.PeerCertificates[0]
	end := peer.Expires.Add(statusGrace)
	if early := reconnectAt(leaf); c.renews && early.After(now) && early.Before(end) {
		end = early
	}
	c.mu.Lock()
	c.conns[t] = struct{}{}
	t.timer = time.AfterFunc(end.Sub(now), t.cut)
	c.mu.Unlock()
	if config := c.config.Load(); !t.verifies(config) { // replaced during the handshake
		t.forget()
		return nil, errors.New("the client CA was replaced during the handshake")
	}
	return t, nil
}

// channelConn is a connection with a client certificate.
type channelConn struct {
	net.Conn // TLS
	raw      net.Conn
	channel  *Channel
	timer    *time.Timer // guarded by channel.mu

	certificates []*x509.Certificate
	identities   []string
}

// Close ends the connection in order.
func (c *channelConn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// cut ends the connection at once: a peer that does not read cannot delay it. The transport finds the connection closed.
func (c *channelConn) cut() {
	c.forget()
	_ = c.raw.Close() // it is of no use any more, whatever the error
}

func (c *channelConn) forget() {
	c.channel.mu.Lock()
	defer c.channel.mu.Unlock()
	c.timer.Stop()
	delete(c.channel.conns, c)
}

// verifies reports whether the handshake would accept the client certificate under a configuration (crypto/tls, in the same words).
func (c *channelConn) verifies(config *tls.Config) bool {
	opts := x509.VerifyOptions{
		Roots: config.ClientCAs, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, intermediate := range c.certificates[1:] {
		opts.Intermediates.AddCert(intermediate)
	}
	_, err := c.certificates[0].Verify(opts)
	return err == nil
}

// channelCredentials are those of TLS, with the connections tracked by a Channel.
type channelCredentials struct {
	credentials.TransportCredentials
	channel *Channel
}

var _ credentials.TransportCredentials = channelCredentials{}

func newChannelCredentials(c *Channel) credentials.TransportCredentials {
	return channelCredentials{channel: c, TransportCredentials: credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			return c.config.Load(), nil
		},
	})}
}

// ServerHandshake implements credentials.TransportCredentials.
func (c channelCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	state, ok := info.(credentials.TLSInfo)
	if !ok {
		return nil, nil, errors.Join(errors.New("a TLS handshake without its state"), conn.Close())
	}
	tracked, err := c.channel.track(raw, conn, state.State)
	if err != nil {
		return nil, nil, errors.Join(err, conn.Close())
	}
	return tracked, info, nil
}

// Clone implements credentials.TransportCredentials.
func (c channelCredentials) Clone() credentials.TransportCredentials {
	return channelCredentials{TransportCredentials: c.TransportCredentials.Clone(), channel: c.channel}
}

// NodeCertificates returns, by group, when the first client certificate ends among those with which nodes are connected by the channels.
// Groups without such a node are absent.
func (s *Server) NodeCertificates(channels ...*Channel) map[string]time.Time {
	byIdentity := map[string]time.Time{}
	for _, channel := range channels {
		for _, conn := range channel.open() {
			for _, identity := range conn.identities {
				if end := conn.certificates[0].NotAfter; earlier(end, byIdentity[identity]) {
					byIdentity[identity] = end
				}
			}
		}
	}
	byGroup := map[string]time.Time{}
	for group, nodes := range s.ledger.members() {
		for _, n := range nodes {
			end, ok := byIdentity[n.key.identity]
			n.mu.Lock()
			ok = ok && n.connected && n.transport == TLS
			n.mu.Unlock()
			if ok && earlier(end, byGroup[group]) {
				byGroup[group] = end
			}
		}
	}
	return byGroup
}

// earlier reports whether a is before b, or b is not set.
func earlier(a, b time.Time) bool { return b.IsZero() || a.Before(b) }
