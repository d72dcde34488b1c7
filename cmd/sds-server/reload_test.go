package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/admin"
	"github.com/sds-server/sds-server/internal/testenv"
)

// status waits until a status passes.
func (b *box) status(check func(s admin.Status) error) admin.Status {
	b.Helper()
	client := admin.NewClient(b.AdminSocket())
	var s admin.Status
	b.eventuallyIn(func(ctx context.Context) error {
		s = admin.Status{}
		if err := client.Get(ctx, "/v1/status", &s); err != nil {
			return err
		}
		return check(s)
	})
	return s
}

// reconfigure replaces the configuration of a running server, and waits until it is in force.
func (b *box) reconfigure(s settings) {
	b.Helper()
	b.configure(s)
	written := time.Now() // a look at what was there before may end at any time
	b.status(func(s admin.Status) error {
		if !s.Config.OK || !s.Config.LoadedAt.After(written) {
			return fmt.Errorf("configuration %+v is in force", s.Config)
		}
		return nil
	})
}

func TestBadReloadKeepsTheOldConfiguration(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{Manual: true})
	p := b.start()
	b.importPair("www", "a1")
	before := b.status(func(admin.Status) error { return nil })
	b.must(writeText(b.Config(), "groups: []\nnonsense: 1\nadmin: {address: \"unix://"+b.AdminSocket()+"\"}\n"))
	s := b.status(func(s admin.Status) error {
		if s.Config.OK {
			return fmt.Errorf("the configuration is still ok")
		}
		return nil
	})
	if s.Config.Error == nil || !strings.Contains(*s.Config.Error, "nonsense: ") || !s.Config.LoadedAt.Equal(before.Config.LoadedAt) {
		t.Errorf("got %+v, want the problems, and the time of the configuration in force", s.Config)
	}
	if len(s.Groups) != 2 || !s.Ready {
		t.Errorf("got groups %v, ready %v, want the old ones", s.Groups, s.Ready)
	}
	if _, text := b.fetch("/metrics", ""); !strings.Contains(text, "\nsds_config_last_reload_successful 0\n") {
		t.Error("the gauge does not say that the reload failed")
	}
	if out := b.ok("status"); !strings.Contains(out, "configuration: the last reload was refused") {
		t.Errorf("got %s, want a word about the reload", out)
	}
	n := connect(t, b.SDSSocket(), "n1", "canary", "www")
	b.eventually(func() error { return n.has("www", "") })

	b.configure(settings{})
	b.status(func(s admin.Status) error {
		if !s.Config.OK || s.Config.Error != nil {
			return fmt.Errorf("configuration: %+v", s.Config)
		}
		return nil
	})
	log, err := p.Log()
	b.must(err)
	if n := strings.Count(log, "configuration not reloaded"); n != 1 {
		t.Errorf("the bad configuration was logged %d times, want 1", n)
	}
}

func TestKeysThatNeedARestart(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	p := b.start()
	text, err := readText(b.Config())
	b.must(err)
	other, err := testenv.FreeAddress()
	b.must(err)
	text = strings.Replace(text, `http: {address: "`+b.HTTP, `http: {address: "`+other, 1)
	text = strings.Replace(text, "xds:\n", "xds:\n  limits: {names_per_stream: 5}\n", 1)
	b.must(writeText(b.Config(), text))
	ctx, cancel := b.within(testTime)
	defer cancel()
	b.must(p.WaitLog(ctx, "configuration reloaded"))
	b.must(p.WaitLog(ctx, `these keys need a restart; their old values stay`))
	b.must(p.WaitLog(ctx, `keys="http, xds.limits"`))
	b.must(b.serves(ctx))
}

func TestHangUpReloads(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	p := b.start()
	before := b.status(func(admin.Status) error { return nil })
	b.must(p.Signal(syscall.SIGHUP))
	b.status(func(s admin.Status) error {
		if !s.Config.LoadedAt.After(before.Config.LoadedAt) {
			return fmt.Errorf("configuration of %s is still in force", s.Config.LoadedAt)
		}
		return nil
	})
}

