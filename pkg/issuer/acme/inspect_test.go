package acme

import (
	"bytes"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
)

// check returns the check of a name, and fails the test unless it came out so with all parts in its message or hint.
func wantCheck(t *testing.T, x Inspection, name string, result CheckResult, parts ...string) {
	t.Helper()
	at := slices.IndexFunc(x.Checks, func(c Check) bool { return c.Name == name })
	if at < 0 {
		t.Errorf("no check %s in %+v", name, x.Checks)
		return
	}
	c := x.Checks[at]
	if c.Result != result {
		t.Errorf("%s: got %s, want %s: %s", name, c.Result, result, c.Message)
	}
	for _, part := range parts {
		if !strings.Contains(c.Message+"; "+c.Hint, part) {
			t.Errorf("%s: got %q, hint %q, want %q in it", name, c.Message, c.Hint, part)
		}
	}
	if c.Result != CheckOK && c.Hint == "" || c.Message == "" || strings.ContainsAny(c.Message, "\n\x1b") {
		t.Errorf("%s: got %+v, want one line, and a hint for what is not ok", name, c)
	}
}

// wantOK fails the test unless all checks but these are ok.
func wantOK(t *testing.T, x Inspection, but ...string) {
	t.Helper()
	for _, c := range x.Checks {
		if c.Result != CheckOK && !slices.Contains(but, c.Name) {
			t.Errorf("got %+v, want it ok", c)
		}
	}
}

func TestInspectAnAccountThatIsThereAndOneThatIsNot(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	if _, ok := i.LastDirectory(); ok {
		t.Error("there is a directory before the first request")
	}
	x := i.Inspect(f.Ready(), InspectOptions{})
	wantOK(t, x)
	wantCheck(t, x, "account", CheckOK, "none yet")
	wantCheck(t, x, "tls", CheckOK, "TLS 1.3", f.pebble.CAFile)
	wantCheck(t, x, "terms", CheckOK, "accepted: data:text/plain")
	wantCheck(t, x, "profiles", CheckOK, "default, of default")
	wantCheck(t, x, "renewal_info", CheckOK, "suggests when to renew")
	wantCheck(t, x, "eab", CheckOK, "not required")
	wantCheck(t, x, "clock", CheckOK)
	if d := x.Directory; !d.RenewalInfo || d.EABRequired || d.Profiles["default"] == "" || d.Terms == "" || time.Since(d.At) > time.Minute {
		t.Errorf("directory: got %+v", d)
	}
	if d, ok := i.LastDirectory(); !ok || d.Terms != x.Directory.Terms {
		t.Errorf("last directory: got %+v, %v", d, ok)
	}
	if n := f.proxy.Count(testenv.KindNewAccount).Received; n != 0 || x.Account != "" {
		t.Errorf("%d accounts were asked for, and %q is one: an inspection registers none", n, x.Account)
	}
	if _, err := f.store.Get(f.Context(), issuer.AccountKey("pebble")); err == nil {
		t.Error("an inspection has made an account key")
	}

	x = i.Inspect(f.Ready(), InspectOptions{Register: true})
	wantOK(t, x)
	wantCheck(t, x, "account", CheckOK, "registered: https://")
	kid, err := i.Account(f.Context())
	if err != nil || kid == "" || kid != x.Account {
		t.Errorf("account: got %q, %v, want %q", kid, err, x.Account)
	}
	x = i.Inspect(f.Ready(), InspectOptions{Register: true})
	wantCheck(t, x, "account", CheckOK, kid+" is valid")
	if n := f.proxy.Count(testenv.KindNewAccount).Received; n != 1 {
		t.Errorf("%d accounts were asked for, want 1", n)
	}
	if f.proxy.Count(testenv.KindDirectory).Received < 3 {
		t.Error("an inspection believes the directory that is kept")
	}
	f.obtain(i, request("127.0.0.1")) // with the account and the nonces of the inspection
	if n := f.proxy.Count(testenv.KindNewAccount).Received; n != 1 {
		t.Errorf("%d accounts were asked for, want 1", n)
	}
	// The account at another CA is none here.
	other := f.issuer(func(o *Options) { o.Directory = f.pebble.Directory })
	if kid, err := other.Account(f.Context()); kid != "" || err != nil {
		t.Errorf("account at another CA: got %q, %v, want none", kid, err)
	}
	wantCheck(t, other.Inspect(f.Ready(), InspectOptions{}), "account", CheckOK, "none yet")
	f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
		if kind == testenv.KindAccount {
			testenv.ReplaceBody(resp, []byte(`{"status":"revoked"}`))
		}
		return nil
	})
	wantCheck(t, i.Inspect(f.Ready(), InspectOptions{Register: true}), "account", CheckFail, kid+" is revoked")
	f.proxy.SetRewrite(nil)
	// Another mail address than that of the account.
	x = f.issuer(func(o *Options) { o.Email = "other@example.com" }).Inspect(f.Ready(), InspectOptions{})
	wantCheck(t, x, "account", CheckWarn, "ops@example.com", "other@example.com")
}

