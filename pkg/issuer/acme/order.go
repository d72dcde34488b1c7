package acme

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/store"
)

// order is an order that is under way, at issuer.OrderKey in the store.
type order struct {
	Secret string `json:"secret"`
	Issuer string `json:"issuer"`
	// Account is the URL of the account that placed it.
	Account string `json:"account"`
	// URL is the order's own (RFC 8555, Section 7.4); empty while it is not known.
	URL string `json:"url"`
	// Key is the certificate's private key (PEM, PKCS #8), CSR the request (DER) that is sent when the order is ready.
	Key string `json:"key"`
	CSR []byte `json:"csr"`
	// Identifiers, KeyType and Profile are what was asked for; the order serves no other configuration, see unfit.
	Identifiers []string  `json:"identifiers"`
	KeyType     string    `json:"key_type"`
	Profile     string    `json:"profile"`
	Created     time.Time `json:"created"`
	// Step is orderRequested while the CA may have the order and its URL is not known, then orderPlaced, then orderFinalizing once
	// finalize may have been sent. What happens next is decided by what the CA says of the order; the step decides how much it takes to
	// give the order up.
	Step string `json:"step"`
	// Counted is what the budget has recorded for it; nil where there is none.
	Counted *counted `json:"counted,omitempty"`

	revision int64
}

const (
	orderRequested  = "requested"
	orderPlaced     = "placed"
	orderFinalizing = "finalizing"
)

// longestPlaced is how long an order is taken up again that has not come to finalize: a validation that never ends (the CA was
// told, and forgot) must not block the certificate, and no certificate can be lost before finalize.
const longestPlaced = 6 * time.Hour

// errOrderDead is an order that can no longer lead to a certificate, though a new one may.
var errOrderDead = errors.New("the order is dead")

// check refuses requests that HTTP-01 cannot serve.
func (i *Issuer) check(request issuer.Request) error {
	if len(request.DNSNames)+len(request.IPAddresses) == 0 {
		return &issuer.Error{
			Kind: issuer.KindRejected, Issuer: i.options.Name, Message: "the certificate has no name", Hint: "set dns_names or ip_addresses",
		}
	}
	for _, name := range request.DNSNames {
		if strings.Contains(name, "*") {
			e := i.because(causeWildcard, "a wildcard needs a dns-01 challenge, which is not supported yet")
			e.Identifier = name
			return e
		}
	}
	return nil
}

// identifiers lists the names of a request in one order, each once.
func identifiers(request issuer.Request) []string {
	names := make([]string, 0, len(request.DNSNames)+len(request.IPAddresses))
	for _, name := range request.DNSNames {
		names = append(names, strings.ToLower(name))
	}
	for _, a := range request.IPAddresses {
		names = append(names, canonicalAddress(a).String())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func canonicalAddress(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// loadOrder returns the stored order, or nil if there is none for this request. One that does not fit is deleted.
func (i *Issuer) loadOrder(ctx context.Context, request issuer.Request) (*order, error) {
	entry, err := i.options.Store.Get(ctx, issuer.OrderKey(request.Secret))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil //nolint:nilnil // no order is no error
	}
	if err != nil {
		return nil, fmt.Errorf("read: %w", err)
	}
	o := &order{}
	why := "it cannot be read"
	if err := json.Unmarshal(entry.Value, o); err == nil {
		why = i.unfit(o, request)
	}
	o.Secret, o.revision = request.Secret, entry.Revision
	if why == "" {
		return o, nil
	}
	i.log.InfoContext(ctx, "stored order dropped", "secret", request.Secret, "order", o.URL, "reason", why)
	if o.Step == orderFinalizing {
		return nil, i.dropOrder(ctx, o) // there may be a certificate
	}
	return nil, i.giveUp(ctx, o)
}

// unfit says why an order is not taken up again for a request; "" if it is.
func (i *Issuer) unfit(o *order, request issuer.Request) string {
	if _, err := decodeKey(o.Key); err != nil {
		return "its key cannot be read"
	}
	// A changed profile counts from the next renewal where there may be a certificate: throwing it away would be a second one.
	if o.Issuer != i.options.Name || o.KeyType != request.KeyType || o.Step != orderFinalizing && o.Profile != request.Profile ||
		!slices.Equal(o.Identifiers, identifiers(request)) {
		return "the certificate is configured differently now"
	}
	if o.URL == "" && o.Step != orderRequested {
		return "it has no URL"
	}
	if o.Step != orderFinalizing && time.Since(o.Created) > longestPlaced {
		return "it has not become ready for too long"
	}
	return ""
}

// saveOrder stores the order, if nobody else has changed it.
func (i *Issuer) saveOrder(ctx context.Context, o *order) error {
	value, err := json.Marshal(o)
	if err != nil {
		return err
	}
	key := issuer.OrderKey(o.Secret)
	revision, err := i.options.Store.Commit(ctx,
		[]store.Condition{{Key: key, Revision: o.revision}}, []store.Operation{store.Put(key, value)})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	o.revision = revision
	return nil
}

// dropOrder deletes the order, so that the next Obtain places a new one.
func (i *Issuer) dropOrder(ctx context.Context, o *order) error {
	key := issuer.OrderKey(o.Secret)
	_, err := i.options.Store.Commit(ctx,
		[]store.Condition{{Key: key, Revision: o.revision}}, []store.Operation{store.Delete(key)})
	if err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return nil
}

// isProblem reports whether the CA answered with a problem of this type.
func isProblem(err error, problemType string) bool {
	f, ok := errors.AsType[*failure](err)
	if !ok {
		return false
	}
	p := f.problem()
	return p != nil && p.Type == problemType
}
