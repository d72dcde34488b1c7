package rollout

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// A random history is a pure function of its seed: it runs in a bubble, on a store in memory, with a version key and certificates of its own, and
// everything that has an order has one. TestHistoriesAreFunctionsOfTheirSeeds checks it.

// histories runs a test for seeds, side by side: for SDS_TEST_SEED alone, for SDS_TEST_HISTORIES from a random one on, or for a few. The seeds of
// always come besides: they meet what a few random ones may miss.
func histories(t *testing.T, few int, one func(t *testing.T, seed uint64), always ...uint64) {
	t.Helper()
	count, first := few, rand.Uint64N(1<<32)
	if text := os.Getenv("SDS_TEST_HISTORIES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		count = n
	}
	if text := os.Getenv("SDS_TEST_SEED"); text != "" {
		seed, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		count, first, always = 1, seed, nil
	}
	began := time.Now()
	t.Cleanup(func() {
		t.Logf("%d histories in %s, from seed %d on", count, time.Since(began).Round(time.Millisecond), first)
	})
	for i := range count {
		always = append(always, first+uint64(i))
	}
	for _, seed := range always {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			t.Parallel()
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("SDS_TEST_SEED=%d runs this history alone", seed)
				}
			})
			synctest.Test(t, func(t *testing.T) { one(t, seed) })
		})
	}
}

// seededStore is an empty store with the version key that a seed makes.
func seededStore(seed uint64) *memory {
	s := &memory{entries: map[string]store.Entry{}}
	key := fmt.Sprintf("%032d", seed)
	if _, err := s.Commit(nil, nil, []store.Operation{store.Put("meta/version-key", []byte(key))}); err != nil { //nolint:staticcheck // it takes no context
		panic(err)
	}
	return s
}

// seededKey is the key of all certificates of histories: they differ by their serial numbers.
var seededKey = sync.OnceValue(func() *ecdsa.PrivateKey {
	return must(ecdsa.ParseRawPrivateKey(elliptic.P256(), []byte("32 bytes for a key, as any others")[:32]))
})

// seededSecret makes a valid pair, the same for the same number, name, time and life. It is signed without randomness (RFC 6979).
func seededSecret(t testing.TB, name string, number int64, life time.Duration) *secret.Secret {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(number), Subject: pkix.Name{CommonName: "a.example"}, DNSNames: []string{"a.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	key := seededKey()
	der, err := x509.CreateCertificate(nil, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	s, err := secret.ParseCertificate(name, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestHistoriesAreFunctionsOfTheirSeeds(t *testing.T) {
	traces := map[string]func(t *testing.T, seed uint64) []string{
		"model": func(t *testing.T, seed uint64) []string { return newModel(t, seed).play() },
		"reference": func(t *testing.T, seed uint64) []string {
			h := newHistory(t, seed)
			h.play()
			return h.told
		},
	}
	for name, trace := range traces {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(6) {
				var first, second []string
				synctest.Test(t, func(t *testing.T) { first = trace(t, seed) })
				synctest.Test(t, func(t *testing.T) { second = trace(t, seed) })
				for i := range max(len(first), len(second)) {
					if i >= len(first) || i >= len(second) || first[i] != second[i] {
						t.Fatalf("seed %d is another history the second time, from action %d of %d and %d on:\n%s", seed, i, len(first), len(second),
							cmp.Diff(strings.Split(first[min(i, len(first)-1)], "\n"), strings.Split(second[min(i, len(second)-1)], "\n")))
					}
				}
			}
		})
	}
}
