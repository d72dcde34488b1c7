package acme

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/secret"
)

func TestCertificateForOneName(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	s := f.obtain(f.issuer(nil), request("a.example"))
	if got := s.DNSNames(); !slices.Equal(got, []string{"a.example"}) {
		t.Errorf("got names %v, want a.example alone", got)
	}
	if cn := s.Leaf().Subject.CommonName; cn != "" {
		t.Errorf("got common name %q, want none", cn)
	}
	if _, err := tls.X509KeyPair(s.ChainPEM(), s.KeyPEM()); err != nil {
		t.Error(err)
	}
	if n := f.responder.Pending(); n != 0 {
		t.Errorf("%d tokens are still pending", n)
	}
	if _, err := f.store.Get(t.Context(), issuer.OrderKey("www")); err != nil {
		t.Errorf("order: %v, want it kept until the certificate is stored", err)
	}
}

func TestKeyTypesNamesAndAddresses(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{ChainLength: 2})
	i := f.issuer(nil)
	tests := []struct {
		keyType string
		names   []string
	}{
		{"ecdsa-p256", []string{"a.example", "b.example"}},
		{"ecdsa-p384", []string{"127.0.0.1"}},
		{"rsa-2048", []string{"127.0.0.1", "a.example", "A.example"}},
		{"rsa-3072", []string{"very-long-name-that-has-more-than-sixty-four-characters-in-all.a.example"}},
	}
	for _, tt := range tests {
		t.Run(tt.keyType, func(t *testing.T) {
			r := request(tt.names...)
			r.Secret, r.KeyType = tt.keyType, tt.keyType
			var mu sync.Mutex
			var steps []issuer.Step
			r.Progress = func(s issuer.Step) {
				mu.Lock()
				defer mu.Unlock()
				steps = append(steps, s)
			}
			s := f.obtain(i, r)
			if s.KeyType() != tt.keyType || len(s.Chain()) != 3 {
				t.Errorf("got a %s key and %d certificates, want %s and 3", s.KeyType(), len(s.Chain()), tt.keyType)
			}
			want := []issuer.Step{issuer.StepOrdering, issuer.StepChallenges, issuer.StepFinalizing, issuer.StepDownloading}
			if !slices.Equal(steps, want) {
				t.Errorf("got steps %v, want %v", steps, want)
			}
		})
	}
	if n := f.proxy.Count(testenv.KindNewAccount).Succeeded; n != 1 {
		t.Errorf("got %d accounts, want 1 for all", n)
	}
	if n := f.proxy.Count(testenv.KindDirectory).Received; n != 1 {
		t.Errorf("the directory was asked for %d times, want once", n)
	}
	if n := f.proxy.Count(testenv.KindNonce).Received; n > 3 {
		t.Errorf("%d nonces were asked for, want those of the answers to be used", n)
	}
	series := testutil.CollectAndCount(f.metrics.requests)
	if series < 8 {
		t.Errorf("got %d series of acme_requests_total, want one for each endpoint", series)
	}
	f.metrics.Forget("pebble")
	if n := testutil.CollectAndCount(f.metrics.requests); n != 0 {
		t.Errorf("%d series are left", n)
	}
}

func TestNewKeyEachTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	keys := make(map[string]bool)
	for range 3 {
		keys[string(f.obtain(i, request("a.example")).KeyPEM())] = true
		f.accept(request("a.example"))
	}
	if len(keys) != 3 {
		t.Errorf("got %d different keys of 3 certificates", len(keys))
	}
}

func TestProfileIsAskedFor(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{Profiles: map[string]testenv.PebbleProfile{
		profile: {}, "short": {Validity: time.Hour}, "shorter": {Validity: time.Minute},
	}})
	i := f.issuer(nil)
	for want, life := range map[string]time.Duration{"": 90 * 24 * time.Hour, "short": time.Hour, "shorter": time.Minute} {
		r := request("a.example")
		r.Secret, r.Profile = "www"+want, want
		told := ""
		r.Profiled = func(name string) { told = name }
		s := f.obtain(i, r)
		if told != cmp.Or(want, profile) {
			t.Errorf("profile %q: told that it was ordered with %q", want, told)
		}
		if got := s.NotAfter().Sub(s.NotBefore()); (got - life).Abs() > 2*time.Second {
			t.Errorf("profile %q: got a life of %v, want %v", want, got, life)
		}
	}
	r := request("a.example")
	r.Secret, r.Profile = "unknown", "no-such-profile"
	_, err := i.Obtain(f.Ready(), r)
	wantKind(t, err, issuer.KindRejected, "no-such-profile")
}

