package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// shortLife is the life of the certificates in TestShortLivedCertificateIsKeptValid.
const shortLife = time.Minute

// generations is how many certificates that test waits for: 3, or SDS_TEST_GENERATIONS ("make soak").
func generations(t *testing.T) int {
	t.Helper()
	text := os.Getenv("SDS_TEST_GENERATIONS")
	if text == "" {
		return 3
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 2 {
		t.Fatalf("SDS_TEST_GENERATIONS=%q: not a number of 2 or more", text)
	}
	return n
}

// TestShortLivedCertificateIsKeptValid keeps a certificate of one minute valid on real Envoys for several generations, while 30 % of what the
// CA answers are failures of every kind: no handshake may fail, and each verifies chain, name and time.
func TestShortLivedCertificateIsKeptValid(t *testing.T) {
	t.Parallel()
	e := testenv.NewT(t)
	f, proxy := startBehindProxy(e, one(false), func(o *fleet.Options) {
		o.Pebble.Profiles = map[string]testenv.PebbleProfile{"default": {Validity: shortLife}}
	})
	roots, err := f.Pebble.Roots(e.Ready())
	must(t, err)
	loads := map[string]*testenv.Load{}
	for group, address := range f.HTTPS {
		loads[group] = gentleLoad(e, address, roots)
	}
	bad := newUnreliable(rand.Uint64(), 0.3)
	proxy.SetRespond(bad.respond)
	defer func() {
		if t.Failed() {
			t.Logf("seed %d: %v", bad.seed, bad.tally())
		}
	}()

	want := generations(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Duration(want+1)*shortLife)
	defer cancel()
	for group, load := range loads {
		must(t, testenv.Eventually(ctx, func(context.Context) error {
			if load.Failed() > 0 {
				return nil // said below
			}
			if got := len(load.Serials()); got < want {
				return fmt.Errorf("%s has served %d certificates, want %d", group, got, want)
			}
			return nil
		}))
	}
	for group, load := range loads {
		load.Stop()
		if load.Failed() > 0 || load.Made() == 0 {
			t.Errorf("%s: %d handshakes made, %d failed: %v", group, load.Made(), load.Failed(), errors.Join(load.Errors()...))
		}
	}
	answered, failed := bad.counts()
	if failed == 0 {
		t.Errorf("none of %d requests was failed: the test shows nothing", answered)
	}
	t.Logf("%d of %d requests failed by the CA: %v; %d certificates of %v each, %d and %d handshakes", failed, answered, bad.tally(), want, shortLife,
		loads["canary"].Made(), loads["production"].Made())
}

// unreliable answers a part of the requests to a CA in its place, each time with another kind of failure.
type unreliable struct {
	seed  uint64
	share float64

	mu       sync.Mutex
	random   *rand.Rand     // guarded by mu
	answered int            // guarded by mu
	failed   int            // guarded by mu
	kinds    map[string]int // guarded by mu
}

func newUnreliable(seed uint64, share float64) *unreliable {
	return &unreliable{seed: seed, share: share, random: rand.New(rand.NewPCG(seed, 0)), kinds: map[string]int{}}
}

// failures are what an unreliable CA answers.
func failures() []struct {
	name   string
	answer func(http.ResponseWriter)
} {
	text := func(status int, contentType, body string) func(http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", contentType)
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body)) // a client that went away has its failure, too
		}
	}
	const problem = "application/problem+json"
	return []struct {
		name   string
		answer func(http.ResponseWriter)
	}{
		{"503 HTML", text(503, "text/html", "<html>The service is down for maintenance</html>")},
		{"503 JSON", text(503, problem, `{"type":"urn:ietf:params:acme:error:serverInternal","detail":"busy"}`)},
		{"500 null", text(500, "application/json", "null")},
		{"502 empty", text(502, "text/plain", "")},
		{"bad nonce", text(400, problem, `{"type":"urn:ietf:params:acme:error:badNonce","detail":"used"}`)},
		{"reset", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }},
	}
}

// respond is a hook of testenv.Proxy.
func (u *unreliable) respond(_ testenv.Kind, w http.ResponseWriter, _ *http.Request) bool {
	u.mu.Lock()
	u.answered++
	if u.random.Float64() >= u.share {
		u.mu.Unlock()
		return false
	}
	all := failures()
	one := all[u.random.IntN(len(all))]
	u.failed++
	u.kinds[one.name]++
	u.mu.Unlock()
	one.answer(w)
	return true
}

func (u *unreliable) counts() (answered, failed int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.answered, u.failed
}

func (u *unreliable) tally() string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return fmt.Sprint(u.kinds)
}
