package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/internal/testenv/fleet"
)

// The CA moves the window in which it wants a certificate to be renewed (RFC 9773): the renewal follows, names the certificate that it replaces,
// and is served. A window in the past, as after a revocation, is at once.
func TestRenewalFollowsTheWindowOfTheCA(t *testing.T) {
	t.Parallel()
	const life = 150 * time.Second // the CA is asked ten times in a life, here every 15 s
	e := testenv.NewT(t)
	f := startFleet(e, one(false), func(o *fleet.Options) {
		o.Pebble.Profiles = map[string]testenv.PebbleProfile{"default": {Validity: life}}
	})
	roots, err := f.Pebble.Roots(e.Ready())
	must(t, err)
	load := gentleLoad(e, f.HTTPS["canary"], roots)

	// Earlier than any rule would have it: half of the life is over in 75 s.
	start := time.Now().Add(20 * time.Second).Truncate(time.Second)
	end := start.Add(10 * time.Second)
	first := newest(e.Ready(), e, f)
	must(t, f.Pebble.SetWindow(e.Ready(), []byte(first.chain), start, end))
	must(t, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
		s, err := f.Status(ctx)
		if err != nil {
			return err
		}
		if at := s.Certificates[0].NextRenewal; at.Before(start) || at.After(end) {
			return fmt.Errorf("the next renewal is at %s, want one from %s to %s", at, start, end)
		}
		return nil
	}))
	second := replaced(e, f, first)
	if second.created.Before(start) {
		t.Errorf("it was renewed at %s, before the window that begins at %s", second.created, start)
	}

	must(t, f.Pebble.SetWindow(e.Ready(), []byte(second.chain), time.Now().Add(-time.Hour), time.Now().Add(-30*time.Minute)))
	third := replaced(e, f, second)
	if third.created.After(second.created.Add(life / 2)) {
		t.Errorf("the certificate of %s was renewed at %s, which was due by itself", second.created, third.created)
	}
	log, err := f.Pebble.Log()
	must(t, err)
	if got := strings.Count(log, "is a replacement of"); got != 2 {
		t.Errorf("%d orders said what they replace, want 2", got)
	}
	for group := range f.Envoys {
		served(e.Ready(), t, f, group, third.serial)
	}
	load.Stop()
	if load.Failed() > 0 {
		t.Errorf("%d handshakes made, %d failed: %v", load.Made(), load.Failed(), load.Errors())
	}
}

// issued is a stored version of the site's certificate.
type issued struct {
	serial, chain string
	created       time.Time
}

func newest(ctx context.Context, e *testenv.T, f *fleet.Fleet) issued {
	e.Helper()
	s, err := f.Secret(ctx, site)
	must(e, err)
	v := s.Versions[0]
	return issued{*v.Serial, *v.ChainPEM, v.Created}
}

// replaced waits until there is another one.
func replaced(e *testenv.T, f *fleet.Fleet, old issued) (now issued) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), 90*time.Second)
	defer cancel()
	must(e, testenv.Eventually(ctx, func(ctx context.Context) error {
		if now = newest(ctx, e, f); now.serial == old.serial {
			return fmt.Errorf("serial %s of %s is still the newest", old.serial, old.created)
		}
		return nil
	}))
	return now
}
