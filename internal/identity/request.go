package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"strings"
)

// Names are the subject alternative names of the server's certificate.
type Names struct {
	DNS []string
	IP  []net.IP
}

// NewKey makes an ECDSA P-256 key, and its PKCS#8 PEM.
func NewKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode a key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// Request makes a node's key and the certificate request for it; only the request is sent to the server.
func Request(node string) (csrPEM, keyPEM []byte, err error) {
	key, keyPEM, err := NewKey()
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: node}}, key)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), keyPEM, nil
}

// ErrNoURI is returned by URI for a group that knows its nodes by other identities only.
var ErrNoURI = errors.New("no URI among its identities")

// maxNode is the longest node name: a common name has room for it (RFC 5280, Appendix A.1, ub-common-name).
const maxNode = 64

// URI returns the identity of a node in a group: the group's first URI glob with the node's name for its `*`.
func URI(globs []string, node string) (string, error) {
	strange := strings.ContainsFunc(node, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '.' && r != '-' && r != '_'
	})
	if node == "" || len(node) > maxNode || strange || strings.Trim(node, ".") == "" {
		return "", fmt.Errorf("node name %q: use up to %d letters, digits, dots, dashes and underscores", node, maxNode)
	}
	for _, g := range globs {
		if strings.Contains(g, "://") {
			return strings.ReplaceAll(g, "*", node), nil
		}
	}
	return "", ErrNoURI
}
