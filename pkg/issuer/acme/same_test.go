package acme

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
)

func TestUnchangedOptionsAreTheSameIssuer(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	read := func(path string) string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	content := read(f.pebble.CAFile)
	writeFile(t, ca, content)
	with := func(o *Options) {
		o.CAFile, o.EAB = ca, &EAB{KID: "k", HMACKeyFile: "hmac"}
	}
	i := f.issuer(with)
	tests := []struct {
		name   string
		change func(*Options)
		want   bool
	}{
		{"nothing", func(*Options) {}, true},
		{"defaults written out", func(o *Options) {
			o.UserAgent, o.RequestTimeout, o.OrderTimeout = "sds-server", 30*time.Second, 3*time.Minute
		}, true},
		{"logger", func(o *Options) { o.Logger = slog.New(slog.DiscardHandler).With("a", "b") }, true},
		{"equal EAB", func(o *Options) { o.EAB = &EAB{KID: "k", HMACKeyFile: "hmac"} }, true},
		{"other EAB", func(o *Options) { o.EAB = &EAB{KID: "other", HMACKeyFile: "hmac"} }, false},
		{"no EAB", func(o *Options) { o.EAB = nil }, false},
		{"name", func(o *Options) { o.Name = "other" }, false},
		{"directory", func(o *Options) { o.Directory = "https://ca.invalid/dir" }, false},
		{"email", func(o *Options) { o.Email = "" }, false},
		{"terms", func(o *Options) { o.AcceptTOS = false }, false},
		{"profile", func(o *Options) { o.Profile = "" }, false},
		{"roots", func(o *Options) { o.RootsFile = "" }, false},
		{"roots unchecked", func(o *Options) { o.RootsUnchecked = true }, false},
		{"no CA file", func(o *Options) { o.CAFile = "" }, false},
		{"responder", func(o *Options) { o.Responder = &Responder{} }, false},
		{"order time", func(o *Options) { o.OrderTimeout = time.Minute }, false},
	}
	for _, tt := range tests {
		o := f.options()
		with(&o)
		tt.change(&o)
		if got := i.Same(o); got != tt.want {
			t.Errorf("%s: got the same %t, want %t", tt.name, got, tt.want)
		}
	}

	o := f.options()
	with(&o)
	if (*Issuer)(nil).Same(o) {
		t.Error("no issuer is the same as one")
	}
	for name, other := range map[string]string{"other content": content + read(f.pebble.RootsFile), "no certificate": "x"} {
		writeFile(t, ca, other)
		if i.Same(o) {
			t.Errorf("CA file with %s: got the same, want another one", name)
		}
	}
	writeFile(t, ca, content)
	if !i.Same(o) {
		t.Error("got another issuer for a file that is as it was")
	}
}
