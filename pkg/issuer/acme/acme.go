// Package acme obtains certificates from a CA that speaks ACME (RFC 8555), with HTTP-01 challenges.
//
// It is the part of the issuance loop that talks to the outside, and the only importer of lego: lego signs, and knows the
// messages; this package drives the order itself, because lego's own driver has no contexts, forgets an order whose answer got
// lost, solves names one after the other and verifies nothing.
//
// Invariants: the budget is asked, and an order's key and request are in the store, before the order is asked for; its URL is there
// before the first challenge is answered; they go only in the commit that stores the certificate or when the order leads nowhere; finalize is sent only to an order that is
// ready, and never again without a look at the order; nothing that the CA sends is trusted: the chain must pass every rule of
// package secret, fit the request and its key, and reach the configured roots; no answer and no silence of a CA holds a call
// longer than its context.
package acme

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// Options describe one issuer: a CA and our account there.
type Options struct {
	// Name of the issuer; it is part of store keys and a metric label. Required.
	Name string
	// Directory is the https URL of the ACME directory. Required.
	Directory string
	// CAFile holds the roots (PEM) that the directory's HTTPS is verified to; default the system's.
	CAFile string
	// RootsFile holds the roots (PEM) that issued chains must reach; default the system's. It is read again for each
	// certificate.
	RootsFile string
	// RootsUnchecked accepts chains to any root; excludes RootsFile.
	RootsUnchecked bool
	// Email is the account's contact; empty is none.
	Email string
	// AcceptTOS says that the operator agrees to the CA's terms of service.
	AcceptTOS bool
	// EAB binds the account to one that the CA knows; nil is none.
	EAB *EAB
	// Profile is asked for where the request names none; default the CA's choice.
	Profile string
	// Store keeps account and orders; it seals them. Required.
	Store store.Store
	// Responder answers the challenges. Required.
	Responder *Responder
	// Budget keeps count of what the CA allows; it must be a pointer, so that Same can compare it. Nil allows everything.
	Budget issuer.Budget
	// Metrics counts the requests. Required.
	Metrics *Metrics
	// Logger gets what an operator acts on. Required.
	Logger *slog.Logger
	// UserAgent is "sds-server/VERSION"; default "sds-server".
	UserAgent string
	// RequestTimeout bounds one HTTP request with its answer; default 30 s.
	RequestTimeout time.Duration
	// OrderTimeout bounds one Obtain; default 3 min. An order that takes longer is taken up again by the next Obtain.
	OrderTimeout time.Duration
}

// EAB is an external account binding (RFC 8555, Section 7.3.4).
type EAB struct {
	KID string
	// HMACKeyFile holds the key in base64url, as the CA shows it.
	HMACKeyFile string
}

// Issuer obtains certificates from one CA. Its methods may be called from several goroutines.
type Issuer struct {
	options  Options
	ca       [sha256.Size]byte // digest of CAFile when it was read
	log      *slog.Logger
	conn     *conn
	accounts accounts
}

var _ issuer.Issuer = (*Issuer)(nil)

// New checks the options and reads their files. It asks nothing of the CA, so a dead one stops no start.
func New(o Options) (*Issuer, error) {
	silenceLego()
	o = o.withDefaults()
	if u, err := url.Parse(o.Directory); err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, fmt.Errorf("issuer %q: directory %q: not an https URL", o.Name, o.Directory)
	}
	if o.RootsUnchecked && o.RootsFile != "" {
		return nil, fmt.Errorf("issuer %q: a roots file excludes unchecked roots", o.Name)
	}
	roots, ca, err := loadPool(o.CAFile)
	if err != nil {
		return nil, fmt.Errorf("issuer %q: CA file: %w", o.Name, err)
	}
	if _, _, err := loadPool(o.RootsFile); err != nil {
		return nil, fmt.Errorf("issuer %q: roots file: %w", o.Name, err)
	}
	return &Issuer{
		options: o,
		ca:      ca,
		log:     o.Logger.With("issuer", o.Name),
		conn: &conn{
			issuer: o.Name, directoryURL: o.Directory, userAgent: o.UserAgent, requestTimeout: o.RequestTimeout,
			transport: newTransport(roots), metrics: o.Metrics,
		},
		accounts: accounts{turn: make(chan struct{}, 1)},
	}, nil
}

