package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// newDir returns a directory with every file that the configurations in testdata name.
func newDir(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	certPEM, keyPEM := newPair(t)
	_, otherKeyPEM := newPair(t)
	for name, file := range map[string]struct {
		mode fs.FileMode
		data []byte
	}{
		"seal.key":        {0o600, []byte("AGE-SECRET-KEY-1\n")},
		"world.key":       {0o604, []byte("AGE-SECRET-KEY-1\n")},
		"writable.key":    {0o602, []byte("AGE-SECRET-KEY-1\n")},
		"ourgroup.key":    {0o640, []byte("AGE-SECRET-KEY-1\n")},
		"empty.key":       {0o600, nil},
		"data/seal.key":   {0o600, []byte("AGE-SECRET-KEY-1\n")},
		"s.crt":           {0o644, certPEM},
		"s.key":           {0o600, keyPEM},
		"other.key":       {0o600, otherKeyPEM},
		"ca.crt":          {0o644, certPEM},
		"broken.crt":      {0o644, []byte("-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n")},
		"gts.hmac":        {0o600, []byte("c2VjcmV0")},
		"dns.env":         {0o600, []byte("RFC2136_NAMESERVER=127.0.0.1:53\n")},
		"token.txt":       {0o600, []byte("token")},
		"large.txt":       {0o600, bytes.Repeat([]byte("x"), 64<<10+1)},
		"with-key.crt":    {0o644, slices.Concat(certPEM, keyPEM)},
		"hook":            {0o755, []byte("#!/bin/sh\n")},
		"hook-for-all":    {0o777, []byte("#!/bin/sh\n")},
		"not-executable":  {0o644, []byte("#!/bin/sh\n")},
		"directory/.keep": {0o600, []byte("x")},
		"open/hook":       {0o755, []byte("#!/bin/sh\n")},
	} {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, file.data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(name, file.mode); err != nil { // past the umask
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "open"), 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newPair returns a self-signed certificate and its key, both PEM.
func newPair(t testing.TB) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "test"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),

		BasicConstraintsValid: true,
		IsCA:                  true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// write puts a configuration into dir, {{dir}} replaced, and returns its name.
func write(t testing.TB, dir, content string) string {
	t.Helper()
	name := filepath.Join(dir, "sds-server.yaml")
	if err := os.WriteFile(name, []byte(strings.ReplaceAll(content, "{{dir}}", dir)), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// loadIn loads content as a file in dir; allFeatures leaves out the table of unsupported keys.
func loadIn(t testing.TB, dir, content string, allFeatures bool) (*Config, error) {
	t.Helper()
	name := write(t, dir, content)
	if !allFeatures {
		return Load(name)
	}
	data, file, problem := readFile(name)
	if problem != nil {
		t.Fatal(problem)
	}
	return parse(data, file, nil)
}

// errorLines returns the lines of a Problems error with dir replaced by {{dir}}.
func errorLines(t testing.TB, err error, dir string) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[Problems](err); !ok {
		t.Fatalf("got an error of type %T, want Problems", err)
	}
	return strings.Split(strings.ReplaceAll(err.Error(), dir, "{{dir}}"), "\n")
}

// directives returns the comments at the top of a file: the lines after "# want: ", and whether one is "# all features".
func directives(content string) (want []string, allFeatures bool) {
	for line := range strings.Lines(content) {
		line = strings.TrimSuffix(line, "\n")
		if text, ok := strings.CutPrefix(line, "# want: "); ok {
			want = append(want, text)
		}
		allFeatures = allFeatures || line == "# all features"
	}
	return want, allFeatures
}

func readTestdata(t testing.TB, pattern string) map[string]string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", pattern))
	if err != nil || len(names) == 0 {
		t.Fatalf("no files for %s (%v)", pattern, err)
	}
	files := map[string]string{}
	for _, name := range names {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		files[strings.TrimSuffix(filepath.Base(name), ".yaml")] = string(data)
	}
	return files
}

func TestGoodFilesLoad(t *testing.T) {
	for name, content := range readTestdata(t, "good/*.yaml") {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			_, allFeatures := directives(content)
			cfg, err := loadIn(t, dir, content, allFeatures)
			if err != nil {
				t.Fatalf("got problems:\n%v", err)
			}
			if err := cfg.Validate(); err != nil {
				t.Errorf("a second validation found:\n%v", err)
			}
		})
	}
}

func TestBadFilesGiveExactlyTheirProblems(t *testing.T) {
	for name, content := range readTestdata(t, "bad/*.yaml") {
		t.Run(name, func(t *testing.T) {
			dir := newDir(t)
			want, allFeatures := directives(content)
			if len(want) == 0 {
				t.Fatal("the file says no problem in a line that begins with # want:")
			}
			cfg, err := loadIn(t, dir, content, allFeatures)
			if cfg != nil {
				t.Error("got a configuration together with problems")
			}
			if diff := cmp.Diff(want, errorLines(t, err, dir)); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}
