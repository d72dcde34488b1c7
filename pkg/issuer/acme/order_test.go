package acme

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// storedOrder reads the order as the store has it.
func (f *fixture) storedOrder() *order {
	f.Helper()
	entry, err := f.store.Get(f.Context(), issuer.OrderKey("www"))
	if err != nil {
		f.Fatal(err)
	}
	o := &order{}
	if err := json.Unmarshal(entry.Value, o); err != nil {
		f.Fatal(err)
	}
	return o
}

// changeOrder stores the order as change leaves it.
func (f *fixture) changeOrder(change func(*order)) {
	f.Helper()
	o := f.storedOrder()
	change(o)
	value, err := json.Marshal(o)
	if err != nil {
		f.Fatal(err)
	}
	if _, err := f.store.Commit(f.Context(), nil, []store.Operation{store.Put(issuer.OrderKey("www"), value)}); err != nil {
		f.Fatal(err)
	}
}

// wantOneCertificate checks what has to hold after every crash and its recovery: the CA issued once, the key of the certificate
// was in the store, and there is one account, with one key.
func (f *fixture) wantOneCertificate(s *secret.Secret) {
	f.Helper()
	if n := f.proxy.Count(testenv.KindFinalize).Succeeded; n != 1 {
		f.Errorf("got %d finalized orders, want 1", n)
	}
	found := slices.ContainsFunc(f.store.History(issuer.OrderKey("www")), func(value []byte) bool {
		o := order{}
		return json.Unmarshal(value, &o) == nil && o.Key == string(s.KeyPEM())
	})
	if !found {
		f.Error("the certificate's key never was in the store")
	}
	keys, kids := make(map[string]bool), make(map[string]bool)
	for _, value := range f.store.History(issuer.AccountKey("pebble")) {
		a := account{}
		if err := json.Unmarshal(value, &a); err != nil {
			f.Fatal(err)
		}
		keys[a.Key] = true
		if a.KID != "" {
			kids[a.KID] = true
		}
	}
	if len(keys) != 1 || len(kids) != 1 {
		f.Errorf("got %d account keys and %d account URLs, want one of each", len(keys), len(kids))
	}
}

func TestOrderIsStoredBeforeTheFirstChallengeIsAnswered(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	hold := f.proxy.Hold(testenv.KindAuthz, testenv.Before)
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	i := f.issuer(nil)
	go func() {
		_, err := i.Obtain(ctx, request("a.example"))
		done <- err
	}()
	<-hold.Reached()
	o := f.storedOrder()
	if _, err := decodeKey(o.Key); err != nil || !strings.HasPrefix(o.URL, "https://") || len(o.CSR) == 0 || o.Step != orderPlaced {
		t.Errorf("got order %q at step %q with key error %v", o.URL, o.Step, err)
	}
	if n := f.responder.Pending(); n != 0 {
		t.Errorf("got %d tokens, want none yet", n)
	}
	why := errors.New("shutting down")
	cancel(why)
	if err := <-done; !errors.Is(err, why) {
		t.Errorf("got %v, want the cause of the context", err)
	}
	if got := f.storedOrder(); got.URL != o.URL {
		t.Error("an order that was cut is not kept")
	}
}

func TestObtainAgainReturnsTheSameCertificate(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	first := f.obtain(f.issuer(nil), request("a.example"))
	second := f.obtain(f.issuer(nil), request("a.example"))
	if first.Serial() != second.Serial() {
		t.Errorf("got serials %s and %s, want one", first.Serial(), second.Serial())
	}
	f.wantOneCertificate(second)
	f.accept(request("a.example"))
	if third := f.obtain(f.issuer(nil), request("a.example")); third.Serial() == first.Serial() {
		t.Error("got the old certificate after it was stored")
	}
}

func TestOrderForAnotherConfigurationIsDropped(t *testing.T) {
	t.Parallel()
	profiles := map[string]testenv.PebbleProfile{profile: {}, "other": {}}
	f := newFixture(t, testenv.PebbleOptions{Profiles: profiles})
	names := func(r *issuer.Request) { r.DNSNames = []string{"a.example", "b.example"} }
	keyType := func(r *issuer.Request) { r.KeyType = "ecdsa-p384" }
	other := func(r *issuer.Request) { r.Profile = "other" }
	tests := []struct {
		name   string
		step   string
		change func(*issuer.Request)
		kept   bool
	}{
		{"names of a placed order", orderPlaced, names, false},
		{"key type of a placed order", orderPlaced, keyType, false},
		{"profile of a placed order", orderPlaced, other, false},
		{"names of one that may have a certificate", orderFinalizing, names, false},
		{"key type of one that may have a certificate", orderFinalizing, keyType, false},
		{"profile of one that may have a certificate", orderFinalizing, other, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f.accept(request("a.example"))
			first := f.obtain(f.issuer(nil), request("a.example"))
			f.changeOrder(func(o *order) { o.Step = tt.step })
			r := request("a.example")
			tt.change(&r)
			ordered := ""
			r.Profiled = func(name string) { ordered = name }
			second := f.obtain(f.issuer(nil), r)
			kept := first.Serial() == second.Serial()
			if kept != tt.kept {
				t.Errorf("got the order kept %t, want %t", kept, tt.kept)
			}
			if want := cmp.Or(r.Profile, profile); !kept && ordered != want || kept && ordered != profile {
				t.Errorf("told that it was ordered with profile %q; kept %t", ordered, kept)
			}
		})
	}
	t.Run("issuer", func(t *testing.T) {
		first := f.obtain(f.issuer(nil), request("a.example"))
		second := f.obtain(f.issuer(func(o *Options) { o.Name = "second" }), request("a.example"))
		if first.Serial() == second.Serial() {
			t.Error("the order of the other issuer was used")
		}
	})
}

func TestOrderThatCannotBeReadIsReplaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	for _, value := range []string{"{", `{"secret":"www","issuer":"pebble","key_type":"ecdsa-p256","profile":"default","identifiers":["a.example"]}`} {
		if _, err := f.store.Commit(t.Context(), nil, []store.Operation{store.Put(issuer.OrderKey("www"), []byte(value))}); err != nil {
			t.Fatal(err)
		}
		f.obtain(f.issuer(nil), request("a.example"))
	}
}

func TestAccountThatCannotBeReadIsNotReplaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	if _, err := f.store.Commit(t.Context(), nil, []store.Operation{store.Put(issuer.AccountKey("pebble"), []byte("{"))}); err != nil {
		t.Fatal(err)
	}
	_, err := f.issuer(nil).Obtain(f.Ready(), request("a.example"))
	wantKind(t, err, issuer.KindInternal, issuer.AccountKey("pebble"))
	if n := f.proxy.Count(testenv.KindNewAccount).Received; n != 0 {
		t.Errorf("%d accounts were asked for", n)
	}
}

// TestTwoIssuersOfOneNameShareOneAccount is what a reload leads to: the old Issuer ends its orders while the new one begins.
func TestTwoIssuersOfOneNameShareOneAccount(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	hold := f.proxy.Hold(testenv.KindNewAccount, testenv.Before)
	var wg sync.WaitGroup
	before, after := f.issuer(nil), f.issuer(nil)
	wg.Go(func() {
		if _, err := before.Obtain(f.Ready(), request("a.example")); err != nil {
			t.Errorf("before the reload: %v", err)
		}
	})
	<-hold.Reached()
	other := request("a.example")
	other.Secret = "other"
	f.obtain(after, other)
	hold.Release()
	wg.Wait()
	keys := make(map[string]bool)
	for _, value := range f.store.History(issuer.AccountKey("pebble")) {
		a := account{}
		if err := json.Unmarshal(value, &a); err != nil {
			t.Fatal(err)
		}
		keys[a.Key] = true
	}
	if len(keys) != 1 {
		t.Errorf("got %d account keys, want 1", len(keys))
	}
}

func TestDeadOrderIsReplaced(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	ready := f.proxy.Hold(testenv.KindFinalize, testenv.Before)
	ctx, crash := context.WithCancel(t.Context())
	defer crash()
	done := make(chan struct{})
	i := f.issuer(nil)
	go func() {
		defer close(done)
		_, _ = i.Obtain(ctx, request("a.example")) // it is cut
	}()
	<-ready.Reached()
	crash()
	<-done
	defer ready.Release()
	old := f.storedOrder().URL
	f.respond(testenv.KindOrder, 2, func(w http.ResponseWriter, _ *http.Request) { // it is asked whether that is so
		problem(w, http.StatusNotFound, "malformed", "No such order")
	})
	s := f.obtain(f.issuer(nil), request("a.example"))
	f.wantOneCertificate(s)
	if f.storedOrder().URL == old {
		t.Error("the dead order is still there")
	}
}

func TestAccountThatTheCALostIsRegisteredAgainWithItsKey(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	i := f.issuer(nil)
	f.obtain(i, request("a.example"))
	if err := f.pebble.Stop(); err != nil {
		t.Fatal(err)
	}
	f.pebble = f.Pebble(f.pebbleOptions) // knows no account and no order, has other roots, at the same address
	s := f.obtain(i, request("a.example"))
	roots, err := f.pebble.Roots(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(s.NotBefore(), secret.Expectation{DNSNames: []string{"a.example"}, Roots: roots}); err != nil {
		t.Error(err)
	}
	values := f.store.History(issuer.AccountKey("pebble"))
	var first, last account
	if err := errors.Join(json.Unmarshal(values[0], &first), json.Unmarshal(values[len(values)-1], &last)); err != nil {
		t.Fatal(err)
	}
	if first.Key != last.Key || last.KID == "" {
		t.Error("the account was registered again with another key")
	}
}

func TestAnotherDirectoryGetsANewAccount(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	f.obtain(f.issuer(nil), request("a.example"))
	f.obtain(f.issuer(func(o *Options) { o.Directory = f.pebble.Directory }), request("a.example"))
	keys := make(map[string]bool)
	for _, value := range f.store.History(issuer.AccountKey("pebble")) {
		a := account{}
		if err := json.Unmarshal(value, &a); err != nil {
			t.Fatal(err)
		}
		keys[a.Directory+a.Key] = true
	}
	if len(keys) != 2 {
		t.Errorf("got %d accounts, want one for each directory", len(keys))
	}
}

func TestNamesAreSolvedInParallel(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	first := f.proxy.Hold(testenv.KindChallenge, testenv.Before)
	second := f.proxy.Hold(testenv.KindChallenge, testenv.Before)
	done := make(chan error, 1)
	i := f.issuer(nil)
	go func() {
		_, err := i.Obtain(f.Ready(), request("a.example", "b.example"))
		done <- err
	}()
	for _, hold := range []*testenv.Hold{first, second} {
		select {
		case <-hold.Reached():
		case <-f.Ready().Done():
			t.Fatal("the second name waits for the first")
		}
	}
	first.Release()
	second.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
