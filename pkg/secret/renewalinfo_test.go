package secret

import (
	"crypto/x509"
	"encoding/hex"
	"math/big"
	"testing"
)

// TestRenewalInfoIDIsThatOfTheRFC has the example of RFC 9773, Section 4.1, and serial numbers with and without a sign byte.
func TestRenewalInfoIDIsThatOfTheRFC(t *testing.T) {
	w := newWorld(t)
	id, err := hex.DecodeString("69885b6b87464041e1b37b847ba0ae2cde01c8d4")
	if err != nil {
		t.Fatal(err)
	}
	middle := w.root.newCA(t, "Intermediate", func(c *x509.Certificate) { c.SubjectKeyId = id })
	for serial, want := range map[int64]string{
		0x87654321: "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AIdlQyE",
		0x12345678: "aYhba4dGQEHhs3uEe6CuLN4ByNQ.EjRWeA",
		0:          "aYhba4dGQEHhs3uEe6CuLN4ByNQ.AA",
	} {
		s := parse(t, w.under(t, middle, func(c *x509.Certificate) { c.SerialNumber = big.NewInt(serial) }))
		if got := s.RenewalInfoID(); got != want {
			t.Errorf("serial %x: got %q, want %q", serial, got, want)
		}
	}
	token, err := NewGeneric("token", []byte("x"))
	if err != nil {
		t.Fatal(err)
	}
	if got := token.RenewalInfoID(); got != "" {
		t.Errorf("generic secret: got %q, want none", got)
	}
}