func TestExternalAccountBinding(t *testing.T) {
	t.Parallel()
	const kid, key = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	f := newFixture(t, testenv.PebbleOptions{EAB: map[string]string{kid: key}})
	_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
	if e := wantKind(t, err, issuer.KindRejected, "externalAccountRequired"); !strings.Contains(e.Hint, "eab.kid") {
		t.Errorf("got hint %q, want it to name eab.kid", e.Hint)
	}
	file := filepath.Join(t.TempDir(), "eab")
	bound := f.issuer(func(o *Options) { o.EAB = &EAB{KID: kid, HMACKeyFile: file} })
	_, err = bound.Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindInternal, file)
	writeFile(t, file, "not base64url!")
	_, err = bound.Obtain(f.Ready(), request("a.example"))
	if e := wantKind(t, err, issuer.KindInternal, "base64url"); strings.Contains(e.Error(), "not base64url!") {
		t.Error("the error shows the key")
	}
	writeFile(t, file, key+"==\n")
	f.obtain(bound, request("a.example"))
}

func TestRootsAreChecked(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	other, err := testenv.NewAuthority(t.TempDir(), "other")
	if err != nil {
		t.Fatal(err)
	}
	for name, file := range map[string]string{"another root": other.File, "the system's roots": ""} {
		_, err := f.issuer(func(o *Options) { o.RootsFile = file }).Obtain(f.Ready(), request("a.example"))
		if e := wantKind(t, err, issuer.KindRejected, string(secret.RuleUntrusted)); !strings.Contains(e.Hint, "roots_file") {
			t.Errorf("%s: got hint %q, want it to name roots_file", name, e.Hint)
		}
		f.wantNoOrder(name)
	}
	f.obtain(f.issuer(func(o *Options) { o.RootsFile, o.RootsUnchecked = "", true }), request("a.example"))
}

func TestOptionsAreChecked(t *testing.T) {
	t.Parallel()
	empty := filepath.Join(t.TempDir(), "empty.pem")
	writeFile(t, empty, "")
	tests := map[string]Options{
		"http":         {Directory: "http://ca.example/dir"},
		"no directory": {},
		"no CA file":   {Directory: "https://ca.example/dir", CAFile: "/nowhere"},
		"empty CA":     {Directory: "https://ca.example/dir", CAFile: empty},
		"empty roots":  {Directory: "https://ca.example/dir", RootsFile: empty},
		"both":         {Directory: "https://ca.example/dir", RootsFile: empty, RootsUnchecked: true},
	}
	for name, o := range tests {
		o.Logger = testLogger()
		if _, err := New(o); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestWildcardIsRefusedBeforeAnyRequest(t *testing.T) {
	t.Parallel()
	i, err := New(Options{Name: "ca", Directory: "https://ca.invalid/dir", Logger: testLogger()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = i.Obtain(t.Context(), request("a.example", "*.b.example"))
	if e := wantKind(t, err, issuer.KindRejected, "dns-01"); e.Identifier != "*.b.example" {
		t.Errorf("got identifier %q, want the wildcard", e.Identifier)
	}
	_, err = i.Obtain(t.Context(), request())
	wantKind(t, err, issuer.KindRejected, "no name")
}

func TestOrdersOfManySecretsAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{NonceReject: 20})
	i := f.issuer(nil)
	var wg sync.WaitGroup
	for n := range 12 {
		wg.Go(func() {
			r := request("a.example", fmt.Sprintf("n%d.example", n))
			r.Secret = fmt.Sprintf("secret-%d", n)
			if _, err := i.Obtain(f.Ready(), r); err != nil {
				t.Errorf("%s: %v", r.Secret, err)
			}
		})
	}
	wg.Wait()
	if n := f.proxy.Count(testenv.KindNewAccount).Succeeded; n != 1 {
		t.Errorf("got %d accounts, want 1", n)
	}
}

func TestLogTellsTheStoryWithoutAKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	var log bytes.Buffer
	logged := func(o *Options) {
		o.Logger = slog.New(slog.NewJSONHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	i := f.issuer(logged)
	f.obtain(i, request("a.example"))
	f.obtain(i, request("a.example"))              // taken up again
	f.obtain(i, request("a.example", "b.example")) // dropped
	for _, want := range []string{"account registered", "order placed", "order taken up again", "stored order dropped"} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("the log has no %q", want)
		}
	}
	if strings.Contains(log.String(), "PRIVATE KEY") {
		t.Error("a key was logged")
	}
}
