package app

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/sds-server/sds-server/internal/audit"
	"github.com/sds-server/sds-server/internal/config"
	"github.com/sds-server/sds-server/pkg/issuer"
	"github.com/sds-server/sds-server/pkg/rollout"
	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// The bounds of new orders after a hard hold (DESIGN 4, 11).
const (
	reissuePause = 24 * time.Hour
	reissueSpan  = 7 * 24 * time.Hour
	reissueMost  = 2 // in the span
	// reissueSettle is how old a hold is at least: other nodes may be about to refuse the version, too.
	reissueSettle = 3 * time.Second
	reissueLook   = time.Minute
)

const eventReissue = "certificate_reissue"

// reissuer orders a certificate again whose newest version is held hard: otherwise the next order would come when that version, which nobody serves,
// is due.
type reissuer struct {
	server *server
	wake   chan struct{} // capacity 1
	told   map[reissueKey]bool
	orders sync.WaitGroup // what runs for those in ordered

	mu sync.Mutex
	// ordered is guarded by mu: the secrets whose order has not ended.
	ordered map[string]bool
}

type reissueKey struct {
	secret  string
	version secret.Version
}

func newReissuer(s *server) *reissuer {
	return &reissuer{server: s, wake: make(chan struct{}, 1), told: map[reissueKey]bool{}, ordered: map[string]bool{}}
}

// held is called when a version is held; it never blocks.
func (r *reissuer) held() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// run looks at the holds until ctx ends.
func (r *reissuer) run(ctx context.Context) error {
	defer r.orders.Wait()
	next := time.NewTimer(reissueSettle)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.wake:
			next.Reset(reissueSettle)
		case <-next.C:
			r.look(ctx)
			next.Reset(reissueLook)
		}
	}
}

func (r *reissuer) look(ctx context.Context) {
	for _, h := range r.server.rollout.Holds() {
		if h.Kind != rollout.Hard || !issued(r.server.config.Load(), h.Secret) || time.Since(h.Since) < reissueSettle {
			continue
		}
		if err := r.consider(ctx, h); err != nil && ctx.Err() == nil {
			r.failed(ctx, h.Secret, err)
		}
	}
}

func (r *reissuer) failed(ctx context.Context, name string, err error) {
	r.server.log.ErrorContext(ctx, "order again after a hold", "secret", name, "err", err)
}

func issued(cfg *config.Config, name string) bool {
	return slices.ContainsFunc(cfg.Certificates, func(c config.Certificate) bool { return c.Name == name })
}

// consider orders a certificate again, if that may help and is allowed. It does not wait for the order: a CA that hangs must not keep the others
// waiting.
func (r *reissuer) consider(ctx context.Context, h rollout.Hold) error {
	versions, err := r.server.cache.Versions(ctx, h.Secret)
	if err != nil {
		return err
	}
	if len(versions) == 0 || versions[0].Version != h.Version {
		return nil // there is a newer one
	}
	key := reissueKey{h.Secret, h.Version}
	if who := r.server.edge.Refusers(h.Secret, h.Version); !h.Handshake && len(who) < 2 {
		if !r.told[key] {
			r.told[key] = true
			r.server.log.WarnContext(ctx, "held because one identity alone has refused it: not ordered again", "secret", h.Secret, "version", h.Version.Short(),
				"identities", who, "hint", "is it the node's fault? Then `secrets release`, else `renew --force`")
		}
		return nil
	}
	if !r.begin(h.Secret) {
		return nil
	}
	allowed, err := r.spend(ctx, h.Secret)
	if err != nil || !allowed {
		r.end(h.Secret)
		return err
	}
	r.server.log.WarnContext(ctx, "ordered again after a hold", "secret", h.Secret, "version", h.Version.Short(), "reason", h.Reason)
	r.server.audit.Add(audit.Entry{Event: eventReissue, Secret: h.Secret, Version: string(h.Version), Detail: "ordered again after a hold: " + h.Reason})
	r.orders.Go(func() {
		defer r.end(h.Secret)
		if err := r.order(ctx, h.Secret); err != nil && ctx.Err() == nil {
			r.failed(ctx, h.Secret, err)
		}
	})
	return nil
}

// begin reports whether no order of a secret has begun that has not ended.
func (r *reissuer) begin(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ordered[name] {
		return false
	}
	r.ordered[name] = true
	return true
}

func (r *reissuer) end(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.ordered, name)
}

// order places an order that was noted, and waits for its end. One that has to wait for the budget is noted only when it was placed: a restart
// forgets it, and then it has to be asked for again.
func (r *reissuer) order(ctx context.Context, name string) error {
	_, err := r.server.issuance.Renew(ctx, name, issuer.Renewal{Force: true})
	e, failed := errors.AsType[*issuer.Error](err)
	if failed && e.Kind == issuer.KindBudget {
		if err := r.giveBack(ctx, name); err != nil {
			return err
		}
		_, err = r.server.issuance.Renew(ctx, name, issuer.Renewal{Force: true, Wait: true})
		if _, failed = errors.AsType[*issuer.Error](err); failed || err == nil {
			if _, err := r.spend(ctx, name); err != nil {
				return err
			}
		}
	}
	if failed {
		return nil // the loop has said so, and tries again
	}
	return err
}

// spend notes an order before it is placed; false where there were too many.
func (r *reissuer) spend(ctx context.Context, name string) (bool, error) {
	before, err := r.noted(ctx, name)
	if err != nil {
		return false, err
	}
	now := time.Now().UTC()
	before = slices.DeleteFunc(before, func(at time.Time) bool { return now.Sub(at) >= reissueSpan })
	if len(before) >= reissueMost || len(before) > 0 && now.Sub(before[len(before)-1]) < reissuePause {
		return false, nil
	}
	err = r.note(ctx, name, append(before, now))
	return err == nil, err
}

// giveBack takes away what spend has noted last.
func (r *reissuer) giveBack(ctx context.Context, name string) error {
	before, err := r.noted(ctx, name)
	if err != nil || len(before) == 0 {
		return err
	}
	return r.note(ctx, name, before[:len(before)-1])
}

// noted lists when a secret was ordered again, the oldest first.
func (r *reissuer) noted(ctx context.Context, name string) ([]time.Time, error) {
	key := store.Key("reissue", name)
	e, err := r.server.store.Get(ctx, key)
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var before []time.Time
	if err := json.Unmarshal(e.Value, &before); err != nil {
		return nil, fmt.Errorf("stored value at %s: %w", key, err)
	}
	return before, nil
}

func (r *reissuer) note(ctx context.Context, name string, times []time.Time) error {
	key := store.Key("reissue", name)
	value, err := json.Marshal(times)
	if err != nil {
		return fmt.Errorf("encode %s: %w", key, err)
	}
	_, err = r.server.store.Commit(ctx, nil, []store.Operation{store.Put(key, value)})
	return err
}
