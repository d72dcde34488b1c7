package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/sds-server/sds-server/internal/admin"
)

// explainBox is a server on which the user of the test is in canary by the socket alone, and may be denied.
func explainBox(t *testing.T) *box {
	t.Helper()
	b := newBox(t, settings{Groups: []string{"canary"}})
	b.deny("")
	b.start()
	b.importPair("www", "a1")
	return b
}

// deny writes a configuration with this glob in the deny list; empty for none.
func (b *box) deny(glob string) {
	b.Helper()
	b.configure(settings{Groups: []string{"canary"}, Secrets: "w*"})
	text, err := readText(b.Config())
	b.must(err)
	rule := fmt.Sprintf(`identities: ["spiffe://sds-server/canary/*"], deny: [%q]`, glob)
	if glob == "" {
		rule = `identities: ["spiffe://sds-server/canary/*"]`
	}
	old := fmt.Sprintf(`identities: ["unix:uid=%d", "spiffe://sds-server/canary/*"]`, os.Getuid())
	if !strings.Contains(text, old) {
		b.Fatalf("no %s in %s", old, text)
	}
	b.must(writeText(b.Config(), strings.Replace(text, old, rule, 1)))
}

func TestExplainSaysWhichRuleDecides(t *testing.T) {
	t.Parallel()
	b := explainBox(t)
	uid := fmt.Sprintf("unix:uid=%d", os.Getuid())
	for _, tc := range []struct {
		identity, secret string
		allowed          bool
		rules            string // identity, deny, secret
	}{
		{"spiffe://sds-server/canary/n1", "www", true, "spiffe://sds-server/canary/* - w*"},
		{"spiffe://sds-server/canary/n1", "other", false, "spiffe://sds-server/canary/* - -"},
		{"spiffe://sds-server/elsewhere/n1", "www", false, "- - w*"},
		{uid, "www", true, "listener - w*"},
		{"plaintext", "www", false, "- - w*"},
	} {
		var e admin.Explanation
		b.json(&e, "explain", "--identity", tc.identity, "--secret", tc.secret)
		if len(e.Groups) != 1 || e.Identity != tc.identity || e.Secret != tc.secret || e.Reason == "" {
			t.Fatalf("got %+v, want one group and a reason", e)
		}
		g := e.Groups[0]
		if got := text(g.IdentityRule) + " " + text(g.DenyRule) + " " + text(g.SecretRule); got != tc.rules || g.Allowed != tc.allowed || e.Allowed != tc.allowed {
			t.Errorf("%s, %s: rules %s, allowed %t; want %s, %t", tc.identity, tc.secret, got, e.Allowed, tc.rules, tc.allowed)
		}
	}
	out := b.ok("explain", "--identity", uid, "--secret", "www")
	if !strings.HasPrefix(out, `allowed: group "canary" has the identity by "listener" and the secret by "w*"`) || !strings.Contains(out, "IDENTITY RULE") {
		t.Errorf("got %s", out)
	}
	b.refused(2, "required flag", "explain", "--identity", uid)
	b.refused(2, "--identity and --secret: empty", "explain", "--identity", uid, "--secret", "")
}

func TestDenyOnReloadClosesTheStream(t *testing.T) {
	t.Parallel()
	b := explainBox(t)
	uid := fmt.Sprintf("unix:uid=%d", os.Getuid())
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.eventually(func() error { return n.has("www", "") })

	b.deny(uid)
	b.eventually(func() error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if code := status.Code(n.end()); code != codes.PermissionDenied {
			return fmt.Errorf("stream: %w, want PERMISSION_DENIED", n.end())
		}
		return nil
	})
	b.status(func(s admin.Status) error {
		if len(s.Groups) != 1 || s.Groups[0].Connected != 0 {
			return fmt.Errorf("groups %+v, want nobody in them", s.Groups)
		}
		return nil
	})
	again := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.eventually(func() error {
		again.mu.Lock()
		defer again.mu.Unlock()
		if code := status.Code(again.end()); code != codes.PermissionDenied || len(again.got) != 0 {
			return fmt.Errorf("stream: %w, got %v; want PERMISSION_DENIED and nothing", again.end(), again.got)
		}
		return nil
	})
	var e admin.Explanation
	b.json(&e, "explain", "--identity", uid, "--secret", "www")
	if e.Allowed || text(e.Groups[0].DenyRule) != uid {
		t.Errorf("explain: %+v, want the deny rule", e)
	}

	b.deny("") // and back
	back := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.eventually(func() error {
		if back.has("www", "") == nil {
			return nil
		}
		back = connect(t, b.SDSSocket(), "n1", "canary", "www")
		return fmt.Errorf("nothing was sent to the node again")
	})
}
