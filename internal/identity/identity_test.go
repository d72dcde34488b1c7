package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/pkg/store/bbolt"
	"github.com/sds-server/sds-server/pkg/store/seal"
)

// newStore is a sealed store in a directory of the test.
func newStore(t *testing.T) *seal.Store {
	t.Helper()
	dir := t.TempDir()
	if err := seal.GenerateKeyFile(filepath.Join(dir, "seal.key")); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(bbolt.Options{Path: filepath.Join(dir, "data", "store.db")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := seal.Open(t.Context(), db, filepath.Join(dir, "seal.key"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func leafOf(t *testing.T, text []byte) *x509.Certificate {
	t.Helper()
	block, rest := pem.Decode(text)
	if block == nil || len(rest) != 0 {
		t.Fatalf("not one PEM block: %s", text)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestAuthorityIsMadeOnce(t *testing.T) {
	s := newStore(t)
	if _, err := Load(t.Context(), s); !errors.Is(err, ErrNoAuthority) {
		t.Fatalf("got %v, want ErrNoAuthority", err)
	}
	made, err := Create(t.Context(), s, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), s, time.Now()); err == nil {
		t.Error("a second CA was made over the first")
	}
	loaded, err := Load(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(made.CertificatePEM(), loaded.CertificatePEM()) {
		t.Error("another CA was loaded than was made")
	}
}

func TestOnlyTheKeyOfARequestCounts(t *testing.T) {
	now := time.Now()
	ca, err := Create(t.Context(), newStore(t), now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	greedy := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "root", Organization: []string{"wheel"}}, DNSNames: []string{"*"}, IPAddresses: []net.IP{net.IPv4zero},
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, greedy, key)
	if err != nil {
		t.Fatal(err)
	}
	const uri = "spiffe://sds-server/canary/n1"
	signed, err := ca.Node(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}), "n1", uri, now, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	cert := leafOf(t, signed.PEM)
	if len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) != 0 || len(cert.URIs) != 1 || cert.URIs[0].String() != uri {
		t.Errorf("got names %v %v %v, want %s alone", cert.DNSNames, cert.IPAddresses, cert.URIs, uri)
	}
	if cert.IsCA || cert.Subject.String() != "CN=n1" || len(cert.ExtKeyUsage) != 1 || cert.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("got subject %s, CA %v, usage %v", cert.Subject, cert.IsCA, cert.ExtKeyUsage)
	}
	if !cert.NotAfter.Equal(signed.NotAfter) || signed.NotAfter.Location() != time.UTC {
		t.Errorf("got end %s, want that of the certificate, %s, in UTC", signed.NotAfter, cert.NotAfter)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca.CertificatePEM())
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("a node's certificate is good for a server")
	}
}

func TestNoCertificateOutlivesTheAuthority(t *testing.T) {
	now := time.Now()
	ca, err := Create(t.Context(), newStore(t), now)
	if err != nil {
		t.Fatal(err)
	}
	csr, _, err := Request("n1")
	if err != nil {
		t.Fatal(err)
	}
	late := now.Add(authorityLife - time.Hour)
	signed, err := ca.Node(csr, "n1", "spiffe://sds-server/canary/n1", late, 24*time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	if end := leafOf(t, ca.CertificatePEM()).NotAfter; !signed.NotAfter.Equal(end) || !leafOf(t, signed.PEM).NotAfter.Equal(end) {
		t.Errorf("got end %s, want that of the CA, %s", signed.NotAfter, end)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	ca, err := Create(t.Context(), newStore(t), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	good, keyPEM, err := Request("n1")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(good)
	forged := bytes.Clone(block.Bytes)
	forged[len(forged)-1] ^= 1
	for name, csr := range map[string][]byte{
		"empty": nil, "garbage": []byte("garbage"), "a key": keyPEM, "cut": good[:len(good)/2],
		"forged signature": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: forged}),
		"not a request":    pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: []byte{1, 2, 3}}),
	} {
		if _, err := ca.Node(csr, "n1", "spiffe://x/n1", time.Now(), time.Hour); err == nil || strings.Contains(err.Error(), "PRIVATE") {
			t.Errorf("%s: got %v, want a refusal", name, err)
		}
	}
}

func TestURI(t *testing.T) {
	rows := []struct {
		name  string
		globs []string
		node  string
		want  string
	}{
		{"first URI", []string{"dns:a.example", "spiffe://e/canary/*", "spiffe://e/other/*"}, "edge-1", "spiffe://e/canary/edge-1"},
		{"no star", []string{"spiffe://e/one"}, "edge-1", "spiffe://e/one"},
		{"dots and underscores", []string{"spiffe://e/*"}, "a.b_c-D9", "spiffe://e/a.b_c-D9"},
		{"no URI", []string{"dns:*.example", "unix:uid=7"}, "edge-1", ""},
		{"no name", []string{"spiffe://e/*"}, "", ""},
		{"slash", []string{"spiffe://e/*"}, "a/b", ""},
		{"dots only", []string{"spiffe://e/*"}, "..", ""},
		{"escape", []string{"spiffe://e/*"}, "%2e", ""},
		{"query", []string{"spiffe://e/*"}, "a?b", ""},
		{"star", []string{"spiffe://e/*"}, "*", ""},
		{"not ASCII", []string{"spiffe://e/*"}, "bücher", ""},
		{"newline", []string{"spiffe://e/*"}, "a\nb", ""},
		{"too long", []string{"spiffe://e/*"}, strings.Repeat("a", 65), ""},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			got, err := URI(row.globs, row.node)
			if got != row.want || (err == nil) != (row.want != "") {
				t.Errorf("got %q, %v, want %q", got, err, row.want)
			}
		})
	}
	if _, err := URI([]string{"dns:a"}, "n"); !errors.Is(err, ErrNoURI) {
		t.Errorf("got %v, want ErrNoURI", err)
	}
}

func TestWrittenFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	files := []File{{Name: "tls.key", Data: []byte("k"), Mode: 0o600}, {Name: "tls.crt", Data: []byte("c"), Mode: 0o644}}
	for range 2 { // the second time replaces
		if err := WriteFiles(dir, files); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 2 {
		t.Fatalf("got %v, %v, want the two files alone", entries, err)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "tls.key"): 0o600, filepath.Join(dir, "tls.crt"): 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: got %v, %v, want mode %o", path, info.Mode(), err, want)
		}
	}
	if err := WriteFiles(filepath.Join(dir, "tls.key"), files); err == nil {
		t.Error("wrote into a file as if it were a directory")
	}
}
