package acme

import (
	"context"
	"fmt"
	"strings"
	"sync"

	legoacme "github.com/go-acme/lego/v4/acme"
	"github.com/go-acme/lego/v4/acme/api"
	"golang.org/x/sync/errgroup"

	"github.com/sds-server/sds-server/pkg/issuer"
)

// typeHTTP01 is the challenge that this package answers (RFC 8555, Section 8.3).
const typeHTTP01 = "http-01"

// parallelChallenges is how many authorizations of one order are worked on at once.
const parallelChallenges = 16

// answerChallenges makes the tokens of all pending authorizations available and tells the CA to look, for all at once. They
// stay available until endChallenges: a CA looks several times, from several places.
func (d *driver) answerChallenges(ctx context.Context) error {
	var mu sync.Mutex
	var tokens []string // guarded by mu
	d.cleanUp = func() {
		mu.Lock()
		defer mu.Unlock()
		for _, token := range tokens {
			d.options.Responder.CleanUp(token)
		}
	}
	group, groupCtx := errgroup.WithContext(ctx)
	group.SetLimit(parallelChallenges)
	for _, url := range d.state.Authorizations {
		group.Go(func() error {
			return d.answerChallenge(groupCtx, url, func(host, token, keyAuthorization string) {
				d.options.Responder.Present(host, token, keyAuthorization)
				mu.Lock()
				defer mu.Unlock()
				tokens = append(tokens, token)
			})
		})
	}
	if err := group.Wait(); err != nil {
		return d.refused(ctx, "challenge", err)
	}
	return nil
}

func (d *driver) endChallenges() {
	if d.cleanUp != nil {
		d.cleanUp()
		d.cleanUp = func() {}
	}
}

// answerChallenge presents the token of one authorization and tells the CA; it runs beside others of the same order. An authorization that is not pending needs
// nothing: if it is not valid either, the order will say so.
func (d *driver) answerChallenge(ctx context.Context, url string, present func(host, token, keyAuthorization string)) error {
	authorization, err := d.authorization(ctx, url)
	if err != nil {
		return d.classify(ctx, "authorization", err)
	}
	if authorization.Status != legoacme.StatusPending {
		return nil
	}
	host := authorization.Identifier.Value
	challenge := findHTTP01(authorization)
	if challenge == nil {
		e := d.because(causeNoChallenge, "authorization: the CA offers no http-01 challenge")
		e.Identifier = printable(host)
		return e
	}
	var keyAuthorization string
	err = d.conn.call(ctx, d.key, endpointDirectory, func(core *api.Core) error {
		var err error
		keyAuthorization, err = core.GetKeyAuthorization(challenge.Token)
		return err
	})
	if err != nil {
		return d.classify(ctx, "authorization", err)
	}
	present(host, challenge.Token, keyAuthorization)
	if challenge.Status != legoacme.StatusPending {
		return nil // told before a crash; the CA is looking
	}
	err = d.repeat(ctx, func() error {
		return d.conn.call(ctx, d.key, endpointChallenge, func(core *api.Core) error {
			told, err := core.Challenges.New(challenge.URL)
			return withStatus(told.Status, err)
		})
	})
	if err == nil {
		return nil
	}
	// It may be refused because an earlier try got through and only its answer was lost.
	if again, lookErr := d.authorization(ctx, url); lookErr == nil {
		if c := findHTTP01(again); again.Status != legoacme.StatusPending || c != nil && c.Status != legoacme.StatusPending {
			return nil
		}
	}
	return d.classify(ctx, "challenge", err)
}

func (d *driver) authorization(ctx context.Context, url string) (got legoacme.Authorization, err error) {
	err = d.repeat(ctx, func() error {
		return d.conn.call(ctx, d.key, endpointAuthorization, func(core *api.Core) error {
			var err error
			got, err = core.Authorizations.Get(url)
			return withStatus(got.Status, err)
		})
	})
	return got, err
}

func findHTTP01(a legoacme.Authorization) *legoacme.Challenge {
	for i := range a.Challenges {
		if a.Challenges[i].Type == typeHTTP01 {
			return &a.Challenges[i]
		}
	}
	return nil
}

// reason finds out why an order is invalid: its own error, and the problem of each authorization that failed. It also returns the
// names whose validation failed.
func (d *driver) reason(ctx context.Context) (e *issuer.Error, failed []string) {
	e = &issuer.Error{Issuer: d.options.Name}
	var names, parts []string
	for _, url := range d.state.Authorizations {
		a, err := d.authorization(ctx, url)
		if err != nil {
			continue // the order's own error is left to tell
		}
		if a.Status == legoacme.StatusInvalid {
			failed = append(failed, a.Identifier.Value)
		}
		for _, c := range a.Challenges {
			if c.Error == nil {
				continue
			}
			name := printable(a.Identifier.Value)
			names = append(names, name)
			parts = append(parts, fmt.Sprintf("%s: %s", name, describe(c.Error)))
			if e.Kind == "" || e.Kind == issuer.KindTemporary {
				setCause(e, d.causeOf(c.Error, validation, 0))
			}
		}
	}
	at := validation
	if d.order.Step == orderFinalizing {
		at = endpointFinalize
	}
	switch {
	case d.state.Error != nil && len(d.state.Error.SubProblems) > 0: // it names each of them
		d.fromProblem(e, "order", d.state.Error, at)
	case len(parts) > 0:
		shown := min(len(parts), mostSubproblems)
		e.Identifier = strings.Join(names[:shown], ", ")
		e.Message = bounded("the CA could not validate the name: "+strings.Join(parts[:shown], "; "), len(parts)-shown)
	case d.state.Error != nil:
		d.fromProblem(e, "order", d.state.Error, at)
	default:
		e = d.because(causeUnknownReason, "order: the CA made it invalid and gave no reason")
	}
	return e, failed
}
