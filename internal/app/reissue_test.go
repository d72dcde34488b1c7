package app

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/store"
)

func TestOrdersAfterAHoldAreBounded(t *testing.T) {
	p := newParts(t, t.TempDir())
	day := 24 * time.Hour
	for _, row := range []struct {
		name string
		ago  []time.Duration
		want bool
	}{
		{"the first", nil, true},
		{"the second on the same day", []time.Duration{day - time.Minute}, false},
		{"the second on another day", []time.Duration{day + time.Minute}, true},
		{"the third in a week", []time.Duration{6 * day, 2 * day}, false},
		{"the third, when a week has passed since the first", []time.Duration{7*day + time.Minute, 2 * day}, true},
	} {
		var before []time.Time
		for _, ago := range row.ago {
			before = append(before, time.Now().Add(-ago))
		}
		value, err := json.Marshal(before)
		must(t, err)
		_, err = p.store.Commit(t.Context(), nil, []store.Operation{store.Put(store.Key("reissue", site), value)})
		must(t, err)
		got, err := p.reissuer.spend(t.Context(), site)
		must(t, err)
		if got != row.want {
			t.Errorf("%s: got %v, want %v", row.name, got, row.want)
		}
		if again, err := p.reissuer.spend(t.Context(), site); err != nil || again {
			t.Errorf("%s: it is allowed again at once, %v", row.name, err)
		}
	}
}

// loop runs the issuance until the test ends, and gives the context of its reissuer.
func (p *parts) loop() context.Context {
	p.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.Context()))
	done := make(chan error, 1)
	go func() { done <- p.issuance.Run(ctx) }()
	p.Cleanup(func() {
		cancel()
		p.reissuer.orders.Wait()
		if err := <-done; err != nil {
			p.Error(err)
		}
	})
	return ctx
}

// held is a hard hold of the newest version of site.
func (p *parts) held() rollout.Hold {
	p.Helper()
	m := p.accept(time.Now().Add(60 * 24 * time.Hour))
	return rollout.Hold{Secret: site, Version: m.Version, Kind: rollout.Hard, Handshake: true, Reason: "a test"}
}

// TestOrderAtACAThatHangsIsNotWaitedFor has a CA that takes connections and never answers.
func TestOrderAtACAThatHangsIsNotWaitedFor(t *testing.T) {
	ca, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer ca.Close()
	asked := make(chan struct{})
	go func() {
		conn, err := ca.Accept()
		if err != nil {
			return // the test has failed before
		}
		close(asked)
		<-t.Context().Done()
		_ = conn.Close() // nobody reads from it
	}()
	p := newParts(t, t.TempDir(), "groups:\n", fmt.Sprintf("issuers: [{name: ca, directory: \"https://%s/dir\", accept_tos: true}]\n", ca.Addr())+
		"certificates: [{name: "+site+", dns_names: ["+site+"], issuers: [ca]}]\ngroups:\n")
	h := p.held()
	ctx, cancel := context.WithTimeout(p.loop(), 10*time.Second)
	defer cancel()
	must(t, p.reissuer.consider(ctx, h))
	select {
	case <-asked:
	case <-ctx.Done():
		t.Fatal("the CA was not asked")
	}
	must(t, p.reissuer.consider(ctx, h))
	if at, err := p.reissuer.noted(t.Context(), site); err != nil || len(at) != 1 {
		t.Errorf("got %v noted, %v, want one order", at, err)
	}
}

// TestOrderThatTheBudgetRefusesIsNotNoted until there is room: a restart forgets it, and has to be able to ask for it again.
func TestOrderThatTheBudgetRefusesIsNotNoted(t *testing.T) {
	p := newParts(t, t.TempDir(), "groups:\n", "issuers: [{name: ca, directory: \"https://127.0.0.1:1/dir\", accept_tos: true, budget: {share: 1, limits: [{name: new_accounts, burst: 1, refill: 1h}]}}]\n"+
		"certificates: [{name: "+site+", dns_names: ["+site+"], issuers: [ca]}]\ngroups:\n")
	h := p.held()
	must(t, p.budget.Of("ca").Spend(t.Context(), issuer.Use{Kind: issuer.UseAccount, Urgent: true}))
	ctx := p.loop()
	noted := func(want int) func(context.Context) error {
		return func(ctx context.Context) error {
			at, err := p.reissuer.noted(ctx, site)
			if err == nil && len(at) != want {
				err = fmt.Errorf("%d orders are noted, want %d", len(at), want)
			}
			return err
		}
	}
	must(t, p.reissuer.consider(ctx, h))
	must(t, testenv.Eventually(t.Context(), noted(0)))
	must(t, p.reissuer.consider(ctx, h)) // it waits, and is not ordered a second time
	must(t, noted(0)(t.Context()))
	must(t, p.apply(t.Context(), p.configure("burst: 1,", "burst: 9,")))
	must(t, testenv.Eventually(t.Context(), noted(1))) // it was tried
}
