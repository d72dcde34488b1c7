package acme

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"

	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	// firstPoll is the wait before the first look at an order; the others double from nextPoll to slowestPoll, unless the CA
	// asks for another time.
	firstPoll   = 5 * time.Millisecond
	nextPoll    = 20 * time.Millisecond
	slowestPoll = time.Second
	// longestPoll is the most that a Retry-After can put off the next look at an order.
	longestPoll = 10 * time.Second
	// patience is the longest Retry-After that is waited for inside of an order; for a longer one the order rests.
	patience = 5 * time.Second
	// repeatFor bounds the repetitions of one idempotent request.
	repeatFor = time.Minute
	// confirmAfter is the wait before a CA is asked again whether it really does not know an order that may have a certificate.
	confirmAfter = time.Second
	// finalizeTries bounds how often finalize is sent for an order that stays ready.
	finalizeTries = 5
)

// driver carries one order from where the CA says it stands to the certificate.
type driver struct {
	*Issuer
	request issuer.Request
	order   *order
	key     accountKey

	state     *legoacme.Order
	wait      time.Duration // before the next look at the order
	cleanUp   func()        // ends the challenges; nil until they were answered
	finalizes int
}

// drive returns the certificate of an order. state is what the CA has just said of it, or nil. An order that is dead is deleted
// from the store, and the error is errOrderDead; after every other error it is still there.
func (i *Issuer) drive(ctx context.Context, request issuer.Request, o *order, state *legoacme.Order) (*secret.Secret, error) {
	key, err := i.ensureAccount(ctx, "")
	if err != nil {
		return nil, err
	}
	d := &driver{Issuer: i, request: request, order: o, key: key, state: state, wait: firstPoll}
	if key.kid != o.Account {
		return nil, d.dead(ctx, d.because(causeOther, "order: it belongs to an account that is not used any more"))
	}
	defer d.endChallenges()
	for {
		if d.state == nil {
			if err := d.look(ctx); err != nil {
				return nil, err
			}
		}
		if d.state.Status == legoacme.StatusValid {
			d.request.Profiled(o.Profile)
			return d.download(ctx)
		}
		if err := d.step(ctx); err != nil {
			return nil, err
		}
	}
}

// step does what the order's status asks for. Afterwards state is new, or nil.
func (d *driver) step(ctx context.Context) error {
	switch d.state.Status {
	case legoacme.StatusPending, legoacme.StatusInvalid: // why it is invalid must not be that nobody answers any more
	default:
		d.endChallenges()
	}
	switch d.state.Status {
	case legoacme.StatusPending:
		if d.cleanUp == nil {
			d.request.Progress(issuer.StepChallenges)
			if err := d.answerChallenges(ctx); err != nil {
				return err
			}
		}
	case legoacme.StatusReady:
		d.request.Progress(issuer.StepFinalizing)
		return d.finalize(ctx)
	case legoacme.StatusProcessing:
	case legoacme.StatusInvalid:
		e, failed := d.reason(ctx)
		d.countFailures(ctx, failed)
		return d.dead(ctx, e)
	default:
		return d.refuse(ctx, d.because(causeOther, fmt.Sprintf("order: its status is %q", printable(d.state.Status))))
	}
	d.state = nil
	return sleep(ctx, d.wait)
}

// look asks for the order, and sets when to ask again. The order is asked, not its authorizations: one request tells of all of
// them, and Pebble v2.10.1 deadlocks when authorizations are read while orders are placed.
func (d *driver) look(ctx context.Context) error {
	got, retryAfter, err := d.ask(ctx)
	if f, ok := errors.AsType[*failure](err); ok && d.order.Step == orderFinalizing && f.unknownOrder() {
		// One server of a CA may lag behind the others, and this answer would cost a certificate.
		if err := sleep(ctx, confirmAfter); err != nil {
			return err
		}
		got, retryAfter, err = d.ask(ctx)
	}
	if err != nil {
		return d.refused(ctx, "order", err)
	}
	d.state = &got.Order
	switch {
	case retryAfter > 0:
		d.wait = min(retryAfter, longestPoll)
	default:
		d.wait = min(max(2*d.wait, nextPoll), slowestPoll)
	}
	return nil
}

func (d *driver) ask(ctx context.Context) (got legoacme.ExtendedOrder, retryAfter time.Duration, err error) {
	err = d.repeat(ctx, func() error {
		var err error
		retryAfter, err = d.conn.ask(ctx, d.key, endpointOrder, func(core *api.Core) error {
			var err error
			got, err = core.Orders.Get(d.order.URL)
			return withStatus(got.Status, err)
		})
		return err
	})
	return got, retryAfter, err
}

// withStatus returns err, or that what came is no order, authorization or challenge: those have a status, and else any JSON object of
// something in between could be taken for one.
func withStatus(status string, err error) error {
	if err == nil && status == "" {
		return errUnreadable
	}
	return err
}

// finalize sends the request of a ready order (RFC 8555, Section 7.4). When that fails in whatever way, the order says what has
// become of it: an answer that got lost is no reason to send it again.
func (d *driver) finalize(ctx context.Context) error {
	if d.order.Step != orderFinalizing {
		d.order.Step = orderFinalizing
		if err := d.saveOrder(ctx, d.order); err != nil {
			return d.classify(ctx, "order", err)
		}
	}
	d.wait = firstPoll
	d.finalizes++
	var got legoacme.ExtendedOrder
	retryAfter, err := d.conn.ask(ctx, d.key, endpointFinalize, func(core *api.Core) error {
		var err error
		got, err = core.Orders.UpdateForCSR(d.state.Finalize, d.order.CSR)
		return withStatus(got.Status, err)
	})
	if err != nil {
		if d.order.Counted != nil {
			d.limited(ctx, d.order.use(issuer.UseCertificate, *d.order.Counted), err)
		}
		return d.afterFinalize(ctx, d.classify(ctx, "finalize", err))
	}
	if retryAfter > 0 {
		d.wait = min(retryAfter, longestPoll)
	}
	if got.Status == legoacme.StatusReady {
		return d.afterFinalize(ctx, d.because(causeUnfinished, "finalize: the order stays ready"))
	}
	d.state = &got.Order
	return nil
}

