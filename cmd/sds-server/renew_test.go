package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// testTime bounds each wait of a test.
const testTime = time.Minute

// issuedBox runs a server that has one certificate of a CA behind a proxy.
func issuedBox(t *testing.T, s settings) (*box, *testenv.Process, *testenv.Proxy, settings) {
	t.Helper()
	s.Certs = []string{"issued.example"}
	proxy, s := pebble(t, s)
	b := newBox(t, s)
	p := b.start()
	b.versions(1)
	return b, p, proxy, s
}

// versions waits until issued.example has n versions.
func (b *box) versions(n int) admin.Secret {
	b.Helper()
	var secret admin.Secret
	b.eventuallyIn(func(ctx context.Context) error {
		secret = admin.Secret{}
		if err := admin.NewClient(b.AdminSocket()).Get(ctx, "/v1/secrets/issued.example", &secret); err != nil {
			return err
		}
		if len(secret.Versions) != n {
			return fmt.Errorf("%d versions, want %d", len(secret.Versions), n)
		}
		return nil
	})
	return secret
}

func TestRenew(t *testing.T) {
	t.Parallel()
	b, _, proxy, _ := issuedBox(t, settings{})
	b.refused(1, `no certificate named "www" is configured`, "renew", "www")
	b.refused(1, "issued.example", "renew", "issued.example") // it is not due
	if out := b.ok("renew", "issued.example", "--force"); !strings.Contains(out, "the renewal has begun") {
		t.Errorf("got %s", out)
	}
	b.versions(2)
	if out := b.ok("renew", "issued.example", "--force", "--wait"); !strings.Contains(out, "is in every wave after") {
		t.Errorf("got %s", out)
	}
	var r admin.Renewed
	b.json(&r, "renew", "issued.example", "--force", "--wait=issued", "--reason", "because")
	if r.Version == nil || r.Serial == nil || r.IssuedSeconds == nil || r.DoneSeconds != nil {
		t.Errorf("got %+v, want version, serial and issued_seconds", r)
	}
	// A CA that does not answer in time is not the end of the order.
	hold := proxy.Hold(testenv.KindNewOrder, testenv.Before)
	defer hold.Release()
	begin := time.Now()
	b.refused(1, "issued.example is not issued after 300ms", "renew", "issued.example", "--force", "--wait=issued", "--timeout", "300ms")
	t.Logf("gave up after %s", time.Since(begin).Round(time.Millisecond))
}

// TestOrderOutlivesItsCommand ends the command while the CA works.
func TestOrderOutlivesItsCommand(t *testing.T) {
	t.Parallel()
	b, p, proxy, _ := issuedBox(t, settings{})
	hold := proxy.Hold(testenv.KindFinalize, testenv.Before)
	cmd := exec.CommandContext(t.Context(), b.binary, "renew", "issued.example", "--force", "--wait", "-c", b.Config())
	b.must(cmd.Start())
	<-hold.Reached()
	b.must(cmd.Process.Kill())
	_ = cmd.Wait() // it was killed
	ctx, cancel := b.within(testTime)
	defer cancel()
	b.must(p.WaitLog(ctx, "operator went away; what was begun goes on"))
	hold.Release()
	b.versions(2)
}

// TestStopWhileAnOrderIsUnderWay stops the server between the order and its certificate; the next start takes it up.
func TestStopWhileAnOrderIsUnderWay(t *testing.T) {
	t.Parallel()
	b, p, proxy, _ := issuedBox(t, settings{})
	hold := proxy.Hold(testenv.KindFinalize, testenv.After)
	waiting := make(chan result, 1)
	go func() { waiting <- b.run("renew", "issued.example", "--force", "--wait") }()
	<-hold.Reached()
	b.must(p.Signal(syscall.SIGTERM))
	ctx, cancel := b.within(10 * time.Second)
	defer cancel()
	if code, err := p.Wait(ctx); err != nil || code != 0 {
		t.Fatalf("exit code %d, %v, want 0", code, err)
	}
	if r := <-waiting; r.code == 0 || !strings.Contains(r.errs, "error: ") {
		t.Errorf("the command that waited: exit %d, %s", r.code, r.errs)
	}
	hold.Release()
	b.start()
	b.versions(2)
	if made := proxy.Count(testenv.KindFinalize).Succeeded; made != 2 {
		t.Errorf("%d orders were finalized, want 2: the first, and the one that was cut", made)
	}
}

// TestWaitEndsWithTheServer stops the server while a command waits for a promotion that does not come.
func TestWaitEndsWithTheServer(t *testing.T) {
	t.Parallel()
	b, p, _, _ := issuedBox(t, settings{Manual: true})
	waiting := make(chan result, 1)
	go func() { waiting <- b.run("renew", "issued.example", "--force", "--wait") }()
	b.status(func(s admin.Status) error {
		if len(s.Rollouts) != 1 || s.Rollouts[0].State != "waiting" {
			return fmt.Errorf("rollouts: %v", s.Rollouts)
		}
		return nil
	})
	begin := time.Now()
	b.must(p.Stop())
	r := <-waiting
	checkRefusal(t, r, 1, "the server is stopping")
	t.Logf("server and command ended within %s", time.Since(begin).Round(time.Millisecond))
}
