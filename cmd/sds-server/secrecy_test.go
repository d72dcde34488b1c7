package main

import (
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNoKeyIsShown drives everything that touches a private key and searches whatever a server and its commands say or store.
func TestNoKeyIsShown(t *testing.T) {
	t.Parallel()
	extra, dir := otherKinds(t)
	_, s := pebble(t, settings{Certs: []string{"issued.example"}, Extra: extra})
	b := newBox(t, s)
	p := b.start()
	var said strings.Builder
	say := func(args ...string) {
		t.Helper()
		for _, format := range []string{"table", "json"} {
			r := b.run(append(args, "-o", format)...)
			said.WriteString(r.out + r.errs)
		}
	}
	n := connect(t, b.SDSSocket(), "n1", "canary", "www", "issued.example")
	pair := func(name string) []string {
		return []string{"--chain", filepath.Join(pairs, name+".crt"), "--key", filepath.Join(pairs, name+".key")}
	}
	entries, err := os.ReadDir(pairs)
	b.must(err)
	for _, e := range entries {
		if name, ok := strings.CutSuffix(e.Name(), ".key"); ok {
			say(append([]string{"secrets", "import", "www"}, pair(name)...)...)
		}
	}
	// A key in the wrong place is not echoed.
	say("secrets", "import", "www", "--chain", filepath.Join(pairs, "a1.key"), "--key", filepath.Join(pairs, "a1.crt"))
	say("secrets", "import", "www", "--chain", filepath.Join(pairs, "a1.key"), "--key", filepath.Join(pairs, "a1.key"))
	b.eventually(func() error { return n.has("issued.example", "") })
	n.refuse("rejected")
	say("renew", "issued.example", "--force", "--wait=issued")
	say("renew", "issued.example", "--force", "--wait")
	identity := filepath.Join(b.Dir, "id")
	say("identity", "issue", "--group", "canary", "--node", "n1", "--out", identity)
	for _, args := range [][]string{
		{"status"},
		{"nodes"},
		{"secrets", "list"},
		{"secrets", "show", "www"},
		{"secrets", "show", "issued.example"},
		{"secrets", "history", "www"},
		{"secrets", "show", "token"},
		{"secrets", "show", "tickets"},
		{"secrets", "show", "corp-ca"},
		{"snapshots", "list"},
		{"snapshots", "show", "2"},
		{"snapshots", "diff", "1", "2"},
		{"rollout", "status"},
		{"rollout", "history"},
		{"promote", "--group", "production"},
		{"rollback", "--group", "canary"},
		{"secrets", "release", "www"},
		{"envoy", "bootstrap", "--group", "canary"},
		{"validate"},
		{"store", "check"},
		{"audit", "list"},
		{"audit", "verify"},
		{"serve"},
	} {
		say(args...)
	}
	_, metrics := b.fetch("/metrics", "")
	b.must(p.Stop())
	log, err := p.Log()
	b.must(err)
	stored, err := readText(b.Store())
	b.must(err)

	trail, err := readText(filepath.Join(b.Dir, "data", "audit.jsonl"))
	b.must(err)

	keys := n.keys()
	if len(keys) < 2 {
		t.Fatalf("the node got %d keys, want at least 2", len(keys))
	}
	for _, path := range []string{
		filepath.Join(pairs, "a1.key"), filepath.Join(pairs, "a2.key"), filepath.Join(pairs, "wrong-key.key"),
		filepath.Join(b.Dir, "xds", "server.key"), filepath.Join(identity, "tls.key"),
	} {
		text, err := readText(path)
		b.must(err)
		keys = append(keys, text)
	}
	token, err := readText(filepath.Join(dir, "token"))
	b.must(err)
	needles := []string{"PRIVATE KEY", "AGE-SECRET-KEY", strings.TrimSpace(token), base64.StdEncoding.EncodeToString([]byte(token))[:30]}
	for _, key := range keys {
		block, _ := pem.Decode([]byte(key))
		if block == nil {
			t.Fatalf("not PEM: %q", key)
		}
		// The scalar of a P-256 key in PKCS #8 begins at byte 36: as itself, in hex, and the middle of the base64.
		body := strings.ReplaceAll(strings.TrimSpace(key), "\n", "")
		needles = append(needles, body[len(body)/2-20:len(body)/2+12], string(block.Bytes[36:68]), fmt.Sprintf("%x", block.Bytes[36:68]))
	}
	for name, text := range map[string]string{"outputs": said.String(), "log": log, "metrics": metrics, "store": stored, "audit": trail} {
		flat := strings.ReplaceAll(strings.ReplaceAll(text, "\n", ""), `\n`, "")
		for _, needle := range needles {
			if strings.Contains(text, needle) || strings.Contains(flat, needle) {
				t.Errorf("%s holds %q", name, needle)
			}
		}
	}
	if !strings.Contains(said.String(), "BEGIN CERTIFICATE") || !strings.Contains(log, "certificate issued") || !strings.Contains(trail, `"event":"push"`) {
		t.Error("the search looked at nothing")
	}
}
