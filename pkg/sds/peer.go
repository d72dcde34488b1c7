package sds

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"
)

// plaintextIdentity is who comes without any proof.
const plaintextIdentity = "plaintext"

// TLSConfig reads the server's certificate and key, and the CA that signs client certificates, all in PEM. TLS 1.2 is the oldest
// version. A client without a certificate gets through the handshake and is answered UNAUTHENTICATED, which an Envoy logs better than
// a broken connection; one with a certificate of another CA does not.
func TLSConfig(certFile, keyFile, caFile string) (*tls.Config, error) {
	certificate, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("server certificate %s, %s: %w", certFile, keyFile, err)
	}
	bundle, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("client CA: %w", err)
	}
	roots, err := clientCAs(bundle)
	if err != nil {
		return nil, fmt.Errorf("client CA %s: %w", caFile, err)
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		NextProtos:   []string{"h2"},
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.VerifyClientCertIfGiven,
		ClientCAs:    roots,
		// A resumed session would carry the rights of a certificate that may have expired since.
		SessionTicketsDisabled: true,
	}, nil
}

// clientCAs reads a bundle. One that is cut off is refused as a whole: with a part of it, nodes of the rest would lose their connections.
func clientCAs(bundle []byte) (*x509.CertPool, error) {
	roots, count := x509.NewCertPool(), 0
	for {
		block, rest := pem.Decode(bundle)
		if block == nil {
			break
		}
		bundle = rest
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		roots.AddCert(certificate)
		count++
	}
	switch {
	case bytes.Contains(bundle, []byte("-----BEGIN")):
		return nil, errors.New("the last PEM block is cut off or damaged")
	case count == 0:
		return nil, errors.New("no certificate in it")
	}
	return roots, nil
}

// credentials returns how peers of the listener are told apart.
func (l Listener) credentials() (credentials.TransportCredentials, error) {
	switch {
	case (l.TLS != nil || l.Channel != nil) && l.Unix:
		return nil, errors.New("a listener is TLS or Unix, not both")
	case l.Channel != nil:
		return newChannelCredentials(l.Channel), nil
	case l.TLS != nil:
		return newChannelCredentials(fixedChannel(l.TLS)), nil
	case len(l.Groups) == 0:
		return nil, errors.New("a listener without TLS needs groups")
	case l.Unix:
		return unixCredentials{}, nil
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		return nil, fmt.Errorf("plaintext on %s: only loopback is allowed", a)
	}
	return insecure.NewCredentials(), nil
}

// peerOf returns who stands at the other end of a stream.
func peerOf(ctx context.Context, groups []string) (Peer, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Peer{}, errors.New("a stream without a peer")
	}
	switch info := p.AuthInfo.(type) {
	case credentials.TLSInfo:
		t := tlsPeer(info.State, groups)
		t.Address = sourceAddress(p.Addr)
		return t, nil
	case unixInfo:
		return Peer{Transport: Unix, Identities: []string{fmt.Sprintf("unix:uid=%d", info.uid)}, Groups: groups, Address: loopback}, nil
	}
	return Peer{Transport: Plaintext, Identities: []string{plaintextIdentity}, Groups: groups, Address: sourceAddress(p.Addr)}, nil
}

// loopback is where an Envoy on a Unix socket runs.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// sourceAddress is the address of a TCP peer; not valid for any other.
func sourceAddress(a net.Addr) netip.Addr {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap()
}

// tlsPeer takes the identities from a verified client certificate: its URI SANs and DNS SANs. The subject proves nothing.
func tlsPeer(state tls.ConnectionState, groups []string) Peer {
	p := Peer{Transport: TLS, Groups: groups}
	if len(state.VerifiedChains) == 0 {
		return p
	}
	for _, uri := range state.PeerCertificates[0].URIs {
		p.Identities = append(p.Identities, uri.String())
	}
	for _, name := range state.PeerCertificates[0].DNSNames {
		p.Identities = append(p.Identities, canonical(dnsPrefix+name))
	}
	for _, chain := range state.VerifiedChains { // the one that lasts longest
		if end := endOf(chain); end.After(p.Expires) {
			p.Expires = end
		}
	}
	return p
}

// endOf returns when the first certificate of a chain ends.
func endOf(chain []*x509.Certificate) time.Time {
	end := chain[0].NotAfter
	for _, c := range chain[1:] {
		if c.NotAfter.Before(end) {
			end = c.NotAfter
		}
	}
	return end
}
