package acme

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/pkg/issuer"
)

const (
	// maxPages and maxListed bound what is read of the list of an account's orders, maxAsked how many of them are looked at, half
	// of those at either end of the list.
	maxPages  = 100
	maxListed = 10000
	maxAsked  = 50
)

// findOrder looks for an order that the CA has accepted and whose URL did not reach the store: a new one would count against the
// CA's limits a second time. It returns a nil state where the CA has no such order, or no list (RFC 8555, Section 7.1.2.1; Let's
// Encrypt has none). An error means that the CA does not answer at all.
func (i *Issuer) findOrder(ctx context.Context, key accountKey, o *order) (*legoacme.ExtendedOrder, error) {
	urls, err := i.listOrders(ctx, key)
	if err != nil {
		if f := asFailure(err); f != nil && f.status == 0 {
			return nil, err
		}
		i.log.WarnContext(ctx, "the list of the account's orders cannot be used: an order that was accepted may be placed again",
			"secret", o.Secret, "err", err)
		return nil, nil //nolint:nilnil // no state is "not found"
	}
	known, twin, err := i.knownOrders(ctx, o)
	if err != nil || twin {
		return nil, err
	}
	urls = slices.DeleteFunc(urls, func(url string) bool { return known[url] })
	if n := len(urls); n > maxAsked {
		urls = slices.Concat(urls[:maxAsked/2], urls[n-maxAsked/2:])
	}
	for _, url := range slices.Backward(urls) { // the RFC gives no order; Pebble has the newest last
		var got legoacme.ExtendedOrder
		err := i.conn.call(ctx, key, endpointOrder, func(core *api.Core) error {
			var err error
			got, err = core.Orders.Get(url)
			return withStatus(got.Status, err)
		})
		if f := asFailure(err); f != nil && f.status == 0 {
			return nil, err
		}
		if err == nil && o.fits(&got.Order) {
			got.Location = url
			return &got, nil
		}
	}
	return nil, nil //nolint:nilnil // as above
}

// fits reports whether an order of the CA may be the one that o asked for, and can still be used.
func (o *order) fits(got *legoacme.Order) bool {
	if got.Status != legoacme.StatusPending && got.Status != legoacme.StatusReady {
		return false
	}
	if got.Profile != "" && o.Profile != "" && got.Profile != o.Profile {
		return false
	}
	names := make([]string, 0, len(got.Identifiers))
	for _, id := range got.Identifiers {
		names = append(names, strings.ToLower(id.Value))
	}
	slices.Sort(names)
	return slices.Equal(names, o.Identifiers)
}

// knownOrders are the URLs of the orders in the store: those belong to other secrets. twin reports whether another secret has asked
// for the same names and does not know its URL either: nobody could say whose an order in the list is.
func (i *Issuer) knownOrders(ctx context.Context, o *order) (known map[string]bool, twin bool, err error) {
	entries, _, err := i.options.Store.List(ctx, issuer.OrderKey("")) // the key of an empty name is the common prefix
	if err != nil {
		return nil, false, i.internal("list the orders", err)
	}
	known = make(map[string]bool, len(entries))
	for _, e := range entries {
		var other struct {
			Secret      string   `json:"secret"`
			URL         string   `json:"url"`
			Identifiers []string `json:"identifiers"`
		}
		if json.Unmarshal(e.Value, &other) != nil {
			continue // it is dropped when its secret is due
		}
		known[other.URL] = true
		twin = twin || other.URL == "" && other.Secret != o.Secret && slices.Equal(other.Identifiers, o.Identifiers)
	}
	return known, twin, nil
}

// listOrders returns the URLs of the account's orders; none where the CA has no list.
func (i *Issuer) listOrders(ctx context.Context, key accountKey) ([]string, error) {
	var account legoacme.Account
	err := i.conn.call(ctx, key, endpointAccount, func(core *api.Core) error {
		var err error
		account, err = core.Accounts.Get(key.kid)
		return err
	})
	if err != nil {
		return nil, err
	}
	var urls []string
	seen := make(map[string]bool)
	for page := account.Orders; page != "" && !seen[page] && len(seen) < maxPages && len(urls) < maxListed; {
		seen[page] = true
		got, err := i.conn.post(ctx, key, endpointOrders, page)
		if err != nil {
			return nil, err
		}
		var body struct {
			Orders []string `json:"orders"`
		}
		if err := json.Unmarshal(got.body, &body); err != nil {
			return nil, &failure{err: fmt.Errorf("%w: %w", errUnreadable, err), endpoint: endpointOrders, status: got.status}
		}
		urls = append(urls, body.Orders...)
		page = nextPage(got.header)
	}
	return urls, nil
}

var nextLink = regexp.MustCompile(`<([^<>]+)>\s*;[^,<]*\brel="?next"?`)

// nextPage returns the URL of the next page of a list (RFC 8288), or "".
func nextPage(header http.Header) string {
	for _, link := range header.Values("Link") {
		if m := nextLink.FindStringSubmatch(link); m != nil {
			return m[1]
		}
	}
	return ""
}

// takeUp finds out what has become of an order that was asked for before a crash. It returns what the CA says of it, or nil where it is
// given up; then a new one may be placed.
func (i *Issuer) takeUp(ctx context.Context, o *order) (*legoacme.Order, error) {
	key, err := i.ensureAccount(ctx, "")
	if err != nil {
		return nil, err
	}
	var found *legoacme.ExtendedOrder
	if key.kid == o.Account {
		if found, err = i.findOrder(ctx, key, o); err != nil {
			return nil, i.classify(ctx, "list the orders", err)
		}
	}
	if found == nil {
		i.log.InfoContext(ctx, "the CA has no order from before the crash: a new one is placed", "secret", o.Secret)
		return nil, i.giveUp(ctx, o)
	}
	o.URL, o.Step = found.Location, orderPlaced
	if err := i.saveOrder(ctx, o); err != nil {
		return nil, i.classify(ctx, "order", err)
	}
	i.log.InfoContext(ctx, "order from before the crash found in the account's list", "secret", o.Secret, "order", o.URL)
	return &found.Order, nil
}

// giveUp deletes an order that was asked for and never came.
func (i *Issuer) giveUp(ctx context.Context, o *order) error {
	if err := i.dropOrder(ctx, o); err != nil {
		return i.classify(ctx, "order", err)
	}
	i.uncount(ctx, o)
	return nil
}
