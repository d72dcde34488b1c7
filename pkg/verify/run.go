package verify

import (
	"context"
	"slices"
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
	// Groups returns the groups that are to be proven, only those with the names where there are any. A group that is not configured for it is
	// absent.
	Groups(ctx context.Context, names ...string) []Group
	// Current returns what a group is at for a secret now; false where it has none.
	Current(group, secretName string) (Leaf, bool)
	// Known returns the version of a secret that has a leaf, whatever became of it; false for none.
	Known(ctx context.Context, secretName, sha256 string) (secret.Version, bool)
}

// slots bound the handshakes under way: each takes one of every channel.
type slots []chan struct{}

// take returns false where ctx ended before.
func (s slots) take(ctx context.Context) bool {
	for i := range s {
		select {
		case s[i] <- struct{}{}:
		case <-ctx.Done():
			s[:i].free()
			return false
		}
	}
	return true
}

func (s slots) free() {
	for _, c := range s {
		<-c
	}
}

// runner makes the handshakes of some checks.
type runner struct {
	source Source
	slots  slots
	// want is what a round is about: it stays what is to be seen, and what does not answer is asked again until the time-out, as an Envoy may just be
	// starting. nil: what the group is at while it is looked at.
	want map[string]secret.Version
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
			one := series{runner: r, checks: slices.Clone(of), attempts: make([]int, len(of)), since: make([]time.Time, len(of)), pause: firstRetry}
			take, end := withoutOtherVersions(func(one Result) {
				select {
				case results <- one:
				case <-ctx.Done():
				}
			})
			one.run(ctx, take)
			end()
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

// withoutOtherVersions leaves out that a listener does not speak a version of TLS, where a client of another version was shown a leaf under the same name:
// then it is configured so, and everything is proven that its clients can see.
func withoutOtherVersions(each func(Result)) (take func(Result), end func()) {
	shown := map[string]bool{}
	var unspoken []Result
	take = func(r Result) {
		if r.Failure != nil && r.Failure.Kind == Protocol {
			unspoken = append(unspoken, r)
			return
		}
		shown[r.ServerName] = shown[r.ServerName] || r.Shown != nil
		each(r)
	}
	end = func() {
		for _, r := range unspoken {
			if !shown[r.ServerName] {
				each(r)
			}
		}
	}
	return take, end
}

// series is the checks at one address, made one after the other. What shows an older certificate is looked at again until the time-out: an Envoy takes
// a moment, and everything else fails at once, but in a round (see runner.want). A target that does not answer is not asked by every check: it would cost
// a time-out for each name.
type series struct {
	*runner
	checks   []Check
	attempts []int
	since    []time.Time // when each was looked at first for what is wanted now; zero: not yet
	pause    time.Duration
	answered bool
	dead     error // why nothing answers there
}

func (s *series) run(ctx context.Context, each func(Result)) {
	pending := make([]int, len(s.checks))
	for i := range pending {
		pending[i] = i
	}
	for {
		begin := time.Now()
		again, ok := s.pass(ctx, pending, each)
		if !ok || len(again) == 0 {
			return
		}
		pending = again
		s.pause = max(s.pause, time.Since(begin)) // where that is much work, at most half of the time
		timer := time.NewTimer(min(s.pause, time.Until(s.since[pending[0]].Add(s.checks[pending[0]].Timeout))))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		}
		s.pause = min(2*s.pause, lastRetry)
		if s.want != nil {
			s.dead = nil
		}
	}
}

// pass makes each pending check once and returns those that are to be made again; false where ctx has ended.
func (s *series) pass(ctx context.Context, pending []int, each func(Result)) (again []int, ok bool) {
	for _, i := range pending {
		if s.dead != nil {
			if s.want != nil && s.inTime(pending[0]) {
				again = append(again, i)
				continue
			}
			each(Result{Check: s.checks[i], At: time.Now().UTC(), Failure: s.checks[i].unseen(s.dead)})
			continue
		}
		result, ok := s.check(ctx, s.checks[i])
		if !ok {
			return nil, false
		}
		s.attempts[i]++
		result.Attempts = s.attempts[i]
		if s.since[i].IsZero() || s.want == nil && !sameWant(result.Wanted, s.checks[i].Wanted) { // the group has moved: the time-out begins anew
			s.since[i] = result.began
		}
		s.checks[i].Wanted = result.Wanted
		f := result.Failure
		if f != nil && s.repeats(f.Kind) && (s.inTime(i) || s.moved(&result)) {
			again = append(again, i)
		} else {
			each(result)
		}
		switch silent := f != nil && (f.Kind == Refused || f.Kind == Timeout); {
		case !silent:
			s.answered = true
		case !s.answered || s.want != nil:
			s.dead = result.err
		}
	}
	return again, true
}

// repeats reports whether what failed so may be right a moment later.
func (s *series) repeats(k Kind) bool {
	if k == OldLeaf || k == OtherLeaf {
		return true
	}
	return s.want != nil && !k.Mismatch()
}

// inTime reports whether a check may be made again: the last time is when its time-out has passed.
func (s *series) inTime(i int) bool {
	return time.Since(s.since[i]) < s.checks[i].Timeout
}

// moved reports whether the group is at something else by now than a result was judged by.
func (s *series) moved(r *Result) bool {
	return s.want == nil && !sameWant(s.refreshed(r.Check), r.Wanted)
}

// sameWant compares the versions of leaves of the same secrets.
func sameWant(a, b []Leaf) bool {
	return slices.EqualFunc(a, b, func(x, y Leaf) bool { return x.Version == y.Version })
}

// check makes one handshake for what is wanted now; false where ctx has ended.
func (r *runner) check(ctx context.Context, c Check) (Result, bool) {
	if !r.slots.take(ctx) {
		return Result{}, false
	}
	began := time.Now()
	c.Wanted = r.refreshed(c)
	s, err := func() (*seen, error) {
		defer r.slots.free()
		bounded, cancel := context.WithTimeout(ctx, c.Timeout)
		defer cancel()
		return shake(bounded, &c)
	}()
	if ctx.Err() != nil {
		return Result{}, false
	}
	result := judge(c, s, err, time.Now(), func(secretName, sha256 string) (secret.Version, bool) {
		return r.source.Known(ctx, secretName, sha256)
	})
	result.began = began
	return result, true
}

// refreshed is what is wanted now: a group may have moved since the plan was made. The key type of a new version may be another one; that is for the
// next plan. What a round is about stays.
func (r *runner) refreshed(c Check) []Leaf {
	wanted := make([]Leaf, 0, len(c.Wanted))
	for _, w := range c.Wanted {
		_, fixed := r.want[w.Secret]
		if now, ok := r.source.Current(c.Group, w.Secret); ok && !fixed && now.rsa() == w.rsa() {
			now.Roots = w.Roots
			w = now
		}
		wanted = append(wanted, w)
	}
	return wanted
}
