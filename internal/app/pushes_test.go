package app

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/bootstrap"
	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/cache"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/sds"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// envoy starts an Envoy of canary that subscribes to site, and waits until it has ACKed a version.
func (p *parts) envoy(e *testenv.T, version secret.Version) {
	p.Helper()
	socket := filepath.Join(e.Dir, "sds", "s.sock")
	l, err := sds.ListenUnix(e.Context(), socket, 0o600, -1, -1)
	must(p, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(e.Context()))
	ended := make(chan error, 1)
	go func() { ended <- p.edge.Serve(ctx, sds.Listener{Listener: l, Unix: true, Groups: []string{"canary"}}) }()
	p.Cleanup(func() {
		cancel()
		must(p, <-ended)
	})
	config, err := bootstrap.Render(bootstrap.Options{
		NodeID: "canary-1", Cluster: "canary", AdminAddress: e.Address(), HTTPSAddress: e.Address(), SDS: bootstrap.SDS{UnixPath: socket}, API: bootstrap.ADSDelta,
		Secrets: []bootstrap.Secret{{Name: site}},
	})
	must(p, err)
	e.Envoy(testenv.EnvoyOptions{Config: config})
	p.acked(e, version)
}

func (p *parts) acked(e *testenv.T, version secret.Version) {
	p.Helper()
	must(p, testenv.Eventually(e.Ready(), func(context.Context) error {
		for _, n := range p.edge.Nodes() {
			for _, s := range n.Secrets {
				if s.Acked != nil && s.Acked.Version == version {
					return nil
				}
			}
		}
		return fmt.Errorf("no ACK of %s: %+v", version.Short(), p.edge.Nodes())
	}))
}

// pushed are the entries about pushes of site, without those of earlier parts: "EVENT GROUP VERSION NODES".
func (p *parts) pushed(after uint64) (lines []string, last uint64) {
	p.Helper()
	must(p, p.audit.Append(p.Context(), audit.Entry{Event: "test"})) // what came before is durable now
	all, err := p.audit.List(p.Context(), audit.Filter{})
	must(p, err)
	for _, e := range all {
		if strings.HasPrefix(e.Event, eventPush) && e.Seq > after {
			lines = append(lines, strings.TrimSpace(fmt.Sprint(e.Event, " ", e.Group, " ", secret.Version(e.Version).Short(), " ", strings.Join(e.Nodes, ","))))
		}
	}
	return lines, all[len(all)-1].Seq
}

func (p *parts) propose(s *secret.Secret) error {
	_, err := p.rollout.Accept(p.Context(), rollout.Proposal{Secret: s, Source: cache.SourceImport, Reason: "test"})
	return err
}

func (p *parts) wants(after uint64, want ...string) (last uint64) {
	p.Helper()
	got, last := p.pushed(after)
	if diff := cmp.Diff(want, got); diff != "" {
		p.Errorf("pushes in the trail (-want +got):\n%s", diff)
	}
	return last
}

// A push stands in the trail when the move that leads to it is being stored. Where that fails, an entry says so: as soon as it is known, or, where the server
// ends before, at the next start, once.
func TestPushThatNeverCameIsRetracted(t *testing.T) {
	dir, e := t.TempDir(), testenv.NewT(t)
	var last uint64
	var first, lost string
	t.Run("before", func(t *testing.T) {
		p := newParts(t, dir)
		one, next, other := p.issue(60), p.issue(61), p.issue(62)
		must(t, p.propose(one))
		p.envoy(&testenv.T{TB: t, Dir: e.Dir, Tools: e.Tools}, p.cache.Version(one))
		first = p.cache.Version(one).Short()
		last = p.wants(0, "push canary "+first+" canary-1")

		full := errors.New("disk full")
		durable := false // before the commit has ended
		p.store.before = func() error {
			must(t, testenv.Eventually(e.Ready(), func(ctx context.Context) error {
				all, err := p.audit.List(ctx, audit.Filter{Event: eventPush, Limit: 1})
				if err == nil && all[0].Version != string(p.cache.Version(next)) {
					err = fmt.Errorf("the newest push is %+v", all[0])
				}
				return err
			}))
			durable = true
			return full
		}
		if err := p.propose(next); !errors.Is(err, full) || !durable {
			t.Fatalf("got %v, want the store's error, after the push was written", err)
		}
		p.store.before = nil
		version := p.cache.Version(next).Short()
		last = p.wants(last, "push canary "+version+" canary-1")
		must(t, p.propose(next))
		p.acked(e, p.cache.Version(next))
		last = p.wants(last, "push_retracted canary "+version, "push canary "+version+" canary-1")

		p.store.before = func() error { return full }
		if err := p.propose(other); !errors.Is(err, full) {
			t.Fatal(err)
		}
		lost = p.cache.Version(other).Short()
		last = p.wants(last, "push canary "+lost+" canary-1")
	})
	for _, want := range [][]string{{"push_retracted canary " + lost}, nil} {
		t.Run("after", func(t *testing.T) {
			p := newParts(t, dir)
			last = p.wants(last, want...)
			_, err := p.audit.Verify(t.Context())
			must(t, err)
		})
	}
}

// What was sent before the server ended is not retracted, though nothing in the trail says that its move was stored.
func TestPushThatCameIsNotRetracted(t *testing.T) {
	p := newParts(t, t.TempDir())
	at := p.accept(time.Now().Add(60 * 24 * time.Hour)) // canary has it
	back := p.accept(time.Now().Add(61 * 24 * time.Hour))
	if _, err := p.rollout.Rollback(t.Context(), "canary", rollout.Operator{By: "test"}); err != nil {
		t.Fatal(err)
	}
	// The rollout that brought the older one is so old that it is not stored any more.
	_, err := p.store.Commit(t.Context(), nil, []store.Operation{store.Delete(store.Key("rollout", fmt.Sprintf("%020d", 1)))})
	must(t, err)
	_, last := p.pushed(0)
	for _, m := range []cache.Meta{at, back} {
		p.audit.Add(audit.Entry{Event: eventPush, Secret: site, Version: string(m.Version), Group: "canary", Nodes: []string{"n1"}})
	}
	unknown := secret.Version(strings.Repeat("ab", 32))
	p.audit.Add(audit.Entry{Event: eventPush, Secret: site, Version: string(unknown), Group: "canary", Nodes: []string{"n1"}})
	_, last = p.pushed(last)
	must(t, p.reconsider(t.Context()))
	got, _ := p.pushed(last)
	if want := []string{"push_retracted canary " + unknown.Short()}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