func TestGroupsChangeLive(t *testing.T) {
	t.Parallel()
	b := newBox(t, settings{})
	b.start()
	b.importPair("www", "a1")
	b.importPair("other", "b1")
	n := connect(t, b.SDSSocket(), "n1", "canary", "www", "other")
	b.eventually(func() error { return n.has("www", "") })
	b.eventually(func() error { return n.has("other", "") })

	// A new group begins with what the last wave serves; a right that is lost is lost at once.
	b.reconfigure(settings{Groups: []string{"canary", "production", "edge"}, Secrets: "www"})
	b.status(func(s admin.Status) error {
		at := map[string]uint64{}
		for _, g := range s.Groups {
			at[g.Name] = g.Snapshot
		}
		if at["edge"] != at["production"] || at["edge"] <= 1 {
			return fmt.Errorf("groups are at %v, want edge where production is", at)
		}
		return nil
	})
	b.eventually(func() error { return n.lost("other") })
	b.must(n.has("www", ""))

	// A group that goes takes its nodes along; the listener still names it.
	b.reconfigure(settings{Groups: []string{"production", "edge"}})
	<-n.done
	if !strings.Contains(n.err.Error(), "PermissionDenied") {
		t.Errorf("the stream ended with %v, want PERMISSION_DENIED", n.err)
	}
	b.refused(1, `no group named "canary"`, "nodes", "--group", "canary")
}

func TestCertificatesAndIssuersChangeLive(t *testing.T) {
	t.Parallel()
	proxy, s := pebble(t, settings{Certs: []string{"issued.example"}})
	b := newBox(t, settings{})
	b.start()
	n := connect(t, b.SDSSocket(), "n1", "production", "issued.example")

	// An issuer that does not answer, then the right one under the same name.
	dead := s
	dead.Issuer = "https://127.0.0.1:1/dir"
	b.reconfigure(dead)
	b.status(func(s admin.Status) error {
		if len(s.Certificates) != 1 || s.Certificates[0].State != "failing" || s.Certificates[0].Error == nil {
			return fmt.Errorf("certificates: %+v", s.Certificates)
		}
		if s.Issuers[0].Up {
			return fmt.Errorf("issuer %+v, want down", s.Issuers[0])
		}
		return nil
	})
	b.reconfigure(s)
	b.eventually(func() error { return n.has("issued.example", "") })
	if made := proxy.Count(testenv.KindFinalize).Succeeded; made != 1 {
		t.Errorf("%d orders were finalized, want 1", made)
	}

	// One that leaves the configuration is removed by the waves, and comes back without another order.
	b.reconfigure(settings{})
	b.status(func(s admin.Status) error { // production has a node that wants it
		if len(s.Rollouts) != 1 || s.Rollouts[0].State != "waiting" {
			return fmt.Errorf("rollouts %+v, want one that waits for a promotion", s.Rollouts)
		}
		return nil
	})
	b.ok("promote", "--group", "production")
	b.eventually(func() error { return n.lost("issued.example") })
	var history admin.Rollouts
	b.json(&history, "rollout", "history")
	if i := slices.IndexFunc(history.Rollouts, func(r admin.Rollout) bool { return r.Change[0].Kind == "remove" }); i < 0 {
		t.Errorf("no rollout removed it: %+v", history)
	}
	b.reconfigure(s)
	b.eventually(func() error { return n.has("issued.example", "") })
	if made := proxy.Count(testenv.KindFinalize).Succeeded; made != 1 {
		t.Errorf("%d orders were finalized, want 1", made)
	}

	// An issued name cannot be imported over.
	b.refused(1, `secret "issued.example" is issued by this server`, "secrets", "import", "issued.example",
		"--chain", pairs+"/a1.crt", "--key", pairs+"/a1.key")
}
