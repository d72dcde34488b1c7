package rollout

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
)

// invariantNames are the invariants of DESIGN 4 that a controller can break by itself. Number 7 is about identities: pkg/sds.
var invariantNames = map[int]string{
	1:  "durable before visible",
	2:  "what was validated is what is served",
	3:  "an Envoy never loses its last good secret",
	4:  "only the rollout controller moves a group, by ACKs and never by hopes",
	5:  "a restart restores every group's snapshot, and equal bytes keep equal versions",
	6:  "bytes that a node NACKed are not sent again, and its last good version stays",
	8:  "a private key is in no log and no rollout",
	9:  "no crash loses a certificate",
	10: "nothing delays another secret",
	11: "the deadline beats the policy",
}

// claims counts how often each invariant was looked at.
type claims map[int]int

// broken counts a look at an invariant, and passes on what was seen.
func (c claims) broken(number int, broken bool) bool {
	c[number]++
	return broken
}

// invariant names one for a message.
func invariant(number int) string {
	return fmt.Sprintf("invariant %d, %s", number, invariantNames[number])
}

// claimed is how often each invariant was looked at in all histories of a test.
type claimed struct {
	mu  sync.Mutex
	all claims // guarded by mu
}

// in prints the invariants of a test at its end. One that was never looked at is an error: it could not have been found broken.
func (c *claimed) in(t *testing.T, numbers ...int) {
	t.Cleanup(func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		for _, n := range numbers {
			if t.Logf("%s: looked at %d times", invariant(n), c.all[n]); c.all[n] == 0 && os.Getenv("SDS_TEST_SEED") == "" {
				t.Errorf("%s: never looked at", invariant(n))
			}
		}
		for _, n := range slices.Sorted(maps.Keys(c.all)) {
			if !slices.Contains(numbers, n) {
				t.Errorf("%s: looked at, and not named", invariant(n))
			}
		}
	})
}

func (c *claimed) add(of claims) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil {
		c.all = claims{}
	}
	for n, times := range of {
		c.all[n] += times
	}
}

// checkKeys checks what people read of a controller.
func (r *rig) checkKeys(c claims, what string) {
	r.t.Helper()
	if c.broken(8, strings.Contains(r.log.String()+r.picture(), "PRIVATE KEY")) {
		r.t.Errorf("%s: %s", what, invariant(8))
	}
}
