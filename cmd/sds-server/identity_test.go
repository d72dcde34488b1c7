package main

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// TestIdentityIsRenewedForAGroupOfTodayOnly takes the group out of the configuration.
func TestIdentityIsRenewedForAGroupOfTodayOnly(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	b.start()
	dir := filepath.Join(b.Dir, "id")
	b.ok("identity", "issue", "--group", "production", "--node", "p1", "--out", dir, "--life", "1s")
	old := notAfter(b, dir)
	b.eventually(func() error {
		if left := time.Until(old); left >= 0 {
			return fmt.Errorf("the certificate lasts for %v", left)
		}
		return nil
	})
	b.ok("identity", "renew", dir)
	if now := notAfter(b, dir); !now.After(old) {
		t.Errorf("renewed until %v, want later than %v", now, old)
	}
	before := b.hash(filepath.Join(dir, "tls.crt"))
	b.configure(settings{Groups: []string{"canary"}})
	b.eventually(func() error {
		r := b.run("identity", "renew", dir)
		if r.code == 0 {
			before = b.hash(filepath.Join(dir, "tls.crt"))
			return errors.New("renewed")
		}
		checkRefusal(b, r, 1, "no group has nodes with the identity spiffe://sds-server/production/p1 any more")
		return nil
	})
	if b.hash(filepath.Join(dir, "tls.crt")) != before {
		t.Error("a refused renewal has changed the certificate")
	}
}

// notAfter is the end of the certificate in a directory.
func notAfter(b *box, dir string) time.Time {
	b.Helper()
	text, err := readText(filepath.Join(dir, "tls.crt"))
	b.must(err)
	block, _ := pem.Decode([]byte(text))
	if block == nil {
		b.Fatal("tls.crt is no PEM")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	b.must(err)
	return cert.NotAfter
}
