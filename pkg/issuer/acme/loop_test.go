package acme

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/issuer/issuertest"
	"github.com/sds-server/sds-server/pkg/store"
)

// sink stores as the rollout controller does: the secret and the loop's operations in one commit.
type sink struct{ store *issuertest.Store }

func (s sink) Accept(ctx context.Context, i issuer.Issued) (issuer.Accepted, error) {
	put := store.Put(store.Key("secret", i.Secret.Name()), []byte(i.Secret.Serial()))
	_, err := s.store.Commit(ctx, i.Conditions, append(i.Operations, put))
	return issuer.Accepted{Version: i.Secret.Version([]byte("key"))}, err
}

// TestCrashAroundTheSink runs the whole loop against a real CA, and ends it before or after the commit that stores the certificate.
func TestCrashAroundTheSink(t *testing.T) {
	t.Parallel()
	for _, durable := range []bool{false, true} {
		t.Run(fmt.Sprintf("durable %t", durable), func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			crashed := make(chan struct{})
			crash := sync.OnceFunc(func() { close(crashed) })
			fault := func(operations []store.Operation) error {
				for _, o := range operations {
					if o.Key == store.Key("secret", "www") {
						crash()
						return issuertest.ErrFault
					}
				}
				select {
				case <-crashed:
					return issuertest.ErrFault // a dead process writes nothing more
				default:
					return nil
				}
			}
			if durable {
				f.store.Hook(nil, fault)
			} else {
				f.store.Hook(fault, nil)
			}
			f.runLoop(func(*issuer.Loop) { <-crashed })
			f.store.Hook(nil, nil)
			f.runLoop(func(l *issuer.Loop) {
				_, err := l.Renew(f.Ready(), "www", issuer.Renewal{})
				if _, notDue := errors.AsType[*issuer.NotDueError](err); err != nil && !notDue {
					t.Error(err)
				}
				if s := l.Status(); s[0].State != issuer.StateOK || s[0].Failure != nil {
					t.Errorf("got %+v, want ok", s[0])
				}
			})
			if n := f.proxy.Count(testenv.KindFinalize).Succeeded; n != 1 {
				t.Errorf("got %d certificates, want 1", n)
			}
			if n := len(f.store.History(store.Key("secret", "www"))); n != 1 {
				t.Errorf("the certificate was stored %d times, want once", n)
			}
			f.wantNoOrder("after the certificate was stored")
		})
	}
}

// runLoop runs a loop with one certificate while do runs.
func (f *fixture) runLoop(do func(*issuer.Loop)) {
	f.Helper()
	l, err := issuer.New(issuer.Options{Store: f.store, Sink: sink{f.store}, Logger: testLogger(), Registerer: prometheus.NewRegistry()})
	if err != nil {
		f.Fatal(err)
	}
	l.SetIssuers(map[string]issuer.Issuer{"pebble": f.issuer(nil)})
	l.SetCertificates([]issuer.Certificate{{Name: "www", DNSNames: []string{"a.example"}, Issuer: "pebble", KeyType: "ecdsa-p256"}})
	ctx, cancel := context.WithCancel(f.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	do(l)
	cancel()
	if err := <-done; err != nil {
		f.Error(err)
	}
}