func (o Options) withDefaults() Options {
	if o.UserAgent == "" {
		o.UserAgent = "sds-server"
	}
	if o.RequestTimeout == 0 {
		o.RequestTimeout = 30 * time.Second
	}
	if o.OrderTimeout == 0 {
		o.OrderTimeout = 3 * time.Minute
	}
	return o
}

// Same reports whether New(o) would make an Issuer that works as i does, so that a new configuration can keep i: its connections,
// and for [issuer.Loop.SetIssuers] the back-offs of what failed there. The Logger does not count. A CAFile with other content does;
// the other files are read when they are needed. It is false for a nil i, and where New would return an error about a file.
func (i *Issuer) Same(o Options) bool {
	if i == nil {
		return false
	}
	o = o.withDefaults()
	was := i.options
	if (o.EAB == nil) != (was.EAB == nil) || o.EAB != nil && *o.EAB != *was.EAB {
		return false
	}
	o.EAB, o.Logger = was.EAB, was.Logger
	if o != was {
		return false
	}
	_, ca, caErr := loadPool(o.CAFile)
	_, _, rootsErr := loadPool(o.RootsFile)
	return caErr == nil && rootsErr == nil && ca == i.ca
}

// Close drops idle connections. It need not wait for an Obtain under way.
func (i *Issuer) Close() { i.conn.transport.CloseIdleConnections() }

// Obtain takes up the order that the store knows for request.Secret, or places a new one, and returns its certificate; see
// [issuer.Issuer]. A dead order is replaced by a new one, once.
func (i *Issuer) Obtain(ctx context.Context, request issuer.Request) (*secret.Secret, error) {
	if err := i.check(request); err != nil {
		return nil, err
	}
	if request.Profile == "" {
		request.Profile = i.options.Profile
	}
	if request.Progress == nil {
		request.Progress = func(issuer.Step) {}
	}
	if request.Profiled == nil {
		request.Profiled = func(string) {}
	}
	inner, cancel := context.WithTimeout(ctx, i.options.OrderTimeout)
	defer cancel()
	s, err := i.obtain(inner, request)
	if err == nil {
		return s, nil
	}
	if ctx.Err() != nil {
		return nil, fmt.Errorf("issuer %q: %w", i.options.Name, context.Cause(ctx))
	}
	i.conn.forgetDirectory() // it may be why
	if inner.Err() != nil && !isIssuerError(err) {
		e := i.because(causeUnfinished, fmt.Sprintf("the order did not end within %v; it is taken up again", i.options.OrderTimeout))
		e.Err = err
		return nil, e
	}
	return nil, i.classify(ctx, "order", err)
}

func isIssuerError(err error) bool {
	_, ok := errors.AsType[*issuer.Error](err)
	return ok
}

func (i *Issuer) obtain(ctx context.Context, request issuer.Request) (*secret.Secret, error) {
	o, err := i.loadOrder(ctx, request)
	if err != nil {
		return nil, i.classify(ctx, "order", err)
	}
	var state *legoacme.Order
	if o != nil && o.Step == orderRequested {
		if state, err = i.takeUp(ctx, o); err != nil {
			return nil, err
		}
	}
	if o != nil && o.URL != "" {
		i.log.InfoContext(ctx, "order taken up again", "secret", request.Secret, "order", o.URL, "step", o.Step)
		s, err := i.drive(ctx, request, o, state)
		if !errors.Is(err, errOrderDead) {
			return s, err
		}
		i.log.WarnContext(ctx, "the stored order leads nowhere: a new one is placed", "secret", request.Secret, "order", o.URL, "err", err)
	}
	o, placed, err := i.placeOrder(ctx, request)
	if err != nil {
		return nil, err
	}
	return i.drive(ctx, request, o, placed)
}

// roots returns what issued chains are verified to; nil with unchecked roots.
func (i *Issuer) roots() (*x509.CertPool, error) {
	switch {
	case i.options.RootsUnchecked:
		return nil, nil //nolint:nilnil // nil roots are "any" to package secret
	case i.options.RootsFile == "":
		return x509.SystemCertPool()
	}
	pool, _, err := loadPool(i.options.RootsFile)
	return pool, err
}
