package main

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// otherKinds is a configuration of one secret of each kind that no CA issues, and the directory of their files: ca.pem and token.
func otherKinds(t *testing.T) (extra, dir string) {
	t.Helper()
	dir = t.TempDir()
	random := make([]byte, 24)
	rand.Read(random) // never fails
	ca, err := testenv.NewAuthority(dir, "corp")
	if err == nil {
		err = os.Rename(ca.File, filepath.Join(dir, "ca.pem"))
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "token"), []byte(hex.EncodeToString(random)+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`validation_contexts: [{name: corp-ca, ca_files: [%[1]s/ca.pem]}]
session_ticket_keys: [{name: tickets, rotate: 1h}]
generic_secrets: [{name: token, file: %[1]s/token}]
`, dir), dir
}

// TestCommandsShowEveryKind drives the commands over secrets of every kind: each shows what kind it is, and of the private ones nothing else.
func TestCommandsShowEveryKind(t *testing.T) {
	t.Parallel()
	extra, dir := otherKinds(t)
	b := newBox(t, settings{Extra: extra})
	b.start()
	kinds := map[string]string{"corp-ca": "validation_context", "tickets": "session_ticket_keys", "token": "generic_secret"}
	list, status := b.ok("secrets", "list"), b.ok("status")
	for name, kind := range kinds {
		for _, out := range []string{list, status} {
			if !lineHas(out, name, kind) {
				t.Errorf("no line with %s and %s in:\n%s", name, kind, out)
			}
		}
		if out := b.ok("secrets", "history", name); !strings.Contains(out, "canary,production") {
			t.Errorf("history of %s: %s", name, out)
		}
		out := b.ok("secrets", "show", name)
		if !strings.Contains(out, kind) || strings.Contains(out, "CERTIFICATE") != (name == "corp-ca") || strings.Contains(out, "NOT AFTER") != (name == "corp-ca") {
			t.Errorf("show %s: %s", name, out)
		}
		var s admin.Secret
		b.json(&s, "secrets", "show", name)
		v := s.Versions[0]
		if public := v.ChainPEM != nil && v.SHA256 != nil && v.NotAfter != nil && v.NotBefore != nil; public != (name == "corp-ca") {
			t.Errorf("show %s -o json: %+v", name, v)
		}
		if v.Serial != nil || v.KeyType != nil || v.Issuer != nil {
			t.Errorf("show %s -o json: it has something of a certificate: %+v", name, v)
		}
		b.refused(1, "stands in the configuration", "secrets", "import", name,
			"--chain", filepath.Join(pairs, "a1.crt"), "--key", filepath.Join(pairs, "a1.key"))
		if out := b.runIn(nil, "__complete", "-c", b.Config(), "secrets", "show", "").out; !strings.Contains(out, name+"\n") {
			t.Errorf("completion of secrets show: %q, want %s in it", out, name)
		}
	}
	if out := b.ok("envoy", "bootstrap", "--group", "canary"); strings.Contains(out, "corp-ca") || strings.Contains(out, "token") {
		t.Errorf("the bootstrap takes another kind for a certificate:\n%s", out)
	}
	before := b.ok("secrets", "show", "token")
	longer := strings.Repeat("another token ", 100)
	b.must(os.WriteFile(filepath.Join(dir, "token"), []byte(longer), 0o600))
	b.eventually(func() error {
		if n := strings.Count(b.ok("secrets", "history", "token"), "\n"); n != 3 {
			return fmt.Errorf("%d lines of history", n)
		}
		return nil
	})
	if after := b.ok("secrets", "show", "token"); strings.Contains(after, "another") || strings.Count(after, "\n") != 2*strings.Count(before, "\n") {
		t.Errorf("show token:\n%s", after)
	}
}

// lineHas reports whether a line has all the words.
func lineHas(text string, words ...string) bool {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		all := true
		for _, word := range words {
			found := false
			for _, f := range fields {
				found = found || f == word
			}
			all = all && found
		}
		if all {
			return true
		}
	}
	return false
}

// TestOtherKindsFollowTheConfiguration takes secrets of every kind out of the configuration and puts them in again, with the server running, and with it down.
func TestOtherKindsFollowTheConfiguration(t *testing.T) {
	t.Parallel()
	extra, dir := otherKinds(t)
	b := newBox(t, settings{})
	p := b.start()
	served := func(want ...string) {
		t.Helper()
		b.eventually(func() error {
			var latest admin.Snapshot
			var s admin.Status
			b.json(&s, "status")
			b.json(&latest, "snapshots", "show", fmt.Sprint(s.Groups[0].Snapshot))
			var got []string
			for _, one := range latest.Secrets {
				got = append(got, one.Name)
			}
			if !slices.Equal(got, want) || s.Groups[0].Snapshot != s.Groups[1].Snapshot || len(s.Secrets) != len(want) {
				return fmt.Errorf("served are %q, and the status has %d; want %q", got, len(s.Secrets), want)
			}
			return nil
		})
	}
	served()
	b.configure(settings{Extra: extra})
	served("corp-ca", "tickets", "token")
	versions := func(name string) (n int) {
		var s admin.Secret
		b.json(&s, "secrets", "show", name)
		return len(s.Versions)
	}
	b.must(p.Stop())
	p = b.start()
	served("corp-ca", "tickets", "token")
	for _, name := range []string{"corp-ca", "tickets", "token"} {
		if n := versions(name); n != 1 {
			t.Errorf("%s has %d versions after a restart, want 1", name, n)
		}
	}
	b.configure(settings{})
	served()
	b.must(p.Stop())
	b.must(os.WriteFile(filepath.Join(dir, "token"), []byte("another"), 0o600))
	b.configure(settings{Extra: extra})
	b.start()
	served("corp-ca", "tickets", "token")
	var s admin.Secret
	b.json(&s, "secrets", "show", "token")
	if len(s.Versions) != 2 || len(s.Versions[0].Groups) != 2 || len(s.Versions[1].Groups) != 0 {
		t.Errorf("token: %+v, want that the new content alone is served", s.Versions)
	}
	if n := versions("tickets"); n != 2 { // a ring that was away begins anew
		t.Errorf("tickets has %d versions, want 2", n)
	}
	var r admin.Rollouts
	b.json(&r, "rollout", "history")
	for _, one := range r.Rollouts {
		for _, c := range one.Change {
			if c.Secret == "token" && c.To != nil && *c.To == s.Versions[1].Version && one.ID > 3 {
				t.Errorf("rollout %d brought the old content back", one.ID)
			}
		}
	}
}
