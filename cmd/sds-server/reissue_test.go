package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/pkg/rollout"
)

// TestCertificateThatIsHeldHardIsOrderedAgainOnce has a node whose listener never shows what it was given: each new version is held, and a held one is
// ordered again, but not twice in a day.
func TestCertificateThatIsHeldHardIsOrderedAgainOnce(t *testing.T) {
	t.Parallel()
	l := startListener(t, "a1")
	b, _, _, _ := issuedBox(t, settings{Verify: fmt.Sprintf(`{endpoints: [{address: "%s", node: n1}], server_names: [issued.example], timeout: 300ms}`, l.address)})
	n := connect(t, b.SDSSocket(), "n1", "canary", "issued.example")
	b.eventually(func() error { return n.has("issued.example", "") })
	b.ok("renew", "issued.example", "--force", "--wait=issued")
	b.versions(3) // the first, that which was asked for, and one that nobody has asked for
	b.status(func(s admin.Status) error {
		held := 0
		for _, h := range s.Held {
			if h.Kind == rollout.Hard {
				held++
			}
		}
		if held != 2 {
			return fmt.Errorf("%d versions are held hard, want 2: %+v", held, s.Held)
		}
		return nil
	})
	if got := strings.Count(b.ok("audit", "list", "--event", "certificate_reissue"), "certificate_reissue"); got != 1 {
		t.Errorf("it was ordered again %d times, want once", got)
	}
	b.versions(3)
}
