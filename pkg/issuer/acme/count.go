package acme

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// counted is what the budget has recorded for an order. It is stored with the order, because an order that ends without a
// certificate gives back exactly that.
type counted struct {
	Replaces bool `json:"replaces,omitempty"`
	Urgent   bool `json:"urgent,omitempty"`
}

// use is what the budget is told of an order.
func (o *order) use(kind issuer.UseKind, c counted) issuer.Use {
	u := useOf(kind, o.Identifiers)
	u.Replaces, u.Urgent = c.Replaces, c.Urgent
	return u
}

func useOf(kind issuer.UseKind, names []string) issuer.Use {
	u := issuer.Use{Kind: kind}
	for _, name := range names {
		if a, err := netip.ParseAddr(name); err == nil {
			u.IPAddresses = append(u.IPAddresses, a)
		} else {
			u.DNSNames = append(u.DNSNames, name)
		}
	}
	return u
}

// spend records a use before the request that uses it up. Without a budget everything fits.
func (i *Issuer) spend(ctx context.Context, use issuer.Use) error {
	if i.options.Budget == nil {
		return nil
	}
	if err := i.options.Budget.Spend(ctx, use); err != nil {
		return i.classify(ctx, "budget", err)
	}
	return nil
}

// giveBack returns a use that the CA did not count. Where that fails it stays spent until it refills: less is ordered than the CA
// would allow, and no limit is crossed.
func (i *Issuer) giveBack(ctx context.Context, use issuer.Use) {
	if i.options.Budget == nil {
		return
	}
	if err := i.options.Budget.Return(ctx, use); err != nil {
		i.log.WarnContext(ctx, "a use that the CA did not count stays in the budget", "use", use.Kind, "err", err)
	}
}

// limited tells the budget that the CA has refused a use in spite of it, and for how long, where the CA says so. For a paused account or
// name there is no such time.
func (i *Issuer) limited(ctx context.Context, use issuer.Use, err error) {
	f := asFailure(err)
	if f == nil || i.options.Budget == nil || f.status != http.StatusTooManyRequests {
		return
	}
	message := ""
	if p := f.problem(); p != nil {
		if paused(p) {
			return
		}
		message = p.Detail
	}
	i.log.WarnContext(ctx, "the CA refused what the budget allowed", "use", use.Kind, "retry_after", f.retryAfter, "detail", printable(message))
	if err := i.options.Budget.Refused(ctx, use, f.retryAfter, message); err != nil {
		i.log.WarnContext(ctx, "the budget does not know that the CA has refused a use", "use", use.Kind, "err", err)
	}
}

// notCounted reports whether the request of this endpoint was refused, or never sent. Where there was no answer, or a page of
// something in between, the CA may have counted it.
func notCounted(err error, at endpoint) bool {
	f := asFailure(err)
	return f != nil && (f.endpoint != at || f.problem() != nil || f.status == http.StatusTooManyRequests || errors.Is(err, errBadNonce))
}

// countFailures records the names that the CA could not validate. It comes before the order is deleted: a crash in between
// counts them once more, and never not at all.
func (d *driver) countFailures(ctx context.Context, names []string) {
	if d.options.Budget == nil || len(names) == 0 {
		return
	}
	if err := d.options.Budget.Spend(ctx, useOf(issuer.UseFailedAuthorization, names)); err != nil {
		d.log.WarnContext(ctx, "failed authorizations are not in the budget", "secret", d.order.Secret, "err", err)
	}
}

// longestCounted is until when the budget can tell a use from those of other orders: after that it would give back one of theirs.
const longestCounted = longestPlaced + time.Hour

// uncount gives back the certificate of an order that has ended without one.
func (i *Issuer) uncount(ctx context.Context, o *order) {
	if o.Counted != nil && o.Issuer == i.options.Name && time.Since(o.Created) < longestCounted {
		i.giveBack(ctx, o.use(issuer.UseCertificate, *o.Counted))
	}
}