func TestInspectAnAccountThatTheCAHasForgottenOrEnded(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	lost := i.Inspect(f.Ready(), InspectOptions{Register: true}).Account
	if err := f.pebble.Kill(); err != nil {
		t.Fatal(err)
	}
	f.pebble = f.Pebble(f.pebbleOptions)
	x := i.Inspect(f.Ready(), InspectOptions{})
	wantOK(t, x, "account")
	wantCheck(t, x, "account", CheckWarn, lost, "does not know it any more")
	x = i.Inspect(f.Ready(), InspectOptions{Register: true})
	wantOK(t, x)
	wantCheck(t, x, "account", CheckOK, "registered")

	stored, err := i.storedAccount(f.Context())
	if err != nil {
		t.Fatal(err)
	}
	signer, err := decodeKey(stored.Key)
	if err != nil {
		t.Fatal(err)
	}
	if err := i.conn.call(f.Ready(), accountKey{signer: signer, kid: stored.KID}, endpointAccount, func(core *api.Core) error {
		return core.Accounts.Deactivate(stored.KID)
	}); err != nil {
		t.Fatal(err)
	}
	x = i.Inspect(f.Ready(), InspectOptions{Register: true})
	wantCheck(t, x, "account", CheckFail, "deactivated", "ask the CA why")
	if !x.Failed() {
		t.Error("an inspection with a failed check has not failed")
	}
}

func TestInspectExternalAccountBinding(t *testing.T) {
	t.Parallel()
	const key = "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	f := newFixture(t, testenv.PebbleOptions{EAB: map[string]string{"kid-1": key}})
	file := filepath.Join(f.Dir, "hmac")
	writeFile(t, file, key)
	x := f.issuer(nil).Inspect(f.Ready(), InspectOptions{Register: true})
	wantCheck(t, x, "eab", CheckFail, "required, and not configured", "eab.kid")
	wantCheck(t, x, "account", CheckFail, "externalAccountRequired")
	x = f.issuer(func(o *Options) { o.EAB = &EAB{KID: "kid-2", HMACKeyFile: file} }).Inspect(f.Ready(), InspectOptions{Register: true})
	wantCheck(t, x, "eab", CheckOK, "required, and configured: kid-2")
	wantCheck(t, x, "account", CheckFail, "unauthorized")
	bound := func(o *Options) { o.EAB = &EAB{KID: "kid-1", HMACKeyFile: file} }
	x = f.issuer(bound).Inspect(f.Ready(), InspectOptions{Register: true})
	wantOK(t, x)
	x = f.issuer(nil).Inspect(f.Ready(), InspectOptions{})
	wantCheck(t, x, "eab", CheckWarn, "not configured")
	wantCheck(t, x, "account", CheckOK, "is valid")
	writeFile(t, file, "not base64!")
	x = f.issuer(bound).Inspect(f.Ready(), InspectOptions{})
	wantCheck(t, x, "eab", CheckFail, "not a key in base64url")
	for _, c := range x.Checks {
		if strings.Contains(c.Message+c.Hint, "not base64!") || strings.Contains(c.Message+c.Hint, key) {
			t.Errorf("a check tells a key: %+v", c)
		}
	}
}

// TestInspectWhatCannotBeReached has what goes wrong before the first ACME message.
func TestInspectWhatCannotBeReached(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	other, err := testenv.NewAuthority(f.Dir, "other")
	if err != nil {
		t.Fatal(err)
	}
	dead := f.Address()
	hold := f.proxy.Hold(testenv.KindDirectory, testenv.Before)
	defer hold.Release()
	for _, tt := range []struct {
		name   string
		change func(*Options)
		check  string
		parts  []string
	}{
		{"hang", func(o *Options) { o.RequestTimeout = 200 * time.Millisecond }, "directory", []string{"no answer within 200ms", "firewalls"}},
		{"the system's roots", func(o *Options) { o.CAFile = "" }, "tls", []string{"signed by unknown authority", "it shows a certificate of", "set ca_file"}},
		{"another CA file", func(o *Options) { o.CAFile = other.File }, "tls", []string{"it shows a certificate of", "ca_file of the issuer does not have"}},
		{"nobody listens", func(o *Options) { o.Directory = "https://" + dead + "/dir" }, "directory", []string{"connection refused", dead}},
		{"no such host", func(o *Options) { o.Directory = "https://ca.invalid/dir" }, "directory", []string{"ca.invalid", "resolver"}},
		{"another path", func(o *Options) { o.Directory = strings.Replace(o.Directory, "/dir", "/directory", 1) }, "directory", []string{"HTTP status 404"}},
		{"no directory", func(o *Options) { o.Directory = strings.Replace(o.Directory, "/dir", "/nonce-plz", 1) }, "directory", []string{"nonce-plz"}},
	} {
		x := f.issuer(tt.change).Inspect(f.Ready(), InspectOptions{Register: true})
		t.Logf("%s: %+v", tt.name, x.Checks)
		wantCheck(t, x, tt.check, CheckFail, tt.parts...)
		if last := x.Checks[len(x.Checks)-1]; last.Name != tt.check || !x.Failed() {
			t.Errorf("%s: got %+v after it", tt.name, last)
		}
		if tt.name == "hang" {
			hold.Release()
		}
	}
}

