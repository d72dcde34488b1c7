package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"github.com/sds-server/sds-server/internal/testenv"
)

// TestCrashAtEachRequest kills Obtain before the CA has a request, and after it but before we have the answer, and takes the order
// up again with a new Issuer. The second half does so while an order is looked for whose URL an earlier crash has lost.
func TestCrashAtEachRequest(t *testing.T) {
	t.Parallel()
	tests := []struct {
		lost   bool // by an earlier crash
		kind   testenv.Kind
		point  testenv.Point
		orders int // placed in all; at most, where a validation is under way at the crash
		atMost bool
	}{
		{false, testenv.KindDirectory, testenv.Before, 1, false},
		{false, testenv.KindDirectory, testenv.After, 1, false},
		{false, testenv.KindNonce, testenv.Before, 1, false},
		{false, testenv.KindNonce, testenv.After, 1, false},
		{false, testenv.KindNewAccount, testenv.Before, 1, false},
		{false, testenv.KindNewAccount, testenv.After, 1, false},
		{false, testenv.KindNewOrder, testenv.Before, 1, false},
		{false, testenv.KindNewOrder, testenv.After, 1, false},
		{false, testenv.KindAuthz, testenv.Before, 1, false},
		{false, testenv.KindAuthz, testenv.After, 1, false},
		{false, testenv.KindChallenge, testenv.Before, 1, false},
		{false, testenv.KindChallenge, testenv.After, 2, true},
		{false, testenv.KindOrder, testenv.Before, 2, true},
		{false, testenv.KindOrder, testenv.After, 2, true},
		{false, testenv.KindFinalize, testenv.Before, 1, false},
		{false, testenv.KindFinalize, testenv.After, 1, false},
		{false, testenv.KindCert, testenv.Before, 1, false},
		{false, testenv.KindCert, testenv.After, 1, false},

		{true, testenv.KindAccount, testenv.Before, 1, false},
		{true, testenv.KindAccount, testenv.After, 1, false},
		{true, testenv.KindOrders, testenv.Before, 1, false},
		{true, testenv.KindOrders, testenv.After, 1, false},
		{true, testenv.KindOrder, testenv.Before, 1, false},
		{true, testenv.KindOrder, testenv.After, 1, false},
		{true, testenv.KindAuthz, testenv.Before, 1, false},
		{true, testenv.KindFinalize, testenv.After, 1, false},
	}
	for _, tt := range tests {
		name := fmt.Sprintf("before %s, lost %t", tt.kind, tt.lost)
		if tt.point == testenv.After {
			name = fmt.Sprintf("after %s, lost %t", tt.kind, tt.lost)
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			if tt.lost {
				f.loseURL(request("a.example"))
			}
			hold := f.crashAtRequest(tt.kind, tt.point, nil)
			defer hold.Release() // not before: the request of a dead process must not go on
			s := f.obtain(f.issuer(nil), request("a.example"))
			f.wantOneCertificate(s)
			if n := f.proxy.Count(testenv.KindNewOrder).Succeeded; n > tt.orders || n < tt.orders && !tt.atMost {
				t.Errorf("got %d orders, want %d", n, tt.orders)
			}
			if n := f.responder.Pending(); n != 0 {
				t.Errorf("%d tokens are still pending", n)
			}
		})
	}
}

// crashAtRequest ends an Obtain at the next request of a kind, and returns what still holds the request.
func (f *fixture) crashAtRequest(kind testenv.Kind, point testenv.Point, change func(*Options)) *testenv.Hold {
	f.Helper()
	hold := f.proxy.Hold(kind, point)
	ctx, crash := context.WithCancel(f.Context())
	defer crash()
	done := make(chan error, 1)
	i := f.issuer(change)
	go func() {
		_, err := i.Obtain(ctx, request("a.example"))
		done <- err
	}()
	select {
	case <-hold.Reached():
	case err := <-done:
		f.Fatalf("the request never came: %v", err)
	}
	crash()
	if err := <-done; !errors.Is(err, context.Canceled) {
		f.Fatalf("got %v, want the end of the context", err)
	}
	return hold
}

// TestCrashAtEachWrite fails each commit before it is durable, and after it, and takes the order up again with a new Issuer, at a CA
// that lists the orders of an account and at one that does not.
func TestCrashAtEachWrite(t *testing.T) {
	t.Parallel()
	const url = 3 // the write of the order's URL
	for n := range orderWrites {
		for _, durable := range []bool{false, true} {
			for _, listed := range []bool{false, true} {
				t.Run(fmt.Sprintf("write %d, durable %t, listed %t", n+1, durable, listed), func(t *testing.T) {
					t.Parallel()
					f := newFixture(t, testenv.PebbleOptions{})
					if !listed {
						f.withoutList()
					}
					f.crashAtWrite(n, durable, nil)
					s := f.obtain(f.issuer(nil), request("a.example"))
					f.wantOneCertificate(s)
					want := 1
					if n == url && !durable && !listed {
						want = 2
					}
					if got := f.proxy.Count(testenv.KindNewOrder).Succeeded; got != want {
						t.Errorf("got %d orders, want %d", got, want)
					}
				})
			}
		}
	}
}

// TestCrashAtEachWriteOfATakenUpOrder is the same for an order whose URL an earlier crash has lost: it is stored when it was found, or
// given up.
func TestCrashAtEachWriteOfATakenUpOrder(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		listed bool
		writes int
		url    int // the write of a new order's URL
	}{{true, 2, -1}, {false, 4, 2}} {
		for n := range tt.writes {
			for _, durable := range []bool{false, true} {
				t.Run(fmt.Sprintf("listed %t, write %d, durable %t", tt.listed, n+1, durable), func(t *testing.T) {
					t.Parallel()
					f := newFixture(t, testenv.PebbleOptions{})
					if !tt.listed {
						f.withoutList()
					}
					f.loseURL(request("a.example"))
					f.crashAtWrite(n, durable, nil)
					f.wantOneCertificate(f.obtain(f.issuer(nil), request("a.example")))
					want := 1 // and one more at a CA without a list, for each kill between its answer and our write
					if !tt.listed {
						want++
						if n == tt.url && !durable {
							want++
						}
					}
					if got := f.proxy.Count(testenv.KindNewOrder).Succeeded; got != want {
						t.Errorf("got %d orders, want %d", got, want)
					}
				})
			}
		}
	}
}

// withoutList takes the list of orders out of the accounts, as at Let's Encrypt.
func (f *fixture) withoutList() {
	f.proxy.SetRewrite(func(kind testenv.Kind, resp *http.Response) error {
		if kind != testenv.KindAccount && kind != testenv.KindNewAccount {
			return nil
		}
		var account map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&account); err != nil {
			return err
		}
		delete(account, "orders")
		body, err := json.Marshal(account)
		testenv.ReplaceBody(resp, body)
		return err
	})
}