// afterFinalize looks at the order whose finalize gave err. It returns nil to go on from there. An order that is still ready
// after the CA has refused its request has no certificate, and will get none.
func (d *driver) afterFinalize(ctx context.Context, err error) error {
	e, ok := errors.AsType[*issuer.Error](err)
	if !ok || ctx.Err() != nil || e.Kind == issuer.KindRateLimited {
		return err
	}
	if lookErr := d.look(ctx); lookErr != nil {
		if ctx.Err() != nil {
			return err // it says more than the end of the time
		}
		return lookErr
	}
	if d.state.Status != legoacme.StatusReady {
		return nil
	}
	if refusedRequest(e) {
		return d.dead(ctx, e)
	}
	if e.Kind == issuer.KindRejected || d.finalizes >= finalizeTries || e.RetryAfter > patience {
		return err
	}
	if sleep(ctx, max(e.RetryAfter, repeatWait(d.finalizes))) != nil {
		return err
	}
	return nil
}

// download fetches the chain and judges it. A chain that is refused ends the order: the CA would send it again. What is no chain at
// all does not come from the CA, and the certificate waits there.
func (d *driver) download(ctx context.Context) (*secret.Secret, error) {
	d.request.Progress(issuer.StepDownloading)
	if d.state.Certificate == "" {
		return nil, d.refuse(ctx, d.because(causeOther, "order: it is valid and has no certificate"))
	}
	chain, err := d.fetch(ctx)
	if f, ok := errors.AsType[*failure](err); ok && f.status == http.StatusNotFound && f.endpoint == endpointCertificate {
		// Some CAs say that an order is valid a moment before every one of their servers has the certificate.
		if err := sleep(ctx, repeatWait(1)); err != nil {
			return nil, err
		}
		chain, err = d.fetch(ctx)
	}
	if err != nil {
		return nil, d.refused(ctx, "download the certificate", err)
	}
	if block, _ := pem.Decode(chain); block == nil {
		return nil, d.because(causeNotACME, fmt.Sprintf("download the certificate: the answer of %d bytes holds none", len(chain)))
	}
	s, err := d.judge(chain)
	if rules := secret.Rules(err); len(rules) > 0 {
		return nil, d.dead(ctx, d.badChain(err, rules))
	}
	if err != nil {
		return nil, d.internal("certificate", err)
	}
	return s, nil
}

func (d *driver) fetch(ctx context.Context) (chain []byte, err error) {
	err = d.repeat(ctx, func() error {
		return d.conn.call(ctx, d.key, endpointCertificate, func(core *api.Core) error {
			var err error
			chain, _, err = core.Certificates.Get(d.state.Certificate, true)
			return err
		})
	})
	return chain, err
}

// judge applies every rule to a chain of the CA. Errors without a rule are our own.
func (d *driver) judge(chain []byte) (*secret.Secret, error) {
	key, err := decodeKey(d.order.Key)
	if err != nil {
		return nil, err
	}
	roots, err := d.roots()
	if err != nil {
		return nil, fmt.Errorf("roots: %w", err)
	}
	s, err := secret.ParseCertificate(d.order.Secret, chain, []byte(d.order.Key))
	if err != nil {
		return nil, err
	}
	return s, s.Validate(time.Now(), secret.Expectation{
		DNSNames: d.request.DNSNames, IPAddresses: d.request.IPAddresses, Roots: roots,
		KeyType: d.request.KeyType, PublicKey: key.Public(),
	})
}

// badChain is the refusal of what the CA issued.
func (d *driver) badChain(err error, rules []secret.Rule) *issuer.Error {
	why := causeChain
	switch {
	case slices.Contains(rules, secret.RuleNotYetValid), slices.Contains(rules, secret.RuleExpired):
		why = causeClock // a chain reaches no root at a wrong time, either
	case slices.Contains(rules, secret.RuleUntrusted):
		why = causeRoot
	}
	e := d.because(why, fmt.Sprintf("the CA's certificate was refused %v: %s", rules, printable(err.Error())))
	e.Err = err
	if why == causeClock {
		e.Hint += d.conn.clock()
	}
	return e
}

// repeat calls an idempotent request again while there is no answer, or one of a CA in trouble.
func (d *driver) repeat(ctx context.Context, do func() error) error {
	began := time.Now()
	var last error
	for try := 1; ; try++ {
		err := do()
		if err != nil && ctx.Err() != nil && last != nil {
			return last // it says more than the end of the time
		}
		if err == nil || ctx.Err() != nil || time.Since(began) > repeatFor {
			return err
		}
		last = err
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.temporary() || f.retryAfter > patience {
			return err
		}
		if sleep(ctx, max(f.retryAfter, repeatWait(try))) != nil {
			return err // it says more than the end of the wait
		}
	}
}

// repeatWait doubles from 0.1 s to 5 s.
func repeatWait(try int) time.Duration {
	return min(100*time.Millisecond<<min(try-1, 10), 5*time.Second)
}

// temporary reports whether the same request may succeed in a moment; see kindOf and fromStatus.
func (f *failure) temporary() bool {
	if p := f.problem(); p != nil {
		return trouble(p) && !limit(p)
	}
	if _, untrusted := errors.AsType[x509.UnknownAuthorityError](f.err); untrusted {
		return false
	}
	return f.status != http.StatusTooManyRequests
}