// TestInspectWhatTheCASays changes what a real CA answers.
func TestInspectWhatTheCASays(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	body := func(from, to string) func(testenv.Kind, *http.Response) error {
		return func(kind testenv.Kind, resp *http.Response) error {
			if kind != testenv.KindDirectory {
				return nil
			}
			var text bytes.Buffer
			if _, err := text.ReadFrom(resp.Body); err != nil {
				return err
			}
			testenv.ReplaceBody(resp, bytes.ReplaceAll(text.Bytes(), []byte(from), []byte(to)))
			return nil
		}
	}
	header := func(kind testenv.Kind, key, value string) func(testenv.Kind, *http.Response) error {
		return func(k testenv.Kind, resp *http.Response) error {
			if k == kind {
				resp.Header.Set(key, value)
			}
			return nil
		}
	}
	clock := func(d time.Duration) string { return time.Now().Add(d).UTC().Format(http.TimeFormat) }
	for _, tt := range []struct {
		name    string
		rewrite func(testenv.Kind, *http.Response) error
		change  func(*Options)
		options InspectOptions
		check   string
		result  CheckResult
		parts   []string
	}{
		{"clock behind", header(testenv.KindDirectory, "Date", clock(2*time.Minute)), nil, InspectOptions{}, "clock", CheckWarn, []string{"behind the CA's", "set the clock"}},
		{"clock far ahead", header(testenv.KindDirectory, "Date", clock(-2*time.Hour)), nil, InspectOptions{}, "clock", CheckFail, []string{"ours is 2h0m", "ahead of the CA's"}},
		{"no clock", header(testenv.KindDirectory, "Date", "yesterday"), nil, InspectOptions{}, "clock", CheckOK, []string{"does not tell"}},
		{"no nonce", header(testenv.KindNonce, "Replay-Nonce", ""), nil, InspectOptions{}, "nonce", CheckFail, []string{"gives no nonce"}},
		{"no profiles", body("profiles", "profile"), nil, InspectOptions{}, "profiles", CheckWarn, []string{"offers none", "default is configured"}},
		{"no ARI", body("renewalInfo", "renewal"), nil, InspectOptions{}, "renewal_info", CheckOK, []string{"does not suggest", "1/3 of the life"}},
		{"a profile of a certificate", nil, nil, InspectOptions{Profiles: []string{"shortlived", "default", ""}}, "profiles", CheckFail, []string{"shortlived: not among", "offers: default"}},
		{"the CA chooses", nil, func(o *Options) { o.Profile = "" }, InspectOptions{}, "profiles", CheckOK, []string{"chooses among default"}},
		{"terms not accepted", nil, func(o *Options) { o.AcceptTOS = false }, InspectOptions{}, "terms", CheckFail, []string{"accept_tos"}},
		{"CAA identities", body(`"pebble.letsencrypt.org"`, `"ca.example", "ca\u001b.example"`), nil, InspectOptions{}, "caa", CheckOK, []string{"ca.example or ca .example"}},
		{"no newOrder", body("newOrder", "order"), nil, InspectOptions{}, "directory", CheckFail, []string{"newOrder"}},
	} {
		f.proxy.SetRewrite(tt.rewrite)
		issuer := i
		if tt.change != nil {
			issuer = f.issuer(tt.change)
		}
		x := issuer.Inspect(f.Ready(), tt.options)
		wantCheck(t, x, tt.check, tt.result, tt.parts...)
		wantOK(t, x, tt.check)
	}
	f.proxy.SetRewrite(nil)
	f.proxy.SetRespond(func(kind testenv.Kind, w http.ResponseWriter, r *http.Request) bool {
		if kind == testenv.KindDirectory {
			http.Redirect(w, r, (&url.URL{Scheme: "https", Host: "elsewhere.example", Path: "/dir"}).String(), http.StatusFound)
			return true
		}
		return false
	})
	wantCheck(t, i.Inspect(f.Ready(), InspectOptions{}), "directory", CheckFail, "a redirect to https://elsewhere.example/dir")
}
