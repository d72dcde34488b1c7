package source

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sds-server/sds-server/pkg/secret"
	"github.com/sds-server/sds-server/pkg/store"
)

// ringPrefix is where the rings stand in the store.
const ringPrefix = "ring"

// phase is what the nodes do with the newest key of a ring.
type phase string

const (
	// serving: the newest key is first, and encrypts.
	serving phase = "serving"
	// learning: the newest key is second: every node shall know it before one encrypts with it.
	learning phase = "learning"
)

// ring is the stored state of a ring. The secret that is made of its keys is stored by the same commit.
type ring struct {
	Name     string    `json:"name"`
	Phase    phase     `json:"phase"`
	Keys     [][]byte  `json:"keys"`     // as they are served
	Since    time.Time `json:"since"`    // when the phase began
	Switched time.Time `json:"switched"` // when the key that is first was put first

	revision int64 // of the stored value; 0: none
}

// next returns the next state of a ring and why, or nil if it stays. It is a new ring where r is nil or no node has it any more: the keys of a ring that was
// out of use are old. No step follows on another before the nodes of every group have what it brought; so a rotation never overlaps with the next,
// and one that came due several times while nothing could move happens once.
func (r *ring) next(now time.Time, c Ring, st Standing) (*ring, string) {
	switch {
	case r == nil || st.Nowhere && st.Held == "":
		fresh := &ring{Name: c.Name, Phase: serving, Keys: [][]byte{newKey()}, Since: now, Switched: now}
		if r != nil {
			fresh.revision = r.revision
		}
		return fresh, "session ticket keys: the first key"
	case st.Held != "" || !st.Everywhere:
		return nil, ""
	case r.Phase == learning:
		keys := slices.Insert(slices.Delete(slices.Clone(r.Keys), 1, 2), 0, r.Keys[1])
		keys = keys[:min(len(keys), c.Keep)]
		return &ring{Name: r.Name, Phase: serving, Keys: keys, Since: now, Switched: now, revision: r.revision}, "session ticket keys: the new key encrypts"
	case now.Before(r.due(now, c)):
		return nil, ""
	default:
		keys := slices.Insert(slices.Clone(r.Keys[:min(len(r.Keys), c.Keep)]), 1, newKey())
		return &ring{Name: r.Name, Phase: learning, Keys: keys, Since: now, Switched: r.Switched, revision: r.revision}, "session ticket keys: nodes learn a new key"
	}
}

// due is when the key that encrypts shall have a successor. One that was put first in the future is due: the clock was set back.
func (r *ring) due(now time.Time, c Ring) time.Time {
	if r.Switched.After(now) {
		return now
	}
	return r.Switched.Add(c.Rotate)
}

// newKey makes a session ticket key.
func newKey() []byte {
	key := make([]byte, secret.TicketKeySize)
	rand.Read(key) // never fails
	return key
}

// lookRing takes a ring one step on, if one is due, and returns when to look again.
func (s *Source) lookRing(ctx context.Context, c Ring, now time.Time) (Status, time.Time) {
	st, due, err := s.step(ctx, c, now)
	if err == nil {
		delete(s.told, c.Name)
		return st, due
	}
	if s.told[c.Name] != err.Error() {
		s.told[c.Name] = err.Error()
		s.Log.ErrorContext(ctx, "session ticket keys not rotated", "secret", c.Name, "err", err)
	}
	st.Err = err
	return st, now.Add(lookInterval)
}

// step reads a ring from the store each time: what a commit left behind whose answer got lost is found there.
func (s *Source) step(ctx context.Context, c Ring, now time.Time) (Status, time.Time, error) {
	st := Status{Name: c.Name, Kind: secret.KindSessionTicketKeys}
	at, made, err := s.readRing(ctx, c.Name)
	if err != nil {
		return st, now, err
	}
	standing := Standing{}
	if at != nil {
		standing = s.Sink.Standing(c.Name, s.Sink.Version(made))
	}
	if next, reason := at.next(now, c, standing); next != nil {
		if made, err = s.propose(ctx, next, reason); err != nil {
			return st, now, err
		}
		at, standing = next, Standing{}
	}
	st.Version, st.Held, st.Learning = s.Sink.Version(made), standing.Held, at.Phase == learning
	st.Switched, st.Next = at.Switched.UTC(), at.due(now, c).UTC()
	if standing.Everywhere {
		return st, st.Next, nil
	}
	// A step that has taken long will take longer.
	return st, now.Add(max(stepInterval, min(now.Sub(at.Since)/10, lookInterval))), nil
}

// propose stores a ring's next state and hands its secret on, by one commit.
func (s *Source) propose(ctx context.Context, next *ring, reason string) (*secret.Secret, error) {
	made, err := secret.NewTicketKeys(next.Name, next.Keys)
	if err != nil {
		return nil, err
	}
	value, err := json.Marshal(next)
	if err != nil {
		return nil, fmt.Errorf("encode ring %q: %w", next.Name, err)
	}
	key := ringKey(next.Name)
	err = s.Sink.Accept(ctx, Proposal{
		Secret: made, Made: true, Reason: reason,
		Conditions: []store.Condition{{Key: key, Revision: next.revision}}, Operations: []store.Operation{store.Put(key, value)},
	})
	if err != nil {
		return nil, err
	}
	s.Log.InfoContext(ctx, "session ticket keys rotated", "secret", next.Name, "version", s.Sink.Version(made).Short(), "step", reason, "keys", len(next.Keys))
	return made, nil
}

// readRing returns the stored state of a ring and the secret that it makes; nil if there is none.
func (s *Source) readRing(ctx context.Context, name string) (*ring, *secret.Secret, error) {
	e, err := s.Store.Get(ctx, ringKey(name))
	if errors.Is(err, store.ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read ring %q: %w", name, err)
	}
	r := &ring{revision: e.Revision}
	if err := json.Unmarshal(e.Value, r); err != nil {
		return nil, nil, fmt.Errorf("stored value at %s: it is no ring", e.Key) // without err, which may quote it
	}
	if r.Name != name || r.Phase != serving && (r.Phase != learning || len(r.Keys) < 2) {
		return nil, nil, fmt.Errorf("stored value at %s: it is not that of ring %q", e.Key, name)
	}
	made, err := secret.NewTicketKeys(name, r.Keys)
	if err != nil {
		return nil, nil, fmt.Errorf("stored value at %s: %w", e.Key, err)
	}
	return r, made, nil
}

// dropRings deletes the keys of rings that are not configured and that no group serves any more.
func (s *Source) dropRings(ctx context.Context, configured []Ring) {
	stored, _, err := s.Store.List(ctx, ringPrefix+"/")
	if err != nil {
		return // what reads the rings that are configured says so
	}
	for _, e := range stored {
		name := store.Parts(e.Key)[1]
		known := slices.ContainsFunc(configured, func(c Ring) bool { return c.Name == name })
		if known || !s.Sink.Standing(name, "").Nowhere {
			continue
		}
		_, err := s.Store.Commit(ctx, []store.Condition{{Key: e.Key, Revision: e.Revision}}, []store.Operation{store.Delete(e.Key)})
		if err != nil {
			s.Log.WarnContext(ctx, "session ticket keys of a secret that is gone are still stored", "secret", name, "err", err)
		}
	}
}

func ringKey(name string) string { return store.Key(ringPrefix, name) }

func byName(a, b Status) int { return strings.Compare(a.Name, b.Name) }
