package acme

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sds-server/sds-server/internal/testenv"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
)

// TestReplacement places orders that replace a certificate, at a CA that accepts that or refuses it for different reasons.
func TestReplacement(t *testing.T) {
	t.Parallel()
	says := func(status int, problemType, detail, retryAfter string) func(w http.ResponseWriter) {
		return func(w http.ResponseWriter) {
			if retryAfter != "" {
				w.Header().Set("Retry-After", retryAfter)
			}
			problem(w, status, problemType, detail)
		}
	}
	const exempt, ordinary = "order a.example replaces", "order a.example"
	retried := []string{"spend " + exempt, "return " + exempt, "spend " + ordinary}
	tests := []struct {
		name   string
		change func(*issuer.Request)
		refuse func(w http.ResponseWriter)
		want   []string
		sent   []bool // whether "replaces" is in each newOrder
		kind   issuer.Kind
	}{
		{name: "accepted", want: []string{"spend " + exempt}, sent: []bool{true}},
		{name: "late", change: func(r *issuer.Request) { r.InWindow = false }, want: []string{"spend " + ordinary}, sent: []bool{true}},
		{name: "first certificate", change: func(r *issuer.Request) { r.Replaces = "" }, want: []string{"spend " + ordinary}, sent: []bool{false}},
		{name: "alreadyReplaced", refuse: says(409, "alreadyReplaced", "there is a replacement", ""), want: retried, sent: []bool{true, false}},
		{name: "unknown certificate", refuse: says(400, "malformed", "unknown key identifier", ""), want: retried, sent: []bool{true, false}},
		{name: "of another account", refuse: says(403, "unauthorized", "not your certificate", ""), want: retried, sent: []bool{true, false}},
		{name: "Pebble's internal error", refuse: says(500, "serverInternal", "could not find an order", ""), want: retried, sent: []bool{true, false}},
		{
			name: "real trouble", refuse: says(500, "serverInternal", "database", "60"), kind: issuer.KindTemporary, sent: []bool{true},
			want: []string{"spend " + exempt, "return " + exempt},
		},
		{
			name: "limit", refuse: says(429, "rateLimited", "too many", "60"), kind: issuer.KindRateLimited, sent: []bool{true},
			want: []string{"spend " + exempt, "return " + exempt, "refused " + exempt + " 1m0s too many"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, testenv.PebbleOptions{})
			l := &ledger{}
			var log bytes.Buffer
			i := f.counted(l, func(o *Options) { o.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
			first := f.obtain(i, request("a.example"))
			f.accept(request("a.example"))
			l.take()
			orders := f.newOrders(func(_ int, p orderPayload, w http.ResponseWriter) bool {
				if p.Replaces == "" || tt.refuse == nil {
					return false
				}
				tt.refuse(w)
				return true
			})
			r := renewal(t, first, "a.example")
			if tt.change != nil {
				tt.change(&r)
			}
			_, err := i.Obtain(f.Ready(), r)
			switch {
			case tt.kind != "":
				wantKind(t, err, tt.kind)
				f.wantNoOrder("after the refusal")
			case err != nil:
				t.Error(err)
			}
			l.want(t, "order", tt.want...)
			var sent []bool
			for _, p := range orders() {
				sent = append(sent, p.Replaces != "")
				if p.Replaces != "" && p.Replaces != r.Replaces {
					t.Errorf("got replaces %q, want %q", p.Replaces, r.Replaces)
				}
			}
			if !slices.Equal(sent, tt.sent) {
				t.Errorf("got orders with replaces %v, want %v", sent, tt.sent)
			}
			if warned := strings.Contains(log.String(), "level=WARN msg=\"the CA does not take the order as a replacement"); warned != (len(tt.sent) == 2) {
				t.Errorf("got a warning %t, want %t", warned, len(tt.sent) == 2)
			}
		})
	}
}

// TestSecondReplacementAtPebble has the real CA refuse: the certificate was replaced before, or its account is another one.
func TestSecondReplacementAtPebble(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	i := f.counted(l, nil)
	first := f.obtain(i, request("a.example"))
	f.accept(request("a.example"))
	r := renewal(t, first, "a.example")
	f.obtain(i, r)
	f.accept(r)
	l.take()
	err := testenv.Eventually(f.Ready(), func(ctx context.Context) error { // Pebble marks it a moment after the certificate is there
		l.take()
		if _, err := i.Obtain(ctx, r); err != nil {
			return err
		}
		if _, err := f.store.Commit(ctx, nil, []store.Operation{store.Delete(issuer.OrderKey(r.Secret))}); err != nil {
			return err
		}
		if got := l.take(); len(got) != 3 {
			return fmt.Errorf("got %v, want a second order without replaces", got)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	second := f.counted(l, func(o *Options) { o.Name = "second" })
	other := f.obtain(second, request("a.example"))
	f.accept(r)
	l.take()
	f.obtain(i, renewal(t, other, "a.example"))
	l.want(t, "another account's", "spend order a.example replaces", "return order a.example replaces", "spend order a.example")
}

func TestReplacementThatTheBudgetAllowsOnlyAsOne(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	i := f.counted(l, nil)
	first := f.obtain(i, request("a.example"))
	f.accept(request("a.example"))
	l.take()
	l.refuse(func(u issuer.Use) error {
		if !u.Replaces {
			return &issuer.Error{Kind: issuer.KindBudget, Issuer: "pebble", Message: "5 of 5 are used", RetryAfter: 34 * time.Hour}
		}
		return nil
	})
	orders := f.newOrders(func(_ int, _ orderPayload, w http.ResponseWriter) bool {
		problem(w, http.StatusConflict, "alreadyReplaced", "there is one")
		return true
	})
	_, err := i.Obtain(f.Ready(), renewal(t, first, "a.example"))
	wantKind(t, err, issuer.KindBudget, "5 of 5")
	l.want(t, "order", "spend order a.example replaces", "return order a.example replaces")
	if n := len(orders()); n != 1 {
		t.Errorf("got %d orders, want the first alone", n)
	}
}

func TestCAWithoutRenewalInfoGetsNoReplaces(t *testing.T) {
	t.Parallel()
	f := newFixture(t, testenv.PebbleOptions{})
	l := &ledger{}
	f.withoutRenewalInfo()
	i := f.counted(l, nil)
	first := f.obtain(i, request("a.example"))
	f.accept(request("a.example"))
	l.take()
	orders := f.newOrders(nil)
	f.obtain(i, renewal(t, first, "a.example"))
	l.want(t, "order", "spend order a.example")
	if got := orders(); len(got) != 1 || got[0].Replaces != "" {
		t.Errorf("got %+v, want one order without replaces", got)
	}
}
