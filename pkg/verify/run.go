package verify

import (
	"context"
	"sync"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
)

const (
	firstRetry = 100 * time.Millisecond // doubling
	lastRetry  = time.Second
)

// Source says what is wanted where. All methods are safe for concurrent use and answer from memory, but Known, which may ask the store.
type Source interface {
	// Groups returns the groups that are to be proven. A group that is not configured for it is absent.
	Groups(ctx context.Context) []Group
	// Current returns what a group is at for a secret now; false where it has none.
	Current(group, secretName string) (Leaf, bool)
	// Known returns the version of a secret that has a leaf, whatever became of it; false for none.
	Known(ctx context.Context, secretName, sha256 string) (secret.Version, bool)
}

// runner makes the handshakes of some checks.
type runner struct {
	source Source
	slots  chan struct{} // one for each handshake under way
}

// run makes the checks, each target by itself, and calls each with every result, one at a time. It returns when all are done or ctx has ended.
func (r *runner) run(ctx context.Context, checks []Check, each func(Result)) {
	targets := map[string][]Check{}
	for _, c := range checks {
		targets[c.Address] = append(targets[c.Address], c)
	}
	results := make(chan Result)
	var workers sync.WaitGroup
	for _, of := range targets {
		workers.Go(func() {
			r.target(ctx, of, func(one Result) {
				select {
				case results <- one:
				case <-ctx.Done():
				}
			})
		})
	}
	go func() {
		workers.Wait()
		close(results)
	}()
	for one := range results {
		each(one)
	}
}

// target makes the checks at one address, one after the other. What shows an older certificate is looked at again until the time-out: an Envoy takes a
// moment, and everything else fails at once. A target that does not answer is not asked again: it would cost a time-out for each name.
func (r *runner) target(ctx context.Context, checks []Check, each func(Result)) {
	begin, pause := time.Now(), firstRetry
	attempts := make([]int, len(checks))
	pending := make([]int, len(checks))
	for i := range pending {
		pending[i] = i
	}
	answered := false
	var dead error // why nothing answers there
	for {
		var again []int
		for _, i := range pending {
			if dead != nil {
				each(Result{Check: checks[i], At: time.Now().UTC(), Failure: checks[i].unseen(dead)})
				continue
			}
			attempts[i]++
			result, ok := r.check(ctx, checks[i])
			if !ok {
				return
			}
			result.Attempts = attempts[i]
			switch f := result.Failure; {
			case f != nil && (f.Kind == OldLeaf || f.Kind == OtherLeaf) && time.Since(begin)+pause < checks[i].Timeout:
				answered = true
				again = append(again, i)
				continue
			case f != nil && (f.Kind == Refused || f.Kind == Timeout):
				if !answered {
					dead = result.err
				}
			default:
				answered = true
			}
			each(result)
		}
		if len(again) == 0 {
			return
		}
		pending = again
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		pause = min(2*pause, lastRetry)
	}
}

// check makes one handshake for what is wanted now; false where ctx has ended.
func (r *runner) check(ctx context.Context, c Check) (Result, bool) {
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return Result{}, false
	}
	c.Wanted = r.refreshed(c)
	s, err := func() (*seen, error) {
		defer func() { <-r.slots }()
		bounded, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		return shake(bounded, &c)
	}()
	if ctx.Err() != nil {
		return Result{}, false
	}
	return judge(c, s, err, time.Now(), func(secretName, sha256 string) (secret.Version, bool) {
		return r.source.Known(ctx, secretName, sha256)
	}), true
}

// refreshed is what is wanted now: a group may have moved since the plan was made. The key type of a new version may be another one; that is for the
// next plan.
func (r *runner) refreshed(c Check) []Leaf {
	wanted := make([]Leaf, 0, len(c.Wanted))
	for _, w := range c.Wanted {
		if now, ok := r.source.Current(c.Group, w.Secret); ok && now.rsa() == w.rsa() {
			now.Roots = w.Roots
			w = now
		}
		wanted = append(wanted, w)
	}
	return wanted
}
