package secret

import (
	"bytes"
	"encoding/pem"
	"strings"
	"testing"
)

// FuzzParseCertificate looks for panics, and for input whose canonical form is not the same secret.
func FuzzParseCertificate(f *testing.F) {
	in := golden(f)
	w := newWorld(f)
	good := w.good(f)
	f.Add(in.name, in.chain, in.key)
	f.Add(good.name, good.chain, good.key)
	f.Add(good.name, chainText(w.root.cert, w.middle.cert, w.leaf), join(ecParameters, sec1Text(f, w.key)))
	f.Add(good.name, w.leaf.Raw, []byte("-----BEGIN EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END EC PRIVATE KEY-----\n"))
	f.Add("*", bytes.ReplaceAll(good.chain, []byte("\n"), []byte("\r\n")), good.key[:40])
	key := []byte("key")
	f.Fuzz(func(t *testing.T, name string, chain, keyText []byte) {
		s, err := ParseCertificate(name, chain, keyText)
		if err != nil {
			badVerb := strings.Contains(err.Error(), "%!") && !strings.Contains(name, "%!") // of package fmt
			if len(Rules(err)) == 0 || badVerb {
				t.Fatalf("got %q, want an error with rules", err)
			}
			return
		}
		again, err := ParseCertificate(name, s.ChainPEM(), s.KeyPEM())
		if err != nil {
			t.Fatalf("canonical form: got %v, want no error", err)
		}
		if again.Version(key) != s.Version(key) || !bytes.Equal(again.ChainPEM(), s.ChainPEM()) {
			t.Fatalf("canonical form: got version %s, want %s", again.Version(key), s.Version(key))
		}
		// Whatever was parsed can be judged.
		if err := s.Validate(now, Expectation{AnyNames: true, AllowLoneLeaf: true, Roots: w.roots()}); err == nil && name != good.name {
			t.Logf("valid under the name %q", name)
		}
	})
}

// FuzzScanPEM compares with package pem, which skips what it does not understand: where the strict scanner has no objection,
// both have to see the same blocks and nothing else.
func FuzzScanPEM(f *testing.F) {
	in := golden(f)
	f.Add(in.chain)
	f.Add(join(in.chain, in.key, in.chain))
	f.Add(bytes.ReplaceAll(in.chain, []byte("\n"), []byte(" \r\n")))
	f.Add([]byte("-----BEGIN A-----\nAA==\n-----END A-----\n-----BEGIN B-----\n-----END B-----"))
	f.Add([]byte("-----BEGIN A-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END A-----\n"))
	f.Add(append(bytes.TrimSpace(in.chain), " \r"...))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := &problems{}
		blocks := scanPEM(text, "chain", p)
		if p.found() {
			return
		}
		// Carriage returns at the end of a line are white space here, however many; to package pem, only one before a line feed is.
		rest := append(bytes.TrimSpace(bytes.ReplaceAll(text, []byte("\r"), nil)), '\n')
		for _, b := range blocks {
			if b.encrypted {
				return // refused by every caller, and its content is not looked at
			}
			var want *pem.Block
			if want, rest = pem.Decode(rest); want == nil {
				t.Fatalf("got block %q, want none", b.label)
			}
			if b.label != want.Type || !bytes.Equal(b.der, want.Bytes) || len(want.Headers) > 0 {
				t.Fatalf("got block %q with %x, want %q with %x and %v", b.label, b.der, want.Type, want.Bytes, want.Headers)
			}
		}
		if want, _ := pem.Decode(rest); want != nil || len(bytes.TrimSpace(rest)) > 0 {
			t.Fatalf("got no more blocks, want none of %q", rest)
		}
	})
}
