package acme

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// longestFinalizing bounds how long after its placing an order is kept that may have a certificate, while every answer about it
// is a refusal that does not end it: a CA that forgets old orders without an ACME problem must not block the certificate for ever.
// Within that time a person sees the refusal, and what stands in between is usually repaired.
const longestFinalizing = 72 * time.Hour

// refused classifies err, and deletes the order where it ends it.
func (d *driver) refused(ctx context.Context, doing string, err error) error {
	err = d.classify(ctx, doing, err)
	if e, ok := errors.AsType[*issuer.Error](err); ok {
		return d.refuse(ctx, e)
	}
	return err
}

// refuse returns e, as a dead order's where it ends the order.
func (d *driver) refuse(ctx context.Context, e *issuer.Error) error {
	if d.ends(e) {
		return d.dead(ctx, e)
	}
	return e
}

// ends reports whether e, the answer to a request about the order or our judgement of one, ends the order. Only the CA can end
// it, and it says so with an ACME problem (RFC 8555, Section 6.7): a page of a load balancer says nothing about an order, whatever
// its status is. Once finalize may have been sent there may be a certificate, and a new order would lead to a second one: then
// only the order's own URL counts, where the CA says that it has no such order, or none of this account.
func (d *driver) ends(e *issuer.Error) bool {
	f, answered := errors.AsType[*failure](e)
	refusal := e.Kind == issuer.KindRejected || answered && f.foreign()
	switch {
	case !refusal:
		return false
	case d.order.Step == orderFinalizing && time.Since(d.order.Created) > longestFinalizing:
		return true
	case e.Kind != issuer.KindRejected:
		return false
	case d.order.Step != orderFinalizing:
		return !answered || f.aboutOrder()
	}
	return answered && f.endpoint == endpointOrder && f.unknownOrder()
}

// foreign reports whether the request was refused by something that does not speak ACME.
func (f *failure) foreign() bool {
	switch f.status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return false
	}
	return f.problem() == nil && f.status >= http.StatusBadRequest && f.status < http.StatusInternalServerError
}

// aboutOrder reports whether the answer is one to a request about an order, and not to one on the way there.
func (f *failure) aboutOrder() bool {
	switch f.endpoint {
	case endpointOrder, endpointAuthorization, endpointChallenge, endpointFinalize, endpointCertificate:
		return true
	}
	return false
}

// unknownOrder reports whether the CA says that there is no such order, or that it belongs to another account or to none. CAs put
// that differently: as malformed with status 404, as unauthorized, or as an account that does not exist.
func (f *failure) unknownOrder() bool {
	p := f.problem()
	if p == nil {
		return false
	}
	switch p.Type {
	case problemUnauthorized, problemAccountDoesNotExist:
		return true
	}
	return f.status == http.StatusNotFound || f.status == http.StatusGone
}

// refusedRequest reports whether e is the CA's own refusal to finalize.
func refusedRequest(e *issuer.Error) bool {
	f, ok := errors.AsType[*failure](e)
	return ok && e.Kind == issuer.KindRejected && f.endpoint == endpointFinalize && f.problem() != nil
}

// dead deletes the order and returns e as errOrderDead. When it cannot be deleted, the next Obtain will find it dead again.
func (d *driver) dead(ctx context.Context, e *issuer.Error) error {
	if err := d.dropOrder(ctx, d.order); err != nil {
		return d.internal(fmt.Sprintf("%s; delete the order", e.Message), err)
	}
	if d.order.Step != orderFinalizing || refusedRequest(e) {
		d.uncount(ctx, d.order) // no certificate can have been issued
	}
	e.Err = errors.Join(errOrderDead, e.Err)
	return e
}
