package acme

import (
	"context"
	"errors"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// placeOrder asks for a new order; it also returns what the CA said of it. In this order: the budget is asked, the key is made, key and request are
// stored, newOrder is sent, the URL is stored. So what the budget refuses costs no key, a crash costs at most a token of the budget, and one after
// the CA has accepted the order leaves what takeUp needs.
func (i *Issuer) placeOrder(ctx context.Context, request issuer.Request) (*order, *legoacme.Order, error) {
	request.Progress(issuer.StepOrdering)
	account, err := i.ensureAccount(ctx, "")
	if err != nil {
		return nil, nil, err
	}
	replaces, err := i.replaces(ctx, request)
	if err != nil {
		return nil, nil, err
	}
	o := i.newRecord(request)
	placed, err := i.requestOrder(ctx, request, o, account, replaces)
	if why := withoutReplaces(err); replaces != "" && why != "" {
		i.log.WarnContext(ctx, "the CA does not take the order as a replacement: it is placed as an ordinary one, which counts against the CA's limits",
			"secret", o.Secret, "replaces", replaces, "reason", why)
		placed, err = i.requestOrder(ctx, request, o, account, "")
	}
	if err != nil {
		return nil, nil, i.classify(ctx, "new order", err)
	}
	o.URL, o.Step = placed.Location, orderPlaced
	if err := i.saveOrder(ctx, o); err != nil {
		return nil, nil, i.classify(ctx, "order", err)
	}
	i.log.DebugContext(ctx, "order placed", "secret", o.Secret, "order", o.URL)
	return o, &placed.Order, nil
}

// newRecord makes what is stored of an order, still without its key.
func (i *Issuer) newRecord(request issuer.Request) *order {
	return &order{
		Secret: request.Secret, Issuer: i.options.Name, Identifiers: identifiers(request), KeyType: request.KeyType, Profile: request.Profile,
		Created: time.Now().UTC(), Step: orderRequested,
	}
}

// makeKey gives an order its key and its request, once.
func (i *Issuer) makeKey(o *order, request issuer.Request) error {
	if o.Key != "" {
		return nil
	}
	key, err := newKey(request.KeyType)
	if err != nil {
		return i.internal("certificate key", err)
	}
	encoded, err := encodeKey(key)
	if err != nil {
		return i.internal("certificate key", err)
	}
	if o.CSR, err = newCSR(key, request); err != nil {
		return i.internal("certificate request", err)
	}
	o.Key = encoded
	return nil
}

// replaces returns the identifier of the certificate that the order is to replace; empty also at a CA that knows no such thing.
func (i *Issuer) replaces(ctx context.Context, request issuer.Request) (string, error) {
	if request.Replaces == "" {
		return "", nil
	}
	directory, err := i.conn.fetchDirectory(ctx)
	if err != nil {
		return "", i.classify(ctx, "new order", err)
	}
	if directory.RenewalInfo == "" {
		return "", nil
	}
	return request.Replaces, nil
}

// requestOrder counts the order, makes its key, stores it, and asks for it. An order that the CA has refused is deleted, and not counted.
func (i *Issuer) requestOrder(ctx context.Context, request issuer.Request, o *order, account accountKey, replaces string) (legoacme.ExtendedOrder, error) {
	c := counted{Replaces: replaces != "" && request.InWindow, Urgent: request.Urgent}
	use := o.use(issuer.UseOrder, c)
	if err := i.spend(ctx, use); err != nil {
		return legoacme.ExtendedOrder{}, err
	}
	if err := i.makeKey(o, request); err != nil {
		i.giveBack(ctx, use)
		return legoacme.ExtendedOrder{}, err
	}
	if i.options.Budget != nil {
		o.Counted = &c
	}
	o.Account = account.kid
	if err := i.saveOrder(ctx, o); err != nil {
		return legoacme.ExtendedOrder{}, i.classify(ctx, "order", err)
	}
	placed, err := i.newOrder(ctx, account, o, replaces)
	if isProblem(err, problemAccountDoesNotExist) {
		if account, err = i.ensureAccount(ctx, account.kid); err == nil {
			o.Account = account.kid
			if err = i.saveOrder(ctx, o); err == nil {
				placed, err = i.newOrder(ctx, account, o, replaces)
			}
		}
	}
	if err == nil || !notCounted(err, endpointNewOrder) && asFailure(err) != nil {
		return placed, err // without an answer, the CA may have it
	}
	if dropErr := i.dropOrder(ctx, o); dropErr != nil {
		return placed, i.classify(ctx, "order", dropErr)
	}
	o.revision, o.Counted = 0, nil
	i.giveBack(ctx, use)
	i.limited(ctx, use, err)
	return placed, err
}

// newOrder is sent once: every one that the CA accepts counts against its limits.
func (i *Issuer) newOrder(ctx context.Context, key accountKey, o *order, replaces string) (placed legoacme.ExtendedOrder, err error) {
	err = i.conn.call(ctx, key, endpointNewOrder, func(core *api.Core) error {
		var err error
		placed, err = core.Orders.NewWithOptions(o.Identifiers, &api.OrderOptions{Profile: o.Profile, ReplacesCertID: replaces})
		if err == nil && placed.Location == "" {
			return errors.New("the CA gave no order URL")
		}
		return err
	})
	return placed, err
}

// withoutReplaces says why an order may be accepted without "replaces" that was refused with it; empty if that is not likely. The
// certificate is replaced already (RFC 9773, Section 7.4), it is another account's, or the CA does not know it: Pebble calls that
// an internal error (v2.10.1), but a CA that names a time means one.
func withoutReplaces(err error) string {
	f := asFailure(err)
	if f == nil || f.endpoint != endpointNewOrder {
		return ""
	}
	p := f.problem()
	if p == nil {
		return ""
	}
	switch p.Type {
	case problemAlreadyReplaced, problemMalformed, problemUnauthorized:
		return describe(p)
	case problemServerInternal:
		if f.retryAfter == 0 {
			return describe(p)
		}
	}
	return ""
}
