// Package budget keeps count of what the certificate authorities still allow: the ledger of their limits.
//
// It stands between the issuance loop and a CA. Before each request that uses up a limit, package acme asks the [Ledger] of its issuer, and
// the use is stored before the request is sent; where it does not fit, the request is not sent. Ordinary work may use a share of each limit,
// the rest is kept for emergencies.
//
// Invariants: what is recorded here is never less than what the CA has counted of our own requests, whatever crashes in between and however
// the clock runs; a crash between Spend and the request loses one token at most; what other clients use up is learned from the CA's
// refusals; what is full again is not stored.
package budget

import (
	"context"
	"net/netip"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// defaultShare is how much of each limit ordinary work may use.
const defaultShare = 0.8

// Options are the limits of one issuer.
type Options struct {
	// Issuer is its name. Required.
	Issuer string
	// Directory is the URL of the CA's ACME directory. What is known of the CA comes from it, and issuers with the same one share what the CA
	// counts for all accounts. Required.
	Directory string
	// Share of each limit that ordinary work may use, above 0 and at most 1; default 0.8.
	Share float64
	// Limits replace those that are known of the CA, by name, or are added to them. A CA that is not known has these alone.
	Limits []Limit
}

// Ledger is the budget of one issuer. Its methods may be called from several goroutines.
type Ledger struct {
	book  *Book
	rules *rules
}

var _ issuer.Budget = (*Ledger)(nil)

// Spend implements issuer.Budget. An order is recorded in the limits on orders and on certificates, and checked against those on failed
// validations of its names; errors are *issuer.Error of KindBudget, and faults of the store.
func (l *Ledger) Spend(ctx context.Context, use issuer.Use) error {
	r := l.rules
	return l.book.change(ctx, l.touches(r, use, renewalWindow-renewalSpare), func(now int64, of []*touched) error {
		if err := r.crossed(now, use.Urgent, of); err != nil {
			return err
		}
		for _, t := range of {
			if t.spend {
				t.bucket.spend(t.limit, now)
				t.changed = true
			}
		}
		return nil
	})
}

// Return implements issuer.Budget. It gives back what can still be told from what was counted: an order within 5 minutes, a certificate
// within 8 hours of its Spend. Failed authorizations were counted by the CA, and stay.
func (l *Ledger) Return(ctx context.Context, use issuer.Use) error {
	r := l.rules
	// An order that was a renewal when it was recorded still is: it does not give back what it has not spent.
	return l.book.change(ctx, l.touches(r, use, renewalWindow), func(_ int64, of []*touched) error {
		for _, t := range of {
			if t.spend {
				t.changed = t.giveBack()
			}
		}
		return nil
	})
}

// Refused implements issuer.Budget. Where after is 0, the time is taken from the message; where that has none, it is the time for one more.
func (l *Ledger) Refused(ctx context.Context, use issuer.Use, after time.Duration, message string) error {
	r := l.rules
	use.Replaces = false // it was counted after all
	about := readRefusal(message)
	return l.book.change(ctx, l.touches(r, use, 0), func(now int64, of []*touched) error {
		about.apply(now, after, of)
		return nil
	})
}

// Issued records that a certificate has just been issued: the next one for the same identifiers is a renewal, and failures of their validation
// are not consecutive any more.
func (l *Ledger) Issued(ctx context.Context, dnsNames []string, addresses []netip.Addr) error {
	return l.issued(ctx, dnsNames, addresses, time.Now(), true)
}

// Recall records that a certificate was issued at an earlier time, by what is known from elsewhere. A later one that is known stays.
func (l *Ledger) Recall(ctx context.Context, dnsNames []string, addresses []netip.Addr, at time.Time) error {
	return l.issued(ctx, dnsNames, addresses, at, false)
}

// sameIssue is how much later a certificate has to be for the time of the last one to be stored anew.
const sameIssue = 24 * time.Hour

func (l *Ledger) issued(ctx context.Context, dnsNames []string, addresses []netip.Addr, at time.Time, success bool) error {
	r := l.rules
	touches := func(int64) []touch {
		var out []touch
		set := r.setTouch(dnsNames, addresses)
		if e := l.book.entries[set.key]; r.renewals && (e == nil || at.UnixNano()-e.issued >= int64(sameIssue)) {
			out = append(out, set)
		}
		failures := r.limits[ConsecutiveFailures]
		for _, name := range identifiers(dnsNames, addresses) {
			if failures == nil || !success {
				break
			}
			if t := r.touch(failures, name, "", false, false); l.book.entries[t.key] != nil {
				out = append(out, t)
			}
		}
		return out
	}
	l.book.mu.Lock()
	nothing := len(touches(0)) == 0 || time.Since(at) > renewalWindow
	l.book.mu.Unlock()
	if nothing {
		return nil
	}
	return l.book.change(ctx, touches, func(_ int64, of []*touched) error {
		for _, t := range of {
			t.changed = true
			if t.limit.name == ExactSet {
				t.issued = at.UnixNano()
			} else {
				t.bucket = bucket{}
			}
		}
		return nil
	})
}

// touches says what a use is about; window is how long after a certificate the next one for the same identifiers is a renewal. The book's
// lock is held when it is called.
func (l *Ledger) touches(r *rules, use issuer.Use, window time.Duration) func(now int64) []touch {
	return func(now int64) []touch {
		set := l.book.entries[r.setTouch(use.DNSNames, use.IPAddresses).key]
		return r.touches(use, set.renewal(now, window))
	}
}
