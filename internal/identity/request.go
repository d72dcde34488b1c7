package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
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

// URI returns the identity of a node in a group: the group's first URI glob with the node's name for its `*`.
func URI(globs []string, node string) (string, error) {
	if node == "" || strings.ContainsAny(node, "/*?#%\\ \t\r\n") {
		return "", fmt.Errorf("node name %q: use letters, digits, dots and dashes", node)
	}
	for _, g := range globs {
		if strings.Contains(g, "://") {
			return strings.ReplaceAll(g, "*", node), nil
		}
	}
	return "", fmt.Errorf("the group has no URI among its identities: %s", strings.Join(globs, ", "))
}
