package issuer

import (
	"context"
	"errors"
	"time"

	"github.com/sds-server/sds-server/pkg/store"
)

const (
	// askWorkers is how many questions for advice are under way at once at one issuer.
	askWorkers = 4
	// askTimeout bounds one of them.
	askTimeout = time.Minute
	// askAtLeast is the longest time between two questions: Let's Encrypt wants to be asked twice a day.
	askAtLeast = 12 * time.Hour
	// askAfterError is the time until the next question where there was no answer (RFC 9773, Section 4.3.3).
	askAfterError = 6 * time.Hour
	// askSoonest is the shortest time between two questions, unless the life is so short that it would be too long.
	askSoonest = time.Minute
	// askSpread is how far a question is moved at random, as a part of the time to it, so that no crowd stays together.
	askSpread = 0.1
	// lateSpread is over how long renewals are spread that the CA wants at once, because it has revoked what it has issued, say.
	lateSpread = 5 * time.Minute
	// longLate is how long after its window nothing is spread any more: whoever is that late is not one of a crowd.
	longLate = 24 * time.Hour
)

// hasteWaits are the least ages of a version at which advice can make it due before half of its life is over, by State.Hastened: the
// first time at once, for a revocation; a CA that always says so must not be asked for one certificate after the other.
var hasteWaits = []time.Duration{0, time.Hour, 10 * time.Hour, 24 * time.Hour}

// Advice is what the CA suggests for the version that was issued last (ARI, RFC 9773), and when it is asked.
type Advice struct {
	// ID is the version's identifier (Section 4.1); empty if it has none, then the CA is not asked.
	ID string `json:"id,omitempty"`
	// Start and End are the suggested window; zero if there was no answer yet.
	Start time.Time `json:"start,omitzero"`
	End   time.Time `json:"end,omitzero"`
	// At is the instant in it that was drawn at random, once for each window.
	At          time.Time `json:"at,omitzero"`
	Explanation string    `json:"explanation,omitempty"`
	// Asked is when the CA was asked last, Next when it is asked next; zero is at once.
	Asked time.Time `json:"asked,omitzero"`
	Next  time.Time `json:"next,omitzero"`
}

// inside reports whether now is inside of the window.
func (a *Advice) inside(at time.Time) bool {
	return !a.Start.IsZero() && !at.Before(a.Start) && !at.After(a.End)
}

// hastened returns the Hastened of the version that comes now.
func (s *State) hastened(at time.Time) int {
	if s.issued() && !s.Advice.At.IsZero() && !at.Before(s.Advice.At) && s.NotAfter.Sub(at) > s.life()/2 {
		return s.Hastened + 1
	}
	return 0
}

// advised returns the advice after an answer. The instant is drawn again only if the window has changed.
func (s *State) advised(info RenewalInfo, at time.Time, random func() float64) Advice {
	next := s.Advice
	next.Explanation, next.Asked = info.Explanation, at.UTC()
	next.Next = s.nextAsk(at, info.RetryAfter, random).UTC()
	if info.Start.Equal(next.Start) && info.End.Equal(next.End) && !next.At.IsZero() {
		return next
	}
	drawn := s.draw(info, at, random()).UTC()
	if !info.End.After(at) && !next.At.IsZero() {
		drawn = earlier(drawn, next.At) // a CA may move the window of a revoked one along with the clock
	}
	next.Start, next.End, next.At = info.Start.UTC(), info.End.UTC(), drawn
	return next
}

// draw returns an instant in a window that is not over, or soon. random is in [0,1).
func (s *State) draw(info RenewalInfo, at time.Time, random float64) time.Time {
	life := s.life()
	start, end := latest(info.Start, at), info.End
	switch {
	case end.Before(at.Add(-longLate)):
		start, end = at, at
	case !end.After(at):
		start, end = at, at.Add(min(lateSpread, life/100))
	default:
		if end.Sub(info.Start) > life/2 { // no suggestion: half of the life is in it
			start = latest(start, s.NotBefore.Add(life/2))
		}
		if sixth := s.NotAfter.Add(-life / 6); sixth.After(start) { // a part of the life is for what may go wrong
			end = earlier(end, sixth)
		}
	}
	drawn := start
	if end.After(start) {
		drawn = start.Add(time.Duration(random * float64(end.Sub(start))))
	}
	wait := min(hasteWaits[min(s.Hastened, len(hasteWaits)-1)], life/4)
	return latest(drawn, s.LastRenewal.Add(wait))
}

// nextAsk returns when the CA is asked again: when it wants to be, but at least twice a day, and ten times in a life.
func (s *State) nextAsk(at time.Time, retryAfter time.Duration, random func() float64) time.Time {
	longest := max(min(askAtLeast, s.life()/10), time.Second)
	wait := max(retryAfter, min(askSoonest, longest))
	moved := askSpread * random()
	wait = min(time.Duration(float64(wait)*(1+moved)), time.Duration(float64(longest)*(1-moved)))
	return at.Add(wait)
}

// planAsk puts a certificate where the issuer of its version is asked for advice, if that gives any; mu is held.
func (l *Loop) planAsk(e *entry) {
	if e.asks != nil {
		e.asks.remove(e)
		e.asks = nil
	}
	s := &e.state
	n := l.lanes[s.Issuer]
	if n == nil || e.removed || e.asking || s.Advice.ID == "" || !s.Advice.Next.Before(s.NotAfter) {
		return
	}
	if _, advises := n.issuer.(Advisor); !advises {
		return
	}
	e.ask, e.asks = s.Advice.Next, &n.asks
	e.asks.put(e)
}

