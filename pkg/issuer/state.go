package issuer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// State is what the loop knows about a certificate, as JSON at StateKey. It is written in the commit that stores a new version,
// and after each failure, so that a restart neither orders again nor forgets a back-off.
type State struct {
	// NotBefore and NotAfter are those of the version that was issued last; zero if there was none.
	NotBefore time.Time `json:"not_before,omitzero"`
	NotAfter  time.Time `json:"not_after,omitzero"`
	// Serial is that version's, so that two commits differ.
	Serial string `json:"serial,omitempty"`
	// Issuer is where that version comes from.
	Issuer string `json:"issuer,omitempty"`
	// Wanted is the digest of the configuration that it fulfils; see wanted.
	Wanted string `json:"wanted,omitempty"`
	// LastRenewal is when it was issued, NextRenewal when it is due: drawn once, so that no restart moves it.
	LastRenewal time.Time `json:"last_renewal,omitzero"`
	NextRenewal time.Time `json:"next_renewal,omitzero"`
	// RenewBefore is what NextRenewal was drawn with.
	RenewBefore RenewBefore `json:"renew_before,omitzero"`
	// Advice is what the CA suggests for that version.
	Advice Advice `json:"advice,omitzero"`
	// Hastened counts the versions in a row that were issued because the CA suggested to replace the one before early; see Advice.
	Hastened int `json:"hastened,omitempty"`
	// Failure is nil unless the last try failed.
	Failure *Failure `json:"failure,omitempty"`
}

// Failure is the last try, and what follows from it.
type Failure struct {
	Kind    Kind      `json:"kind"`
	Message string    `json:"message"`
	Hint    string    `json:"hint,omitempty"`
	At      time.Time `json:"at"`
	// Attempts counts the failures in a row.
	Attempts int `json:"attempts"`
	// NotBeforeTry is when the next try may begin.
	NotBeforeTry time.Time `json:"not_before_try"`
	// Tried is the digest of the configuration that failed: a changed one is tried at once.
	Tried string `json:"tried"`
}

// issued reports whether there is a version.
func (s *State) issued() bool { return !s.NotAfter.IsZero() }

// due returns when the certificate is to be ordered: at its renewal, or at once when it fits the configuration no more, and not
// before the back-off of a failure with the same configuration. want is the digest of c.
func (s *State) due(c *Certificate, want string) time.Time {
	if retry := s.retry(want); !retry.IsZero() { // also of a forced renewal: what was asked for is tried until it is there
		return retry
	}
	if !s.issued() || s.Wanted != want {
		return time.Time{}
	}
	return s.renewal(c)
}

// renewal returns when a version that fits the configuration is renewed: when the CA suggests, otherwise at the instant that was
// drawn by the rule of NextRenewal; earlier where renew_before says so, and at the latest when the last part of its life begins.
func (s *State) renewal(c *Certificate) time.Time {
	at := s.NextRenewal
	drawn := NextRenewal(s.NotBefore, s.NotBefore, s.NotAfter, s.RenewBefore, zero).Sub(at) // how much earlier, at random
	drawn = min(max(drawn, 0), time.Duration(spread*float64(s.life())))
	if c.RenewBefore != s.RenewBefore { // changed since the instant was drawn
		at = earlier(at, NextRenewal(s.NotBefore, s.NotBefore, s.NotAfter, c.RenewBefore, zero))
	}
	if suggested := s.Advice.At; !suggested.IsZero() {
		at = suggested
		if left := c.RenewBefore.left(s.life()); left > 0 {
			left = min(left, time.Duration(mostLeft*float64(s.life())))
			at = earlier(at, latest(s.NotAfter.Add(-left-drawn), s.LastRenewal))
		}
	}
	return earlier(at, latest(s.line(), s.LastRenewal))
}

// zero is the random number that gives the latest renewal.
func zero() float64 { return 0 }

// retry returns when the back-off of the last failure ends; zero if there is none.
func (s *State) retry(want string) time.Time {
	if s.Failure == nil || s.Failure.Tried != want {
		return time.Time{}
	}
	return s.Failure.NotBeforeTry
}

// renewed returns the state after a new version. A version that would be due at once (a CA may date it far back, or have issued
// it long before it was fetched) counts its life from now, because renewing it again would not help.
func (t *task) renewed(s *secret.Secret, at time.Time) State {
	random := t.loop.options.Random
	next := NextRenewal(at, s.NotBefore(), s.NotAfter(), t.cert.RenewBefore, random)
	if !next.After(at) {
		next = NextRenewal(at, at, s.NotAfter(), t.cert.RenewBefore, random)
	}
	return State{
		NotBefore: s.NotBefore(), NotAfter: s.NotAfter(), Serial: s.Serial(), Issuer: t.name, Wanted: t.want,
		LastRenewal: at.UTC(), NextRenewal: next.UTC(), RenewBefore: t.cert.RenewBefore,
		Advice: Advice{ID: s.RenewalInfoID()}, Hastened: t.state.hastened(at),
	}
}

// failed returns the state after a failure.
func (s *State) failed(want string, err *Error, at time.Time, random func() float64) State {
	next := *s
	attempts := 1
	if s.Failure != nil && s.Failure.Tried == want {
		attempts += s.Failure.Attempts
	}
	next.Failure = &Failure{
		Kind: err.Kind, Message: err.Error(), Hint: err.Hint, At: at.UTC(), Attempts: attempts, Tried: want,
		NotBeforeTry: at.Add(Backoff(attempts, at, s.NotBefore, s.NotAfter, err, random)).UTC(),
	}
	return next
}

// wanted is a digest of what a version must fulfil. Profile and renewal time are not in it: they count from the next renewal.
func wanted(c *Certificate) string {
	text, err := json.Marshal(struct {
		DNSNames    []string
		IPAddresses []string
		Issuer      string
		KeyType     string
	}{sorted(c.DNSNames), addresses(c), c.Issuer, c.KeyType})
	if err != nil {
		panic(err) // strings can always be encoded
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}

func sorted(names []string) []string {
	names = slices.Clone(names)
	slices.Sort(names)
	return slices.Compact(names)
}

func addresses(c *Certificate) []string {
	out := make([]string, 0, len(c.IPAddresses))
	for _, a := range c.IPAddresses {
		out = append(out, a.String())
	}
	return sorted(out)
}

func encodeState(s *State) []byte {
	value, err := json.Marshal(s)
	if err != nil {
		panic(err) // times, strings and numbers can always be encoded: the years are those of certificates
	}
	return value
}

func decodeState(e store.Entry) (State, error) {
	var s State
	if err := json.Unmarshal(e.Value, &s); err != nil {
		return State{}, fmt.Errorf("%s: %w", e.Key, err)
	}
	return s, nil
}