// serveAsks gives the questions that are due at one issuer to its free workers, and returns when the next one is; zero if a
// question or a probe that ends is what it waits for. mu is held.
func (l *Loop) serveAsks(ctx context.Context, n *lane, at time.Time) (next time.Time) {
	advisor, _ := n.issuer.(Advisor)
	for n.asking < askWorkers && !n.breaker.open() {
		e, ok := n.asks.top()
		if !ok {
			break
		}
		if e.ask.After(at) {
			return e.ask
		}
		n.asks.remove(e)
		e.asks = nil
		// One whose order is under way is asked for as its next version.
		if advisor != nil && !e.running() && at.Before(e.state.NotAfter) {
			l.startAsk(ctx, n, e, advisor)
		}
	}
	return time.Time{}
}

// startAsk asks the CA once; mu is held.
func (l *Loop) startAsk(ctx context.Context, n *lane, e *entry, advisor Advisor) {
	e.asking = true
	n.asking++
	id := e.state.Advice.ID
	l.jobs.Go(func() {
		asked, cancel := context.WithTimeout(ctx, askTimeout)
		info, err := askSafely(asked, advisor, id)
		cancel()
		l.answer(ctx, e, id, info, err)
		l.mu.Lock()
		defer l.mu.Unlock()
		n.asking--
		l.poke()
	})
}

// askSafely asks; a panic of the issuer is an error, and so is a window that is none (RFC 9773, Section 4.2).
func askSafely(ctx context.Context, advisor Advisor, id string) (info RenewalInfo, err error) {
	defer func() {
		if recover() != nil {
			err = errors.New("panic while asking for renewal information")
		}
	}()
	info, err = advisor.RenewalInfo(ctx, id)
	switch {
	case err != nil:
	case info.Start.IsZero() || !info.End.After(info.Start):
		err = errors.New("the suggested window ends before it begins")
	case info.Start.UTC().Year() < 1 || info.End.UTC().Year() > 9999: // RFC 3339 has such times, by their offset, and State could not be stored
		err = errors.New("the suggested window is no time in UTC")
	}
	return info, err
}

// answer stores what the CA said. An order that has begun meanwhile makes it void.
func (l *Loop) answer(ctx context.Context, e *entry, id string, info RenewalInfo, failure error) {
	l.mu.Lock()
	e.asking = false
	if l.entries[e.cert.Name] != e || ctx.Err() != nil || e.running() || !e.loaded || e.state.Advice.ID != id {
		if l.entries[e.cert.Name] == e {
			l.planAsk(e)
		}
		l.mu.Unlock()
		return
	}
	before := e.state.Advice
	e.state.Advice = e.state.answered(info, failure, now(), l.options.Random)
	after := e.state.Advice
	if errors.Is(failure, ErrNoAdvice) { // not worth a write: the next start asks its issuer, not the CA
		l.settle(e)
		l.mu.Unlock()
		return
	}
	e.saving = make(chan struct{})
	key, revision, value := StateKey(e.cert.Name), e.revision, encodeState(&e.state)
	l.mu.Unlock()
	l.tell(ctx, e.cert.Name, before, after, failure)
	stored, err := l.options.Store.Commit(context.WithoutCancel(ctx), []store.Condition{{Key: key, Revision: revision}}, []store.Operation{store.Put(key, value)})
	if err != nil && !errors.Is(err, store.ErrConflict) { // it counts in memory alone: a restart asks again earlier
		l.options.Logger.ErrorContext(ctx, "advice about a certificate not stored", "secret", e.cert.Name, "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	close(e.saving)
	e.saving = nil
	switch {
	case l.entries[e.cert.Name] != e:
	case errors.Is(err, store.ErrConflict): // somebody else's state counts
		l.unplace(e)
		e.loaded, l.behind = false, true
		l.poke()
	default:
		if err == nil {
			e.revision = stored
		}
		l.settle(e)
	}
}

// settle puts a certificate to where it waits after its advice has changed; mu is held. One that is due stays in its queue if it still is.
func (l *Loop) settle(e *entry) {
	if e.waiting != nil && (e.job != nil || e.wish.Force || !e.next().After(now())) {
		l.planAsk(e)
		return
	}
	l.schedule(e)
}

// answered returns the advice after an answer, or a question without one: that is never a reason to renew, or not to.
func (s *State) answered(info RenewalInfo, failure error, at time.Time, random func() float64) Advice {
	if failure == nil {
		return s.advised(info, at, random)
	}
	next := s.Advice
	next.Asked, next.Next = at.UTC(), s.nextAsk(at, askAfterError, random).UTC()
	return next
}

// tell logs what an operator would act on.
func (l *Loop) tell(ctx context.Context, name string, before, after Advice, failure error) {
	log := l.options.Logger.With("secret", name)
	switch {
	case failure != nil:
		log.InfoContext(ctx, "renewal information not available", "err", failure, "next_ask", after.Next)
	case !before.Start.IsZero() && (!before.Start.Equal(after.Start) || !before.End.Equal(after.End)):
		log.InfoContext(ctx, "the CA has moved the renewal window", "start", after.Start, "end", after.End, "renewal", after.At, "explanation", after.Explanation)
	}
}
